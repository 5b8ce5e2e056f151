"""Fingerprints of data: whether what was learnt from is still the same.

Small data are compared by content, so a copy on another machine is the same. Large ones are
compared by the names, sizes and times of their files, which takes no reading.
"""

from __future__ import annotations

import hashlib
import os
import stat
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from latent_prior.files import open_regular

SMALL = 64 * 2**20
"""Bytes up to which the content of files counts; above, their names, sizes and times."""
_PIECE = 8192  # numbers or bytes that are in memory at a time


def fingerprint_of(*parts: str | bytes | memoryview | Path | NDArray[np.integer]) -> str:
    """A sha256 over parts; where one ends and the next begins counts.

    A path stands for the content of its file. Whole numbers count as those of 64 bits, whatever
    their type.

    Raises:
        ValueError: a file cannot be read, or has more than `SMALL` bytes.
    """
    digest = hashlib.sha256()

    def add(size: int, pieces: Iterable[bytes | memoryview]) -> None:
        digest.update(size.to_bytes(8, "little"))
        for piece in pieces:
            digest.update(piece)

    for part in parts:
        if isinstance(part, Path):
            with open_regular(part, SMALL) as file:
                size = os.fstat(file.fileno()).st_size
                add(size, (file.read(min(_PIECE, size - n)) for n in range(0, size, _PIECE)))
        elif isinstance(part, np.ndarray):
            starts = range(0, part.size, _PIECE)
            add(8 * part.size, (part[n : n + _PIECE].astype("<i8").tobytes() for n in starts))
        else:
            data = part.encode("utf-8", "surrogateescape") if isinstance(part, str) else part
            add(len(data), [data])
    return digest.hexdigest()


def files_fingerprint(files: Sequence[Path]) -> str:
    """A sha256 over files, in their order; what is no regular file is never opened.

    Raises:
        ValueError: naming a file that cannot be read.
    """
    states = [_regular(path) for path in files]
    if sum(state.st_size for state in states if state) <= SMALL:
        contents = (path if state else b"" for path, state in zip(files, states, strict=True))
        return fingerprint_of("content", *contents)
    named = zip(files, states, strict=True)
    return fingerprint_of(
        "files",
        *(
            f"{path.name} {state.st_size} {state.st_mtime_ns}" if state else path.name
            for path, state in named
        ),
    )


def _regular(path: Path) -> os.stat_result | None:
    """The state of a regular file; None for anything else, such as a FIFO or a broken link."""
    try:
        state = path.stat()
    except OSError:
        return None
    return state if stat.S_ISREG(state.st_mode) else None
