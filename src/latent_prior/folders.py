"""Folders that appear whole, are replaced in one step, and know their own files.

A folder is written under a temporary name. When it is complete, its `manifest.json` is written,
and the folder takes its place: a new one by a rename, a replaced one by an exchange of the two
names. So a reader, or a process that is killed, finds the old folder or the new one.
"""

from __future__ import annotations

import ctypes
import errno
import logging
import mmap
import os
import shutil
import stat
import sys
from collections.abc import Collection, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import IO, Self

import msgspec
import xxhash

from latent_prior.files import check_folder_path, open_regular, read_regular, whole_file

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
_MANIFEST_LIMIT = 64 * 2**20  # bytes
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
    manifest = _parse_manifest(folder)
    if manifest.kind != kind:
        raise ValueError(f"{folder} holds a folder of the kind {manifest.kind!r}, not {kind!r}")
    for name in manifest.files:
        if Path(name).is_absolute() or ".." in Path(name).parts:
            raise ValueError(f"{path} names {name!r}, which is outside of the folder")
    return manifest


def _parse_manifest(folder: Path) -> Manifest:
    path = folder / MANIFEST
    try:
        return msgspec.json.decode(read_regular(path, _MANIFEST_LIMIT), type=Manifest)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise DamagedError(
            f"{path} is damaged ({error}); restore {folder} or write it again"
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


@contextmanager
def whole_folder(final: Path, kind: str, *, keep: bool = False) -> Iterator[Path]:
    """Write into a temporary folder that takes the place of `final` when the block succeeds.

    An older folder of the same kind is replaced; files that people put beside its own go along. If
    the block raises, it stays as it was. The manifest is written at the end, unless the block has
    written it.

    Args:
        final: where the folder goes; its parents are created.
        kind: what it is, one of `MARKERS`; written to its manifest.
        keep: start from the files of the older folder, which must be undamaged. They may be links
            to the same content, so replace them, as `whole_file` does, and never write into them.

    Raises:
        ValueError: `final` is something that would be lost, or is kept and damaged.
    """
    final = Path(os.path.realpath(final))
    check_replaceable(final, kind)
    temporary = _temporary(final)
    clear_leftover(final)
    if keep and final.exists():
        check_folder(final, kind)  # the new manifest would vouch for what is damaged
    temporary.mkdir(parents=True)
    try:
        if keep and final.exists():
            # Links stay links: they lead to the same place from the name beside.
            shutil.copytree(
                final, temporary, symlinks=True, copy_function=_link_or_copy, dirs_exist_ok=True
            )
            (temporary / MANIFEST).unlink(missing_ok=True)
        yield temporary
        if not (temporary / MANIFEST).exists():
            write_manifest(temporary, kind)
        if final.exists():
            _take_along(final, temporary)
            exchange(temporary, final)
        else:
            temporary.rename(final)
    finally:
        clear_leftover(final)


def _take_along(old: Path, new: Path) -> None:
    """Link or copy what people put into a folder into the one that replaces it."""
    if not (old / MANIFEST).is_file():
        return
    try:
        own = {name.partition("/")[0] for name in _parse_manifest(old).files} | {MANIFEST}
    except ValueError:  # nobody knows what was its own
        return
    for path in old.iterdir():
        if path.name in own or os.path.lexists(new / path.name):
            continue
        if path.is_dir() and not path.is_symlink():
            shutil.copytree(path, new / path.name, symlinks=True, copy_function=_link_or_copy)
        else:
            _link_or_copy(str(path), str(new / path.name))


def remove(path: Path) -> None:
    """Delete what a stopped process left, of any kind; of a link, not what it points to.

    Raises:
        ValueError: it cannot be deleted.
    """
    if not os.path.lexists(path):
        return
    try:
        if path.is_symlink() or not path.is_dir():
            path.unlink()
            return
        for parent, folders, _ in os.walk(path):
            for inner in (parent, *(os.path.join(parent, name) for name in folders)):
                if not os.path.islink(inner):
                    os.chmod(inner, stat.S_IRWXU)
        shutil.rmtree(path)
    except OSError as error:
        raise ValueError(
            f"{path}, left by a process that was stopped, cannot be deleted "
            f"({error.strerror}); delete it"
        ) from error


def remove_folder(folder: Path) -> None:
    """Delete a folder so that no part of it is ever found under its name."""
    temporary = _temporary(folder)
    remove(temporary)
    folder.rename(temporary)
    remove(temporary)


def clear_leftover(final: Path) -> None:
    """Delete what a killed process left of `whole_folder(final)`.

    Raises:
        ValueError: it cannot be deleted.
    """
    final = Path(os.path.realpath(final))
    replaced = _aside(final)
    if replaced.is_dir() and not replaced.is_symlink() and not os.path.lexists(final):
        replaced.rename(final)  # killed between the two renames of `exchange`
    for leftover in (_temporary(final), replaced):
        remove(leftover)


def check_replaceable(final: Path, kind: str, prefix: str = "") -> None:
    """Check that nothing is lost if a folder of this kind is written to `final`.

    Args:
        final: where the folder goes.
        kind: what it is, one of `MARKERS`.
        prefix: of the message, such as `--output_dir `.

    Raises:
        ValueError: it is a file, or a folder with other content, or the current folder.
    """
    check_folder_path(final, prefix)
    if not final.exists():
        return
    if Path.cwd().is_relative_to(final.resolve()):
        raise ValueError(
            f"{prefix}{final} is the current folder and would be replaced; name another"
        )
    if any(final.iterdir()) and not _is_of_kind(final, kind):
        raise ValueError(f"{prefix}{final} is not empty and holds no {kind}; choose another folder")


def _is_of_kind(folder: Path, kind: str) -> bool:
    if (folder / MANIFEST).exists():
        try:
            return _parse_manifest(folder).kind == kind
        except ValueError:
            pass  # damaged: replacing the folder is the way out, if it was one of these
    return all((folder / name).exists() for name in MARKERS[kind])


def exchange(first: Path, second: Path) -> None:
    """Exchange the names of two folders, in one step where the system can.

    Linux and macOS can on their own file systems. Elsewhere, such as on NFS, the second folder is
    absent for a moment between two renames.
    """
    number = _exchange_at_once(os.fsencode(first), os.fsencode(second))
    if number in (errno.ENOSYS, errno.EINVAL, errno.ENOTSUP):
        aside = _aside(second)
        remove(aside)
        second.rename(aside)
        first.rename(second)
        aside.rename(first)
    elif number:
        raise OSError(number, os.strerror(number), str(second))


def _exchange_at_once(first: bytes, second: bytes) -> int:
    """Ask the system to exchange two names; returns 0 or its error number."""
    if os.name != "posix":
        return errno.ENOSYS
    libc = ctypes.CDLL(None, use_errno=True)
    if hasattr(libc, "renameat2"):  # Linux
        here, swap = -100, 2  # AT_FDCWD, RENAME_EXCHANGE
        failed = libc.renameat2(here, first, here, second, swap)
    elif hasattr(libc, "renamex_np"):  # macOS
        failed = libc.renamex_np(first, second, 2)  # RENAME_SWAP
    else:
        return errno.ENOSYS
    return ctypes.get_errno() if failed else 0


def _temporary(final: Path) -> Path:
    return final.with_name(f".{final.name}.partial")


def _aside(final: Path) -> Path:
    return final.with_name(f".{final.name}.replaced")


def _link_or_copy(source: str, target: str) -> None:
    """A second name for a file; a copy where the file system has none."""
    try:
        os.link(source, target, follow_symlinks=False)
    except OSError:
        shutil.copy2(source, target, follow_symlinks=False)
