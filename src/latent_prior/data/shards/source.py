"""The source of images in shards."""

from __future__ import annotations

import functools
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from latent_prior.data.captions import NO_CAPTIONS, Captions
from latent_prior.data.fingerprints import files_fingerprint, fingerprint_of
from latent_prior.data.image_source import Blocks, Encoded, ImageSource, ImageTable
from latent_prior.data.labels import NO_LABELS, Labels, read_labels
from latent_prior.data.shards.arrow_tables import ArrowTable
from latent_prior.data.shards.cells import check_columns, no_images
from latent_prior.data.shards.index import Index, check_problems, open_index
from latent_prior.data.shards.places import TAR, Place
from latent_prior.data.shards.rows import Rows, TableRows, open_rows
from latent_prior.data.shards.tables import in_memory
from latent_prior.data.shards.tar_files import Columns
from latent_prior.data.splits import (
    FEWEST,
    held_out_remark,
    missing_parts,
    parts_of_rows,
    rows_of_part,
)
from latent_prior.options import ImageOptions


class ShardedSource(ImageSource):
    """Images in tar, parquet or Arrow files, whose index says what lies where.

    Parts that are held out of `train` are decided by the numbers of the rows, so they are those of
    the same data in any other form, and are known without reading an image.
    """

    def __init__(self, options: ImageOptions, place: Place) -> None:
        self.options, self.place = options, place

    def split_names(self) -> list[str]:
        """Splits that are stored, and those held out of `train`."""
        stored = list(self._all)
        return ["train", *self._parts, *stored[1:]] if self._parts else stored

    def size(self, split: str) -> int:
        """Number of images of a split."""
        return int(self._sizes(split).sum())

    def remarks(self) -> list[str]:
        """What is held out, and files that are not used."""
        return [*([held_out_remark(self._parts)] if self._parts else []), *self.place.remarks]

    def blocks(self, split: str) -> Blocks:
        """A split in the blocks in which it is stored."""
        rows = self._stored(split)

        def kept(block: int) -> NDArray[np.int64] | None:
            if not self._is_divided(split):
                return None
            first, end = rows.starts[block : block + 2].tolist()
            return np.flatnonzero(parts_of_rows(end - first, self._parts, first) == split)

        def read(block: int, places: NDArray[np.int64]) -> list[Encoded]:
            own = kept(block)
            return rows.read(block, places if own is None else own[places])

        def name_of(block: int, place: int) -> str:
            own = kept(block)
            inside = rows.name_of(block, place if own is None else int(own[place]))
            return f"{inside} of {self.place.dataset}"

        return Blocks(
            self._sizes(split),
            read,
            name_of,
            functools.partial(self._contents, split),
            rows.bytes,
            functools.partial(self._labels, split),
        )

    def table(self, split: str) -> ImageTable:
        """A split by row; a table's blocks are read as a whole."""
        blocks, rows = self.blocks(split), self._stored(split)
        ends = np.cumsum(blocks.sizes)
        lock = threading.Lock()

        def at(row: int) -> tuple[int, int]:
            block = int(np.searchsorted(ends, row, side="right"))
            return block, row - int(ends[block] - blocks.sizes[block])

        @functools.lru_cache(4)
        def whole(block: int) -> Sequence[Encoded]:
            return blocks.read(block, np.arange(blocks.sizes[block]))

        def read(row: int) -> bytes:
            block, place = at(row)
            if not isinstance(rows, TableRows):
                return blocks.read(block, np.array([place]))[0]()
            with lock:  # a row group that several threads need is read once
                images = whole(block)
            return images[place]()

        labels, texts = self._labels(split), self._own(self._texts, split)
        column = self._caption_column
        return ImageTable(
            read,
            lambda row: blocks.name_of(*at(row)),
            self.size(split),
            labels.numbers,
            labels.names,
            blocks.contents,
            remark=labels.remark,
            captions=Captions(texts, column) if column and column in texts.column_names else None,
        )

    @functools.cached_property
    def _index(self) -> Index:
        index = open_index(self.place, Columns.of(self.options, self.place.kind == TAR))
        check_problems(index, self.place, self.options.on_corrupt)
        return index

    @functools.cached_property
    def _all(self) -> dict[str, Rows]:
        """The splits as they are stored."""
        opened = {
            split: open_rows(self.place, self._index, split, self.options.image_column)
            for split in self.place.splits
        }
        for rows in opened.values():
            if isinstance(rows, TableRows):
                _check_schema(rows.schema(), self.options)
        return opened

    @functools.cached_property
    def _parts(self) -> tuple[str, ...]:
        """Splits that are held out of `train`."""
        parts = missing_parts(self._all)
        return parts if parts and len(self._all["train"]) >= FEWEST else ()

    def _is_divided(self, split: str) -> bool:
        return bool(self._parts) and split in ("train", *self._parts)

    def _stored(self, split: str) -> Rows:
        """The rows among which those of a split are.

        Raises:
            ValueError: there is no such split.
        """
        if self._is_divided(split):
            return self._all["train"]
        if split not in self._all:
            few = ""
            if split in missing_parts(self._all):
                few = f" ({len(self._all['train'])} images are too few to hold some out)"
            raise ValueError(
                f"--dataset {self.place.dataset} has no split {split!r}; "
                f"it has: {', '.join(self.split_names())}{few}"
            )
        return self._all[split]

    @functools.lru_cache(8)  # noqa: B019 (a source lives as long as its data are used)
    def _sizes(self, split: str) -> NDArray[np.int64]:
        """Images of a split in each block."""
        starts = self._stored(split).starts
        if not self._is_divided(split):
            return np.diff(starts)
        sizes = np.zeros(len(starts) - 1, np.int64)
        for own in rows_of_part(int(starts[-1]), self._parts, split):
            blocks = np.searchsorted(starts, own, side="right") - 1
            sizes += np.bincount(blocks, minlength=len(sizes))
        return sizes

    @property
    def _caption_column(self) -> str | None:
        column = self.options.caption_column
        if column == NO_CAPTIONS:
            return None
        return column or ("text" if self.place.kind == TAR else None)

    @functools.cached_property
    def _texts(self) -> dict[str, ArrowTable]:
        """Classes and captions of the stored splits, as `datasets` reads them."""
        return {split: self._texts_of(rows) for split, rows in self._all.items()}

    def _texts_of(self, rows: Rows) -> ArrowTable:
        import pyarrow

        label, captions = self.options.label_column or "label", self._caption_column
        if isinstance(rows, TableRows):
            known = rows.schema().names
            wanted = [name for name in (label, captions) if name is not None and name in known]
            return in_memory(rows.columns(wanted or known[:1]))
        stored = pyarrow.Table.from_batches(rows.parts)
        columns = {"name": stored.column("name")}
        if label != NO_LABELS and stored.column("label").null_count < len(stored):
            columns[label] = self._checked_labels(rows, stored)
        if captions is not None and stored.column("captions").null_count < len(stored):
            columns[captions] = stored.column("captions")
        return in_memory(pyarrow.table(columns), rows.let_go)

    def _checked_labels(self, rows: Rows, stored: Any) -> Any:
        """The classes of tar files, of which none may be missing."""
        labels = stored.column("label")
        if labels.null_count and self.options.on_corrupt == "error":
            row = int(np.flatnonzero(labels.is_null().to_numpy())[0])
            shard = rows.shards[rows.owner(row)]
            raise ValueError(
                f"--dataset {self.place.dataset}: {shard.name}: its member "
                f"{stored.column('name')[row].as_py()} has no class, but others have; add it, or "
                "set --on_corrupt skip to take such images without a class"
            )
        return labels

    def _labels(self, split: str) -> Labels:
        if self.options.label_column == NO_LABELS:
            return Labels(None)
        splits = self._texts
        if self._parts:
            splits = {name: self._own(self._texts, name) for name in self.split_names()}
        return read_labels(splits, split, self.options.label_column)

    def _own(self, texts: dict[str, ArrowTable], split: str) -> ArrowTable:
        """The rows of a split among those that are stored."""
        if not self._is_divided(split):
            return texts[split]
        rows = texts["train"]
        return rows.choose(rows_of_part(len(rows), self._parts, split))

    def _contents(self, split: str) -> str:
        """A fingerprint of what a split holds."""
        shards = self.place.splits["train" if self._is_divided(split) else split]
        if self.place.folder is not None:
            files = files_fingerprint([Path(shard.path) for shard in shards])
        else:
            files = fingerprint_of(*(f"{s.name} {s.size} {s.stamp}" for s in shards))
        return fingerprint_of(files, split, str(self.size(split)))


def _check_schema(schema: Any, options: ImageOptions) -> None:
    """Refuse a table without the columns of the options.

    Raises:
        ValueError: naming the column.
    """
    import pyarrow

    check_columns(options, schema.names)
    if options.image_column not in schema.names:
        raise ValueError(
            f"--image_column {options.image_column}: there is no such column; "
            f"there are: {', '.join(schema.names)}"
        )
    kind = schema.field(options.image_column).type
    if pyarrow.types.is_struct(kind):
        names = {kind.field(number).name for number in range(kind.num_fields)}
        if {"bytes", "path"} <= names:
            return
    if not (pyarrow.types.is_binary(kind) or pyarrow.types.is_large_binary(kind)):
        raise no_images(options.image_column)
