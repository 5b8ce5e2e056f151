"""What lies where in shards: made once, and kept beside them or in the cache.

An index is an Arrow file with a record batch for each shard: a row for each image of a tar file, or
for each group of rows of a table. It names the shards with their sizes and times (or digests); if
one of these has changed, it is made again.
"""

from __future__ import annotations

import functools
import json
import logging
import os
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
from filelock import FileLock
from numpy.typing import NDArray

from latent_prior.data.arrow_rows import MappedFiles
from latent_prior.data.fingerprints import fingerprint_of
from latent_prior.data.shards.places import TAR, Place, Shard
from latent_prior.data.shards.tar_files import Columns, read_samples
from latent_prior.files import cache_folder, whole_file
from latent_prior.machine import is_main_process
from latent_prior.progress import Progress

_log = logging.getLogger("latent_prior")
_VERSION = 1
_KEY = b"latent_prior"
_THREADS = 8  # shards that are listed at a time; most of it is waiting for an object store


class Index:
    """The content of an index file, mapped into memory.

    Args:
        parts: of every shard a record batch of pyarrow: `offset` and `size` of each image of a tar
            file, with `name`, `label` and `captions`; or of each group of `rows` of a table, which
            is a record batch, or a row group of parquet, whose `offset` is its number.
        shards: that it describes.
        problems: what is wrong with each of them.
        let_go: to be called with the number of bytes of `parts` that were read; see `MappedFiles`.
    """

    def __init__(
        self,
        parts: list[Any],
        shards: list[Shard],
        problems: list[list[str]],
        let_go: Callable[[int], None],
    ) -> None:
        self._parts, self.let_go = dict(zip(shards, parts, strict=True)), let_go
        self.problems = {
            shard.name: found for shard, found in zip(shards, problems, strict=True) if found
        }

    def parts(self, shards: list[Shard]) -> list[Any]:
        """The record batches of some shards."""
        return [self._parts[shard] for shard in shards]


def numbers(part: Any, name: str) -> NDArray[np.int64]:
    """The numbers of a column, where they lie."""
    found: NDArray[np.int64] = part.column(name).to_numpy()
    return found


def open_index(place: Place, columns: Columns) -> Index:
    """The index of all shards of a data set, which is made if it is missing or out of date.

    Args:
        place: the shards.
        columns: which of its columns or members are read.

    Raises:
        ValueError: a shard cannot be read at all.
    """
    shards = place.shards()
    wanted = json.dumps([_VERSION, columns, [shard[1:] for shard in shards]])
    name = f"{fingerprint_of(place.kind, json.dumps(columns))[:16]}.arrow"
    where = fingerprint_of(place.dataset if place.folder is None else str(place.folder.absolute()))
    cached = cache_folder() / "indexes" / where[:32] / name
    paths = [cached]
    if place.folder is not None:
        paths.insert(0, place.folder / f".latent_prior_index_{name}")
    cached.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(cached.with_suffix(".lock")):
        for path in paths:
            if (found := _stored(path, wanted, shards)) is not None:
                return found
        for path in paths:
            if os.access(path.parent, os.W_OK):
                _make(path, place, columns, wanted)
                found = _stored(path, wanted, shards)
                assert found is not None
                return found
    raise ValueError(f"{cached.parent} cannot be written; set LATENT_PRIOR_CACHE to another folder")


def _stored(path: Path, wanted: str, shards: list[Shard]) -> Index | None:
    """An index file, if it is intact and describes these shards."""
    import pyarrow

    if not path.is_file():
        return None
    try:
        files = MappedFiles()
        reader = pyarrow.ipc.open_file(pyarrow.py_buffer(files.map(path)))
        if reader.schema.metadata[_KEY].decode() != wanted:
            return None
        parts, problems = [], []
        for number, shard in enumerate(shards):
            part, described = reader.get_batch_with_custom_metadata(number)
            part.validate(full=True)  # it may come with the data, from a stranger
            if not _fits(part, shard):
                return None
            files.let_go(part.nbytes)
            parts.append(part)
            problems.append(msgspec.json.decode(described[_KEY], type=list[str]))
        return Index(parts, shards, problems, files.let_go)
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _fits(part: Any, shard: Shard) -> bool:
    """Whether all that an index names lies in its shard."""
    offsets, sizes = numbers(part, "offset"), numbers(part, "size")
    if not len(offsets):
        return True
    if min(offsets.min(), sizes.min()) < 0:
        return False
    if "rows" in part.schema.names:
        return bool(numbers(part, "rows").min() >= 0)
    return bool((offsets <= shard.size - sizes).all())


def _make(path: Path, place: Place, columns: Columns, wanted: str) -> None:
    """List all shards; only the parts of a few are in memory at a time."""
    import pyarrow

    shards, texts = place.shards(), pyarrow.list_(pyarrow.string())
    kinds = {"name": pyarrow.string(), "label": pyarrow.string(), "captions": texts}
    named = {"offset": pyarrow.int64(), "size": pyarrow.int64()}
    named |= kinds if place.kind == TAR else {"rows": pyarrow.int64()}
    schema = pyarrow.schema(named, {_KEY: wanted.encode()})
    with (
        whole_file(path) as temporary,
        pyarrow.OSFile(str(temporary), "wb") as file,
        pyarrow.ipc.new_file(file, schema) as writer,
        ThreadPoolExecutor(_THREADS) as pool,
        Progress("listing shards", len(shards), unit="shards", shown=is_main_process()) as line,
    ):
        for listed, problems in pool.map(functools.partial(_list, place, columns), shards):
            part = pyarrow.RecordBatch.from_pydict(listed, schema)
            writer.write_batch(part, {_KEY: msgspec.json.encode(problems)})
            line.advance(1)


def _list(place: Place, columns: Columns, shard: Shard) -> tuple[dict[str, list[Any]], list[str]]:
    """What is in one shard, column by column, and what is wrong with it.

    Raises:
        ValueError: it cannot be read at all.
    """
    try:
        if place.kind == TAR:
            with place.files.open(shard.path, "rb") as file:
                found = read_samples(file, shard.size, columns)
            listed: dict[str, list[Any]] = {
                "offset": found.offsets,
                "size": found.sizes,
                "name": found.names,
                "label": found.labels,
                "captions": found.captions,
            }
            return listed, found.problems
        groups = list(_groups(place, shard, columns.image or ""))
    except Exception as error:  # of whatever library serves the protocol, or of pyarrow
        reason = (str(error).strip() or type(error).__name__).splitlines()[0][:200]
        raise ValueError(
            f"--dataset {place.dataset}: {shard.name} cannot be read ({reason}); "
            "repair it or move it away"
        ) from error
    names = ("offset", "size", "rows")
    return {name: [group[n] for group in groups] for n, name in enumerate(names)}, []


def _groups(place: Place, shard: Shard, column: str) -> Iterator[tuple[int, int, int]]:
    """(Row group or first byte, bytes, rows) of each part of a table."""
    import pyarrow
    import pyarrow.parquet

    if place.kind == ".parquet":
        with place.files.open(shard.path, "rb") as file:
            metadata = pyarrow.parquet.ParquetFile(file).metadata
        for number in range(metadata.num_row_groups):
            group = metadata.row_group(number)
            chunks = [group.column(place) for place in range(group.num_columns)]
            sizes = [
                chunk.total_uncompressed_size
                for chunk in chunks
                if chunk.path_in_schema.partition(".")[0] == column
            ]
            yield number, sum(sizes), group.num_rows
        return
    opened = (
        pyarrow.memory_map(shard.path)
        if place.folder is not None
        else pyarrow.PythonFile(place.files.open(shard.path, "rb"), "r")
    )
    with opened as file:
        if file.read(8)[:6] != b"ARROW1":  # the other of Arrow's two forms
            file.seek(0)
        messages = pyarrow.ipc.MessageReader.open_stream(file)
        schema = pyarrow.ipc.read_schema(messages.read_next_message())
        offset = file.tell()
        for message in messages:
            if message.type == "dictionary":
                raise ValueError("it has columns of dictionaries; write them as plain ones")
            rows = pyarrow.ipc.read_record_batch(message, schema).num_rows
            yield offset, file.tell() - offset, rows
            offset = file.tell()


def check_problems(index: Index, place: Place, on_corrupt: str) -> None:
    """Refuse shards that are damaged, or say how much of them is left out.

    Raises:
        ValueError: naming the first damaged shard and what is wrong with it.
    """
    if not index.problems:
        return
    name = next(iter(sorted(index.problems)))
    said = f"{place.dataset}: {name}: {index.problems[name][0]}"
    if on_corrupt == "error":
        raise ValueError(
            f"--dataset {said}; repair it, or leave such samples out with --on_corrupt skip"
        )
    if is_main_process():
        count = sum(map(len, index.problems.values()))
        _log.warning("%s; left out this and %d others", said, count - 1)
