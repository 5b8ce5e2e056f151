"""What a user can set for the pipeline's commands, as plain dataclasses that need no torch."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass(kw_only=True)
class AssembleOptions:
    """Put an autoencoder and the prior over its codes into one pipeline folder."""

    autoencoder: str
    """Folder or hub id of the autoencoder."""
    prior: str | None = None
    """Folder or hub id of the prior; with null a VAE's pipeline samples N(0, I), others encode and decode only."""
    output_dir: str
    """The pipeline folder."""
    guidance_scale: float = 1.0
    """Default classifier-free guidance; 1 is none."""
    temperature: float = 1.0
    """Default temperature; 0 always takes the likeliest code."""
    top_k: int = 0
    """Default number of likeliest codes to choose from; 0 means all."""
    top_p: float = 1.0
    """Default probability of the set of likeliest codes to choose from; 1 means all."""


@dataclass(kw_only=True)
class GenerateOptions:
    """Generate images into a folder; repeating the command goes on where it stopped."""

    pipeline: str
    """Folder or hub id of a pipeline."""
    output_dir: str
    """Folder for the PNG files, labels.csv, generation.json and grid.png."""
    num_images: int = 16
    """How many images."""
    labels: list[str] = field(default_factory=list)
    """Class numbers or names to draw in turn; empty takes all classes, -1 is any class."""
    guidance_scale: float | None = None
    """Classifier-free guidance, 1 is none; null takes the pipeline's default, here and below."""
    temperature: float | None = None
    """Divides the logits; 0 always takes the likeliest code."""
    top_k: int | None = None
    """Codes to choose from, the likeliest; 0 means all."""
    top_p: float | None = None
    """Probability of the set of likeliest codes to choose from; 1 means all."""
    random_codes: bool = False
    """Decode uniformly random codes in place of the prior's: the line any prior must beat."""
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
