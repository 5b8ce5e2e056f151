"""What a user can set when measuring likelihoods; torch-free, so that `--help` answers at once."""

from __future__ import annotations

from dataclasses import dataclass

from latent_prior.options import ImageOptions


@dataclass(kw_only=True)
class LikelihoodOptions(ImageOptions):
    """Bits per dimension of held-out images under a whole pipeline: an upper bound, from the prior and the decoder."""

    pipeline: str
    """Folder or hub id of a pipeline."""
    output_dir: str
    """Folder for likelihood.json and likelihood.md."""
    split: str = "test"
    """Split of the images to measure."""
    num_images: int | None = None
    """Images to measure, a seeded random choice; null takes all."""
    draws: int | None = None
    """Draws per image from a VAE's posterior, or of a masked prior's masks; null is 4. Where nothing is random there is one."""
    conditional: bool = True
    """Give a class-conditional prior the image's own class; false measures it as a prior of any class."""
    fit_split: str = "train"
    """Split that the scales of the pixels' distribution are fitted to, where the autoencoder has none of its own."""
    fit_images: int = 1000
    """Images they are fitted to, a seeded random choice of at most so many."""
    batch_size: int = 64
    """Images computed at a time."""
    seed: int = 0
    """Seed of the choice of images and of the draws; those from a posterior depend on it and on the image's row alone."""
    cpu_threads: int | None = None
    """Threads per process on a CPU; null shares the cores out among the processes of this machine."""

    def __post_init__(self) -> None:
        """Check the numbers."""
        ImageOptions.__post_init__(self)
        for name in ("draws", "fit_images", "batch_size", "cpu_threads"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"--{name} must be at least 1, not {value}")
        if self.num_images is not None and self.num_images < 2:
            raise ValueError(f"--num_images must be at least 2, not {self.num_images}")
        if self.seed < 0:
            raise ValueError(f"--seed must not be negative, not {self.seed}")
