"""Images in a random order, read and decoded ahead of their use."""

from __future__ import annotations

import functools
import itertools
from collections import deque
from collections.abc import Callable, Generator, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from latent_prior.data.image_files import UNREADABLE, read_image
from latent_prior.data.image_source import Blocks, Encoded
from latent_prior.data.labels import Labels
from latent_prior.data.shards.order import BlockOrder
from latent_prior.data.shards.rows import READERS
from latent_prior.machine import thread_pool
from latent_prior.options import ImageOptions

Pixels = NDArray[np.uint8]
"""An image (H, W, C), resized and cropped as the options say."""
_TRIES = 1000  # images that may stand in for an unreadable one
_Content = dict[int, Encoded]
Decoded = tuple[Pixels, int]
"""An image and its row, counted over all blocks."""


class _Image(NamedTuple):
    """An image whose block is being read."""

    content: Future[_Content]
    block: int
    place: int


class ImageStream:
    """The images of one split, in an order that a seed decides.

    Args:
        blocks: where the images are.
        options: `image_size` and `channels` must be set.
        classes: whether the classes of all images are read.

    Attributes:
        labels: (N,) by row, of a small integer type, -1 without a class; None without classes.
        class_names: names of the labels in the order of their numbers.

    Raises:
        ValueError: there are no images, or their classes cannot be read.
    """

    def __init__(self, blocks: Blocks, options: ImageOptions, classes: bool = False) -> None:
        assert options.image_size is not None
        if not blocks.sizes.any():
            raise ValueError(f"--dataset {options.dataset}: there are no images to stream")
        self.blocks, self.options = blocks, options
        self._starts = np.concatenate([[0], np.cumsum(blocks.sizes)])
        found = blocks.labels() if classes else Labels(None)
        self.class_names = found.names
        self.labels = None if found.numbers is None else torch.from_numpy(found.numbers)

    def __len__(self) -> int:
        """Number of images, including unreadable ones."""
        return int(self.blocks.sizes.sum())

    @functools.cached_property
    def fingerprint(self) -> str:
        """A sha256 over the files, by content or by names, sizes and times; see `Blocks`."""
        return self.blocks.contents()

    def batches(
        self, start: int, parts: Sequence[slice], batch_size: int, seed: int
    ) -> Generator[list[Future[list[Decoded]]], None, None]:
        """One process's micro-batches from step `start` on, each while it is still being decoded.

        The first one takes no longer than at the start of an epoch, wherever it is.

        Args:
            start: a step.
            parts: of a step's whole batch, those that this process takes one after another.
            batch_size: images of the whole batch.
            seed: of the order; with these images, the batch size and the step it decides them.

        An image that cannot be read raises a ValueError from its future. With `--on_corrupt skip`
        the next readable one of its block, or else of a following block, takes its place, so that
        the others keep theirs.
        """
        order = BlockOrder(self.blocks, batch_size, seed)
        taken = np.concatenate([np.arange(part.start, part.stop) for part in parts])
        with ThreadPoolExecutor(READERS, thread_name_prefix="blocks") as readers:

            def read(block: int, places: NDArray[np.int64]) -> Future[_Content]:
                return readers.submit(self._read, block, places)

            lanes = {}
            for lane in np.unique(taken // order.width).tolist():
                columns = taken[taken // order.width == lane] % order.width
                lanes[lane] = _Lane(order, lane, columns, start, read)
            try:
                for step in itertools.count(start):
                    for part in parts:
                        images = [
                            lanes[place // order.width].take(step, place % order.width)
                            for place in range(part.start, part.stop)
                        ]
                        tasks = [images[first : first + 8] for first in range(0, len(images), 8)]
                        yield [thread_pool().ahead(self._decode, task) for task in tasks]
            finally:
                readers.shutdown(wait=False, cancel_futures=True)

    def first(self, count: int) -> list[Pixels]:
        """The first readable images in the order of the data, at most `count`."""
        found = self._readable(0, 0, _Unread(self.options))
        return [pixels for pixels, _ in itertools.islice(found, count)]

    def _read(self, block: int, places: NDArray[np.int64]) -> _Content:
        return dict(zip(places.tolist(), self.blocks.read(block, places), strict=True))

    def _decode(self, images: Sequence[_Image]) -> list[Decoded]:
        return [self._decoded(image) for image in images]

    def _decoded(self, image: _Image) -> Decoded:
        try:
            # Whatever is decoded is forgotten at once.
            pixels = self._pixels(image.content.result().pop(image.place)())
            return pixels, int(self._starts[image.block]) + image.place
        except UNREADABLE as error:
            unread = _Unread(self.options)
            unread.add(self.blocks.name_of(image.block, image.place), error)
        return next(self._readable(image.block, image.place + 1, unread))

    def _pixels(self, content: bytes) -> Pixels:
        options = self.options
        side = options.resize or options.image_size
        return read_image(content, options.channels, side, options.max_pixels)

    def _readable(self, block: int, place: int, unread: _Unread) -> Iterator[Decoded]:
        """Readable images from a place on, to the end of its block, from its start, and onwards."""
        found = False
        for number in range(len(self.blocks)):
            current = (block + number) % len(self.blocks)
            places = np.arange(self.blocks.sizes[current])
            for each, content in self._contents(current, places, unread, place * (number == 0)):
                try:
                    pixels = self._pixels(content())
                except UNREADABLE as error:
                    unread.add(self.blocks.name_of(current, each), error)
                else:
                    found = True
                    yield pixels, int(self._starts[current]) + each
        if not found:
            raise ValueError(f"--dataset {self.options.dataset}: not one image can be read")

    def _contents(
        self, block: int, places: NDArray[np.int64], unread: _Unread, first: int
    ) -> list[tuple[int, Encoded]]:
        """The images of a block, beginning with place `first`."""
        try:
            found = list(self._read(block, places).items()) if len(places) else []
        except UNREADABLE as error:
            unread.add(self.blocks.name_of(block, 0), error)
            return []
        return found[first:] + found[:first]


class _Unread:
    """Images that could not be read: the first ends the program, unless they may be skipped."""

    def __init__(self, options: ImageOptions) -> None:
        self._options, self._count = options, 0

    def add(self, name: str, error: BaseException) -> None:
        if self._options.on_corrupt == "error":
            raise unreadable(name, error) from error
        self._count += 1
        if self._count > _TRIES:
            raise ValueError(f"{name} and {_TRIES} images around it cannot be read as images")


def unreadable(name: str, error: BaseException) -> ValueError:
    """The error that names an image."""
    return ValueError(
        f"{name} cannot be read as an image ({error}); "
        "repair or remove it, or leave such images out with --on_corrupt skip"
    )


class _Lane:
    """What one process takes from a lane.

    While four fifths of a pool are used up, the blocks of the next one are read one by one, those
    of each lane at other steps, so that reading takes its threads evenly.

    Args:
        order: of all lanes.
        lane: its number.
        columns: which of the `order.width` images of a step are taken.
        start: the first step.
        read: begins to read images of a block.
    """

    def __init__(
        self,
        order: BlockOrder,
        lane: int,
        columns: NDArray[np.int64],
        start: int,
        read: Callable[[int, NDArray[np.int64]], Future[_Content]],
    ) -> None:
        self._order, self._lane, self._columns, self._read = order, lane, columns, read
        self._start = self._end = start * order.width
        self._phase = (lane + 1) / order.lanes
        self._images: dict[int, _Image] = {}  # by place in the lane
        self._plan()
        self._move()

    def take(self, step: int, column: int) -> _Image:
        """An image of a step; steps must not decrease."""
        place = step * self._order.width + column
        while place >= self._end:
            self._move()
        used = (place - self._begin) / (self._end - self._begin)
        self._ask(int(self._planned * 1.25 * used + self._phase))
        return self._images.pop(place)

    def _plan(self) -> None:
        """Find out what is taken from the pool after the present one."""
        pool = self._order.pool(self._lane, self._end)
        self._next = pool.first, pool.first + len(pool.blocks)
        numbers = np.arange(*self._next)
        mine = np.isin(numbers % self._order.width, self._columns) & (numbers >= self._start)
        numbers, blocks, places = numbers[mine], pool.blocks[mine], pool.places[mine]
        own = [np.flatnonzero(blocks == block) for block in np.unique(blocks)]
        self._unread = deque((int(blocks[n[0]]), numbers[n], places[n]) for n in own)
        self._planned = len(own)

    def _ask(self, count: int) -> None:
        """Begin to read the next pool up to its block `count`."""
        while self._unread and self._planned - len(self._unread) < count:
            block, numbers, places = self._unread.popleft()
            content = self._read(block, np.sort(places))
            for number, place in zip(numbers.tolist(), places.tolist(), strict=True):
                self._images[number] = _Image(content, block, place)

    def _move(self) -> None:
        """Go on to the next pool."""
        self._ask(self._planned)
        self._begin, self._end = self._next
        self._plan()
