"""The contract between the stages: what the codes are (`CodeSpec`) and how they lie on disk.

Stage 1 states in a `CodeSpec` what its codes look like; the spec travels with the autoencoder, the codes
dataset, the prior and the pipeline, and every hand-over compares the two sides. No number that couples
the stages lives in code.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch

if TYPE_CHECKING:
    from datasets import Dataset, Features
    from torch import Tensor

SPEC_FILE = "code_spec.json"

CodeMaps = dict[str, torch.Tensor]
"""Discrete codes of a batch: level name -> integers (B, height, width), coarse levels first."""


@dataclass(frozen=True)
class Level:
    """One map of codes or latents.

    `vocabulary` is set for codes (integers in [0, vocabulary)), `channels` for latents.
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


@dataclass(frozen=True)
class CodeSpec:
    """Everything one stage must know about the codes of another.

    Attributes:
        kind: `codes` (integers) or `latents` (floats).
        levels: the maps, coarse first.
        image_size: height and width of the square images, in pixels.
        image_channels: 1 (grey) or 3 (RGB).
        autoencoder_type: `model_type` of the autoencoder that wrote the codes.
        autoencoder_fingerprint: sha256 over that autoencoder's weights.
        class_names: names of the labels in the order of their numbers; empty without labels.
        latent_shift: measured mean per channel, latents only.
        latent_scale: measured standard deviation per channel, latents only.
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
        """Codes per image over all levels."""
        return sum(level.length for level in self.levels)

    def to_dict(self) -> dict[str, Any]:
        """The spec as JSON-ready values; `from_dict` is the inverse."""
        return json.loads(json.dumps(asdict(self)))

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> CodeSpec:
        """Rebuild a spec from `to_dict`.

        Raises:
            ValueError: on missing or unknown fields.
        """
        try:
            restored = {
                key: tuple(value) if isinstance(value, list) else value
                for key, value in values.items()
            }
            restored["levels"] = tuple(Level(**level) for level in values["levels"])
            return cls(**restored)
        except (TypeError, KeyError, AttributeError) as error:
            raise ValueError(f"not a code spec: {error}") from error


def check_same_codes(expected: CodeSpec, found: CodeSpec, expected_name: str, found_name: str) -> None:
    """Stop a hand-over between parts that speak about different codes.

    Class names are left out: they belong to the data, not to the codes.

    Raises:
        ValueError: naming both sides and both fingerprints.
    """
    coupled = ("kind", "levels", "image_size", "image_channels", "autoencoder_type", "autoencoder_fingerprint")
    differing = [name for name in coupled if getattr(expected, name) != getattr(found, name)]
    if differing:
        raise ValueError(
            f"{found_name} belongs to the codes of autoencoder {found.autoencoder_fingerprint[:12]}, "
            f"{expected_name} to those of {expected.autoencoder_fingerprint[:12]} (they differ in "
            f"{', '.join(differing)}): use parts made from one and the same autoencoder"
        )


def smallest_integer_type(vocabulary: int) -> str:
    """Name of the smallest unsigned integer type that holds 0 .. vocabulary - 1."""
    return str(np.min_scalar_type(vocabulary - 1))


def write_spec(spec: CodeSpec, folder: Path) -> None:
    """Write `code_spec.json` into `folder`."""
    (folder / SPEC_FILE).write_text(json.dumps(spec.to_dict(), indent=2) + "\n")
