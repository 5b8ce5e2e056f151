"""`shapes`: 10,000 drawn pictures of one shape each, 32 x 32 RGB, with attributes and captions.

Every row is a pure function of (seed, split, number). Class, shape, colour and place say what was
drawn, so what a generator makes of a class can be checked without a trained network.

`shapes_text` is the same data set with a gap: some combinations of shape, colour, place and size
are not in `train`, and `test` has these alone. So it tells whether a prior that reads captions
draws what it has never seen.
"""

from __future__ import annotations

import colorsys
import io
import math
import re
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageDraw

from latent_prior.files import cache_folder

SIDE = 32  # pixels
SPLITS = {"train": 8000, "test": 2000}
VERSION = "1"
"""Changes with anything that changes the pictures; part of the fingerprint and the cache's name."""
SHAPES = ("circle", "square", "triangle", "star")
HUES = {"red": 0, "yellow": 50, "green": 130, "cyan": 185, "blue": 228, "purple": 282}
"""Hue in degrees of each colour."""
COLOURS = tuple(HUES)
PLACES = ("top left", "top right", "bottom left", "bottom right")
SIZES = {"small": (6.0, 7.0), "large": (8.5, 10.0)}
"""Range of the radius of the circle around the shape, in pixels."""
BACKGROUNDS = {
    "black": (20, 20, 20),
    "grey": (128, 128, 128),
    "white": (240, 240, 240),
    "pink": (240, 195, 205),
    "beige": (235, 220, 180),
    "light blue": (180, 210, 240),
}
CLASS_NAMES = tuple(
    f"{colour} {shape}, {place}" for place in PLACES for colour in COLOURS for shape in SHAPES
)
"""The class of a row carries shape, colour and place; all else varies within a class."""
SEED = 0
UNSEEN = 32
"""Combinations of class and size, of 192, that are not in the training split of `shapes_text`."""
TILT = 15.0  # degrees, at most, to either side
FINER = 8  # pixels are drawn this many times finer, then averaged


@dataclass(frozen=True)
class Drawing:
    """What one picture shows; lengths in pixels, the corner of the image is (0, 0)."""

    label: int
    size: str
    background: str
    x: float
    y: float
    radius: float
    angle: float
    """Degrees, clockwise."""
    fill: tuple[int, int, int]
    ground: tuple[int, int, int]

    @property
    def shape(self) -> str:
        """One of `SHAPES`."""
        return SHAPES[self.label % len(SHAPES)]

    @property
    def colour(self) -> str:
        """One of `COLOURS`."""
        return COLOURS[self.label // len(SHAPES) % len(COLOURS)]

    @property
    def place(self) -> str:
        """One of `PLACES`."""
        return PLACES[self.label // (len(SHAPES) * len(COLOURS))]

    @property
    def caption(self) -> str:
        """The picture in words."""
        return (
            f"a {self.size} {self.colour} {self.shape} at the {self.place} "
            f"on a {self.background} background"
        )

    @property
    def unseen(self) -> bool:
        """Whether `shapes_text` holds the combination back from training."""
        combination = len(SIZES) * self.label + list(SIZES).index(self.size)
        return combination in _unseen()

    def picture(self) -> Image.Image:
        """The picture, 32 x 32 RGB with smooth edges."""
        image = Image.new("RGB", (SIDE * FINER, SIDE * FINER), self.ground)
        draw = ImageDraw.Draw(image)
        x, y, radius = (FINER * length for length in (self.x, self.y, self.radius))
        if self.shape == "circle":
            r = 0.85 * radius  # otherwise by far the largest shape
            draw.ellipse((x - r, y - r, x + r, y + r), fill=self.fill)
        else:
            draw.polygon([(x + radius * a, y + radius * b) for a, b in self._corners()], self.fill)
        return image.reduce(FINER)

    def _corners(self) -> Iterator[tuple[float, float]]:
        """Corners on a unit circle, those between a star's points at less than half of it."""
        count = {"square": 4, "triangle": 3, "star": 10}[self.shape]
        first = 45.0 if self.shape == "square" else 0.0
        for corner in range(count):
            turn = math.radians(self.angle + first + 360 * corner / count)
            length = 0.42 if self.shape == "star" and corner % 2 else 1.0
            yield length * math.sin(turn), -length * math.cos(turn)


def drawing(split: str, number: int) -> Drawing:
    """What row `number` of a split shows; classes take turns."""
    random = np.random.default_rng([SEED, list(SPLITS).index(split), number]).random(7).tolist()
    label = number % len(CLASS_NAMES)
    size, background = _pick(list(SIZES), random[0]), _pick(list(BACKGROUNDS), random[1])
    radius = _between(*SIZES[size], random[2])
    # The whole shape is in the image, its middle at least 3 pixels away from the image's.
    x, y = (_between(radius + 0.5, SIDE / 2 - 3, part) for part in random[3:5])
    place = PLACES[label // (len(SHAPES) * len(COLOURS))]
    hue = HUES[COLOURS[label // len(SHAPES) % len(COLOURS)]]
    fill = colorsys.hsv_to_rgb(hue / 360, 0.85, _between(0.86, 0.94, random[6]))
    return Drawing(
        label,
        size,
        background,
        SIDE - x if "right" in place else x,
        SIDE - y if "bottom" in place else y,
        radius,
        TILT * (2 * random[5] - 1),
        (round(255 * fill[0]), round(255 * fill[1]), round(255 * fill[2])),
        BACKGROUNDS[background],
    )


def class_of(caption: str) -> str | None:
    """Name of the class that a caption of `Drawing` asks for; None for any other sentence."""
    shown = re.fullmatch(
        rf"a ({'|'.join(SIZES)}) ({'|'.join(COLOURS)}) ({'|'.join(SHAPES)}) at the "
        rf"({'|'.join(PLACES)}) on a ({'|'.join(BACKGROUNDS)}) background",
        caption,
    )
    return shown and f"{shown[2]} {shown[3]}, {shown[4]}"


def shapes_folder(name: str = "shapes") -> Path:
    """One of `options.DRAWN` for `datasets.load_from_disk`, drawn into the cache if missing.

    Columns: `image` (PNG), `label`, `caption`; the classes `shape`, `colour`, `place`, `size` and
    `background`; `x`, `y` and `radius` in pixels, `angle` in degrees. Processes that find it
    missing at the same time draw the same, and the first one's stays.

    Raises:
        ValueError: the cache cannot be written.
    """
    folder = cache_folder() / f"{name}-{VERSION}"
    if folder.exists():
        return folder
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder.parent, prefix=".shapes-") as temporary:
            drawn = Path(temporary, "drawn")
            draw_all(name).save_to_disk(drawn)
            drawn.replace(folder)
    except OSError as error:  # also if another process was first
        if not folder.exists():
            raise ValueError(
                f"--dataset {name}: {folder} cannot be written ({error.strerror}); "
                "set $LATENT_PRIOR_CACHE to another folder"
            ) from error
    return folder


def draw_all(name: str) -> Any:
    """Every split of one of `options.DRAWN`, a `datasets.DatasetDict`."""
    import datasets

    words = {
        "shape": SHAPES,
        "colour": COLOURS,
        "place": PLACES,
        "size": tuple(SIZES),
        "background": tuple(BACKGROUNDS),
    }
    features = datasets.Features(
        {"image": datasets.Image(), "label": datasets.ClassLabel(names=list(CLASS_NAMES))}
        | {"caption": datasets.Value("string")}
        | {name: datasets.ClassLabel(names=list(names)) for name, names in words.items()}
        | {name: datasets.Value("float32") for name in ("x", "y", "radius", "angle")}
    )

    def row(drawn: Drawing) -> dict[str, Any]:
        png = io.BytesIO()
        drawn.picture().save(png, "png")
        columns = {name: getattr(drawn, name) for name in features if name != "image"}
        return {"image": {"bytes": png.getvalue(), "path": None}} | columns

    return datasets.DatasetDict(
        {
            split: datasets.Dataset.from_list([row(drawn) for drawn in every], features)
            for split, every in _drawings(name).items()
        }
    )


def _drawings(name: str) -> dict[str, list[Drawing]]:
    """What the splits of one of `options.DRAWN` show."""
    splits = {split: [drawing(split, n) for n in range(count)] for split, count in SPLITS.items()}
    if name == "shapes":
        return splits
    return {
        split: [each for each in every if each.unseen == (split == "test")]
        for split, every in splits.items()
    }


@cache
def _unseen() -> frozenset[int]:
    """Numbers of the combinations that `Drawing.unseen` is about."""
    count = len(CLASS_NAMES) * len(SIZES)
    return frozenset(np.random.default_rng(SEED).permutation(count)[:UNSEEN].tolist())


def _pick(names: list[str], part: float) -> str:
    """The name at a part in [0, 1) of the list."""
    return names[int(part * len(names))]


def _between(low: float, high: float, part: float) -> float:
    return low + (high - low) * part
