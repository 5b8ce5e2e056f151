"""Folders that appear whole and are replaced in one step.

A folder is written under a temporary name. When it is complete, its manifest is written, and the
folder takes its place: a new one by a rename, a replaced one by an exchange of the two names. So a
reader, or a process that is killed, finds the old folder or the new one.
"""

from __future__ import annotations

import ctypes
import errno
import logging
import os
import shutil
import stat
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import xxhash

from latent_prior.files import cache_folder, check_folder_path, whole_file
from latent_prior.manifests import (
    MANIFEST,
    MANIFEST_LIMIT,
    MARKERS,
    check_folder,
    decode_manifest,
    parse_manifest,
    record_of,
    write_manifest,
)

_COPIES = 8  # files that are copied at a time; storage answers slowly and in parallel
_log = logging.getLogger("latent_prior")


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
        own = {name.partition("/")[0] for name in parse_manifest(old).files} | {MANIFEST}
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
            return parse_manifest(folder).kind == kind
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


def fetch_folder(folder: str | Path, kind: str) -> Path:
    """A folder of ours, or the copy of one that lies at an address that the library fsspec knows.

    A copy lies in the user's cache, named by the content of its manifest, and is made once. Files
    of a stopped copy are kept. Only one process of a machine copies, the others wait for it.

    Args:
        folder: a path, or an address such as `s3://bucket/codes` or `hf://datasets/NAME/codes`.
        kind: what it is, one of `MARKERS`.

    Raises:
        ValueError: there is no such storage or no manifest, a file differs from what the manifest
            records, or the disk is too small.
    """
    address = str(folder).rstrip("/")
    if isinstance(folder, Path) or "://" not in address:
        return Path(folder)
    from filelock import FileLock

    storage, root, content = _open_storage(address)
    records = decode_manifest(content, address).checked(address, kind).files
    copy = cache_folder() / "folders" / xxhash.xxh3_128_hexdigest(content)
    copy.mkdir(parents=True, exist_ok=True)
    with FileLock(copy.with_suffix(".lock")):
        if (copy / MANIFEST).exists():
            return copy
        names = [name for name in records if not (copy / name).exists()]
        size = sum(records[name].size for name in names)
        if size > (free := shutil.disk_usage(copy).free):
            raise ValueError(
                f"{address} takes {size:,} bytes and {copy} has room for {free:,}; move the cache "
                "with LATENT_PRIOR_CACHE"
            )
        _log.info("%s: copying %.1f MB to %s", address, size / 1e6, copy)

        def fetch(name: str) -> None:
            with whole_file(copy / name) as temporary:
                storage.get_file(f"{root}/{name}", str(temporary))
                if record_of(temporary) != records[name]:
                    raise ValueError(f"{address}/{name} is not what its {MANIFEST} records")

        with ThreadPoolExecutor(_COPIES) as pool, _of_storage(address):
            list(pool.map(fetch, names))
        with whole_file(copy / MANIFEST) as temporary:
            temporary.write_bytes(content)
    return copy


def _open_storage(address: str) -> tuple[Any, str, bytes]:
    """A file system, the path of a folder in it, and the content of the folder's manifest."""
    import fsspec

    with _of_storage(address):
        storage, root = fsspec.url_to_fs(address)
        if not storage.exists(f"{root}/{MANIFEST}"):
            raise ValueError(
                f"{address} holds no {MANIFEST}; write the folder again and copy it whole"
            )
        with storage.open(f"{root}/{MANIFEST}") as file:
            return storage, root, file.read(MANIFEST_LIMIT)


@contextmanager
def _of_storage(address: str) -> Iterator[None]:
    """Errors of any storage as one sentence; each library raises its own."""
    try:
        yield
    except ValueError as error:
        if address in str(error):
            raise
        raise ValueError(f"{address}: {error}") from error
    except Exception as error:
        raise ValueError(
            f"{address} cannot be read ({str(error) or type(error).__name__}); check the address, "
            "its library and your access"
        ) from error


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
