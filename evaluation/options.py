"""What a user can set when scoring; torch-free, so that `--help` answers at once."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, NamedTuple

from latent_prior.options import ImageOptions

REFERENCE = "reference"
RECONSTRUCTIONS = "reconstructions"
PUBLISHED = "fid:"
NETWORKS = ("inception", "clip", "efficientnet_lite0")


class Candidate(NamedTuple):
    """One set of images to score: a folder of images, or a split of a data set."""

    name: str
    source: str
    split: str | None  # None: source is a folder


@dataclass(kw_only=True)
class ScoreOptions:
    """Score sets of images against a reference: FID, KID, precision and recall, and PSNR and SSIM of reconstructions."""

    candidates: list[str] = field(default_factory=list)
    """What to score, each NAME=FOLDER (images from any generator) or NAME=DATASET[SPLIT], as `real=mnist5k[train]`, a point of reference that no best value is given to; with pipeline none is needed."""
    output_dir: str
    """Folder for scores.json, scores.md and report.html."""
    reference: str = "mnist5k"
    """Images to compare with: `mnist5k` (embedded), a local image folder, a folder of parquet or arrow files, a hub id, or `fid:NAME/RESOLUTION/SPLIT` for statistics that clean-fid publishes, as `fid:cifar10/32/train`."""
    reference_split: str = "test"
    """Split of the reference."""
    features: str = "inception"
    """Feature network: `inception` (clean-fid's), `clip`, `efficientnet_lite0`, or the path of a TorchScript file."""
    num_images: int | None = None
    """Images taken from every set, a seeded random choice; null takes all that each has, and candidates must then have equally many."""
    pipeline: str | None = None
    """Pipeline folder or hub id; adds the row `reconstructions`, the reference through its autoencoder and back."""
    perceptual: Literal["none", "lpips"] = "none"
    """Add the column `lpips` to the reconstructions; its weights, VGG-16's, must be on this machine."""
    class_accuracy: bool = False
    """Add the column `class_accuracy`, higher is better: the share of a candidate's images that a classifier takes for the class in the folder's labels.csv, or in the data set. The classifier is a small convolutional network trained for this run on `train_split`, half a minute for mnist5k on one core; what it reaches on the reference, the ceiling, stands in the protocol."""
    nearest: bool = False
    """Look up the nearest training image of every candidate's image, in the features: the column `authenticity` and pairs of pictures."""
    train_split: str = "train"
    """Split of the reference that the classifier of class_accuracy learns from and that nearest looks in."""
    compare: list[str] = field(default_factory=list)
    """Put the rows of several scores.json of one protocol into one table and one report, in place of scoring."""
    batch_size: int = 64
    """Images per forward pass."""
    kid_subsets: int = 100
    """Random subsets that KID is averaged over, where a set is larger than one subset."""
    kid_subset_size: int = 1000
    """Images in each of KID's subsets."""
    seed: int = 0
    """Seed of the choice of images, of KID's subsets and of the classifier."""
    image_column: str = "image"
    """Column of a data set that holds the images."""
    label_column: str | None = None
    """Column of a data set that holds the class labels; null takes `label` where it exists."""
    image_size: int | None = None
    """Pixels every image, scored or reference, is first resized and cropped to; null leaves its size alone."""
    channels: Literal[1, 3] | None = None
    """1 compares the images as grey; 3 or null as RGB, grey images with equal channels. Transparency is laid over white."""
    on_corrupt: Literal["error", "skip"] = "error"
    """What an unreadable image does: end the program with its name, or be left out and counted."""
    cpu_threads: int | None = None
    """Threads per process on a CPU; null shares the cores out among the processes of this machine."""

    def __post_init__(self) -> None:
        """Check what can be checked without reading images."""
        self._check_numbers()
        if self.features not in NETWORKS and not Path(self.features).is_file():
            raise ValueError(
                f"--features {self.features!r} is neither {', '.join(NETWORKS)} nor an existing TorchScript file"
            )
        if self.compare and (self.candidates or self.pipeline is not None):
            raise ValueError("--compare scores nothing: leave out --candidates and --pipeline")
        if self.perceptual != "none" and self.pipeline is None:
            raise ValueError(
                f"--perceptual {self.perceptual} measures reconstructions: give the autoencoder by --pipeline"
            )
        if self.published:
            self._check_published()
        if not self.candidates and self.pipeline is None and not self.compare:
            raise ValueError(
                "there is nothing to score: name sets of images by --candidates NAME=FOLDER, or give --pipeline"
            )
        names = [candidate.name for candidate in self.parsed_candidates()]
        for name in names:
            if names.count(name) > 1:
                raise ValueError(f"--candidates names {name!r} twice: give each set its own name")
            if name == RECONSTRUCTIONS and self.pipeline is not None:
                raise ValueError(
                    f"--candidates: the name {name!r} is taken by the row that --pipeline adds"
                )

    def _check_numbers(self) -> None:
        for name in ("batch_size", "kid_subsets", "image_size", "cpu_threads"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"--{name} must be at least 1, not {value}")
        for name in ("num_images", "kid_subset_size"):
            value = getattr(self, name)
            if value is not None and value < 2:
                raise ValueError(f"--{name} must be at least 2, not {value}")
        if self.seed < 0:
            raise ValueError(f"--seed must not be negative, not {self.seed}")

    @property
    def published(self) -> str | None:
        """NAME/RESOLUTION/SPLIT of the published statistics that are the reference; None where it is images."""
        return (
            self.reference.removeprefix(PUBLISHED) if self.reference.startswith(PUBLISHED) else None
        )

    def _check_published(self) -> None:
        """Statistics hold no images.

        Raises:
            ValueError: naming the flag that needs images.
        """
        for name in ("pipeline", "class_accuracy", "nearest"):
            if getattr(self, name):
                raise ValueError(
                    f"--{name} needs the reference's images, --reference {self.reference} is statistics alone: name the data set"
                )

    def parsed_candidates(self) -> list[Candidate]:
        """The candidates in the order given.

        Raises:
            ValueError: naming the entry that is neither NAME=FOLDER nor NAME=DATASET[SPLIT].
        """
        return [_parse(entry) for entry in self.candidates]

    def image_options(self, dataset: str) -> ImageOptions:
        """How the images of the data set or folder `dataset` are read: one after the other, never kept."""
        return ImageOptions(
            dataset=dataset,
            image_column=self.image_column,
            label_column=self.label_column,
            image_size=self.image_size,
            channels=self.channels or 3,
            on_corrupt=self.on_corrupt,
            cache_mb=0,
        )


def _parse(entry: str) -> Candidate:
    name, equals, source = entry.partition("=")
    if not equals or not name.strip() or not source.strip():
        raise ValueError(f"--candidates: {entry!r} is neither NAME=FOLDER nor NAME=DATASET[SPLIT]")
    name, source = name.strip(), source.strip()
    match = re.fullmatch(r"(?P<dataset>.+)\[(?P<split>[^\[\]]+)\]", source)
    if match is None or Path(source).is_dir():  # a folder may have brackets in its name
        return Candidate(name, source, None)
    return Candidate(name, match["dataset"], match["split"])
