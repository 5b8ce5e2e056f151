"""The two resizers of clean-fid for many small images at a time, bit for bit.

clean-fid resizes every channel of every image separately. PIL resizes one axis after the other, so
many channels can be stacked vertically in one picture while their rows are resized, and side by
side in another for their columns: each number is computed as it would be alone.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from functools import lru_cache
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from latent_prior.machine import thread_pool

TOGETHER = 2**17  # values of a picture, which then fits into a core's cache


def resize_clean(images: Sequence[NDArray[np.uint8]], size: int) -> NDArray[np.float32]:
    """clean-fid's "clean" resizing: PIL's antialiased bicubic filter in float32, not rounded.

    Args:
        images: uint8 (H, W, C) of any sizes, C 1 or 3.
        size: new height and width.

    Returns:
        float32 (N, 3, size, size) in [0, 255]; grey images have three equal channels.
    """
    resized = np.empty((len(images), 3, size, size), np.float32)

    def resize(piece: range) -> None:
        values = _resized(_channels([images[index] for index in piece]), size)
        channels, target = values.shape[1], resized[piece.start : piece.stop]
        np.clip(values, 0, 255, out=target[:, :channels])
        target[:, channels:] = target[:, :1]

    list(thread_pool().map(resize, _pieces(images, size)))
    return resized


def resize_for_clip(images: Sequence[NDArray[np.uint8]], size: int) -> NDArray[np.float32]:
    """clean-fid's resizing for CLIP: the shorter side to `size`, bicubic in uint8, then the centre.

    Arguments and result are those of `resize_clean`.
    """

    def resize(image: NDArray[np.uint8]) -> NDArray[np.uint8]:
        assert image.shape[2] in (1, 3), f"expected 1 or 3 channels, got {image.shape[2]}"
        picture = Image.fromarray(image if image.shape[2] == 3 else image[..., 0])
        shorter, longer = sorted(picture.size)
        new = [size if side == shorter else size * longer // shorter for side in picture.size]
        picture = picture.resize((new[0], new[1]), Image.Resampling.BICUBIC)
        left, top = (round((side - size) / 2) for side in new)
        picture = picture.crop((left, top, left + size, top + size)).convert("RGB")
        return np.asarray(picture)

    resized = np.stack(list(thread_pool().map(resize, images)))
    return np.ascontiguousarray(resized.transpose(0, 3, 1, 2), np.float32)


def _pieces(images: Sequence[NDArray[np.uint8]], size: int) -> list[range]:
    """Runs of images of one shape, short enough to be resized together."""
    pieces, start = [], 0
    for (height, width, channels), run in itertools.groupby(images, lambda image: image.shape):
        stop = start + len(list(run))
        largest = channels * max(height, size) * max(width, size)
        step = max(1, TOGETHER // largest)
        pieces += [range(first, min(first + step, stop)) for first in range(start, stop, step)]
        start = stop
    return pieces


def _channels(images: list[NDArray[np.uint8]]) -> NDArray[np.uint8]:
    """Stack images of one shape to uint8 (N, C, H, W); C is 1 if all channels are equal."""
    if all((image[..., :1] == image[..., 1:]).all() for image in images):
        images = [image[..., :1] for image in images]
    stacked = np.stack(images)
    assert stacked.ndim == 4, f"expected uint8 (H, W, C), got {images[0].shape}"
    assert stacked.shape[3] in (1, 3), f"expected 1 or 3 channels, got {stacked.shape[3]}"
    return stacked.transpose(0, 3, 1, 2)


def _resized(values: NDArray[np.uint8], size: int) -> NDArray[np.float32]:
    """(N, C, H, W) -> (N, C, size, size)."""
    count, channels, height, width = values.shape
    planes = np.ascontiguousarray(values, np.float32).reshape(-1, height, width)
    first = _first_axis(height, width, size) if count > 1 else None
    if first is None:
        planes = np.stack([_through_pil(plane, size, size) for plane in planes])
    elif first == "rows":
        planes = _columns(_rows(planes, size), size)
    else:
        planes = _rows(_columns(planes, size), size)
    return planes.reshape(count, channels, size, size)


@lru_cache
def _first_axis(height: int, width: int, size: int) -> Literal["rows", "columns"] | None:
    """The axis that PIL resizes first for this shape; None if neither order reproduces it."""
    plane = np.random.default_rng(0).uniform(0, 255, (1, height, width)).astype(np.float32)
    alone = _through_pil(plane[0], size, size)
    if np.array_equal(_columns(_rows(plane, size), size)[0], alone):
        return "rows"
    return "columns" if np.array_equal(_rows(_columns(plane, size), size)[0], alone) else None


def _rows(planes: NDArray[np.float32], size: int) -> NDArray[np.float32]:
    """(P, H, W) -> (P, H, size)."""
    count, height, width = planes.shape
    below = planes.reshape(-1, width)
    return _through_pil(below, size, len(below)).reshape(count, height, size)


def _columns(planes: NDArray[np.float32], size: int) -> NDArray[np.float32]:
    """(P, H, W) -> (P, size, W)."""
    count, height, width = planes.shape
    beside = planes.transpose(1, 0, 2).reshape(height, -1)
    resized = _through_pil(beside, beside.shape[1], size)
    return resized.reshape(size, count, width).transpose(1, 0, 2)


def _through_pil(values: NDArray[np.float32], width: int, height: int) -> NDArray[np.float32]:
    picture = Image.fromarray(values)  # mode F
    return np.asarray(picture.resize((width, height), Image.Resampling.BICUBIC))
