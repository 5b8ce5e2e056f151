"""Options of `score.py` and what they share with `sweep.py`; torch-free."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, NamedTuple

from latent_prior.data.captions import NO_CAPTIONS
from latent_prior.options import (
    ComputeOptions,
    ImageOptions,
    ReadOptions,
    expanded_path,
    option,
)

REFERENCE = "reference"
RECONSTRUCTIONS = "reconstructions"
PUBLISHED = "fid:"
NETWORKS = ("inception", "clip", "efficientnet_lite0")
SWEPT = ("guidance_scale", "temperature", "top_k", "top_p")
"""Sampler settings that `sweep.py` tries values of."""


LONGEST_NAME = 200
"""Characters of a candidate's name."""


class Candidate(NamedTuple):
    """One set of images to score: a folder of images, or a split of a data set."""

    name: str
    source: str
    split: str | None  # None: source is a folder


@dataclass(kw_only=True)
class ReferenceOptions(ComputeOptions, ReadOptions):
    """The images that others are compared with, and the features that are compared."""

    reference: str = option("mnist5k", path=True)
    """Images to compare with: `mnist5k` or `shapes` (embedded), a local image folder, a folder of
    parquet or arrow files, a hub id, or statistics published by clean-fid, e.g.
    `fid:cifar10/32/train`."""
    reference_split: str = "test"
    """Split of the reference."""
    features: str = option("inception", path=True)
    """Feature network: `inception` (clean-fid's), `clip`, `efficientnet_lite0`, or the path of
    a TorchScript file, which is code: take it only from people you trust."""
    batch_size: int = option(64, at_least=1)
    """Images per forward pass."""
    image_size: int | None = option(None, at_least=1)
    """Height and width that all images are first resized and cropped to; null keeps their sizes."""
    channels: Literal[1, 3] | None = None
    """1 compares images as grey, 3 or null as RGB. Transparency is laid over white."""

    def __post_init__(self) -> None:
        """Check the ranges and the feature network."""
        super().__post_init__()
        if self.features not in NETWORKS and not Path(self.features).is_file():
            raise ValueError(
                f"--features {self.features!r} is neither {', '.join(NETWORKS)} nor an existing TorchScript file"
            )

    @property
    def published(self) -> str | None:
        """NAME/RESOLUTION/SPLIT of published statistics; None if the reference is images."""
        is_published = self.reference.startswith(PUBLISHED)
        return self.reference.removeprefix(PUBLISHED) if is_published else None

    def image_options(self, dataset: str) -> ImageOptions:
        """How the images of the data set or folder `dataset` are read: in order, never cached."""
        return ImageOptions(
            dataset=dataset,
            image_column=self.image_column,
            label_column=self.label_column,
            caption_column=NO_CAPTIONS,
            image_size=self.image_size,
            channels=self.channels or 3,
            on_corrupt=self.on_corrupt,
            max_pixels=self.max_pixels,
            cache_mb=0,
        )


@dataclass(kw_only=True)
class ScoreOptions(ReferenceOptions):
    """Score sets of images against a reference: FID, KID, precision, recall and others."""

    candidates: list[str] = option(factory=list)
    """Sets to score, each NAME=FOLDER (images from any generator) or NAME=DATASET[SPLIT]. A dataset
    split such as `real=mnist5k[train]` is a baseline and is never marked best. Optional with
    --pipeline."""
    output_dir: str = option(path=True)
    """Folder for scores.json, scores.md and report.html."""
    num_images: int | None = option(None, at_least=2)
    """Images chosen at random from every set; null takes all, which must be equally many."""
    pipeline: str | None = option(None, path=True)
    """Pipeline folder or hub id; adds the row `reconstructions` of the reference."""
    perceptual: Literal["none", "lpips"] = "none"
    """Add the column `lpips` to the reconstructions; needs VGG-16's weights on this machine."""
    class_accuracy: bool = False
    """Add the column `class_accuracy`: the share of images that a small classifier, trained on
    train_split for this run, assigns to their class (in labels.csv or in the data set)."""
    nearest: bool = False
    """Find the nearest training image of every generated image: adds the column `authenticity` and
    pairs of images."""
    train_split: str = "train"
    """Split of the reference that class_accuracy trains on and nearest searches."""
    compare: list[str] = option(factory=list, path=True)
    """Instead of scoring, merge several scores.json of one protocol into one report."""
    kid_subsets: int = option(100, at_least=1)
    """Random subsets that KID is averaged over, if a set is larger than one subset."""
    kid_subset_size: int = option(1000, at_least=2)
    """Images in each of KID's subsets."""
    seed: int = option(0, at_least=0)
    """Seed of the choice of images, of KID's subsets and of the classifier."""

    def __post_init__(self) -> None:
        """Check what can be checked without reading images."""
        super().__post_init__()
        if self.compare and (self.candidates or self.pipeline is not None):
            raise ValueError("--compare scores nothing: leave out --candidates and --pipeline")
        if self.perceptual != "none" and self.pipeline is None:
            raise ValueError(
                f"--perceptual {self.perceptual} measures reconstructions: give the autoencoder by --pipeline"
            )
        for name in ("pipeline", "class_accuracy", "nearest"):
            if self.published and getattr(self, name):
                raise ValueError(
                    f"--{name} needs the reference's images, but --reference {self.reference} is statistics alone: "
                    "name the data set"
                )
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

    def parsed_candidates(self) -> list[Candidate]:
        """The candidates in the order given.

        Raises:
            ValueError: an entry is neither NAME=FOLDER nor NAME=DATASET[SPLIT].
        """
        return [_parse(entry) for entry in self.candidates]


def _parse(entry: str) -> Candidate:
    name, _, source = (part.strip() for part in entry.partition("="))
    if not name or not source:
        raise ValueError(f"--candidates: {entry!r} is neither NAME=FOLDER nor NAME=DATASET[SPLIT]")
    if not name.isprintable() or len(name) > LONGEST_NAME:
        raise ValueError(
            f"--candidates: the name {name[:40]!a} must be at most {LONGEST_NAME} characters "
            "that can be printed"
        )
    if any("\ud800" <= letter <= "\udfff" for letter in source):
        raise ValueError(
            f"--candidates: {source!a} is not Unicode text, so no report can name it; rename it"
        )
    match = re.fullmatch(r"(?P<dataset>.+)\[(?P<split>[^\[\]]+)\]", source)
    if (
        match is None or Path(os.path.expanduser(source)).is_dir()
    ):  # a folder may have brackets in its name
        return Candidate(name, expanded_path(f"--candidates {name}", source), None)
    dataset = expanded_path(f"--candidates {name}", match["dataset"])
    return Candidate(name, dataset, match["split"])
