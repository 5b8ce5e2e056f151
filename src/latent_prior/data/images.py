"""Sets of images, crops and pictures.

The value range of images in the whole project is defined here:

- on disk and in this module: uint8, HWC in files and arrays, NCHW in tensors; grey has 1 channel;
- inside every model: float32 NCHW in [-1, 1] (`to_float`, `to_uint8`).
"""

from __future__ import annotations

import functools
import io
import json
import logging
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from latent_prior.data.captions import OTHERWISE, Captions
from latent_prior.data.fingerprints import fingerprint_of
from latent_prior.data.found import MOST_HEADERS, headers
from latent_prior.data.image_files import UNREADABLE, read_header, read_image
from latent_prior.data.image_source import ImageTable
from latent_prior.data.shards.stream import ImageStream, unreadable
from latent_prior.data.sources import open_source
from latent_prior.files import whole_file
from latent_prior.machine import each_in_threads, is_main_process, thread_pool
from latent_prior.options import ImageOptions

if TYPE_CHECKING:
    from numpy.typing import NDArray

_log = logging.getLogger("latent_prior")
_CAPTIONS = 1024  # images whose captions are in memory at a time


def to_float(images: Tensor) -> Tensor:
    """Uint8 (B, C, H, W) -> float32 in [-1, 1]."""
    return images.float().div_(127.5).sub_(1.0)


def to_uint8(images: Tensor) -> Tensor:
    """Inverse of `to_float`: float (B, C, H, W), clamped to [-1, 1], -> uint8, rounded."""
    return images.float().add(1.0).mul_(127.5).round_().clamp_(0, 255).to(torch.uint8)


def grid(images: Tensor, columns: int) -> Tensor:
    """Arrange uint8 (N, C, H, W) in one picture (C, H', W') with thin grey lines, row by row."""
    from torchvision.utils import make_grid  # takes three seconds to import

    picture: Tensor = make_grid(images, nrow=columns, padding=1, pad_value=128)
    return picture[: images.shape[1]]


def to_pil(image: Tensor) -> Image.Image:
    """Uint8 (C, H, W) -> a PIL image of mode L or RGB."""
    array = image.permute(1, 2, 0).cpu().numpy()
    return Image.fromarray(array[..., 0] if array.shape[-1] == 1 else array)


def save_png(image: Tensor, path: Path) -> None:
    """Write uint8 (C, H, W) as a PNG file, whole or not at all."""
    with whole_file(path) as temporary:
        to_pil(image).save(temporary)


@dataclass
class ImageSet:
    """Images by index: decoded, converted and, if `image_size` is set, resized.

    Attributes:
        table: the encoded images and their labels.
        options: their size and columns.
        channels: 1 or 3.
        source_index: (N,), row of every image in its source; skipped rows are missing. Of the
            smallest integer type.
        skipped: number of rows that were left out: unreadable, or without a caption.
        cached: decoded images, uint8 (N, C, R, R), if they fit into `cache_mb`; R is `resize` or
            `image_size`.
    """

    table: ImageTable
    options: ImageOptions
    channels: Literal[1, 3]
    source_index: NDArray[np.integer]
    skipped: int = 0
    cached: Tensor | None = field(default=None, repr=False)

    def __len__(self) -> int:
        """Number of readable images."""
        return len(self.source_index)

    @property
    def class_names(self) -> tuple[str, ...]:
        """Names of the labels in the order of their numbers; empty without labels."""
        return self.table.class_names

    @property
    def labels(self) -> Tensor | None:
        """int64 (N,) or None; made anew at every call."""
        return self.labels_of(range(len(self)))

    def labels_of(self, indices: Sequence[int] | Tensor | NDArray[np.integer]) -> Tensor | None:
        """Classes of some images, int64 (B,), -1 without one; None if no image has any."""
        if self.table.labels is None:
            return None
        rows = self.source_index[_numbers(indices)]
        return torch.from_numpy(self.table.labels[rows].astype(np.int64))

    @functools.cached_property
    def fingerprint(self) -> str:
        """A sha256 over the images and their classes, before decoding.

        Changes if an image is added, removed or replaced, or gets another class. Local files of
        together at most 64 MiB are compared by content, larger ones by name, size and time,
        datasets of the hub by revision.
        """
        labels = np.zeros(0, np.int64) if self.table.labels is None else self.table.labels
        return fingerprint_of(self.table.contents(), labels, self.source_index, *self.class_names)

    @property
    def has_captions(self) -> bool:
        """Whether every image has one caption or several."""
        return self.table.captions is not None

    def captions(self, indices: Sequence[int] | Tensor) -> list[tuple[str, ...]]:
        """The captions of images, read from their table; each has at least one."""
        assert self.table.captions is not None
        return self.table.captions.read(self.source_index[_numbers(indices)].tolist())

    @functools.cached_property
    def captions_fingerprint(self) -> str | None:
        """A sha256 over the captions of all images; None without captions."""
        if not self.has_captions:
            return None
        batches = torch.arange(len(self)).split(_CAPTIONS)
        return fingerprint_of(
            *(fingerprint_of(*map(json.dumps, self.captions(batch))) for batch in batches)
        )

    def array(self, index: int) -> NDArray[np.uint8]:
        """One image as uint8 (H, W, C).

        Raises:
            ValueError: naming an image that cannot be read.
        """
        return self.decode_row(int(self.source_index[index]))

    def decode_row(self, row: int) -> NDArray[np.uint8]:
        """The image at a row of the source; see `array`."""
        return _decode_row(self.table, row, self.options, self.channels)

    def read(self, indices: Sequence[int] | Tensor) -> Tensor:
        """Images as uint8 (B, C, R, R), R = `resize` or `image_size`.

        Raises:
            ValueError: naming an unreadable image or, without `image_size`, one of another size.
        """
        rows = torch.as_tensor(indices)
        if self.cached is not None:
            return self.cached[rows]
        arrays = list(thread_pool().map(self.array, rows.tolist()))
        for array, index in zip(arrays, rows.tolist(), strict=True):
            if array.shape != arrays[0].shape:
                name = self.table.name_of(int(self.source_index[index]))
                raise ValueError(
                    f"{name} has shape {array.shape}, others {arrays[0].shape}: set --image_size to bring them to one"
                )
        return torch.from_numpy(np.stack(arrays)).permute(0, 3, 1, 2)

    def crops(self, indices: Sequence[int] | Tensor) -> Tensor:
        """Central crops, uint8 (B, C, image_size, image_size); see `read`."""
        assert self.options.image_size is not None
        return crop_windows(self.read(indices), self.options.image_size, 0, None)


def open_images(options: ImageOptions, split: str) -> ImageSet:
    """Open one split of a dataset.

    Raises:
        ValueError: there is no such dataset, split or column, or an image cannot be read or has
            no captions although others have.
    """
    table = open_source(options).table(split)
    if len(table) == 0:
        raise ValueError(f"--dataset {options.dataset}: split {split!r} holds no images")
    channels = options.channels or _channels(table, options)
    images = ImageSet(table, options, channels, all_rows(len(table)))
    if table.captions is not None:
        _check_captions(images, table.captions)
    side = options.resize or options.image_size
    fits = side is not None and len(table) * images.channels * side**2 <= options.cache_mb * 2**20
    if fits or options.on_corrupt == "skip":
        _decode_all(images, side if fits else None)
    return images


def _numbers(indices: Sequence[int] | Tensor | NDArray[np.integer]) -> slice | NDArray[np.integer]:
    """Indices for an array; those of a range take no memory."""
    if isinstance(indices, range):
        return slice(indices.start, indices.stop, indices.step)
    return np.asarray(indices, dtype=np.int64)


def all_rows(count: int) -> NDArray[np.integer]:
    """The numbers of rows, for `ImageSet.source_index`."""
    return np.arange(count, dtype=np.min_scalar_type(count))


def crop_windows(images: Tensor, size: int, padding: int, offsets: Tensor | None) -> Tensor:
    """Crop a window from every image, whose edges are repeated `padding` pixels outwards.

    uint8 (B, C, R, R) -> (B, C, size, size). `offsets`, int64 (B, 2), are the top left corners, in
    [0, R + 2 padding - size]; None crops the centre.
    """
    side = images.shape[-1]
    if offsets is None:
        top = (side - size) // 2
        return images[..., top : top + size, top : top + size]
    window = torch.arange(size)
    # Clamped indices repeat the edge.
    rows = (offsets[:, :1] + window - padding).clamp_(0, side - 1)  # (B, size)
    columns = (offsets[:, 1:] + window - padding).clamp_(0, side - 1)
    batch = torch.arange(len(images))[:, None, None]
    # This indexing moves the channels last: (B, size, size, C).
    return images[batch, :, rows[:, :, None], columns[:, None, :]].permute(0, 3, 1, 2)


def random_offsets(count: int, options: ImageOptions, generator: torch.Generator) -> Tensor:
    """Corners for `crop_windows`, int64 (count, 2), uniform over all windows."""
    assert options.image_size is not None
    side = options.resize or options.image_size
    return torch.randint(
        side + 2 * options.crop_padding - options.image_size + 1, (count, 2), generator=generator
    )


def square_size(images: ImageSet) -> int:
    """The common side of all images, for options without `image_size`.

    Raises:
        ValueError: the images are not square or differ in size.
    """
    height, width = images.array(0).shape[:2]
    if height != width:
        raise ValueError(
            f"the images are {height} x {width}: set --image_size to crop them to squares"
        )

    def check(index: int) -> None:
        row = int(images.source_index[index])
        try:
            data = io.BytesIO(images.table.read(row))
            size = read_header(data, images.options.max_pixels)[:2]
        except UNREADABLE as error:
            raise unreadable(images.table.name_of(row), error) from error
        if size != (height, width):
            raise ValueError(
                f"{images.table.name_of(row)} has {size[0]} x {size[1]} pixels, others {width} x {height}: "
                "set --image_size to bring them to one"
            )

    for _ in each_in_threads(check, range(len(images))):
        pass
    return height


def open_stream(options: ImageOptions, split: str, classes: bool = False) -> ImageStream:
    """Open one split to be read in sequence; `image_size` and `channels` must be set.

    With `classes`, those of all images are read now.

    Raises:
        ValueError: there is no such dataset, split or column, or a shard is damaged.
    """
    return ImageStream(open_source(options).blocks(split), options, classes)


def _decode_row(
    table: ImageTable, row: int, options: ImageOptions, channels: Literal[1, 3] | None
) -> NDArray[np.uint8]:
    """One image as uint8 (H, W, C), resized and cropped if the options set a size."""
    side = options.resize or options.image_size
    try:
        return read_image(table.read(row), channels, side, options.max_pixels)
    except UNREADABLE as error:
        raise unreadable(table.name_of(row), error) from error


def _channels(table: ImageTable, options: ImageOptions) -> Literal[1, 3]:
    """3 if any image has colours, by the headers that are read."""
    seen = [header for header in headers(table, options) if header is not None]
    if not seen and options.on_corrupt == "skip" and len(table) <= MOST_HEADERS:
        raise ValueError(f"--dataset {options.dataset}: not one image can be read")
    return 1 if seen and all(header.grey for header in seen) else 3


def _check_captions(images: ImageSet, captions: Captions) -> None:
    """Refuse images without usable captions, or leave them out if asked to."""
    count, options = len(images), images.options
    usable = np.ones(count, dtype=bool)
    for row, problem in captions.problems():
        if options.on_corrupt == "error":
            raise ValueError(f"{images.table.name_of(row)} {problem}; add it, {OTHERWISE}")
        usable[row] = False
    if not usable.any():
        raise ValueError(f"--dataset {options.dataset}: not one image has usable captions")
    _keep(images, usable, "without usable captions")


def _keep(images: ImageSet, kept: NDArray[np.bool_], others: str) -> None:
    """Leave out all but some images, and say which the others are."""
    left_out = int(len(kept) - kept.sum())
    images.source_index = images.source_index[kept]
    images.skipped += left_out
    if left_out and is_main_process():
        _log.info(
            "%s: left out %d of %d images %s", images.options.dataset, left_out, len(kept), others
        )


def _decode_all(images: ImageSet, side: int | None) -> None:
    """Decode all images: fill the cache if `side` is set, skip unreadable ones if asked to."""
    count, skip = len(images), images.options.on_corrupt == "skip"
    cached = torch.empty((count, images.channels, side, side), dtype=torch.uint8) if side else None
    readable = np.ones(count, dtype=bool)

    def decode(index: int) -> None:
        try:
            array = images.array(index)
        except ValueError:
            if not skip:
                raise
            readable[index] = False
        else:
            if cached is not None:
                cached[index] = torch.from_numpy(array.copy()).permute(2, 0, 1)

    for _ in each_in_threads(decode, range(count)):
        pass
    if not readable.any():
        raise ValueError(f"--dataset {images.options.dataset}: not one image can be read")
    _keep(images, readable, "that cannot be read")
    if cached is not None:
        images.cached = cached if readable.all() else cached[torch.from_numpy(readable)]
