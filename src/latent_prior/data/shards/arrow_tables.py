"""Tables of Arrow with columns of any type, of which few rows are in memory at a time."""

from __future__ import annotations

import itertools
from array import array
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from latent_prior.data.arrow_rows import AROUND, ROWS, MappedFiles

if TYPE_CHECKING:
    from datasets import Features


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
            files.let_go(AROUND)  # of its description

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
            self._batches.let_go(5 * AROUND + cell.nbytes)

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
            for begin in range(first, end, ROWS):
                stop = min(begin + ROWS, end)
                low, high = self.stored_row(begin), self.stored_row(stop - 1)
                part = whole.slice(low - start, high + 1 - low)
                self._batches.let_go(3 * AROUND + part.nbytes)
                if chosen is not None:
                    part = part.take(chosen[begin:stop].astype(np.int64) - low)
                yield self._as_described(column, part)

    def _as_described(self, column: str, values: Any) -> Any:
        """Values of a column in the type that the features describe."""
        import datasets

        if values.type == self._types[column]:
            return values
        return datasets.table.cast_array_to_feature(values, self.features[column])
