"""What a user can set about the prior, as plain dataclasses that need no torch."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar, Literal

from latent_prior.options import Options, RunOptions, option


@dataclass(kw_only=True)
class PriorOptions(Options):
    """Shape, order and regularisation of the Transformer prior; the codes decide whether its head is categorical."""

    flag_prefix: ClassVar[str] = "model."

    order: Literal["raster", "masked"] = "raster"
    """Draw code after code (raster), or all at once in a few rounds of filling in masks (masked; codes only)."""
    positions: Literal["1d", "2d"] = "1d"
    """Rotary positions: places in the sequence, or rows and columns of the image that all code maps share."""
    width: int = option(256, at_least=1)
    """Channels of the residual stream; a multiple of 2 x heads, with 2-D positions of 4 x heads."""
    depth: int = option(6, at_least=1)
    """Transformer blocks."""
    heads: int = option(4, at_least=1)
    """Attention heads per block."""
    mlp_ratio: float = option(4.0, above=0)
    """Size of the MLP: as many weights as a plain one of mlp_ratio x width hidden channels (SwiGLU gets 2/3 of them)."""
    dropout: float = option(0.1, at_least=0, at_most=1)
    """Share of zeros in the input embedding and in what attention and MLP add to the residual stream."""
    class_conditional: bool = True
    """Condition on the image's class wherever the codes come with classes."""
    label_dropout: float = option(0.1, at_least=0, at_most=1)
    """Share of training images shown without their class, which is what classifier-free guidance needs."""
    gradient_checkpointing: bool = False
    """Compute each block twice in training instead of keeping its activations: less memory, a third more time."""
    mixtures: int = option(16, at_least=1)
    """Gaussians in the mixture that every latent number is drawn from; latents only."""
    chunk: int | None = option(None, at_least=1)
    """Latent channels drawn at a time; null means all of a place in a grid, 4 of a flat vector. Latents only."""

    def __post_init__(self) -> None:
        """Check every word and number against its range."""
        super().__post_init__()
        # Rotary positions turn pairs of channels, half of them by rows and half by columns where there are both.
        parts = 2 * self.heads * (2 if self.positions == "2d" else 1)
        if self.width % parts:
            raise ValueError(
                f"--model.width {self.width} must be a multiple of {parts // self.heads} x heads = {parts}"
            )


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
    validation_fraction: float = option(0.05, above=0, below=1)
    """Share of the training images set aside where there is no split to validate on."""
    validation_images: int = option(2048, at_least=1)
    """How many validation images are looked at, at most."""
    autoencoder: str | None = None
    """Folder or hub id of the autoencoder that wrote the codes; with it the sample grids show images."""
    guidance_scale: float = option(1.0, at_least=0)
    """Classifier-free guidance of the sample grids."""
    compile: bool = False
    """Compile the training step with torch.compile: half a minute or more at the start, then faster on most GPUs."""
