"""The contract between the stages: what codes look like (`CodeSpec`).

Stage 1 describes its codes in a `CodeSpec`. The spec is stored with the autoencoder, the codes
dataset, the prior and the pipeline, and every hand-over compares the two sides. No number that
couples the stages is hard-coded.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any, Literal, TypeVar

import numpy as np
import torch

from latent_prior.files import write_json
from latent_prior.options import ImageOptions

SPEC_FILE = "code_spec.json"

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

    @property
    def length(self) -> int:
        """Positions per image over all levels."""
        return sum(level.length for level in self.levels)

    def to_dict(self) -> dict[str, Any]:
        """The spec as JSON-ready values; `from_dict` is the inverse."""
        return json.loads(json.dumps(asdict(self)))

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> CodeSpec:
        """Rebuild a spec from `to_dict`.

        Raises:
            ValueError: missing or unknown fields.
        """
        try:
            restored: dict[str, Any] = {
                key: tuple(value) if isinstance(value, list) else value
                for key, value in values.items()
            }
            restored["levels"] = tuple(Level(**level) for level in values["levels"])
            return cls(**restored)
        except (TypeError, KeyError, AttributeError) as error:
            raise ValueError(f"not a code spec: {error}") from error


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
    write_json(folder / SPEC_FILE, spec.to_dict())
