"""Fingerprints of data: whether what was learnt from is still the same.

Small data are compared by content, so a copy on another machine is the same. Large ones are
compared by the names, sizes and times of their files, which takes no reading.
"""

from __future__ import annotations

import hashlib
import os
import stat
from collections.abc import Sequence
from pathlib import Path

from latent_prior.files import read_regular

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
    """A sha256 over files, in their order; what is no regular file is never opened.

    Raises:
        ValueError: naming a file that cannot be read.
    """
    states = [_regular(path) for path in files]
    if sum(state.st_size for state in states if state) <= SMALL:
        contents = (
            read_regular(path, SMALL) if state else b""
            for path, state in zip(files, states, strict=True)
        )
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
