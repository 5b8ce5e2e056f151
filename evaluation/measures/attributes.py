"""Shape, colour and place in images of the data set `shapes`, read from the pixels alone.

An image of `shapes` is one figure of one colour on a plain ground. So the ground is what the border
shows, the figure is what differs from it, and its shape is the drawn one that covers it best. What
does not look like that has no shape, colour or place, and counts as wrong.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache

import numpy as np
from numpy.typing import NDArray

from latent_prior.data.embedded.shapes import (
    CLASS_NAMES,
    COLOURS,
    HUES,
    SHAPES,
    SIDE,
    SIZES,
    TILT,
    Drawing,
)
from latent_prior.evaluation.features.resizing import resize_clean

AS_ASKED = ("shape_as_asked", "colour_as_asked", "place_as_asked", "all_as_asked")
CONTRAST = 40.0  # least distance of figure and ground in RGB, of 442 between black and white
SATURATION = 0.35  # least (maximum - minimum) / maximum of the figure's colour
OVERLAP = 0.88  # least agreement of the figure with a drawn one
AREA = 35.0, 260.0  # of figures in pixels; the drawn ones have 43 to 231
SOFTNESS = 9.0  # most pixels of the figure's edge, per root of its area; drawn ones have 0.5 to 4
GRID = 24  # points along each side of the window in which figures are compared
REACH = 1.2  # half of that window's side, in units of the root of the figure's area


def asks(classes: Sequence[str] | None) -> bool:
    """Whether the class of every image is one of `shapes`, so that it can be checked."""
    return classes is not None and set(classes) <= set(CLASS_NAMES)


def as_asked(images: Sequence[NDArray[np.uint8]], classes: Sequence[str]) -> NDArray[np.float32]:
    """Whether each image shows what its class says: 0 or 1, float32 (N, 4) as in `AS_ASKED`.

    Args:
        images: uint8 (H, W, C) of any size, C 1 or 3.
        classes: of each image, one of `CLASS_NAMES`.
    """
    labels = np.array([CLASS_NAMES.index(name) for name in classes])
    place, rest = np.divmod(labels, len(SHAPES) * len(COLOURS))
    colour, shape = np.divmod(rest, len(SHAPES))
    right = recognise(images) == np.stack([shape, colour, place], 1)
    return np.concatenate([right, right.all(1, keepdims=True)], 1).astype(np.float32)


def recognise(images: Sequence[NDArray[np.uint8]]) -> NDArray[np.int64]:
    """Numbers of shape, colour and place, int64 (N, 3), -1 for unknown; images as in `as_asked`."""
    cover, colours, contrast = _figures(np.moveaxis(resize_clean(images, SIDE), 1, 3))
    shape, overlap = _best_shape(cover)
    middle, area = _middle(cover)
    hue, saturation = _hue(colours)
    apart = np.abs((hue[:, None] - np.array(list(HUES.values())) + 180) % 360 - 180)
    place = (middle[:, 0] > SIDE / 2) + 2 * (middle[:, 1] > SIDE / 2)
    is_figure = (contrast >= CONTRAST) & (overlap >= OVERLAP)
    is_figure &= (area >= AREA[0]) & (area <= AREA[1])
    edge = ((cover > 0) & (cover < 1)).sum((1, 2))
    is_figure &= edge <= SOFTNESS * np.sqrt(area)
    is_colour = is_figure & (saturation >= SATURATION)
    return np.stack(
        [
            np.where(is_figure, shape, -1),
            np.where(is_colour, apart.argmin(1), -1),
            np.where(is_figure, place, -1),
        ],
        1,
    ).astype(np.int64)


def _figures(
    images: NDArray[np.float32],
) -> tuple[NDArray[np.float32], NDArray[np.float32], NDArray[np.float32]]:
    """How much of each pixel the figure covers (N, 32, 32), its colour (N, 3), and its contrast.

    The contrast is the distance in RGB between the figure's colour and the ground's.
    """
    border = np.ones((SIDE, SIDE), bool)
    border[1:-1, 1:-1] = False
    ground = np.median(images[:, border], axis=1)[:, None, None]
    offsets = images - ground
    distances = np.sqrt(np.square(offsets).sum(-1))
    # Pixels well inside of the figure; a single bright one does not decide.
    most = np.partition(distances.reshape(len(images), -1), -8)[:, -8]
    inside = distances >= 0.8 * most[:, None, None]
    colours = (inside[..., None] * images).sum((1, 2)) / inside.sum((1, 2))[:, None]
    contrast = np.sqrt(np.square(colours - ground[:, 0, 0]).sum(-1))
    # What has another colour than the figure counts too: it is no ground. Differences of less than
    # a quarter of the contrast, such as noise, do not count.
    cover = distances / np.maximum(contrast, 1e-6)[:, None, None]
    return (2 * cover - 0.5).clip(0, 1), colours, contrast


def _middle(cover: NDArray[np.float32]) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Centre of mass (N, 2), x before y, and area (N,) of figures (N, 32, 32), in pixels."""
    area = np.maximum(cover.sum((1, 2)), 1e-6)
    along = np.arange(SIDE, dtype=np.float32) + 0.5
    x, y = (cover.sum(axis) @ along / area for axis in (1, 2))
    return np.stack([x, y], 1), area


def _best_shape(cover: NDArray[np.float32]) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    """The number of the most similar shape, and the overlap with it in [0, 1], (N,) each.

    The overlap is that of Jaccard and Tanimoto for real numbers, ab / (aa + bb - ab).
    """
    windows, energy = _windows(cover)
    drawn, number = _drawn_windows()
    both = windows @ drawn.T
    overlap = both / (energy[:, None] + np.square(drawn).sum(1) - both)
    best = overlap.argmax(1)
    return number[best], overlap[np.arange(len(best)), best]


@cache
def _drawn_windows() -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """The windows (M, 576) of drawings of all sizes and tilts, and their shapes' numbers (M,)."""
    radii = [radius for ends in SIZES.values() for radius in ends]
    drawings = [
        Drawing(shape, "", "", x, x, radius, angle, (255, 255, 255), (0, 0, 0))
        for shape in range(len(SHAPES))
        for radius in radii
        for angle in np.linspace(-TILT, TILT, 7)
        for x in (SIDE / 2, SIDE / 2 + 0.5)
    ]
    cover = np.stack([np.asarray(each.picture())[..., 0] for each in drawings])
    return _windows((cover / 255).astype(np.float32))[0], np.array(
        [each.label for each in drawings]
    )


def _windows(cover: NDArray[np.float32]) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Figures (N, 32, 32) moved to the middle and scaled to one area, (N, 576), and their energy.

    The energy (N,) is the sum of squares of all that is covered, also outside of the window.
    """
    middle, area = _middle(cover)
    reach = REACH * np.sqrt(area)[:, None]
    steps = (np.arange(GRID, dtype=np.float32) + 0.5) * (2 / GRID) - 1
    x, y = (middle[:, axis, None] + reach * steps for axis in (0, 1))  # (N, 24)
    # Bilinear: weights of the pixels along each axis for every point.
    along = np.arange(SIDE, dtype=np.float32) + 0.5
    columns, rows = ((1 - np.abs(point[..., None] - along)).clip(0) for point in (x, y))
    windows = rows @ cover @ columns.transpose(0, 2, 1)
    far_x, far_y = (np.abs(along - middle[:, axis, None]) > reach for axis in (0, 1))
    outside = np.square(cover) * (far_y[:, :, None] | far_x[:, None, :])
    points_per_pixel = np.square(GRID / (2 * reach[:, 0]))
    energy = np.square(windows).sum((1, 2)) + points_per_pixel * outside.sum((1, 2))
    return windows.reshape(len(cover), -1), energy


def _hue(colours: NDArray[np.float32]) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Hue in degrees and saturation in [0, 1] of colours (N, 3)."""
    red, green, blue = colours.T
    high, low = colours.max(1), colours.min(1)
    span = np.maximum(high - low, 1e-6)
    hue = np.select(
        [high == red, high == green],
        [(green - blue) / span % 6, (blue - red) / span + 2],
        (red - green) / span + 4,
    )
    return 60 * hue, (high - low) / np.maximum(high, 1e-6)
