"""The contract between the stages: what the codes are (`CodeSpec`) and how they lie on disk.

Stage 1 states in a `CodeSpec` what its codes look like; the spec travels with the autoencoder, the codes
dataset, the prior and the pipeline, and every hand-over compares the two sides. No number that couples
the stages lives in code.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeVar

import numpy as np
import torch

from common.options import ImageOptions

if TYPE_CHECKING:
    from datasets import Dataset, Features
    from numpy.typing import NDArray

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
    (folder / SPEC_FILE).write_text(json.dumps(spec.to_dict(), indent=2) + "\n")


def smallest_integer_type(vocabulary: int) -> str:
    """Name of the smallest unsigned integer type that holds 0 .. vocabulary - 1."""
    return str(np.min_scalar_type(vocabulary - 1))


def codes_features(spec: CodeSpec) -> Features:
    """Columns of a codes dataset: one per level, then `label` (where classes have names), `view`, `source_index`."""
    from datasets import Array2D, Array3D, ClassLabel, Features, Value

    columns: dict[str, Any] = {}
    for level in spec.levels:
        if level.vocabulary is not None:
            columns[level.name] = Array2D(level.shape, smallest_integer_type(level.vocabulary))
        else:
            columns[level.name] = Array3D(level.shape, "float16")
    if spec.class_names:
        columns["label"] = ClassLabel(names=list(spec.class_names))
    return Features({**columns, "view": Value("uint16"), "source_index": Value("int64")})


def write_shard(path: Path, spec: CodeSpec, columns: Mapping[str, NDArray[Any]]) -> None:
    """Write rows as one Arrow file; codes outside their vocabulary are refused."""
    from datasets.arrow_writer import ArrowWriter

    for level in spec.levels:
        values = columns[level.name]
        assert (
            level.vocabulary is None
            or values.size == 0
            or (0 <= values.min() <= values.max() < level.vocabulary)
        ), f"{level.name} holds values outside [0, {level.vocabulary})"
    rows = dict(columns)
    if spec.class_names:  # a split without labels beside one that has them
        rows.setdefault("label", np.full(len(columns["view"]), -1))
    with ArrowWriter(path=str(path), features=codes_features(spec)) as writer:
        writer.write_batch(rows)
        writer.finalize()


def join_shards(
    folder: Path, shards: Mapping[str, list[Path]], spec: CodeSpec, settings: Mapping[str, Any]
) -> None:
    """Make one dataset on disk of the shards of every split; memory stays flat, the shards are memory-mapped.

    Args:
        folder: where the dataset goes; `load_from_disk(folder)[split]` reads it.
        shards: Arrow files of every split, in the order of their rows.
        spec: what the codes are; kept in the dataset's description and in `code_spec.json`.
        settings: how the images were encoded; kept in the description.
    """
    from datasets import Dataset, DatasetDict, concatenate_datasets, disable_progress_bars

    disable_progress_bars()
    splits = {}
    for split, paths in shards.items():
        rows = concatenate_datasets([Dataset.from_file(str(path)) for path in paths])
        rows.info.description = json.dumps({"code_spec": spec.to_dict(), "encode": dict(settings)})
        splits[split] = rows
    DatasetDict(splits).save_to_disk(str(folder))
    write_spec(spec, folder)


def measure_latents(paths: Sequence[Path], spec: CodeSpec) -> CodeSpec:
    """The spec with the mean and standard deviation of every channel over the latents of some shards.

    Args:
        paths: Arrow files as `write_shard` writes them; one at a time is in memory.
        spec: of these latents.
    """
    from datasets import Dataset

    channels = sum(level.channels or 0 for level in spec.levels)
    count, total, squares = 0, np.zeros(channels), np.zeros(channels)
    for path in paths:
        maps = _read_split(Dataset.from_file(str(path)), spec).maps
        # Shifted by nothing: latents lie around 0, so float64 sums of squares lose no digit that matters.
        latents = [maps[level.name].astype(np.float64) for level in spec.levels]
        count += len(latents[0])
        total += np.concatenate([values.mean((2, 3)).sum(0) for values in latents])
        squares += np.concatenate([np.square(values).mean((2, 3)).sum(0) for values in latents])
    shift = total / count
    scale = np.sqrt(np.maximum(squares / count - np.square(shift), 0.0))
    return replace(spec, latent_shift=tuple(shift.tolist()), latent_scale=tuple(scale.tolist()))


@dataclass
class CodesSplit:
    """One split of a codes dataset in memory, in the integer types it is stored in.

    Attributes:
        maps: level name -> (N, H, W) integers, or (N, C, H, W) float16 latents.
        labels: int64 (N,), -1 where the class is unknown; or None.
        view: (N,), 0 is the plain image.
        source_index: (N,), row of the image in its own dataset.
    """

    maps: dict[str, NDArray[Any]]
    labels: NDArray[np.int64] | None
    view: NDArray[np.int64]
    source_index: NDArray[np.int64]

    def __len__(self) -> int:
        """Rows: images times views."""
        return len(self.view)

    def rows(self, chosen: NDArray[Any]) -> CodesSplit:
        """Some of the rows, by index or mask."""
        return CodesSplit(
            {name: values[chosen] for name, values in self.maps.items()},
            None if self.labels is None else self.labels[chosen],
            self.view[chosen],
            self.source_index[chosen],
        )

    def batch(self, indices: torch.Tensor) -> dict[str, torch.Tensor]:
        """Rows as tensors: int64 codes or float32 latents under their level names, `labels` (-1 where there is none)."""
        chosen = indices.numpy()
        batch = {}
        for name, values in self.maps.items():
            kind = np.float32 if values.dtype.kind == "f" else np.int64
            batch[name] = torch.from_numpy(values[chosen].astype(kind))
        labels = np.full(len(chosen), -1) if self.labels is None else self.labels[chosen]
        return {**batch, "labels": torch.from_numpy(labels.astype(np.int64))}


def open_codes(folder: str | Path) -> tuple[dict[str, CodesSplit], CodeSpec]:
    """Every split of a codes dataset with its spec.

    Raises:
        ValueError: no codes dataset there, or one whose values are outside its own spec.
    """
    from datasets import DatasetDict, load_from_disk

    path = Path(folder)
    if not (path / SPEC_FILE).is_file():
        raise ValueError(
            f"--codes {path}: there is no codes dataset (no {SPEC_FILE}); write one with encode.py"
        )
    try:
        opened = load_from_disk(str(path))
        if not isinstance(opened, DatasetDict):
            raise ValueError("it has no splits")
        spec = CodeSpec.from_dict(
            json.loads(next(iter(opened.values())).info.description)["code_spec"]
        )
        splits = {str(split): _read_split(rows, spec) for split, rows in opened.items()}
    except (OSError, ValueError, KeyError, StopIteration) as error:
        raise ValueError(
            f"--codes {path}: the dataset is damaged or was not written by encode.py ({error}); encode again"
        ) from error
    for name, codes in splits.items():
        _check_range(path, name, codes, spec)
    return splits, spec


def _read_split(rows: Dataset, spec: CodeSpec) -> CodesSplit:
    def scalars(column: str) -> NDArray[Any]:
        return rows.data.column(column).to_numpy().astype(np.int64)

    maps = {}
    for level in spec.levels:
        shape = level.shape
        kind = np.dtype(smallest_integer_type(level.vocabulary) if level.vocabulary else "float16")
        parts = [np.empty((0, *shape), kind)]
        # Chunk by chunk: one array of all would overflow Arrow's 32-bit offsets at 2^31 codes.
        for chunk in rows.data.column(level.name).chunks:
            flat = chunk.storage
            for _ in shape:
                flat = flat.flatten()
            parts.append(flat.to_numpy(zero_copy_only=False).reshape(-1, *shape))
        maps[level.name] = np.concatenate(parts)
    labels = scalars("label") if "label" in rows.column_names else None
    return CodesSplit(maps, labels, scalars("view"), scalars("source_index"))


def _check_range(path: Path, split: str, codes: CodesSplit, spec: CodeSpec) -> None:
    for level in spec.levels:
        values = codes.maps[level.name]
        if level.vocabulary is not None and values.size and values.max() >= level.vocabulary:
            raise ValueError(
                f"--codes {path}: split {split}, column {level.name} holds code {values.max()}, "
                f"outside its vocabulary of {level.vocabulary}; encode again"
            )
    if (
        codes.labels is not None
        and codes.labels.size
        and not -1 <= codes.labels.min() <= codes.labels.max() < len(spec.class_names)
    ):
        raise ValueError(
            f"--codes {path}: split {split} holds labels outside its {len(spec.class_names)} classes"
        )
