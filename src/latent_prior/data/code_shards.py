"""Writing codes datasets: shards of rows, one dataset made of them, and the scale of latents."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from latent_prior.data.arrow_rows import MappedTable
from latent_prior.data.codes import CodeSpec, smallest_integer_type, write_spec

if TYPE_CHECKING:
    from datasets import Features
    from numpy.typing import NDArray


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
    channels = sum(level.channels or 0 for level in spec.levels)
    count, total, squares = 0, np.zeros(channels), np.zeros(channels)
    for path in paths:
        table = MappedTable([path], {level.name: level.dtype for level in spec.levels})
        # Shifted by nothing: latents lie around 0, so float64 sums of squares lose no digit that matters.
        latents = [table.column(level.name).astype(np.float64) for level in spec.levels]
        count += len(latents[0])
        total += np.concatenate([values.mean((2, 3)).sum(0) for values in latents])
        squares += np.concatenate([np.square(values).mean((2, 3)).sum(0) for values in latents])
    shift = total / count
    scale = np.sqrt(np.maximum(squares / count - np.square(shift), 0.0))
    return replace(spec, latent_shift=tuple(shift.tolist()), latent_scale=tuple(scale.tolist()))
