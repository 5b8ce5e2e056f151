"""Options of the prior and its training; torch-free."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar, Literal

from latent_prior.options import Options, RunOptions, option


@dataclass(kw_only=True)
class PriorOptions(Options):
    """Shape, order and regularisation of the Transformer prior."""

    flag_prefix: ClassVar[str] = "model."

    order: Literal["raster", "masked"] = "raster"
    """Sample code after code (raster), or fill in masks in a few rounds (masked; codes only)."""
    positions: Literal["1d", "2d"] = "1d"
    """Rotary positions: index in the sequence (1d), or row and column in the image (2d)."""
    width: int = option(256, at_least=1)
    """Channels of the residual stream; a multiple of 2 x heads, with 2d positions of 4 x heads."""
    depth: int = option(6, at_least=1, at_most=1000)
    """Transformer blocks."""
    heads: int = option(4, at_least=1)
    """Attention heads per block."""
    mlp_ratio: float = option(4.0, above=0)
    """MLP size: as many weights as a plain MLP with mlp_ratio x width hidden channels."""
    dropout: float = option(0.1, at_least=0, at_most=1)
    """Dropout of the input embedding and of the outputs of attention and MLP."""
    condition: Literal["class", "text", "none"] = "class"
    """Condition on the image's class if the codes have classes, on its caption, or on nothing."""
    label_dropout: float = option(0.1, at_least=0, at_most=1)
    """Share of training images without class or caption; classifier-free guidance needs some."""
    trained_guidance: float = option(1.0, at_least=1)
    """Guidance learnt in training, of codes: one pass per code then samples as two with this
    guidance_scale. A step takes 1.4 times as long."""
    gradient_checkpointing: bool = False
    """Recompute activations in the backward pass: less memory, a third more time."""
    patch: int = option(1, at_least=1)
    """Codes along each side of the patch of a map that is one position of the sequence; a small
    head predicts its codes one after another. Raster order of codes only."""
    mixtures: int = option(16, at_least=1)
    """Gaussians in the mixture of each vector of latents; latents only."""
    chunk: int | None = option(None, at_least=1)
    """Latent channels sampled at a time; null takes all of a grid, 4 of a flat latent."""

    def __post_init__(self) -> None:
        """Check the ranges, and that heads divide the width."""
        super().__post_init__()
        # Rotation acts on pairs of channels, with 2d positions half of them by row and column each.
        parts = 2 * self.heads * (2 if self.positions == "2d" else 1)
        if self.width % parts:
            raise ValueError(
                f"--model.width {self.width} must be a multiple of {parts // self.heads} x heads = {parts}"
            )
        # Only images without class or caption teach what guidance leads away from.
        if self.trained_guidance != 1 and (self.label_dropout == 0 or self.condition == "none"):
            raise ValueError(
                f"--model.trained_guidance {self.trained_guidance} needs a class or a caption, and "
                "--model.label_dropout above 0"
            )


@dataclass(kw_only=True)
class TrainOptions(RunOptions):
    """Train a Transformer prior on codes from encode.py; repeating the command resumes the run."""

    codes: str = option(path=True)
    """Folder of the codes dataset, or an address such as s3://bucket/codes, which is copied to the
    cache."""
    model: PriorOptions = field(default_factory=PriorOptions)
    """Shape of the prior."""
    split: str = "train"
    """Split to train on, with all its views."""
    validation_split: str | None = None
    """Split to validate on; null takes `validation` or else `validation_fraction`."""
    validation_fraction: float = option(0.05, above=0, below=1)
    """Share of the training images held out if there is no split to validate on."""
    validation_images: int = option(2048, at_least=1)
    """Largest number of validation images to use."""
    autoencoder: str | None = option(None, path=True)
    """Folder or hub id of the autoencoder that wrote the codes; sample grids then show images."""
    guidance_scale: float = option(1.0, at_least=0)
    """Classifier-free guidance of the sample grids."""
    text_vocabulary: int | None = option(None, at_least=256)
    """Most tokens of the captions' own tokenizer; null is 4096."""
    text_encoder: str | None = option(None, path=True)
    """Folder or hub id of a frozen text encoder instead of an own tokenizer."""
    text_length: int | None = option(None, at_least=1)
    """Most tokens in a caption or prompt, none is cut; null is twice the longest caption's, or what
    the encoder reads."""
    compile: bool = False
    """Use torch.compile: half a minute or more at the start, then faster on most GPUs."""

    def __post_init__(self) -> None:
        """Check that captions are read by what there is for them."""
        super().__post_init__()
        given = [
            name
            for name in ("text_vocabulary", "text_encoder", "text_length")
            if getattr(self, name) is not None
        ]
        if given and self.model.condition != "text":
            raise ValueError(f"--{given[0]} is for --model.condition text")
        if self.text_encoder is not None and self.text_vocabulary is not None:
            raise ValueError("--text_vocabulary has no effect with --text_encoder; leave it out")
