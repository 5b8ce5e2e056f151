"""Small images and the files they are encoded in."""

import io
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

CLASSES = ("ant", "bee", "cow")


def pixels(number: int, size: int = 8) -> NDArray[np.uint8]:
    """A (size, size, 3) image whose first pixel tells its number."""
    array = np.random.default_rng(number).integers(0, 256, (size, size, 3), dtype=np.uint8)
    array[0, 0] = number
    return array


def encoded(array: NDArray[np.uint8] | Image.Image, kind: str = "png", **settings: object) -> bytes:
    image = array if isinstance(array, Image.Image) else Image.fromarray(array)
    buffer = io.BytesIO()
    image.save(buffer, kind, **settings)
    return buffer.getvalue()


def write(path: Path, content: bytes) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    return path


def resident(path: Path) -> int:
    """Bytes of a mapped file that count as this process's memory."""
    sizes, ours = [], False
    for line in Path("/proc/self/smaps").read_text().splitlines():
        key = line.split()[0]
        if "-" in key:
            ours = line.endswith(str(path))
        elif ours and key == "Rss:":
            sizes.append(int(line.split()[1]) * 2**10)
    assert sizes
    return sum(sizes)
