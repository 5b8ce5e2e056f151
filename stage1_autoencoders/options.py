"""What a user can set for stage one, as plain dataclasses that need no torch."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from common.options import ImageOptions, RunOptions


@dataclass(kw_only=True)
class VQVAEOptions:
    """Shape of a VQ-VAE (van den Oord et al., 2017) and how its codebook learns."""

    width: int = 32
    """Channels of the convolutions at full resolution, before the multiplier."""
    multipliers: list[int] = field(default_factory=lambda: [1, 2, 4])
    """Channels at each resolution in units of width, full resolution first; every further one halves the image."""
    blocks: int | list[int] = 1
    """Residual blocks in the encoder, and again in the decoder: a number for every resolution, or a list of numbers."""
    attention: list[int] = field(default_factory=list)
    """Resolutions, in pixels, at which each residual block is followed by self-attention."""
    upsampling: Literal["nearest", "transposed"] = "nearest"
    """How the decoder doubles the size: repeated pixels and a 3x3 convolution, or a transposed 4x4 convolution."""
    codebook_size: int = 512
    """Vectors in the codebook."""
    code_dim: int = 16
    """Length of a code vector; the encoder's last and the decoder's first convolution project to and from it."""
    codebook: Literal["ema", "gradient"] = "ema"
    """How the codebook learns: moving averages of the vectors it is assigned, or gradients of the codebook loss."""
    distance: Literal["euclidean", "cosine"] = "euclidean"
    """What nearest means; cosine scales vectors and codes to length 1, which suits a code_dim of about 8."""
    commitment: float = 0.25
    """Weight beta of the loss that pulls the encoder's vectors to their codes; the codebook's own loss weighs 1."""
    codebook_decay: float = 0.99
    """Decay per step of the codebook's moving averages (with `gradient`: of the usage counts)."""
    restart_below: float = 0.1
    """A code used less than this share of an even use is replaced by a badly coded vector; 0 replaces none."""

    def __post_init__(self) -> None:
        """Check every number against its range.

        Raises:
            ValueError: naming the flag.
        """
        for name in ("width", "code_dim"):
            if getattr(self, name) < 1:
                raise ValueError(f"--model.{name} must be at least 1, not {getattr(self, name)}")
        if not self.multipliers or min(self.multipliers) < 1:
            raise ValueError(
                f"--model.multipliers must be numbers of at least 1, not {self.multipliers}"
            )
        if (
            len(self.blocks_per_resolution) != len(self.multipliers)
            or min(self.blocks_per_resolution) < 0
        ):
            raise ValueError(
                f"--model.blocks must be one number, or one for each of the multipliers {self.multipliers}, not {self.blocks}"
            )
        if self.codebook_size < 2:
            raise ValueError(f"--model.codebook_size must be at least 2, not {self.codebook_size}")
        if self.commitment < 0:
            raise ValueError(f"--model.commitment must not be negative, not {self.commitment}")
        for name in ("codebook_decay", "restart_below"):
            if not 0 <= getattr(self, name) < 1:
                raise ValueError(f"--model.{name} must lie in [0, 1), not {getattr(self, name)}")
        choices = {
            "upsampling": ("nearest", "transposed"),
            "codebook": ("ema", "gradient"),
            "distance": ("euclidean", "cosine"),
        }
        for name, allowed in choices.items():
            if getattr(self, name) not in allowed:
                raise ValueError(
                    f"--model.{name} must be one of {', '.join(allowed)}, not {getattr(self, name)!r}"
                )

    @property
    def blocks_per_resolution(self) -> list[int]:
        """Residual blocks at each resolution, full resolution first."""
        return (
            [self.blocks] * len(self.multipliers) if isinstance(self.blocks, int) else self.blocks
        )

    @property
    def downsampling(self) -> int:
        """Pixels of the image along one side of a code."""
        return 2 ** (len(self.multipliers) - 1)

    def check_image_size(self, image_size: int) -> None:
        """Stop before an image size that the resolutions do not fit.

        Raises:
            ValueError: naming the size and what it must be.
        """
        if image_size < 1 or image_size % self.downsampling:
            raise ValueError(
                f"--image_size {image_size} is not divisible by the downsampling {self.downsampling} "
                f"of the {len(self.multipliers)} multipliers {self.multipliers}"
            )
        resolutions = [image_size >> level for level in range(len(self.multipliers))]
        if unknown := sorted(set(self.attention) - set(resolutions)):
            raise ValueError(
                f"--model.attention {unknown[0]} is none of the resolutions {resolutions} of --image_size {image_size}"
            )


@dataclass(kw_only=True)
class TrainOptions(RunOptions, ImageOptions):
    """Train an autoencoder on images; repeating the command resumes the run."""

    model: VQVAEOptions = field(default_factory=VQVAEOptions)
    """Shape of the autoencoder."""
    reconstruction: Literal["l1", "l2"] = "l2"
    """Reconstruction error to minimise: mean absolute or mean squared difference."""
    split: str = "train"
    """Split to train on."""
    streaming: bool = False
    """Read the images one after the other without an index, shuffled in a buffer; for sets too large for the disk."""
    validation_split: str | None = None
    """Split whose error is logged at every evaluation; null looks at training images only."""
    validation_images: int = 512
    """How many of its images are looked at."""
    random_crop: bool = False
    """Cut windows of image_size at random places; `resize` and `crop_padding` say how far they may move."""
    random_flip: bool = False
    """Mirror every second image left to right."""

    def __post_init__(self) -> None:
        """Check the numbers, and that image and model fit."""
        ImageOptions.__post_init__(self)
        RunOptions.__post_init__(self)
        if self.resize is not None and self.image_size is None:
            raise ValueError(
                "--resize needs --image_size, the size that is cut out of the resized image"
            )
        if self.image_size is not None:
            self.model.check_image_size(self.image_size)
        if self.streaming and (
            self.image_size is None or self.channels is None or self.evaluate_every is None
        ):
            raise ValueError(
                "--streaming needs --image_size, --channels and --evaluate_every: it cannot look ahead"
            )


@dataclass(kw_only=True)
class EncodeOptions(ImageOptions):
    """Write the codes of a dataset's images as a Hugging Face dataset; repeating the command goes on where it stopped."""

    autoencoder: str
    """Folder or hub id of a trained autoencoder."""
    output_dir: str
    """Folder of the codes dataset."""
    split: str | None = None
    """Split to encode; null encodes all of them."""
    crops: int = 0
    """Randomly moved windows per training image, besides the plain one; see `resize` and `crop_padding`."""
    flip: bool = False
    """Add the mirrored image to every window of a training image."""
    augmented_split: str = "train"
    """The split that gets windows and mirrored images; the others stay plain."""
    batch_size: int = 256
    """Images per forward pass and process."""
    shard_images: int = 1024
    """Images per unit of work: what a stopped run does again at most, and what one process holds in memory."""
    seed: int = 0
    """Seed of the windows."""
    cpu_threads: int | None = None
    """Threads per process on a CPU; null shares the cores out among the processes of this machine."""

    def __post_init__(self) -> None:
        """Check the numbers."""
        ImageOptions.__post_init__(self)
        for name in ("batch_size", "shard_images", "cpu_threads"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"--{name} must be at least 1, not {value}")
        if self.crops < 0:
            raise ValueError(f"--crops must not be negative, not {self.crops}")
        if self.crops and not self.crop_padding and self.resize is None:
            raise ValueError(
                "--crops needs room to move the window: set --crop_padding or --resize"
            )
