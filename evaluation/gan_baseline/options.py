"""Options of the GAN baseline; they need no torch."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import ClassVar, Literal

from latent_prior.options import Options, ResolutionOptions, TrainingImageOptions, option
from latent_prior.pipelines.options import ImageFolderOptions


@dataclass(kw_only=True)
class GeneratorOptions(ResolutionOptions):
    """Shape of a generator; the critic mirrors it."""

    type: Literal["sngan", "r3gan"] = "r3gan"
    """`sngan`: convolutions, a critic with spectral norm; `r3gan`: residual blocks, no norm."""
    latent_dim: int = option(64, at_least=1)
    """Dimensions of the noise vector."""
    blocks: int | list[int] = option(1, at_least=0)
    """Convolutions (`sngan`) or residual blocks (`r3gan`) per resolution: a number or a list."""


@dataclass(kw_only=True)
class CriticOptions(Options):
    """How the critic learns: training state, never part of the saved model."""

    flag_prefix: ClassVar[str] = "critic."

    width: int | None = option(None, at_least=1)
    """Channels at full resolution, before the model's multipliers; null takes the generator's."""
    learning_rate: float | None = option(None, above=0, may_change=True)
    """Peak learning rate of the critic's AdamW; null takes the generator's. Same schedule."""
    steps: int = option(1, at_least=1)
    """Critic steps per generator step, each with new images."""
    gamma: float = option(1.0, at_least=0)
    """Weight of the R1 and R2 gradient penalties."""
    final_gamma: float | None = option(None, at_least=0)
    """Weight at max_steps, reached by a cosine from `gamma`; null keeps it constant."""
    penalty_every: int = option(1, at_least=1)
    """A step penalises one in so many of its images; 1, as published, penalises all."""


@dataclass(kw_only=True)
class TrainOptions(TrainingImageOptions):
    """Train a GAN on images; repeating the command resumes the run."""

    model: GeneratorOptions = field(default_factory=GeneratorOptions)
    """The generator."""
    critic: CriticOptions = field(default_factory=CriticOptions)
    """The critic."""
    conditional: bool | None = None
    """Whether to condition on the class; null: if the images have labels."""
    augment: list[Literal["color", "translation", "cutout"]] = field(default_factory=list)
    """Differentiable augmentations of the critic's inputs (Zhao et al., 2020), for small data."""
    learning_rate: float = option(2e-4, above=0, may_change=True)
    """Peak learning rate of the generator's AdamW."""
    beta1: float = option(0.0, at_least=0, below=1)
    """First-moment decay of both AdamWs: momentum makes the two networks circle each other."""
    beta2: float = option(0.99, at_least=0, below=1)
    """Second-moment decay of both AdamWs, at the start of the run."""
    final_beta2: float | None = option(None, at_least=0, below=1)
    """The same at max_steps, reached by a cosine; null keeps it constant."""
    gradient_clip: float | None = option(None, above=0)
    """Largest gradient norm of either network; null clips nothing."""

    def __post_init__(self) -> None:
        """Check the numbers, and that image and model fit."""
        super().__post_init__()
        if self.image_size is not None:
            self.model.check_image_size(self.image_size)

    def gamma_at(self, step: int) -> float:
        """Weight of the penalties after `step` completed steps."""
        return self._annealed(self.critic.gamma, self.critic.final_gamma, step)

    def beta2_at(self, step: int) -> float:
        """Second-moment decay after `step` completed steps."""
        return self._annealed(self.beta2, self.final_beta2, step)

    def _annealed(self, start: float, end: float | None, step: int) -> float:
        """From `start` to `end` by a cosine over `max_steps`, a pure function of the step."""
        if end is None:
            return start
        progress = min(1.0, step / max(1, self.max_steps))
        return end + (start - end) * 0.5 * (1 + math.cos(math.pi * progress))


@dataclass(kw_only=True)
class GenerateOptions(ImageFolderOptions):
    """Generate images into a folder; repeating the command continues where it stopped."""

    gan: str = option(path=True)
    """Folder or hub id of a generator."""
    truncation: float = option(1.0, at_least=0)
    """Multiplies the noise: below 1, images are more typical and less diverse."""
