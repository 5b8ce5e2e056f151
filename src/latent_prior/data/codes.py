"""The contract between the stages: what the codes are (`CodeSpec`), and how they are read (`open_codes`).

Stage 1 states in a `CodeSpec` what its codes look like; the spec travels with the autoencoder, the codes
dataset, the prior and the pipeline, and every hand-over compares the two sides. No number that couples
the stages lives in code.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray

from latent_prior.data.arrow_rows import MappedTable
from latent_prior.files import write_json
from latent_prior.options import ImageOptions

SPEC_FILE = "code_spec.json"

CodeMaps = dict[str, torch.Tensor]
"""A batch by level, coarse first: codes, integers (B, height, width), or latents, floats (B, channels, height, width)."""


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

    @property
    def shape(self) -> tuple[int, ...]:
        """Of one image's map: (height, width) of codes, (channels, height, width) of latents."""
        size = (self.height, self.width)
        return size if self.channels is None else (self.channels, *size)

    @property
    def dtype(self) -> np.dtype[Any]:
        """One image's map as it is stored: a numpy type with this shape."""
        kind = "float16" if self.vocabulary is None else smallest_integer_type(self.vocabulary)
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
        autoencoder_fingerprint: sha256 over that autoencoder's weights.
        class_names: names of the labels in the order of their numbers; empty without labels.
        latent_shift: measured mean per channel, level after level; latents only, once they are encoded.
        latent_scale: measured standard deviation per channel, likewise.
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
            restored: dict[str, Any] = {
                key: tuple(value) if isinstance(value, list) else value
                for key, value in values.items()
            }
            restored["levels"] = tuple(Level(**level) for level in values["levels"])
            return cls(**restored)
        except (TypeError, KeyError, AttributeError) as error:
            raise ValueError(f"not a code spec: {error}") from error


def check_same_codes(
    expected: CodeSpec, found: CodeSpec, expected_name: str, found_name: str
) -> None:
    """Stop a hand-over between parts that speak about different codes.

    Class names are left out: they belong to the data, not to the codes.

    Raises:
        ValueError: naming both sides and both fingerprints.
    """
    coupled = (
        "kind",
        "levels",
        "image_size",
        "image_channels",
        "autoencoder_type",
        "autoencoder_fingerprint",
    )
    differing = [name for name in coupled if getattr(expected, name) != getattr(found, name)]
    if differing:
        raise ValueError(
            f"{found_name} belongs to the codes of autoencoder {found.autoencoder_fingerprint[:12]}, "
            f"{expected_name} to those of {expected.autoencoder_fingerprint[:12]} (they differ in "
            f"{', '.join(differing)}): use parts made from one and the same autoencoder"
        )


ImageFlags = TypeVar("ImageFlags", bound=ImageOptions)


def fit_images(options: ImageFlags, spec: CodeSpec) -> ImageFlags:
    """The options with the autoencoder's image size and channels.

    Raises:
        ValueError: a flag asks for others.
    """
    for flag, wanted in (("image_size", spec.image_size), ("channels", spec.image_channels)):
        if getattr(options, flag) not in (None, wanted):
            raise ValueError(
                f"--{flag} {getattr(options, flag)}: the autoencoder was trained with {flag} {wanted}; leave the flag out"
            )
    return replace(
        options, image_size=spec.image_size, channels=1 if spec.image_channels == 1 else 3
    )


def write_spec(spec: CodeSpec, folder: Path) -> None:
    """Write the readable `code_spec.json` into `folder`."""
    write_json(folder / SPEC_FILE, spec.to_dict())


def smallest_integer_type(vocabulary: int) -> str:
    """Name of the smallest unsigned integer type that holds 0 .. vocabulary - 1."""
    return str(np.min_scalar_type(vocabulary - 1))


@dataclass(frozen=True)
class CodesSplit:
    """Rows of one split of a codes dataset, read from its files when they are asked for.

    In memory are the labels, one or two bytes a row, and the numbers of rows chosen unevenly.
    """

    table: MappedTable
    levels: tuple[str, ...]
    all_labels: NDArray[np.integer] | None
    chosen: range | NDArray[np.integer]

    def __len__(self) -> int:
        """Rows: images times views."""
        return len(self.chosen)

    @property
    def labels(self) -> NDArray[np.int64] | None:
        """int64 (N,), -1 where the class is unknown; or None."""
        return None if self.all_labels is None else self._pick(self.all_labels).astype(np.int64)

    @property
    def view(self) -> NDArray[np.integer]:
        """(N,), 0 is the plain image."""
        return self.column("view")

    @property
    def source_index(self) -> NDArray[np.int64]:
        """(N,), row of the image in its own dataset."""
        return self.column("source_index")

    def column(self, name: str) -> NDArray[Any]:
        """A column in the type it is stored in, from the files into memory as a whole."""
        return self._pick(self.table.column(name))

    def rows(self, chosen: NDArray[Any]) -> CodesSplit:
        """Some of the rows, by index or mask."""
        return replace(self, chosen=_spaced(self._pick(np.arange(len(self.table)))[chosen]))

    def batch(self, indices: torch.Tensor) -> dict[str, torch.Tensor]:
        """Rows as tensors: int64 codes or float32 latents under their level names, `labels` (-1 where there is none).

        Raises:
            IndexError: there is no such row.
        """
        places = indices.numpy()
        if places.size and not 0 <= places.min() <= places.max() < len(self):
            raise IndexError(f"rows {places.min()} to {places.max()} of {len(self)}")
        if isinstance(self.chosen, range):
            places = self.chosen.start + self.chosen.step * places
        else:
            places = self.chosen[places]
        batch = {}
        for name, values in self.table.rows(places, self.levels).items():
            kind = np.float32 if values.dtype.kind == "f" else np.int64
            batch[name] = torch.from_numpy(values.astype(kind))
        labels = np.full(len(places), -1) if self.all_labels is None else self.all_labels[places]
        return {**batch, "labels": torch.from_numpy(labels.astype(np.int64))}

    def _pick(self, values: NDArray[Any]) -> NDArray[Any]:
        """The chosen ones of all rows' values."""
        if isinstance(self.chosen, range):
            return values[self.chosen.start : self.chosen.stop : self.chosen.step]
        return values[self.chosen]


def _spaced(rows: NDArray[np.integer]) -> range | NDArray[np.integer]:
    """Row numbers as a range where they are evenly spaced, like all or every second view; else in few bytes."""
    if rows.size < 2:
        return rows
    steps = np.diff(rows)
    if steps[0] > 0 and (steps == steps[0]).all():
        return range(int(rows[0]), int(rows[-1]) + 1, int(steps[0]))
    return rows.astype(np.min_scalar_type(rows.max()))


def open_codes(folder: str | Path) -> tuple[dict[str, CodesSplit], CodeSpec]:
    """Every split of a codes dataset with its spec; the codes stay on disk.

    Raises:
        ValueError: no codes dataset there, or one whose values are outside its own spec.
    """
    path = Path(folder)
    if not (path / SPEC_FILE).is_file():
        raise ValueError(
            f"--codes {path}: there is no codes dataset (no {SPEC_FILE}); write one with encode.py"
        )
    try:
        # The files of `save_to_disk`. Its own reader would map everything once more, and for nothing.
        names = json.loads((path / "dataset_dict.json").read_text())["splits"]
        info = json.loads((path / names[0] / "dataset_info.json").read_text())
        spec = CodeSpec.from_dict(json.loads(info["description"])["code_spec"])
        tables = {name: _open_table(path / name, spec) for name in names}
    except (OSError, ValueError, KeyError, IndexError, TypeError) as error:
        raise ValueError(
            f"--codes {path}: the dataset is damaged or was not written by encode.py ({error}); encode again"
        ) from error
    levels = tuple(level.name for level in spec.levels)
    splits = {}
    for name, table in tables.items():
        labels = _check_values(table, spec, f"--codes {path}: split {name}")
        splits[name] = CodesSplit(table, levels, labels, range(len(table)))
    return splits, spec


def _open_table(folder: Path, spec: CodeSpec) -> MappedTable:
    state = json.loads((folder / "state.json").read_text())
    columns = {level.name: level.dtype for level in spec.levels}
    if spec.class_names:
        columns["label"] = np.dtype(np.int64)
    columns |= {"view": np.dtype(np.uint16), "source_index": np.dtype(np.int64)}
    return MappedTable([folder / part["filename"] for part in state["_data_files"]], columns)


def _check_values(table: MappedTable, spec: CodeSpec, where: str) -> NDArray[np.integer] | None:
    """Stop at codes and labels that the spec does not know; the labels in few bytes."""
    for level in spec.levels:
        if level.vocabulary is not None:
            highest = max((int(piece.max()) for piece in table.pieces(level.name)), default=0)
            if highest >= level.vocabulary:
                raise ValueError(
                    f"{where}, column {level.name} holds code {highest}, "
                    f"outside its vocabulary of {level.vocabulary}; encode again"
                )
    if not spec.class_names:
        return None
    labels, classes = table.column("label"), len(spec.class_names)
    if labels.size and not -1 <= labels.min() <= labels.max() < classes:
        raise ValueError(f"{where} holds labels outside its {classes} classes")
    return labels.astype(np.min_scalar_type(-classes))
