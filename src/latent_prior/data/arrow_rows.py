"""Rows of memory-mapped Arrow files, so that memory does not grow with the dataset."""

from __future__ import annotations

import mmap
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view
from numpy.typing import NDArray

_RESIDENT = 16 * 2**20  # bytes of the files that may count as this process's memory
_AROUND = 64 * 2**10  # bytes that become resident around the one that is read: Linux maps 16 pages


class MappedTable:
    """Rows of fixed size in Arrow stream files, as written by `datasets`, without copying columns.

    Only the positions of the record batches are kept in memory. Pages that were read would stay
    resident, so that after an epoch the whole dataset counts as this process's memory (and a job
    with a memory limit is killed). They are released regularly and stay in the kernel's cache.

    Args:
        paths: the files, in the order of their rows.
        columns: name -> numpy type of one row, with its shape: `np.dtype((np.uint8, (2, 3)))`.

    Raises:
        OSError: a file is missing or truncated.
        ValueError: a file is no Arrow stream, or a column is missing or has another type or shape.
    """

    def __init__(self, paths: Sequence[Path], columns: Mapping[str, np.dtype[Any]]) -> None:
        self.columns = dict(columns)
        self._maps: list[mmap.mmap] = []
        self._windows: dict[str, list[NDArray[Any]]] = {name: [] for name in columns}
        self._size = self._touched = self._length = 0
        counts: list[int] = []
        files: list[int] = []
        starts: dict[str, list[int]] = {name: [] for name in columns}
        for path in paths:
            self._open(path, counts, starts)
            files += [len(self._maps) - 1] * (len(counts) - len(files))
        self._length = sum(counts)
        self._counts = np.array(counts, np.int64)
        self._firsts = np.cumsum(self._counts) - self._counts
        self._files = np.array(files, np.int64)
        self._starts = {name: np.array(places, np.int64) for name, places in starts.items()}

    def __len__(self) -> int:
        """Rows of all files."""
        return self._length

    def rows(self, indices: NDArray[np.integer], names: Sequence[str]) -> dict[str, NDArray[Any]]:
        """Copies of rows, (number of indices, *shape) by column name, in their stored type."""
        assert not indices.size or 0 <= indices.min() <= indices.max() < len(self)
        found = {name: np.empty(len(indices), self.columns[name]) for name in names}
        size = sum(_AROUND + self.columns[name].itemsize for name in names)
        step = max(1, _RESIDENT // size)
        for begin in range(0, len(indices), step):
            part = indices[begin : begin + step]
            chunk = np.searchsorted(self._firsts, part, "right") - 1
            files, within = self._files[chunk], part - self._firsts[chunk]
            for file in np.flatnonzero(np.bincount(files)):
                mine = np.flatnonzero(files == file)
                for name, values in found.items():
                    windows = self._windows[name][file]
                    places = self._starts[name][chunk[mine]] + within[mine] * windows.shape[1]
                    values[begin + mine] = windows[places].reshape(-1, *values.shape[1:])
            self._let_go(len(part) * size)
        return found

    def pieces(self, name: str) -> Iterator[NDArray[Any]]:
        """A column in order, in views (rows, *shape) of at most 16 MiB."""
        step = max(1, _RESIDENT // self.columns[name].itemsize)
        for file, start, count in zip(self._files, self._starts[name], self._counts, strict=True):
            windows = self._windows[name][file]
            length = windows.shape[1]
            rows = windows[start : start + count * length : length]
            for begin in range(0, count, step):
                piece = rows[begin : begin + step]
                yield piece.reshape(-1, *self.columns[name].shape)
                self._let_go(piece.nbytes + _AROUND)

    def column(self, name: str) -> NDArray[Any]:
        """A copy of a whole column, (rows, *shape)."""
        whole = np.empty(len(self), self.columns[name])
        begin = 0
        for piece in self.pieces(name):
            whole[begin : begin + len(piece)] = piece
            begin += len(piece)
        return whole

    def _open(self, path: Path, counts: list[int], starts: dict[str, list[int]]) -> None:
        """Map a file and note the positions of its record batches."""
        import pyarrow

        with path.open("rb") as file:
            mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        base = np.frombuffer(mapped, np.uint8).ctypes.data
        reader = pyarrow.ipc.open_stream(pyarrow.py_buffer(mapped))
        if missing := set(self.columns) - set(reader.schema.names):
            raise ValueError(f"{path.name} has no column {', '.join(sorted(missing))}")
        self._maps.append(mapped)
        self._size += len(mapped)
        for name, kind in self.columns.items():
            plain = np.frombuffer(mapped, kind.base, len(mapped) // kind.base.itemsize)
            length = int(np.prod(kind.shape))
            # A file of no rows may be smaller than one row.
            self._windows[name].append(sliding_window_view(plain, min(length, len(plain))))
        for batch in reader:
            if not len(batch):
                continue
            counts.append(len(batch))
            for name, kind in self.columns.items():
                values = _flat(batch.column(name), name, kind)
                place = values.ctypes.data - base
                if not 0 <= place <= len(mapped) - values.nbytes or place % values.itemsize:
                    raise ValueError(f"column {name} of {path.name} is compressed")
                starts[name].append(place // values.itemsize)
            self._let_go((1 + len(self.columns)) * _AROUND)

    def _let_go(self, size: int) -> None:
        """Count `size` more resident bytes; above the limit, release all pages.

        The mappings are shared and read-only: released pages are mapped again when read.
        """
        self._touched += size
        if self._touched > _RESIDENT:
            self._touched = 0
            if self._size > _RESIDENT and hasattr(mmap, "MADV_DONTNEED"):  # not on Windows
                for mapped in self._maps:
                    mapped.madvise(mmap.MADV_DONTNEED)


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
