"""Manifests: what a folder of ours is, and a digest of every file in it.

`manifest.json` is the last file to be written. Whoever reads the folder compares the files with it,
so parts of two states, or a flipped bit, are noticed and named.
"""

from __future__ import annotations

import logging
import mmap
import os
import sys
from collections.abc import Collection, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import IO, Self

import msgspec
import xxhash

from latent_prior.files import open_regular, read_regular, whole_file

MANIFEST = "manifest.json"
# Files that a folder of each kind has; they tell folders from before manifests.
MARKERS = {
    "checkpoint": ("state.pt",),
    "model": ("config.json",),
    "codes": ("dataset_dict.json", "code_spec.json"),
    "pipeline": ("pipeline.json",),
    "export": ("generation_config.json", "code_spec.json"),
    "pictures": ("latents.json",),
    "images": ("generation.json",),
}
_EDITABLE = frozenset(("README.md", ".gitattributes"))  # model cards belong to their authors
MANIFEST_LIMIT = 64 * 2**20  # bytes
_SMALL = 2**18  # bytes
_log = logging.getLogger("latent_prior")


class DamagedError(ValueError):
    """A file is missing, or is not what was written."""


class FileRecord(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Size in bytes and digest (XXH3, 128 bits) of a file."""

    size: int
    xxh3: str


class Manifest(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The files of a folder by name, with `/` between folders, and what the folder is.

    A sub-folder with a manifest of its own is recorded by that manifest.
    """

    kind: str
    files: dict[str, FileRecord]

    def checked(self, folder: Path | str, kind: str) -> Self:
        """The manifest, if it is of this kind and names files within its folder.

        Raises:
            ValueError: it is not.
        """
        if self.kind != kind:
            raise ValueError(f"{folder} holds a folder of the kind {self.kind!r}, not {kind!r}")
        for name in self.files:
            if Path(name).is_absolute() or ".." in Path(name).parts:
                raise ValueError(
                    f"{folder}/{MANIFEST} names {name!r}, which is outside of the folder"
                )
        return self

    def check(self, folder: Path, name: str) -> None:
        """Compare one file with its record.

        Raises:
            DamagedError: the file is missing or not recorded, or differs from what was written.
        """
        path, expected = folder / name, self.files.get(name)
        if expected is None:
            raise DamagedError(f"{path} is not recorded in {MANIFEST}; restore {folder}")
        if not path.is_file():
            raise DamagedError(
                f"{path} is missing: {folder} is incomplete; restore it or write it again"
            )
        if path.stat().st_size != expected.size or digest(path) != expected.xxh3:
            raise DamagedError(
                f"{path} is damaged or was exchanged ({MANIFEST} records another content); "
                f"restore {folder} or write it again"
            )


def digest(path: Path) -> str:
    """The digest of a regular file's content.

    Raises:
        ValueError: there is no such file, or it cannot be read.
    """
    with open_regular(path, sys.maxsize) as file:
        if not os.fstat(file.fileno()).st_size:
            return xxhash.xxh3_128_hexdigest(b"")
        # Without copies; torch and safetensors map the same files.
        with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
            return xxhash.xxh3_128_hexdigest(content)


def record_of(path: Path) -> FileRecord:
    """The record of a file as it is."""
    return FileRecord(path.stat().st_size, digest(path))


class DigestedFile:
    """A binary file that is digested while it is written, in a thread: that costs no time."""

    def __init__(self, path: Path) -> None:
        self._hash, self._size = xxhash.xxh3_128(), 0
        self._thread = ThreadPoolExecutor(1)
        # With a path instead of a file, torch hides system errors such as a full disk.
        self._file: IO[bytes] = path.open("wb")

    def write(self, data: bytes | memoryview) -> int:
        """Write and digest at the same time; small pieces are not worth a second thread."""
        self._size += len(data)
        if len(data) < 2**16:
            self._hash.update(data)
            return self._file.write(data)
        digested = self._thread.submit(self._hash.update, data)
        try:
            return self._file.write(data)
        finally:
            digested.result()  # the writer may use its memory again

    def flush(self) -> None:
        """As that of the file."""
        self._file.flush()

    @property
    def closed(self) -> bool:
        """As that of the file."""
        return self._file.closed

    @property
    def record(self) -> FileRecord:
        """The record of what was written."""
        return FileRecord(self._size, self._hash.hexdigest())

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._thread.shutdown()
        self._file.close()


def write_manifest(
    folder: Path,
    kind: str,
    names: Collection[str] | None = None,
    known: Mapping[str, FileRecord] | None = None,
) -> None:
    """Record the files of a folder; it is the last file to be written.

    Args:
        folder: holds the files.
        kind: what it is, one of `MARKERS`.
        names: files to record; None for all but `README.md`, which people edit.
        known: records of some of the files, which are not computed again.
    """
    assert kind in MARKERS, kind
    files = dict(known or {})
    paths = _recorded(folder) if names is None else (folder / name for name in names)
    for path in sorted(paths):
        name = path.relative_to(folder).as_posix()
        if name not in files:
            files[name] = record_of(path)
    content = msgspec.json.format(msgspec.json.encode(Manifest(kind, files)))
    with whole_file(folder / MANIFEST) as temporary:
        temporary.write_bytes(content + b"\n")


def _recorded(folder: Path) -> Iterator[Path]:
    """The files that a folder's manifest records."""
    for path in folder.iterdir():
        if path.is_dir():
            inner = path / MANIFEST
            yield from [inner] if inner.is_file() else _recorded(path)
        elif path.is_file() and path.name not in _EDITABLE and path.name != MANIFEST:
            yield path


def read_manifest(folder: Path, kind: str) -> Manifest | None:
    """The manifest of a folder; None, with a warning, for a folder from before manifests.

    Raises:
        ValueError: it is damaged, or the folder is of another kind.
    """
    path = folder / MANIFEST
    if not path.exists():
        _log.warning("%s has no %s: its files are not checked for damage", folder, MANIFEST)
        return None
    return parse_manifest(folder).checked(folder, kind)


def parse_manifest(folder: Path) -> Manifest:
    """The manifest of a folder of any kind.

    Raises:
        DamagedError: it is damaged.
    """
    return decode_manifest(read_regular(folder / MANIFEST, MANIFEST_LIMIT), folder)


def decode_manifest(content: bytes, folder: Path | str) -> Manifest:
    """The manifest that a file of a folder holds.

    Raises:
        DamagedError: it is damaged.
    """
    try:
        return msgspec.json.decode(content, type=Manifest)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise DamagedError(
            f"{folder}/{MANIFEST} is damaged ({error}); restore {folder} or write it again"
        ) from error


def check_folder(folder: Path, kind: str, *, later: Collection[str] = ()) -> Manifest | None:
    """Compare the files of a folder with its manifest, without those that are checked `later`.

    Returns:
        The manifest; None, with a warning, for a folder from before manifests.

    Raises:
        ValueError: a file is missing or differs, or the folder is of another kind.
    """
    manifest = read_manifest(folder, kind)
    if manifest is not None:
        for name in manifest.files:
            if name not in later:
                manifest.check(folder, name)
    return manifest


def check_finished(output: Path, kind: str) -> Manifest | None:
    """Check a folder that an earlier call of a script wrote, see `check_folder`.

    Raises:
        ValueError: it is damaged; the way out is to delete it and to repeat the command.
    """
    try:
        return check_folder(output, kind)
    except ValueError as error:
        raise ValueError(f"{error}; to make it anew, delete --output_dir {output} first") from error


@contextmanager
def checked_meanwhile(folder: Path, kind: str) -> Iterator[Manifest | None]:
    """`check_folder` in a thread while the block reads the files, which hides most of its time.

    Small files, such as a model's config, are checked before the block. What it reads counts only
    when it ends without an error. If the folder is damaged, an error of the block gives way to the
    one that names the damage.
    """
    manifest = read_manifest(folder, kind)
    files = {} if manifest is None else manifest.files
    large = [name for name, record in files.items() if record.size > _SMALL]
    if manifest is not None:
        for name in sorted(files.keys() - large):
            manifest.check(folder, name)
        for name in large:
            if not (folder / name).is_file():  # reading a FIFO in its place would never end
                manifest.check(folder, name)
    with ThreadPoolExecutor(1) as pool:
        checks = [pool.submit(manifest.check, folder, name) for name in large if manifest]
        try:
            yield manifest
        except Exception:
            for check in checks:
                check.result()
            raise
        for check in checks:
            check.result()
