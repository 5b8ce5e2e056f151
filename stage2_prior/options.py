"""What a user can set about the prior, as plain dataclasses that need no torch."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from common.options import RunOptions, check_choices


@dataclass(kw_only=True)
class PriorOptions:
    """Shape, order and regularisation of the Transformer prior; the codes decide whether its head is categorical."""

    order: Literal["raster", "masked"] = "raster"
    """Draw code after code (raster), or all at once in a few rounds of filling in masks (masked; codes only)."""
    positions: Literal["1d", "2d"] = "1d"
    """Rotary positions: places in the sequence, or rows and columns of the image that all code maps share."""
    width: int = 256
    """Channels of the residual stream; a multiple of 2 x heads, with 2-D positions of 4 x heads."""
    depth: int = 6
    """Transformer blocks."""
    heads: int = 4
    """Attention heads per block."""
    mlp_ratio: float = 4.0
    """Size of the MLP: as many weights as a plain one of mlp_ratio x width hidden channels (SwiGLU gets 2/3 of them)."""
    dropout: float = 0.1
    """Share of zeros in the input embedding and in what attention and MLP add to the residual stream."""
    class_conditional: bool = True
    """Condition on the image's class wherever the codes come with classes."""
    label_dropout: float = 0.1
    """Share of training images shown without their class, which is what classifier-free guidance needs."""
    gradient_checkpointing: bool = False
    """Compute each block twice in training instead of keeping its activations: less memory, a third more time."""
    mixtures: int = 16
    """Gaussians in the mixture that every latent number is drawn from; latents only."""
    chunk: int | None = None
    """Latent channels drawn at a time; null means all of a place in a grid, 4 of a flat vector. Latents only."""

    def __post_init__(self) -> None:
        """Check every word and number against its range."""
        check_choices(self, {"order": ("raster", "masked"), "positions": ("1d", "2d")})
        for name in ("width", "depth", "heads", "mixtures", "chunk"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"--model.{name} must be at least 1, not {value}")
        # Rotary positions turn pairs of channels, half of them by rows and half by columns where there are both.
        parts = 2 * self.heads * (2 if self.positions == "2d" else 1)
        if self.width % parts:
            raise ValueError(
                f"--model.width {self.width} must be a multiple of {parts // self.heads} x heads = {parts}"
            )
        if not self.mlp_ratio > 0:
            raise ValueError(f"--model.mlp_ratio must be positive, not {self.mlp_ratio}")
        for name in ("dropout", "label_dropout"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"--model.{name} must lie in [0, 1], not {getattr(self, name)}")


@dataclass(kw_only=True)
class TrainOptions(RunOptions):
    """Train a Transformer prior on the codes that encode.py wrote; repeating the command resumes the run."""

    codes: str
    """Folder of the codes dataset."""
    model: PriorOptions = field(default_factory=PriorOptions)
    """Shape of the prior."""
    split: str = "train"
    """Split to train on, with all its views."""
    validation_split: str | None = None
    """Split for the validation loss; null takes `validation` or `test`, or else sets `validation_fraction` aside."""
    validation_fraction: float = 0.05
    """Share of the training images set aside where there is no split to validate on."""
    validation_images: int = 2048
    """How many validation images are looked at, at most."""
    autoencoder: str | None = None
    """Folder or hub id of the autoencoder that wrote the codes; with it the sample grids show images."""
    guidance_scale: float = 1.0
    """Classifier-free guidance of the sample grids."""
    compile: bool = False
    """Compile the training step with torch.compile: half a minute or more at the start, then faster on most GPUs."""

    def __post_init__(self) -> None:
        """Check the numbers."""
        RunOptions.__post_init__(self)
        if not 0 < self.validation_fraction < 1:
            raise ValueError(
                f"--validation_fraction must lie in (0, 1), not {self.validation_fraction}"
            )
        if self.validation_images < 1:
            raise ValueError(
                f"--validation_images must be at least 1, not {self.validation_images}"
            )
        if self.guidance_scale < 0:
            raise ValueError(f"--guidance_scale must not be negative, not {self.guidance_scale}")
