"""What a user can set when looking for sampler settings; torch-free, so that `--help` answers at once."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from latent_prior.evaluation.options import ScoreOptions

SWEPT = ("guidance_scale", "temperature", "top_k", "top_p")


@dataclass(kw_only=True)
class SweepOptions:
    """Find the sampler settings with the lowest distance, draw and score images with them, and make them the pipeline's default.

    Every combination of the values is measured on a few images, all drawn with the same random numbers; the best one
    once more on many. Repeating the command goes on where it stopped; with other values it adds to what is there.
    """

    pipeline: str
    """The pipeline folder; `sampler` in its pipeline.json becomes the best settings found."""
    output_dir: str
    """Folder for sweep.json, sweep.md, heatmap.png and the images of the best settings."""
    guidance_scale: list[float] = field(default_factory=list)
    """Values to try; empty keeps the pipeline's own, here and below."""
    temperature: list[float] = field(default_factory=list)
    """Values to try."""
    top_k: list[int] = field(default_factory=list)
    """Values to try; 0 means all codes."""
    top_p: list[float] = field(default_factory=list)
    """Values to try; 1 means all codes."""
    minimise: Literal["distance", "kid"] = "distance"
    """What is smallest for the best settings: the features' Frechet distance, or KID, which does not fall as sets grow."""
    num_images: int = 200
    """Images for each combination."""
    full_images: int = 1000
    """Images drawn and scored with the best one."""
    reference: str = "mnist5k"
    """Images to compare with, as of score.py."""
    reference_split: str = "train"
    """Split of the reference. Settings chosen on the split that is reported later would flatter it, hence not the test split."""
    features: str = "inception"
    """Feature network: `inception` (clean-fid's), `clip`, `efficientnet_lite0`, or the path of a TorchScript file."""
    batch_size: int = 64
    """Images computed at a time."""
    seed: int = 0
    """Seed of the images, which are those of generate.py with this seed, and of KID's subsets."""
    image_column: str = "image"
    """Column of the reference that holds the images."""
    image_size: int | None = None
    """Pixels every image is first resized and cropped to; null leaves its size alone."""
    channels: Literal[1, 3] | None = None
    """1 compares the images as grey; 3 or null as RGB, grey images with equal channels."""
    on_corrupt: Literal["error", "skip"] = "error"
    """What an unreadable image of the reference does: end the program with its name, or be left out and counted."""
    cpu_threads: int | None = None
    """Threads per process on a CPU; null shares the cores out among the processes of this machine."""

    def __post_init__(self) -> None:
        """Check what can be checked without the pipeline and the images."""
        for name in ("num_images", "full_images"):
            if getattr(self, name) < 2:
                raise ValueError(f"--{name} must be at least 2, not {getattr(self, name)}")
        for name, values in self.grid().items():
            for value in values:
                if values.count(value) > 1:
                    raise ValueError(f"--{name} names {value:g} twice")
        if not self.grid():
            flags = ", ".join(f"--{name}" for name in SWEPT)
            raise ValueError(f"there is nothing to try: give values to one of {flags}")
        self.score_options()

    def grid(self) -> dict[str, list[float]]:
        """The settings that are tried, with their values."""
        return {name: getattr(self, name) for name in SWEPT if getattr(self, name)}

    def score_options(self) -> ScoreOptions:
        """How the reference, and the images of the best settings, are read and compared."""
        return ScoreOptions(
            candidates=[f"best={self.output_dir}"],
            output_dir=self.output_dir,
            reference=self.reference,
            reference_split=self.reference_split,
            features=self.features,
            batch_size=self.batch_size,
            seed=self.seed,
            image_column=self.image_column,
            image_size=self.image_size,
            channels=self.channels,
            on_corrupt=self.on_corrupt,
            cpu_threads=self.cpu_threads,
        )
