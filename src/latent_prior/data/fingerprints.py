"""Fingerprints of data: whether what was learnt from is still the same.

Small data are compared by content, so a copy on another machine is the same. Large ones are
compared by the names, sizes and times of their files, which takes no reading.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path

SMALL = 64 * 2**20
"""Bytes up to which the content of files counts; above, their names, sizes and times."""


def fingerprint_of(*parts: str | bytes | memoryview) -> str:
    """A sha256 over parts; where one ends and the next begins counts."""
    digest = hashlib.sha256()
    for part in parts:
        data = part.encode("utf-8", "surrogateescape") if isinstance(part, str) else part
        digest.update(len(data).to_bytes(8, "little"))
        digest.update(data)
    return digest.hexdigest()


def files_fingerprint(files: Sequence[Path]) -> str:
    """A sha256 over files, in their order.

    Raises:
        ValueError: naming a file that is gone or cannot be read.
    """
    try:
        states = [path.stat() for path in files]
        if sum(state.st_size for state in states) <= SMALL:
            return fingerprint_of("content", *(path.read_bytes() for path in files))
    except OSError as error:
        raise ValueError(f"{error.filename} cannot be read: {error.strerror}") from error
    named = zip(files, states, strict=True)
    return fingerprint_of(
        "files", *(f"{path.name} {state.st_size} {state.st_mtime_ns}" for path, state in named)
    )
