"""Files that are whole or absent, and regular files.

A file is written under a temporary name and renamed at the end, so a process that is killed leaves
the previous version behind.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from io import BufferedReader
from pathlib import Path


def cache_folder() -> Path:
    """The user's cache folder, which $LATENT_PRIOR_CACHE and $XDG_CACHE_HOME move."""
    if folder := os.environ.get("LATENT_PRIOR_CACHE"):
        return Path(folder).expanduser()
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "latent-prior"


@contextmanager
def whole_file(final: Path) -> Iterator[Path]:
    """Write to a temporary file that is renamed to `final` when the block succeeds.

    The temporary name is always the same, so the next run overwrites what a killed one left.

    Raises:
        ValueError: `final` is a folder, a device or another thing that is no file.
    """
    if final.exists() and not final.is_file():
        raise ValueError(f"{final} is no file and would be replaced by one; move it away")
    final.parent.mkdir(parents=True, exist_ok=True)
    temporary = temporary_name(final)
    if temporary.is_dir() and not temporary.is_symlink():
        raise ValueError(f"{temporary} is a folder in the place of a temporary file; delete it")
    temporary.unlink(missing_ok=True)  # never write through a link
    try:
        yield temporary
        temporary.replace(final)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def temporary_name(final: Path) -> Path:
    """Where `whole_file` writes what will become `final`."""
    return final.with_name(f".{final.name}.partial{final.suffix}")


def clear_temporary(folder: Path) -> None:
    """Delete the temporary files that killed processes left in a folder of ours."""
    for path in folder.glob(".*.partial*"):
        name = path.name[1:].rpartition(".partial")[0]
        if path == temporary_name(folder / name) and (path.is_file() or path.is_symlink()):
            path.unlink()


def check_folder_path(folder: Path, prefix: str = "") -> None:
    """Check that a path is a folder or can become one.

    Args:
        folder: where something will be written.
        prefix: of the message, such as `--output_dir `.

    Raises:
        ValueError: it, or what it lies in, is a file, a device or a link to nothing, or cannot be
            written to.
    """
    for path in (folder, *folder.parents):
        if os.path.lexists(path):
            if not path.is_dir():
                kind = "a file" if path.exists() else "a link to nothing"
                below = "" if path == folder else f" lies in {path}, which"
                raise ValueError(f"{prefix}{folder}{below} is {kind}; name a folder")
            if not os.access(path, os.W_OK | os.X_OK):
                raise ValueError(
                    f"{prefix}{folder} cannot be written: {path} is write-protected; name another"
                )
            return


@contextmanager
def open_regular(path: Path, limit: int) -> Iterator[BufferedReader]:
    """Open a regular file of at most `limit` bytes; never waits for a FIFO or a device.

    Raises:
        ValueError: there is no such file, it is none, it is too large, or it cannot be read.
    """
    try:
        descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0))
        try:
            status = os.fstat(descriptor)
            if not stat.S_ISREG(status.st_mode):
                raise ValueError(f"{path} is no regular file; remove or replace it")
            if status.st_size > limit:
                raise ValueError(
                    f"{path} has {status.st_size:,} bytes; at most {limit:,} are read; replace it"
                )
            with open(descriptor, "rb", closefd=False) as file:
                yield file
        finally:
            os.close(descriptor)
    except OSError as error:
        raise ValueError(f"{path} cannot be read ({error.strerror})") from error


def read_regular(path: Path, limit: int) -> bytes:
    """Read a regular file; see `open_regular`.

    Raises:
        ValueError: there is no such file, it is none, it is too large, or it cannot be read.
    """
    with open_regular(path, limit) as file:
        return file.read(os.fstat(file.fileno()).st_size)  # files of /proc claim 0 bytes
