"""Decoding and resizing of single image files."""

from __future__ import annotations

import io
from typing import TYPE_CHECKING, Literal

import numpy as np
from PIL import Image, ImageOps

if TYPE_CHECKING:
    from numpy.typing import NDArray

# Raised by PIL for damaged files and files that are not images.
UNREADABLE = (OSError, ValueError, SyntaxError, Image.DecompressionBombError)


def decode_image(data: bytes, channels: Literal[1, 3] | None) -> NDArray[np.uint8]:
    """Decode an image as a viewer would show it.

    Resolves palettes, scales 16 bits to 8, blends transparency over white, applies EXIF rotation.

    Args:
        data: content of an image file in any format PIL reads.
        channels: 1 or 3; None keeps grey images grey and converts all others to RGB.

    Returns:
        uint8 (H, W, C).

    Raises:
        OSError, ValueError, SyntaxError: the data is damaged or no image.
    """
    with Image.open(io.BytesIO(data)) as opened:
        image = ImageOps.exif_transpose(opened)
        grey = opened.mode in ("1", "L", "LA", "La") or opened.mode.startswith("I")
        if image.mode.startswith("I"):  # 16 bits, as "I;16" or widened to 32
            levels = np.asarray(image).astype(np.float64) / 257.0
            image = Image.fromarray(levels.round().clip(0, 255).astype(np.uint8))
        if image.mode in ("RGBA", "LA", "PA", "La", "RGBa") or "transparency" in image.info:
            image = image.convert("RGBA")
            image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
        wanted = channels or (1 if grey else 3)
        return np.atleast_3d(np.asarray(image.convert("L" if wanted == 1 else "RGB")))


def resize_and_crop(array: NDArray[np.uint8], size: int) -> NDArray[np.uint8]:
    """Resize the shorter side to `size` with antialiasing and crop the centre.

    uint8 (H, W, C) -> (size, size, C).
    """
    height, width = array.shape[:2]
    if (height, width) == (size, size):
        return array
    scale = size / min(height, width)
    target = (max(size, round(width * scale)), max(size, round(height * scale)))
    image = Image.fromarray(array[..., 0] if array.shape[-1] == 1 else array)
    image = image.resize(target, Image.Resampling.BICUBIC)
    left, top = (target[0] - size) // 2, (target[1] - size) // 2
    return np.atleast_3d(np.asarray(image.crop((left, top, left + size, top + size))))
