"""Decoding and resizing of single image files, which may come from strangers.

Only the decoders in `FORMATS` are used, none of which starts another program. The header is checked
before pixels are decoded.
"""

from __future__ import annotations

import io
import re
import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import IO, TYPE_CHECKING, Literal, NamedTuple

import numpy as np
from PIL import Image, ImageOps
from PIL.ExifTags import Base
from PIL.IcoImagePlugin import IcoImageFile

from latent_prior.options import MAX_PIXELS

if TYPE_CHECKING:
    from numpy.typing import NDArray

# TGA files have no signature, so this decoder is tried last.
FORMATS = (
    "PNG", "JPEG", "WEBP", "AVIF", "GIF", "BMP", "DIB", "ICO", "TIFF", "JPEG2000", "PPM", "TGA",
)  # fmt: skip
UNREADABLE = (OSError, ValueError)
"""Raised for a file that cannot be read or decoded."""
LONGEST_SIDE = 65_535
"""Pixels along one side. PIL keeps a pointer for each row, so tall thin images are expensive."""
FILE_LIMIT = 2**29
"""Bytes of an image file: more than 8 per pixel of the default `max_pixels`."""
LARGE = 2**24
"""JPEG files with more pixels are decoded at a reduced scale where a small image is wanted."""
_SMALL = 2**18  # pixels of images that need not wait for others
_STRIP = 2**22  # pixels that are converted at a time


class PixelBudget:
    """Limits how many pixels threads decode at a time, so that they do not multiply the memory."""

    def __init__(self, pixels: int) -> None:
        """Allow `pixels` at a time, or one larger image alone."""
        self.pixels = pixels
        self.used = 0
        self._changed = threading.Condition()

    @contextmanager
    def take(self, pixels: int) -> Iterator[None]:
        """Wait until there is room for `pixels`, and hold it."""
        with self._changed:
            self._changed.wait_for(lambda: not self.used or self.used + pixels <= self.pixels)
            self.used += pixels
        try:
            yield
        finally:
            with self._changed:
                self.used -= pixels
                self._changed.notify_all()


_budget = PixelBudget(MAX_PIXELS)
# PIL warns of fewer pixels than `max_pixels` may allow.
warnings.filterwarnings("ignore", category=Image.DecompressionBombWarning)


def read_image(
    data: bytes, channels: Literal[1, 3] | None, size: int | None, max_pixels: int = MAX_PIXELS
) -> NDArray[np.uint8]:
    """Decode an image and, if `size` is set, bring it to that size.

    See `decode_image` and `resize_and_crop`. Large JPEG files are decoded at a reduced scale, at
    least twice `size`.

    Returns:
        uint8 (H, W, C).

    Raises:
        ValueError: the data is damaged or no image, or has too many pixels.
    """
    with _opened(io.BytesIO(data), max_pixels) as image:
        if size is not None and image.width * image.height > LARGE:
            scale = 2 * size / min(image.size)
            image.draft(None, (round(image.width * scale), round(image.height * scale)))
        pixels = image.width * image.height
        with _budget.take(pixels) if pixels > _SMALL else nullcontext():
            ImageOps.exif_transpose(image, in_place=True)
            array = to_array(image, channels)
            image.close()  # frees its pixels
            return array if size is None else resize_and_crop(array, size)


def decode_image(
    data: bytes, channels: Literal[1, 3] | None, max_pixels: int = MAX_PIXELS
) -> NDArray[np.uint8]:
    """Decode an image as a viewer would show it: with EXIF rotation, and see `to_array`.

    Args:
        data: content of an image file in one of `FORMATS`.
        channels: 1 or 3; None keeps grey images grey and converts all others to RGB.
        max_pixels: largest number of pixels; the header is checked before decoding.

    Returns:
        uint8 (H, W, C).

    Raises:
        ValueError: the data is damaged or no image, or has too many pixels.
    """
    return read_image(data, channels, None, max_pixels)


class Header(NamedTuple):
    """What is known of an image before its pixels are decoded."""

    width: int
    """As a viewer would show it."""
    height: int
    grey: bool


def read_header(file: IO[bytes], max_pixels: int = MAX_PIXELS) -> Header:
    """Size and kind of an image, usually from the first bytes alone.

    Raises:
        ValueError: the file is damaged or no image, or has too many pixels.
    """
    with _opened(file, max_pixels) as image:
        width, height = image.size
        # A PNG may have its orientation at the end; it is only searched where it matters. PIL's
        # size of a TIFF is the turned one.
        may_turn = width != height and image.format != "TIFF"
        turned = may_turn and image.getexif().get(Base.Orientation) in (5, 6, 7, 8)
        return Header(*((height, width) if turned else (width, height)), _is_grey(image.mode))


def to_array(image: Image.Image, channels: Literal[1, 3] | None) -> NDArray[np.uint8]:
    """An image as uint8 (H, W, C).

    Resolves palettes, scales 16 bits and floats to 8 bits, blends transparency over white. Floats
    are in [0, 1] if none exceeds 1, otherwise in [0, 255].

    Raises:
        ValueError: 32-bit integers beyond 16 bits, or floats in another range.
    """
    grey = _is_grey(image.mode)
    scale = _scale(image)
    wanted = channels or (1 if grey else 3)
    array = np.empty((image.height, image.width, wanted), np.uint8)
    rows = max(1, _STRIP // max(1, image.width))
    for top in range(0, image.height, rows):
        box = (0, top, image.width, min(top + rows, image.height))
        strip = image if image.height <= rows else image.crop(box)
        array[top : top + rows] = _to_uint8(strip, wanted, scale)
    return array


def resize_and_crop(array: NDArray[np.uint8], size: int) -> NDArray[np.uint8]:
    """Resize the shorter side to `size` with antialiasing and crop the centre.

    uint8 (H, W, C) -> (size, size, C).
    """
    height, width = array.shape[:2]
    if (height, width) == (size, size):
        return array
    scale = size / min(height, width)
    columns, rows = max(size, round(width * scale)), max(size, round(height * scale))
    left, top = (columns - size) // 2, (rows - size) // 2
    # Only the crop is computed: of a long thin image the whole would not fit into memory.
    box = (
        left * width / columns,
        top * height / rows,
        (left + size) * width / columns,
        (top + size) * height / rows,
    )
    image = Image.fromarray(array[..., 0] if array.shape[-1] == 1 else array)
    return np.atleast_3d(np.asarray(image.resize((size, size), Image.Resampling.BICUBIC, box)))


def _is_grey(mode: str) -> bool:
    return mode in ("1", "L", "LA", "La", "F") or mode.startswith("I")


@contextmanager
def _opened(file: IO[bytes], max_pixels: int) -> Iterator[Image.Image]:
    """Open an image whose header has passed the checks; whatever PIL raises is a ValueError."""
    try:
        with Image.open(file, formats=FORMATS) as image:
            _check_size(*image.size, max_pixels)
            if isinstance(image, IcoImageFile):  # the icon inside may be larger than declared
                file.seek(image.ico.entry[image.ico.getentryindex(image.size)].offset)
                icon = io.BytesIO(file.read())
                with Image.open(icon, formats=("PNG", "DIB")) as inner:
                    _check_size(*inner.size, max_pixels)
            yield image
    except Exception as error:  # damaged files raise struct.error, IndexError, TypeError, ...
        raise ValueError(_reason(error, max_pixels)) from error


def _check_size(width: int, height: int, max_pixels: int) -> None:
    if width * height > max_pixels:
        raise ValueError(
            f"its {width} x {height} pixels are more than --max_pixels {max_pixels} allows"
        )
    if max(width, height) > LONGEST_SIDE:
        raise ValueError(f"of its {width} x {height} pixels, one side is above {LONGEST_SIDE}")


def _reason(error: Exception, max_pixels: int) -> str:
    """What is wrong with a file, in one line."""
    if isinstance(error, Image.UnidentifiedImageError):
        return f"it is no image that one of the decoders {', '.join(FORMATS)} reads"
    if isinstance(error, Image.DecompressionBombError | Image.DecompressionBombWarning):
        pixels = "".join(re.findall(r"\((\d+) pixels\)", str(error)))
        return f"its {pixels} pixels are more than --max_pixels {max_pixels} allows"
    if isinstance(error, MemoryError):
        return "it needs more memory than there is"
    text = str(error).strip().partition("\n")[0][:200]
    return (
        text
        if isinstance(error, ValueError | OSError) and text
        else f"damaged: {text or type(error).__name__}"
    )


def _scale(image: Image.Image) -> float:
    """The factor from the values of deep grey images to 8 bits; 1 for all other images."""
    if image.mode not in ("I", "F"):
        return 1 / 257 if image.mode.startswith("I") else 1.0
    low, high = image.getextrema()
    assert isinstance(low, int | float)  # there is one channel
    assert isinstance(high, int | float)
    if image.mode == "I" and 0 <= low <= high <= 65_535:
        return 1 / 257
    if image.mode == "F" and 0 <= low <= high <= 255:
        return 255.0 if high <= 1 else 1.0
    expected = "32-bit integers, 0 to 65535" if image.mode == "I" else "floats, 0 to 1 or 0 to 255"
    raise ValueError(f"its values are {low:g} to {high:g}, but should be, as {expected}")


def _to_uint8(image: Image.Image, channels: Literal[1, 3], scale: float) -> NDArray[np.uint8]:
    """A part of an image as uint8 (H, W, channels)."""
    if image.mode == "F" or image.mode.startswith("I"):
        levels = np.asarray(image).astype(np.float64) * scale
        if not np.isfinite(levels).all():
            raise ValueError("some of its values are not finite")
        image = Image.fromarray(levels.round().clip(0, 255).astype(np.uint8))
    if image.mode == "La":
        image = image.convert("LA")
    if image.mode in ("RGBA", "LA", "PA", "RGBa") or "transparency" in image.info:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    if image.mode == "LAB":  # PIL converts it to RGB only
        image = image.convert("RGB")
    array = np.asarray(image.convert("L" if channels == 1 else "RGB"))
    return array.reshape(*array.shape[:2], channels)
