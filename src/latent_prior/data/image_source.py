"""What every source of images offers: its splits, by row or in blocks."""

from __future__ import annotations

import abc
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from latent_prior.data.captions import Captions
from latent_prior.data.labels import Labels

if TYPE_CHECKING:
    from numpy.typing import NDArray

Encoded = Callable[[], bytes]
"""Gives the content of an image file, or raises ValueError or OSError."""
_BLOCK = 256  # rows of a table that are read by row anyway


@dataclass
class ImageTable:
    """Encoded images of one split, by row.

    Attributes:
        read: row -> content of an image file.
        name_of: row -> name of the image in messages.
        size: number of rows.
        labels: (N,), of a small integer type, -1 without a class; or None.
        class_names: names of the labels in the order of their numbers.
        contents: a fingerprint of the encoded images, computed when called.
        path_of: row -> the image's own file, None for an image stored in a table.
        remark: why there are no labels although there is a column for them.
        captions: those of every row, or None.
    """

    read: Callable[[int], bytes]
    name_of: Callable[[int], str]
    size: int
    labels: NDArray[np.integer] | None
    class_names: tuple[str, ...]
    contents: Callable[[], str]
    path_of: Callable[[int], Path | None] = lambda row: None
    remark: str | None = None
    captions: Captions | None = None

    def __len__(self) -> int:
        """Number of rows, including unreadable images."""
        return self.size


@dataclass
class Blocks:
    """Encoded images of one split in blocks, each of which lies in one piece.

    Attributes:
        sizes: int64 (blocks,), images in each.
        read: (block, places in it, ascending) -> the images there. Raises ValueError or OSError if
            the block cannot be read.
        name_of: (block, place) -> name of the image in messages.
        contents: a fingerprint of the encoded images, computed when called.
        largest: bytes that reading the largest block takes.
        labels: the classes of all images, block after block, read when called.
    """

    sizes: NDArray[np.int64]
    read: Callable[[int, NDArray[np.int64]], Sequence[Encoded]]
    name_of: Callable[[int, int], str]
    contents: Callable[[], str]
    largest: int = 0
    labels: Callable[[], Labels] = lambda: Labels(None)

    def __len__(self) -> int:
        """Number of blocks."""
        return len(self.sizes)


class ImageSource(abc.ABC):
    """A dataset of encoded images."""

    @abc.abstractmethod
    def split_names(self) -> list[str]:
        """Names of the splits.

        Raises:
            ValueError: the dataset cannot be opened.
        """

    @abc.abstractmethod
    def size(self, split: str) -> int:
        """Number of images of a split that is there, without opening it."""

    @abc.abstractmethod
    def table(self, split: str) -> ImageTable:
        """Open a split by row.

        Raises:
            ValueError: there is no such dataset, split or column.
        """

    def blocks(self, split: str) -> Blocks:
        """Open a split to be read in any order of its blocks, without its captions.

        Raises:
            ValueError: there is no such dataset, split or column.
        """
        table = self.table(split)
        count = -(-len(table) // _BLOCK)
        sizes = np.diff(np.minimum(np.arange(count + 1) * _BLOCK, len(table)))
        return Blocks(
            sizes,
            lambda block, places: [
                partial(table.read, row) for row in (block * _BLOCK + places).tolist()
            ],
            lambda block, place: table.name_of(block * _BLOCK + place),
            table.contents,
            labels=lambda: Labels(table.labels, table.class_names, table.remark),
        )

    def remarks(self) -> list[str]:
        """What a user should know about the splits and unused files, as ends of a sentence."""
        return []
