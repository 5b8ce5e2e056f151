"""The contract between the stages: what codes look like (`CodeSpec`).

Stage 1 describes its codes in a `CodeSpec`. The spec is stored with the autoencoder, the codes
dataset, the prior and the pipeline, and every hand-over compares the two sides. No number that
couples the stages is hard-coded.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, fields, replace
from itertools import chain
from pathlib import Path
from typing import Any, Literal, TypeVar

import numpy as np
import torch

from latent_prior.options import ImageOptions
from latent_prior.records import convert_record, write_record

SPEC_FILE = "code_spec.json"
LARGEST_SIDE, LARGEST_VOCABULARY = 1 << 16, 1 << 24
LARGEST_FLOAT16 = 65504.0
CAPTIONS = "captions"
RESERVED = ("label", CAPTIONS, "view", "source_index")
"""Columns of a codes dataset that are no levels."""

CodeMaps = dict[str, torch.Tensor]
"""A batch by level, coarse first.

Codes are integers (B, height, width), latents floats (B, channels, height, width).
"""


@dataclass(frozen=True)
class Level:
    """One map of codes (`vocabulary` is set) or latents (`channels` is set).

    Codes are integers in [0, vocabulary).
    """

    name: str
    height: int
    width: int
    vocabulary: int | None = None
    channels: int | None = None

    def __post_init__(self) -> None:
        """Check the name and the numbers.

        Raises:
            ValueError: naming the field and the value.
        """
        if not self.name.isidentifier() or self.name in RESERVED:
            raise ValueError(f"name must be a column of its own, not {self.name[:40]!r}")
        for field, largest in (
            ("height", LARGEST_SIDE),
            ("width", LARGEST_SIDE),
            ("channels", LARGEST_SIDE),
            ("vocabulary", LARGEST_VOCABULARY),
        ):
            value = getattr(self, field)
            if value is not None and not 1 <= value <= largest:
                raise ValueError(f"{field} must lie between 1 and {largest}, not {value:.6g}")
        if (self.vocabulary is None) == (self.channels is None):
            raise ValueError("a level has either a vocabulary or channels")

    @property
    def length(self) -> int:
        """Positions in the map."""
        return self.height * self.width

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape for one image: (height, width) or, for latents, (channels, height, width)."""
        size = (self.height, self.width)
        return size if self.channels is None else (self.channels, *size)

    @property
    def dtype(self) -> np.dtype[Any]:
        """Stored type of one image's map, with its shape: float16 or the smallest integer type."""
        kind = np.float16 if self.vocabulary is None else np.min_scalar_type(self.vocabulary - 1)
        return np.dtype((kind, self.shape))


@dataclass(frozen=True)
class CodeSpec:
    """Everything one stage must know about the codes of another.

    Attributes:
        kind: `codes` (integers) or `latents` (floats).
        levels: the maps, coarse first.
        image_size: height and width of the square images, in pixels.
        image_channels: 1 (grey) or 3 (RGB).
        autoencoder_type: `model_type` of the autoencoder that wrote the codes.
        autoencoder_fingerprint: sha256 of that autoencoder's weights.
        class_names: names of the labels in the order of their numbers; empty without labels.
        latent_shift: mean of each channel, level after level; of encoded latents only.
        latent_scale: standard deviation of each channel, likewise.
    """

    kind: Literal["codes", "latents"]
    levels: tuple[Level, ...]
    image_size: int
    image_channels: int
    autoencoder_type: str
    autoencoder_fingerprint: str
    class_names: tuple[str, ...] = ()
    latent_shift: tuple[float, ...] | None = None
    latent_scale: tuple[float, ...] | None = None

    def __post_init__(self) -> None:
        """Check that the fields fit each other.

        Raises:
            ValueError: naming the field and what is wrong with it.
        """
        if not self.levels:
            raise ValueError("levels must name at least one map")
        if len({level.name for level in self.levels}) < len(self.levels):
            raise ValueError("levels must have different names")
        if any((level.vocabulary is None) != (self.kind == "latents") for level in self.levels):
            raise ValueError(f"levels do not fit the kind {self.kind!r}")
        if not 1 <= self.image_size <= LARGEST_SIDE:
            raise ValueError(f"image_size must lie between 1 and {LARGEST_SIDE}")
        if self.image_channels not in (1, 3):
            raise ValueError("image_channels must be 1 or 3")
        if len(set(self.class_names)) < len(self.class_names):
            raise ValueError("class_names must differ")
        for name in self.class_names:
            if any("\ud800" <= letter <= "\udfff" for letter in name):
                raise ValueError(f"class {name[:40]!a} is not Unicode text; rename it")
        self._check_statistics()

    def _check_statistics(self) -> None:
        channels = sum(level.channels or 0 for level in self.levels)
        for field in ("latent_shift", "latent_scale"):
            values: tuple[float, ...] | None = getattr(self, field)
            if values is None:
                continue
            if len(values) != channels:
                raise ValueError(f"{field} must have {channels} numbers, not {len(values)}")
            lowest = 0.0 if field == "latent_scale" else -LARGEST_FLOAT16
            wrong = [value for value in values if not lowest <= value <= LARGEST_FLOAT16]
            if wrong:
                raise ValueError(
                    f"{field} must lie between {lowest:g} and {LARGEST_FLOAT16:g}, not {wrong[0]:g}"
                )

    @property
    def length(self) -> int:
        """Positions per image over all levels."""
        return sum(level.length for level in self.levels)

    def to_dict(self) -> dict[str, Any]:
        """The spec as JSON-ready values; `from_dict` is the inverse."""
        return json.loads(json.dumps(asdict(self)))

    @classmethod
    def from_dict(
        cls,
        values: object,
        where: str = "code spec",
        way_out: str = "restore it, or write it again",
    ) -> CodeSpec:
        """Rebuild a spec from `to_dict`.

        Raises:
            ValueError: missing, unknown or wrong fields; names `where`, the field and the way out.
        """
        spec = convert_record(values, cls, where, way_out)
        assert isinstance(values, dict)
        known = {field.name for field in fields(cls)}
        of_level = {field.name for field in fields(Level)}
        unknown = sorted({*values} - known) + sorted({*chain(*values["levels"])} - of_level)
        if unknown:
            raise ValueError(f"{where}: unknown field {unknown[0][:40]!r}; {way_out}")
        return spec


def check_same_codes(first: CodeSpec, second: CodeSpec, first_name: str, second_name: str) -> None:
    """Check that two parts belong to the same codes.

    Class names and latent statistics are not compared: they describe a dataset, not the codes.

    Raises:
        ValueError: naming both parts, both fingerprints and the differing fields.
    """
    of_dataset = ("class_names", "latent_shift", "latent_scale")
    names = [field.name for field in fields(CodeSpec) if field.name not in of_dataset]
    differing = [name for name in names if getattr(first, name) != getattr(second, name)]
    if differing:
        raise ValueError(
            f"{second_name} uses the codes of autoencoder {second.autoencoder_fingerprint[:12]}, "
            f"{first_name} those of {first.autoencoder_fingerprint[:12]} (they differ in "
            f"{', '.join(differing)}): use parts made with one autoencoder"
        )


ImageFlags = TypeVar("ImageFlags", bound=ImageOptions)


def fit_images(options: ImageFlags, spec: CodeSpec) -> ImageFlags:
    """Set the image size and channels of the options to those of the autoencoder.

    Raises:
        ValueError: a flag sets another value.
    """
    for flag, trained in (("image_size", spec.image_size), ("channels", spec.image_channels)):
        if getattr(options, flag) not in (None, trained):
            raise ValueError(
                f"--{flag} {getattr(options, flag)}: the autoencoder was trained with "
                f"{flag} {trained}; leave the flag out"
            )
    return replace(
        options, image_size=spec.image_size, channels=1 if spec.image_channels == 1 else 3
    )


def write_spec(spec: CodeSpec, folder: Path) -> None:
    """Write `code_spec.json` into `folder`."""
    write_record(folder / SPEC_FILE, spec.to_dict())
