"""Folders of parquet or arrow files: which files hold the images, and of which split."""

from __future__ import annotations

import glob
import json
import re
from collections.abc import Callable, Mapping
from pathlib import Path, PurePath
from typing import Any, Literal

from latent_prior.data.shards.arrow_tables import ArrowTable, Batches, held_batches, mapped_batches
from latent_prior.data.splits import SPLITS, split_named, split_places

TABLES = (".parquet", ".arrow")
_SHARD = re.compile(r"-[0-9]{5}-of-[0-9]{5}$")
_NUMBER = re.compile(r"(?:[-_.]?[0-9]+)+$")


class Tables(dict[str, list[Path]]):
    """Files of each split, sorted; all are of one kind."""

    kind: Literal["parquet", "arrow"]


def image_tables(folder: Path, files: list[Path], column: str, beside: bool) -> Tables | None:
    """The tables of a folder that hold images.

    A file belongs to a split if its whole name, or that of a folder above it, is one:
    `test.parquet`, `test-00000-of-00002.parquet`, `test/0.parquet`. If none does, all are `train`.

    Args:
        folder: the folder, for messages.
        files: all files in it.
        column: name of the column with images.
        beside: whether there are also image files, so that tables may be something else.

    Returns:
        None if there are no tables, or none with images beside image files.

    Raises:
        ValueError: a file cannot be read, or it is unclear which split it belongs to.
    """
    tables = [path for path in files if path.suffix.lower() in TABLES]
    columns = {path: _columns(path) for path in tables}
    with_images = [path for path in tables if column in columns[path]]
    if not with_images and beside:
        return None
    chosen = with_images or tables
    if not chosen:
        return None
    kinds = sorted({path.suffix.lower() for path in chosen})
    if len(kinds) > 1:
        raise ValueError(
            f"--dataset {folder}: it has parquet and arrow files with the column {column}: "
            "move those of one kind away"
        )
    names, _ = split_places(folder, [place_of(path.relative_to(folder)) for path in chosen])
    splits = Tables()
    splits.kind = "parquet" if kinds == [".parquet"] else "arrow"
    for split in SPLITS:
        if own := [path for path, name in zip(chosen, names, strict=True) if name == split]:
            splits[split] = own
    return splits


def place_of(path: PurePath) -> tuple[str, ...]:
    """The names that may say a split: folders, or else the file's own without its shard.

    Of a tar file, whose name often begins with that of the data set, the last word counts too:
    `imagenet1k-validation-07.tar`.
    """
    folders = path.parts[:-1]
    if any(map(split_named, folders)):
        return folders
    stem = _SHARD.sub("", path.stem)
    if path.suffix.lower() == ".tar":
        stem = _NUMBER.sub("", stem)
        last = re.split(r"[-_.]", stem)[-1]
        stem = last if split_named(stem) is None and split_named(last) else stem
    return (*folders, stem)


def _columns(path: Path) -> list[str]:
    """Column names of a table file, from its header."""
    import pyarrow
    import pyarrow.ipc
    import pyarrow.parquet

    if not path.is_file():  # a pipe, which would be waited for, or a broken link
        raise ValueError(f"--dataset: {path} is no regular file; remove or replace it")
    try:
        if path.suffix.lower() == ".parquet":
            return list(pyarrow.parquet.read_schema(path).names)
        with path.open("rb") as file:
            try:
                return list(pyarrow.ipc.open_stream(file).schema.names)
            except pyarrow.ArrowInvalid:  # the other of Arrow's two forms
                file.seek(0)
                return list(pyarrow.ipc.open_file(file).schema.names)
    except (OSError, ValueError, pyarrow.ArrowException) as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0][:200]
        raise ValueError(
            f"--dataset: {path} cannot be read as a table ({reason}); repair it or move it away"
        ) from error


def open_tables(tables: Tables) -> dict[str, ArrowTable]:
    """Open the tables of every split with `datasets`, which raises what it likes."""
    import datasets

    files = {
        split: [glob.escape(str(path.absolute())) for path in paths]
        for split, paths in tables.items()
    }
    return open_datasets(datasets.load_dataset(tables.kind, data_files=files))


def open_saved(folder: Path) -> dict[str, ArrowTable]:
    """Open what `save_to_disk` of `datasets` wrote, which raises what it likes."""
    import datasets

    def opened(part: Path) -> ArrowTable:
        state = json.loads((part / "state.json").read_text("utf-8"))
        info = datasets.DatasetInfo.from_directory(str(part))
        paths = [part / file["filename"] for file in state["_data_files"]]
        return _described(mapped_batches(paths), info, paths)

    listed = folder / "dataset_dict.json"
    if not listed.is_file():
        return {"train": opened(folder)}
    return {name: opened(folder / name) for name in json.loads(listed.read_text("utf-8"))["splits"]}


def open_datasets(opened: Mapping[str, Any]) -> dict[str, ArrowTable]:
    """The splits of `datasets`, whose files are mapped anew: its own mappings stay resident."""
    splits = {}
    for name, rows in opened.items():
        paths = [Path(file["filename"]) for file in rows.cache_files]
        batches = mapped_batches(paths) if paths else held_batches(rows.data.table)
        assert batches.starts[-1] == len(rows)
        splits[name] = ArrowTable(batches, rows.features, paths)
    return splits


def in_memory(table: Any, let_go: Callable[[int], None] = lambda size: None) -> ArrowTable:
    """A table of pyarrow; `let_go` is called with the number of bytes that were read."""
    return _described(held_batches(table, let_go), None, [])


def _described(batches: Batches, info: Any, paths: list[Path]) -> ArrowTable:
    """Rows with the types that `datasets` gives them, which it checks; it sees none of them."""
    import datasets

    empty = datasets.table.InMemoryTable(batches.schema.empty_table())
    return ArrowTable(batches, datasets.Dataset(empty, info, fingerprint="-").features, paths)
