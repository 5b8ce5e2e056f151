"""What the page shows: a pipeline with its name, and how much of it one visitor may ask for."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

from latent_prior.pipelines.pipeline import Pipeline

MOST_IMAGES = 16
MOST_PIXELS = MOST_IMAGES * 128**2  # 4 images of 256 x 256 at a time, 1 of 512 x 512
MOST_LETTERS = 1000
MOST_STEPS = 64
"""Rounds of a masked prior."""


@dataclass(frozen=True)
class Shown:
    """A pipeline on the page.

    Attributes:
        pipe: the pipeline.
        source: its folder or hub id, as it was given.
        generate: the words that start `generate.py` here.
    """

    pipe: Pipeline
    source: str
    generate: str = "python pipelines/generate.py"

    @property
    def draws(self) -> bool:
        """Whether it makes images from nothing: from a prior, or latents from N(0, I)."""
        return self.pipe.prior is not None or self.pipe.code_spec.kind == "latents"

    @property
    def most(self) -> int:
        """How many images one visitor may ask for at a time, so that the others' turn comes."""
        return max(1, min(MOST_IMAGES, MOST_PIXELS // self.pipe.code_spec.image_size**2))

    @property
    def name(self) -> str:
        """The last part of its source that says something."""
        parts = [part for part in self.source.replace("\\", "/").split("/") if part.strip(".")]
        return next((part for part in reversed(parts) if part != "pipeline"), "pipeline")

    @property
    def facts(self) -> str:
        """The kind and size of its images, codes and models, in one line."""
        spec = self.pipe.code_spec
        kind = "grey" if spec.image_channels == 1 else "colour"
        levels = " and ".join(
            f"{level.height} x {level.width}"
            + (f" of {level.vocabulary}" if level.vocabulary else f" x {level.channels}")
            for level in spec.levels
        )
        weights = sum(model.num_parameters() for model in self.pipe.components.values())
        return (
            f"{spec.image_size} x {spec.image_size} pixels, {kind} · "
            f"{spec.autoencoder_type.removeprefix('latent_prior_')}, "
            f"{spec.kind} {levels} · {weights / 1e6:.1f} million weights"
        )

    def check_count(self, count: int) -> int:
        """The number of images to draw.

        Raises:
            ValueError: it is more than one visitor may ask for.
        """
        if count > self.most:
            raise ValueError(f"num_images must be at most {self.most} on this page, not {count}")
        return count

    def changed(self, settings: dict[str, object]) -> dict[str, object]:
        """The settings that differ from the pipeline's defaults."""
        defaults = dataclasses.asdict(self.pipe.sampler)
        return {name: value for name, value in settings.items() if value != defaults[name]}
