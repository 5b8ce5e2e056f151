"""What a user can set for the GANs, as plain dataclasses that need no torch."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from common.options import TrainingImageOptions, check_choices


@dataclass(kw_only=True)
class GeneratorOptions:
    """Shape of a generator; the critic mirrors it."""

    type: Literal["sngan", "r3gan"] = "r3gan"
    """`sngan`: convolutions, spectral norm and hinge loss; `r3gan`: residual blocks without normalisation, relativistic loss."""
    latent_dim: int = 64
    """Numbers in the noise that an image is made of."""
    width: int = 32
    """Channels at full resolution, before the multiplier."""
    multipliers: list[int] = field(default_factory=lambda: [1, 2, 4])
    """Channels at each resolution in units of width, full resolution first; every further one halves the image."""
    blocks: int | list[int] = 1
    """`sngan`: 3x3 convolutions, `r3gan`: residual blocks; a number for every resolution, or a list of numbers."""

    def __post_init__(self) -> None:
        """Check every number against its range.

        Raises:
            ValueError: naming the flag.
        """
        check_choices(self, {"type": ("sngan", "r3gan")})
        for name in ("latent_dim", "width"):
            if getattr(self, name) < 1:
                raise ValueError(f"--model.{name} must be at least 1, not {getattr(self, name)}")
        if not self.multipliers or min(self.multipliers) < 1:
            raise ValueError(
                f"--model.multipliers must be numbers of at least 1, not {self.multipliers}"
            )
        per_resolution = self.blocks_per_resolution
        if len(per_resolution) != len(self.multipliers) or min(per_resolution) < 0:
            raise ValueError(
                f"--model.blocks must be one number, or one for each of the multipliers {self.multipliers}, not {self.blocks}"
            )

    @property
    def blocks_per_resolution(self) -> list[int]:
        """Convolutions or residual blocks at each resolution, full resolution first."""
        return (
            [self.blocks] * len(self.multipliers) if isinstance(self.blocks, int) else self.blocks
        )

    def check_image_size(self, image_size: int) -> None:
        """Stop before an image size that the resolutions do not fit.

        Raises:
            ValueError: naming the size and what it must be.
        """
        downsampling = 2 ** (len(self.multipliers) - 1)
        if image_size < 1 or image_size % downsampling:
            raise ValueError(
                f"--image_size {image_size} is not divisible by the downsampling {downsampling} "
                f"of the {len(self.multipliers)} multipliers {self.multipliers}"
            )


@dataclass(kw_only=True)
class CriticOptions:
    """How the critic learns: training state, never part of the saved model."""

    width: int | None = None
    """Channels at full resolution, before the model's multipliers; null takes the generator's."""
    learning_rate: float | None = None
    """Peak learning rate of the critic's AdamW, on the generator's schedule; null takes the generator's."""
    steps: int = 1
    """Critic steps per step of the generator, each with new images: the generator learns in every so many steps."""
    gamma: float | None = None
    """Weight of the R1 and R2 penalties on the critic's gradient; null takes 1 for `r3gan`, none for `sngan`."""
    penalty_every: int = 1
    """Steps between penalties, each multiplied by this number."""

    def __post_init__(self) -> None:
        """Check every number against its range.

        Raises:
            ValueError: naming the flag.
        """
        for name in ("width", "steps", "penalty_every"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"--critic.{name} must be at least 1, not {value}")
        if self.learning_rate is not None and not self.learning_rate > 0:
            raise ValueError(f"--critic.learning_rate must be positive, not {self.learning_rate}")
        if self.gamma is not None and not self.gamma >= 0:
            raise ValueError(f"--critic.gamma must not be negative, not {self.gamma}")


@dataclass(kw_only=True)
class TrainOptions(TrainingImageOptions):
    """Train a GAN on images; repeating the command resumes the run."""

    model: GeneratorOptions = field(default_factory=GeneratorOptions)
    """The generator."""
    critic: CriticOptions = field(default_factory=CriticOptions)
    """The critic."""
    conditional: bool | None = None
    """Whether a class can be asked for; null means where the images have labels."""
    augment: list[Literal["color", "translation", "cutout"]] = field(default_factory=list)
    """Differentiable augmentations of everything the critic sees (Zhao et al., 2020), for small data."""
    learning_rate: float = 2e-4
    """Peak learning rate of the generator's AdamW."""
    beta1: float = 0.0
    """First-moment decay of both AdamWs: momentum makes the two networks circle each other."""
    beta2: float = 0.99
    """Second-moment decay of both AdamWs."""
    gradient_clip: float | None = None
    """Largest gradient norm of either network; null clips nothing."""

    def __post_init__(self) -> None:
        """Check the numbers, and that image and model fit."""
        TrainingImageOptions.__post_init__(self)
        if self.image_size is not None:
            self.model.check_image_size(self.image_size)
        if self.conditional and self.streaming:
            raise ValueError("--conditional: a stream does not say how many classes there are")

    @property
    def gamma(self) -> float:
        """Weight of the penalties."""
        default = 1.0 if self.model.type == "r3gan" else 0.0
        return default if self.critic.gamma is None else self.critic.gamma


@dataclass(kw_only=True)
class GenerateOptions:
    """Generate images into a folder; repeating the command goes on where it stopped."""

    gan: str
    """Folder or hub id of a generator."""
    output_dir: str
    """Folder for the PNG files, labels.csv, generation.json, about.json and grid.png."""
    num_images: int = 16
    """How many images."""
    labels: list[str] = field(default_factory=list)
    """Class numbers or names to draw in turn; empty takes all classes, -1 is any class."""
    truncation: float = 1.0
    """Multiplies the noise: below 1 images are more alike and more typical."""
    batch_size: int = 64
    """Images computed at a time."""
    seed: int = 0
    """Seed; an image depends on it, on its number and its label, not on the batch size or the number of processes."""
    cpu_threads: int | None = None
    """Threads per process on a CPU; null shares the cores out among the processes of this machine."""

    def __post_init__(self) -> None:
        """Check the numbers."""
        for name in ("num_images", "batch_size", "cpu_threads"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"--{name} must be at least 1, not {value}")
        if not self.truncation >= 0:
            raise ValueError(f"--truncation must not be negative, not {self.truncation}")
