"""Rows of memory-mapped Arrow files, so that memory does not grow with the dataset.

Pages that were read would stay resident, so that after an epoch the whole dataset counts as this
process's memory (and a job with a memory limit is killed). `MappedFiles` releases them regularly;
they stay in the kernel's cache. `MappedTable` reads columns of fixed size into arrays, `ArrowTable`
cells of any type.
"""

from __future__ import annotations

import itertools
import mmap
import sys
from array import array
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from latent_prior.files import open_regular

if TYPE_CHECKING:
    from datasets import Features

_RESIDENT = 16 * 2**20  # bytes of the files that may count as this process's memory
_ROWS = 1024  # that are looked up at a time
_AROUND = 64 * 2**10  # bytes that become resident around the one that is read: Linux maps 16 pages


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


@dataclass(frozen=True)
class Batches:
    """Record batches of pyarrow, each of which is described anew when it is read.

    Attributes:
        schema: of all of them.
        starts: int64 (batches + 1,), rows before each and in all.
        read: number -> the record batch.
        let_go: called with the number of bytes that were read, for `MappedFiles.let_go`.
    """

    schema: Any
    starts: NDArray[np.int64]
    read: Callable[[int], Any]
    let_go: Callable[[int], None] = lambda size: None


def mapped_batches(paths: Sequence[Path]) -> Batches:
    """The record batches of Arrow stream files; 24 bytes of memory for each.

    Raises:
        ValueError: a file is no regular one or no Arrow stream, or has other columns than another.
    """
    import pyarrow

    files, buffers, schemas = MappedFiles(), [], []
    owners, offsets, counts = array("q"), array("q"), array("q", [0])
    for number, path in enumerate(paths):
        buffers.append(pyarrow.py_buffer(files.map(path)))
        file = pyarrow.BufferReader(buffers[-1])
        messages = pyarrow.ipc.MessageReader.open_stream(file)
        schemas.append(pyarrow.ipc.read_schema(messages.read_next_message()))
        if schemas[-1] != schemas[0]:
            raise ValueError(f"{path.name} has other columns than {paths[0].name}")
        offset = file.tell()
        for message in messages:
            owners.append(number)
            offsets.append(offset)
            counts.append(pyarrow.ipc.read_record_batch(message, schemas[0]).num_rows)
            offset = file.tell()
            files.let_go(_AROUND)  # of its description

    def read(number: int) -> Any:
        message = pyarrow.ipc.read_message(buffers[owners[number]].slice(offsets[number]))
        return pyarrow.ipc.read_record_batch(message, schemas[0])

    return Batches(schemas[0], np.cumsum(counts), read, files.let_go)


def held_batches(table: Any, let_go: Callable[[int], None] = lambda size: None) -> Batches:
    """Those of a table of pyarrow, which is in memory or mapped by someone else."""
    batches = table.to_batches()
    starts = np.cumsum([0, *map(len, batches)])
    return Batches(table.schema, starts, batches.__getitem__, let_go)


class ArrowTable:
    """Rows with columns of any type, cell by cell or column by column, without copying them.

    Args:
        batches: the rows.
        features: types of the columns, as `datasets` describes them.
        paths: files in which the rows lie; none if they are in memory.
        chosen: the rows to take, ascending; None for all.
    """

    def __init__(
        self,
        batches: Batches,
        features: Features,
        paths: Sequence[Path] = (),
        chosen: NDArray[np.integer] | None = None,
    ) -> None:
        self.features, self.paths = features, tuple(paths)
        self._batches, self._chosen = batches, chosen
        self._types = {field.name: field.type for field in features.arrow_schema}

    def __len__(self) -> int:
        """Number of rows."""
        return int(self._batches.starts[-1]) if self._chosen is None else len(self._chosen)

    @property
    def column_names(self) -> list[str]:
        """Names of the columns in their order."""
        return list(self.features)

    def type_of(self, column: str) -> Any:
        """The type of a column in Arrow."""
        return self._types[column]

    def stored_row(self, row: int) -> int:
        """Where a row is stored, counted over all files."""
        return row if self._chosen is None else int(self._chosen[row])

    def choose(self, rows: Iterable[NDArray[np.integer]]) -> ArrowTable:
        """Some of the rows, given in ascending pieces; kept in the smallest integer type."""
        assert self._chosen is None
        kind = np.min_scalar_type(len(self))
        chosen = np.concatenate([np.zeros(0, kind), *(piece.astype(kind) for piece in rows)])
        return ArrowTable(self._batches, self.features, self.paths, chosen)

    def cast(self, column: str, feature: Any) -> ArrowTable:
        """The rows with a column that is read as another type of `datasets`.

        Raises:
            TypeError, ValueError, NotImplementedError: it cannot be read so.
        """
        features = self.features.copy()
        features[column] = feature
        found = ArrowTable(self._batches, features, self.paths, self._chosen)
        if len(found):
            found._as_described(column, self._batches.read(0).column(column).slice(0, 1))
        return found

    def cell(self, column: str, row: int) -> Any:
        """A cell as pyarrow gives it to Python.

        Raises:
            ValueError: it is damaged.
        """
        starts, stored = self._batches.starts, self.stored_row(row)
        number = int(np.searchsorted(starts, stored, "right")) - 1
        whole = self._batches.read(number).column(column)
        cell = self._as_described(column, whole.slice(stored - int(starts[number]), 1))
        cell.validate(full=True)  # it may come from a stranger
        try:
            return cell[0].as_py()
        finally:
            self._batches.let_go(5 * _AROUND + cell.nbytes)

    def parts(self, column: str) -> Iterator[Any]:
        """A column in order, in arrays of pyarrow of at most 1,024 rows.

        They lie in the files and must not be kept.
        """
        starts, chosen = self._batches.starts, self._chosen
        bounds = starts if chosen is None else np.searchsorted(chosen, starts)
        for number, (first, end) in enumerate(itertools.pairwise(bounds.tolist())):
            if first == end:
                continue
            whole, start = self._batches.read(number).column(column), int(starts[number])
            for begin in range(first, end, _ROWS):
                stop = min(begin + _ROWS, end)
                low, high = self.stored_row(begin), self.stored_row(stop - 1)
                part = whole.slice(low - start, high + 1 - low)
                self._batches.let_go(3 * _AROUND + part.nbytes)
                if chosen is not None:
                    part = part.take(chosen[begin:stop].astype(np.int64) - low)
                yield self._as_described(column, part)

    def _as_described(self, column: str, values: Any) -> Any:
        """Values of a column in the type that the features describe."""
        import datasets

        if values.type == self._types[column]:
            return values
        return datasets.table.cast_array_to_feature(values, self.features[column])


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
        size = sum(_AROUND + self.columns[name].itemsize for name in names)
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
        for begin in range(0, len(indices), _ROWS):
            part = indices[begin : begin + _ROWS]
            chunks = np.searchsorted(self._firsts, part, "right") - 1
            self._check(chunks)
            within = part - self._firsts[chunks]
            for chunk, row in zip(chunks.tolist(), within.tolist(), strict=True):
                texts = self._texts[chunk].row(row)
                yield texts
                self._files.let_go(3 * _AROUND + sum(map(len, texts)))

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
                self._files.let_go(piece.nbytes + _AROUND)

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
            self._files.let_go((1 + len(self.columns)) * _AROUND)


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
