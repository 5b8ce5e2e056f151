"""Rows of the shards of one split, read block by block."""

from __future__ import annotations

import abc
import functools
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
from numpy.typing import NDArray

from latent_prior.data.image_source import Encoded
from latent_prior.data.shards.cells import Cell, content, own_folders
from latent_prior.data.shards.index import Index, numbers
from latent_prior.data.shards.places import TAR, Place, Shard

READERS = 8  # blocks that are read at a time; most of it is waiting for an object store
_BLOCK_ROWS, _BLOCK_BYTES = 256, 4 * 2**20  # of a tar file that are read at a time, at most
_LOOKED_UP = 2**17  # bytes of the index that become resident where a block is looked up
_GAP = 2**16  # bytes between two images, up to which they are read at once


class Rows(abc.ABC):
    """The images of all shards of a split, as they are stored.

    Attributes:
        starts: int64 (blocks + 1,), rows before each block and in all.
        bytes: of a block, on average.
        shards: of the split.
        parts: what the index says of each.
        let_go: of the index.
        firsts: int64 (shards + 1,), rows of the index before each shard and in all.
    """

    starts: NDArray[np.int64]
    bytes: int

    def __init__(self, place: Place, index: Index, split: str) -> None:
        self.place, self.shards = place, place.splits[split]
        self.parts, self.let_go = index.parts(self.shards), index.let_go
        self.firsts = np.concatenate([[0], np.cumsum(list(map(len, self.parts)))])

    def owner(self, row: int) -> int:
        """The shard of a row of the index, of all shards of this split."""
        return int(np.searchsorted(self.firsts, row, side="right")) - 1

    def __len__(self) -> int:
        """Number of rows."""
        return int(self.starts[-1])

    @abc.abstractmethod
    def read(self, block: int, places: NDArray[np.int64]) -> list[Encoded]:
        """The images at some places of a block, ascending.

        Raises:
            ValueError: the block cannot be read.
        """

    @abc.abstractmethod
    def name_of(self, block: int, place: int) -> str:
        """Name of the image in messages."""


def open_rows(place: Place, index: Index, split: str, column: str) -> Rows:
    """The rows of one split.

    Args:
        place: the shards.
        index: of them all.
        split: one that is stored.
        column: of the images, in a table.

    Raises:
        ValueError: the column does not hold images.
    """
    if place.kind == TAR:
        return _TarRows(place, index, split)
    return TableRows(place, index, split, column)


class _TarRows(Rows):
    """Members of tar files; a block is a range of bytes."""

    def __init__(self, place: Place, index: Index, split: str) -> None:
        super().__init__(place, index, split)
        total = 0
        for part in self.parts:
            total += int(numbers(part, "size").sum())
            self.let_go(8 * len(part))
        mean = total // max(1, int(self.firsts[-1]))
        rows = max(1, min(_BLOCK_ROWS, _BLOCK_BYTES // max(1, mean)))
        pieces = [np.arange(a, b, rows) for a, b in zip(self.firsts, self.firsts[1:], strict=False)]
        self.starts = np.concatenate([*pieces, self.firsts[-1:]])
        self.bytes = rows * mean

    def read(self, block: int, places: NDArray[np.int64]) -> list[Encoded]:
        number = self.owner(int(self.starts[block]))
        rows = self.starts[block] - self.firsts[number] + places
        offsets, sizes = (numbers(self.parts[number], name)[rows] for name in ("offset", "size"))
        self.let_go(_LOOKED_UP)
        ends = offsets + sizes
        runs = np.flatnonzero(offsets[1:] - ends[:-1] > _GAP) + 1
        firsts, lasts = [0, *runs.tolist()], [*(runs - 1).tolist(), len(rows) - 1]
        shard = self.shards[number]
        begins = offsets[firsts].tolist()
        pieces = _in_words(shard, lambda: self.place.files.cat_ranges(
            [shard.path] * len(firsts), begins, ends[lasts].tolist(), on_error="raise"
        ))  # fmt: skip
        found: list[Encoded] = []
        for piece, base, first, last in zip(pieces, begins, firsts, lasts, strict=True):
            for row in range(first, last + 1):
                data = piece[offsets[row] - base : ends[row] - base]
                found.append(functools.partial(_whole, data, int(sizes[row])))
        return found

    def name_of(self, block: int, place: int) -> str:
        row = int(self.starts[block]) + place
        number = self.owner(row)
        member = self.parts[number].column("name")[row - int(self.firsts[number])]
        return f"{self.shards[number].name}: {member.as_py()}"


def _whole(data: bytes, size: int) -> bytes:
    if len(data) != size:
        raise ValueError("its shard is shorter than it was")
    return data


class TableRows(Rows):
    """Rows of parquet or Arrow files; a block is a row group or a record batch."""

    def __init__(self, place: Place, index: Index, split: str, column: str) -> None:
        super().__init__(place, index, split)
        self._column, self._folders = column, own_folders(place.dataset)
        rows, sizes = (
            np.concatenate([numbers(part, name) for part in self.parts])
            for name in ("rows", "size")
        )
        self.starts = np.concatenate([[0], np.cumsum(rows)])
        self.bytes = int(sizes.mean()) if len(sizes) else 0
        self._schemas = functools.lru_cache(256)(self._read_schema)

    def schema(self) -> Any:
        """The Arrow schema of the first shard.

        Raises:
            ValueError: it cannot be read.
        """
        schema = _in_words(self.shards[0], lambda: self._schemas(0))
        return schema.schema.to_arrow_schema() if self.place.kind == ".parquet" else schema

    def read(self, block: int, places: NDArray[np.int64]) -> list[Encoded]:
        """Read a whole block and keep some images of it."""
        number = self.owner(block)
        read_block = functools.partial(self._block, number, block, [self._column])
        cells = _in_words(self.shards[number], read_block).column(0).combine_chunks()
        found: list[Encoded] = []
        for place in places.tolist():
            value = cells[place].as_py()
            cell: Cell = {"bytes": value, "path": None} if isinstance(value, bytes) else value
            found.append(functools.partial(content, cell, self._folders))
        return found

    def name_of(self, block: int, place: int) -> str:
        """`row 7 of train.parquet`."""
        number = self.owner(block)
        first = int(self.starts[self.firsts[number]])
        return f"row {int(self.starts[block]) - first + place} of {self.shards[number].name}"

    def columns(self, names: Sequence[str]) -> Any:
        """Other columns of all rows, as a table of pyarrow.

        Raises:
            ValueError: naming a shard that cannot be read.
        """
        import pyarrow

        def read(block: int) -> Any:
            number = self.owner(block)
            return _in_words(self.shards[number], lambda: self._block(number, block, names))

        with ThreadPoolExecutor(READERS) as pool:
            tables = list(pool.map(read, range(len(self.starts) - 1)))
        return pyarrow.concat_tables(tables, promote_options="permissive")

    def _block(self, number: int, block: int, names: Sequence[str]) -> Any:
        """Columns of a block."""
        import pyarrow
        import pyarrow.parquet

        shard, row = self.shards[number], block - int(self.firsts[number])
        offset, size = (int(numbers(self.parts[number], n)[row]) for n in ("offset", "size"))
        schema = self._schemas(number)
        if self.place.kind == ".parquet":
            with self.place.files.open(shard.path, "rb") as file:
                opened = pyarrow.parquet.ParquetFile(file, metadata=schema, pre_buffer=True)
                return opened.read_row_group(offset, columns=list(names), use_threads=False)
        data = self.place.files.cat_file(shard.path, offset, offset + size)
        message = pyarrow.ipc.read_message(pyarrow.py_buffer(data))
        batch = pyarrow.ipc.read_record_batch(message, schema)
        batch.validate(full=True)
        return pyarrow.Table.from_batches([batch]).select(list(names))

    def _read_schema(self, number: int) -> Any:
        """The metadata of a parquet file, or the schema of an Arrow file."""
        import pyarrow
        import pyarrow.parquet

        shard = self.shards[number]
        if self.place.kind == ".parquet":
            with self.place.files.open(shard.path, "rb") as file:
                return pyarrow.parquet.read_metadata(file)
        begin = numbers(self.parts[number], "offset")
        if not len(begin):
            raise ValueError("it has no rows")
        data = self.place.files.cat_file(shard.path, 0, int(begin[0]))
        data = data[8:] if data[:6] == b"ARROW1" else data
        return pyarrow.ipc.read_schema(pyarrow.py_buffer(data))


def _in_words(shard: Shard, reading: Callable[[], Any]) -> Any:
    """What a file system or pyarrow reads; its errors are ValueErrors that name the shard."""
    try:
        return reading()
    except Exception as error:  # of whatever library serves the protocol
        reason = (str(error).strip() or type(error).__name__).splitlines()[0][:200]
        raise ValueError(f"{shard.name} cannot be read: {reason}") from error
