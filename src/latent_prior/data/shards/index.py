"""What lies where in shards: made once, and kept beside them or in the cache.

An index is an Arrow file with one row for each image of a tar file, or for each group of rows of a
table. It names the shards with their sizes and times (or digests); if one of these has changed, it
is made again.
"""

from __future__ import annotations

import functools
import json
import logging
import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
from filelock import FileLock
from numpy.typing import NDArray

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
        table: of the file.
        shards: that it describes.

    Attributes:
        table: of pyarrow: `shard`, `offset`, `size`, and for tar files `name`, `label`, `captions`
            (one row per image), for tables `rows` (one row per group of rows: a row group of
            parquet, whose `offset` is its number, or a record batch).
        problems: shard -> what is wrong with it.
    """

    def __init__(self, table: Any, shards: list[Shard]) -> None:
        described = json.loads(table.schema.metadata[_KEY])
        self.table, self.problems = table, described["problems"]
        self._owners, self._shards = self.column("shard"), shards

    def column(self, name: str) -> NDArray[Any]:
        """The numbers of a column."""
        found: NDArray[Any] = self.table.column(name).to_numpy()
        return found

    def first_rows(self, shards: list[Shard]) -> NDArray[np.int64]:
        """The first row of each of some shards that follow each other, and the end of the last."""
        first = self._shards.index(shards[0])
        numbers = np.arange(first, first + len(shards) + 1)
        return np.searchsorted(self._owners, numbers)


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
        table = pyarrow.ipc.open_file(pyarrow.memory_map(str(path))).read_all()
        if json.loads(table.schema.metadata[_KEY])["of"] != wanted:
            return None
        table.validate(full=True)  # it may come with the data, from a stranger
        if not _fits(table, shards):
            return None
        return Index(table, shards)
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return None


def _fits(table: Any, shards: list[Shard]) -> bool:
    """Whether all that an index names lies in its shard."""
    owners, offsets, sizes = (table.column(n).to_numpy() for n in ("shard", "offset", "size"))
    if not len(owners):
        return True
    if owners.min() < 0 or owners.max() >= len(shards) or (np.diff(owners) < 0).any():
        return False
    if min(offsets.min(), sizes.min()) < 0:
        return False
    if "rows" in table.column_names and table.column("rows").to_numpy().min() < 0:
        return False
    lengths = np.array([shard.size for shard in shards])[owners]
    return "rows" in table.column_names or bool((offsets <= lengths - sizes).all())


def _make(path: Path, place: Place, columns: Columns, wanted: str) -> None:
    """Read all shards and write their index."""
    import pyarrow

    shards, problems = place.shards(), dict[str, list[str]]()
    list_shard = functools.partial(_batch, place, columns, problems, shards)
    batches = []
    with (
        ThreadPoolExecutor(_THREADS) as pool,
        Progress("listing shards", len(shards), shown=is_main_process()) as line,
    ):
        for batch in pool.map(list_shard, range(len(shards))):
            batches.append(batch)
            line.advance(1)
    described = json.dumps({"of": wanted, "problems": problems})
    # In one piece, so that its columns are read where they lie.
    table = pyarrow.Table.from_batches(batches).combine_chunks()
    table = table.replace_schema_metadata({_KEY: described.encode()})
    with (
        whole_file(path) as temporary,
        pyarrow.OSFile(str(temporary), "wb") as file,
        pyarrow.ipc.new_file(file, table.schema) as writer,
    ):
        writer.write_table(table)


def _batch(
    place: Place,
    columns: Columns,
    problems: dict[str, list[str]],
    shards: list[Shard],
    number: int,
) -> Any:
    """What is in one shard, as a record batch."""
    import pyarrow

    shard, kinds = shards[number], pyarrow
    try:
        if place.kind == TAR:
            with place.files.open(shard.path, "rb") as file:
                samples = read_samples(file, shard.size, columns)
            arrays = {
                "offset": kinds.array(samples.offsets, kinds.int64()),
                "size": kinds.array(samples.sizes, kinds.int64()),
                "name": kinds.array(samples.names, kinds.string()),
                "label": kinds.array(samples.labels, kinds.string()),
                "captions": kinds.array(samples.captions, kinds.list_(kinds.string())),
            }
            if samples.problems:
                problems[shard.name] = samples.problems
        else:
            groups = list(_groups(place, shard, columns.image or ""))
            arrays = {
                name: kinds.array([group[column] for group in groups], kinds.int64())
                for column, name in enumerate(("offset", "size", "rows"))
            }
    except Exception as error:  # of whatever library serves the protocol, or of pyarrow
        reason = (str(error).strip() or type(error).__name__).splitlines()[0][:200]
        raise ValueError(
            f"--dataset {place.dataset}: {shard.name} cannot be read ({reason}); "
            "repair it or move it away"
        ) from error
    owner = kinds.array(np.full(len(arrays["offset"]), number), kinds.int64())
    return kinds.RecordBatch.from_pydict({"shard": owner, **arrays})


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
