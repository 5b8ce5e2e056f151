"""Folders that appear whole and are replaced in one step.

A folder is written under a temporary name. When it is complete, its manifest is written, and the
folder takes its place: a new one by a rename, a replaced one by an exchange of the two names. So a
reader, or a process that is killed, finds the old folder or the new one.
"""

from __future__ import annotations

import ctypes
import errno
import os
import shutil
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from latent_prior.files import check_folder_path
from latent_prior.manifests import (
    MANIFEST,
    MARKERS,
    check_folder,
    parse_manifest,
    write_manifest,
)


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
