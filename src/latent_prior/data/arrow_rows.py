"""Rows of memory-mapped Arrow files, so that memory does not grow with the dataset.

Pages that were read would stay resident, so that after an epoch the whole dataset counts as this
process's memory (and a job with a memory limit is killed). `MappedFiles` releases them regularly;
they stay in the kernel's cache. `MappedTable` reads columns of fixed size into arrays;
`shards/arrow_tables.py` reads cells of any type.
"""

from __future__ import annotations

import itertools
import mmap
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from latent_prior.files import open_regular

_RESIDENT = 16 * 2**20  # bytes of the files that may count as this process's memory
ROWS = 1024
"""Rows that are looked up at a time."""
AROUND = 64 * 2**10
"""Bytes that become resident around the one that is read: Linux maps 16 pages."""


class MappedFiles:
    """Arrow stream files that are mapped into memory, of which few pages are resident."""

    def __init__(self) -> None:
        self._maps: list[mmap.mmap] = []
        self._touched = 0

    def map(self, path: Path) -> mmap.mmap:
        """Map a regular file as long as this object lives.

        Raises:
            OSError: it cannot be opened.
            ValueError: it is empty or no regular file.
        """
        with open_regular(path, sys.maxsize) as file:
            mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        self._maps.append(mapped)
        return mapped

    def let_go(self, size: int) -> None:
        """Count `size` more resident bytes; above the limit, release all pages.

        The mappings are shared and read-only: released pages are mapped again when read.
        """
        self._touched += size
        if self._touched > _RESIDENT:
            self._touched = 0
            if hasattr(mmap, "MADV_DONTNEED"):  # not on Windows
                for mapped in self._maps:
                    mapped.madvise(mmap.MADV_DONTNEED)


class _Texts(NamedTuple):
    """A column of lists of text in one record batch: views of its buffers.

    Numpy never reads beyond them, whatever numbers a damaged file holds.
    """

    column: Any
    """The Arrow array."""
    lists: NDArray[np.int32]
    """(rows + 1,), where the texts of each row begin among those of the batch."""
    texts: NDArray[np.int32]
    """(texts + 1,), where each text begins, in bytes."""
    data: NDArray[np.uint8]

    def row(self, row: int) -> list[str]:
        """The texts of a row."""
        first, last = self.lists[row : row + 2].tolist()
        ends = self.texts[first : last + 1].tolist()
        return [self.data[a:b].tobytes().decode() for a, b in itertools.pairwise(ends)]

    @property
    def nbytes(self) -> int:
        """Bytes of all rows."""
        return self.lists.nbytes + self.texts.nbytes + self.data.nbytes


class MappedTable:
    """Rows of Arrow stream files, as written by `datasets`, without copying columns.

    The columns are of fixed size; one of lists of text may come on top.

    Only a view of each record batch is kept in memory.

    A file is opened at once, and its rows are checked when one of them is read for the first time:
    see `check_rows`.

    Args:
        paths: the files, in the order of their rows.
        columns: name -> numpy type of one row, with its shape: `np.dtype((np.uint8, (2, 3)))`.
        texts: a column of lists of text that the files may have; all of them or none.

    Attributes:
        has_texts: whether they have it.

    Raises:
        ValueError: a file is missing, truncated or no Arrow stream, or a column is missing or has
            another type or shape.
    """

    def __init__(
        self,
        paths: Sequence[Path],
        columns: Mapping[str, np.dtype[Any]],
        texts: str | None = None,
    ) -> None:
        self.columns = dict(columns)
        self.has_texts = False
        self._texts_column = texts
        self._texts: list[_Texts] = []  # for each record batch
        self._files = MappedFiles()
        self._chunks: dict[str, list[NDArray[Any]]] = {name: [] for name in columns}
        import pyarrow

        counts: list[int] = []
        self._unchecked: dict[Path, range] = {}  # the record batches of a file
        for path in paths:
            before = len(counts)
            try:
                counts += self._open(path)
            except (OSError, pyarrow.ArrowException) as error:
                raise ValueError(f"{path} is damaged or no Arrow stream ({error})") from error
            self._unchecked[path] = range(before, len(counts))
        self._firsts = np.cumsum([0, *counts])

    def __len__(self) -> int:
        """Rows of all files."""
        return int(self._firsts[-1])

    def check_rows(self, path: Path, rows: range) -> None:
        """Called before rows of a file are read for the first time; a subclass may refuse them."""

    def rows(self, indices: NDArray[np.integer], names: Sequence[str]) -> dict[str, NDArray[Any]]:
        """Copies of rows, (number of indices, *shape) by column name, in their stored type."""
        assert not indices.size or 0 <= indices.min() <= indices.max() < len(self)
        copies = {name: np.empty(len(indices), self.columns[name]) for name in names}
        size = sum(AROUND + self.columns[name].itemsize for name in names)
        step = max(1, _RESIDENT // size)
        for begin in range(0, len(indices), step):
            part = indices[begin : begin + step]
            chunks = np.searchsorted(self._firsts, part, "right") - 1
            self._check(chunks)
            within = part - self._firsts[chunks]
            places = list(zip(chunks.tolist(), within.tolist(), strict=True))
            for name, values in copies.items():
                for number, (chunk, row) in enumerate(places, begin):
                    values[number] = self._chunks[name][chunk][row]
            self._files.let_go(len(part) * size)
        return copies

    def texts(self, indices: NDArray[np.integer]) -> Iterator[list[str]]:
        """The texts of rows, one row after another.

        Raises:
            ValueError: a file was damaged after it was checked.
        """
        assert self.has_texts
        assert not indices.size or 0 <= indices.min() <= indices.max() < len(self)
        for begin in range(0, len(indices), ROWS):
            part = indices[begin : begin + ROWS]
            chunks = np.searchsorted(self._firsts, part, "right") - 1
            self._check(chunks)
            within = part - self._firsts[chunks]
            for chunk, row in zip(chunks.tolist(), within.tolist(), strict=True):
                texts = self._texts[chunk].row(row)
                yield texts
                self._files.let_go(3 * AROUND + sum(map(len, texts)))

    def check_texts(self, rows: range) -> None:
        """Check that rows hold lists of text, none of them empty; for `check_rows`.

        Raises:
            ValueError: what is wrong with them.
        """
        for chunk in range(*np.searchsorted(self._firsts, (rows.start, rows.stop)).tolist()):
            texts = self._texts[chunk]
            texts.column.validate(full=True)  # offsets and UTF-8
            used = texts.texts[texts.lists[0] : texts.lists[-1] + 1]
            if not ((np.diff(texts.lists) > 0).all() and (np.diff(used) > 0).all()):
                raise ValueError("there is an empty list or text")
            self._files.let_go(texts.nbytes)

    def pieces(self, name: str, rows: range) -> Iterator[tuple[int, NDArray[Any]]]:
        """Rows of a column in order: the first row's number, and at most 16 MiB, (rows, *shape).

        They are views of the files, unchecked.
        """
        step = max(1, _RESIDENT // self.columns[name].itemsize)
        for chunk in range(*np.searchsorted(self._firsts, (rows.start, rows.stop)).tolist()):
            values, first = self._chunks[name][chunk], int(self._firsts[chunk])
            for begin in range(0, len(values), step):
                piece = values[begin : begin + step]
                yield first + begin, piece
                self._files.let_go(piece.nbytes + AROUND)

    def column(self, name: str) -> NDArray[Any]:
        """A copy of a whole column, (rows, *shape)."""
        self.check()
        whole = np.empty(len(self), self.columns[name])
        for begin, piece in self.pieces(name, range(len(self))):
            whole[begin : begin + len(piece)] = piece
        return whole

    def check(self) -> None:
        """Check the rows of every file that nobody has read yet."""
        self._check(np.arange(len(self._firsts) - 1))

    def _check(self, chunks: NDArray[np.integer]) -> None:
        """Check the files of these record batches, and those without any."""
        if not self._unchecked:
            return
        needed = set(chunks.tolist())
        for path, own in list(self._unchecked.items()):
            if not own or not needed.isdisjoint(own):
                first, last = self._firsts[[own.start, own.stop]].tolist()
                self.check_rows(path, range(first, last))
                self._unchecked.pop(path, None)

    def _open(self, path: Path) -> Iterator[int]:
        """Map a file and keep a view of every column of its record batches; yields their rows."""
        import pyarrow

        mapped = self._files.map(path)
        buffer = pyarrow.py_buffer(mapped)
        reader = pyarrow.ipc.open_stream(buffer)
        if missing := set(self.columns) - set(reader.schema.names):
            raise ValueError(f"{path.name} has no column {', '.join(sorted(missing))}")
        has_texts = self._texts_column in reader.schema.names
        if self._unchecked and has_texts != self.has_texts:
            raise ValueError(
                f"{path.name} has {'a' if has_texts else 'no'} column {self._texts_column}, unlike "
                "the file before it"
            )
        self.has_texts = has_texts
        for batch in filter(len, reader):
            batch.validate()  # of damaged offsets, pyarrow makes arrays of negative length
            arrays: list[tuple[str, NDArray[Any]]] = []
            for name, kind in self.columns.items():
                values = _flat(batch.column(name), name, kind)
                self._chunks[name].append(values.reshape(-1, *kind.shape))
                arrays.append((name, values))
            if has_texts:
                name = str(self._texts_column)
                texts = _texts(batch.column(name), name)
                self._texts.append(texts)
                arrays += [(name, part) for part in (texts.lists, texts.texts, texts.data)]
            for name, values in arrays:
                if not 0 <= values.ctypes.data - buffer.address <= len(mapped) - values.nbytes:
                    raise ValueError(f"column {name} of {path.name} is compressed")
            yield len(batch)
            self._files.let_go((1 + len(self.columns)) * AROUND)


def _flat(column: Any, name: str, kind: np.dtype[Any]) -> NDArray[Any]:
    """The numbers of an Arrow column of nested lists, without a copy."""
    import pyarrow

    values = column.storage if isinstance(column, pyarrow.ExtensionArray) else column
    for size in kind.shape:
        if not pyarrow.types.is_list(values.type):
            raise ValueError(f"column {name} holds {values.type} instead of lists of {kind.shape}")
        inner = values.flatten()
        if len(inner) != size * len(values):
            raise ValueError(f"column {name} has another shape than {kind.shape}")
        values = inner
    if not pyarrow.types.is_primitive(values.type) or values.type.to_pandas_dtype() != kind.base:
        raise ValueError(f"column {name} holds {values.type} instead of {kind.base}")
    return values.to_numpy(zero_copy_only=True)


def _texts(column: Any, name: str) -> _Texts:
    """An Arrow column of lists of text, without a copy."""
    import pyarrow

    if column.type != pyarrow.list_(pyarrow.string()):
        raise ValueError(f"column {name} holds {column.type} instead of lists of text")
    values = column.values
    _, offsets, data = values.buffers()
    texts = np.frombuffer(offsets or b"\0\0\0\0", np.int32)
    return _Texts(
        column,
        column.offsets.to_numpy(),
        texts[values.offset : values.offset + len(values) + 1],
        np.frombuffer(data or b"", np.uint8),
    )
