"""Which files of a folder are images.

Links are followed, but no folder and no file counts twice. The overview grids of this project's own
generators do not count as images.
"""

from __future__ import annotations

import functools
import logging
import os
import re
from collections.abc import Sequence
from pathlib import Path

from latent_prior.files import read_regular
from latent_prior.machine import is_main_process

IMAGE_SUFFIXES = frozenset((
    ".avif", ".bmp", ".dib", ".gif", ".ico", ".jfif", ".jp2", ".jpe", ".jpeg", ".jpg", ".pbm", ".pgm", ".png", ".pnm",
    ".ppm", ".tga", ".tif", ".tiff", ".webp",
))  # fmt: skip
# Written by this project's generators: the first images side by side, the class and the prompt of
# each file, the costs and the settings.
GRID_FILE, LABELS_FILE, ABOUT_FILE = "grid.png", "labels.csv", "about.json"
PROMPTS_FILE = "prompts.csv"
GENERATION_FILE, LATENTS_FILE = "generation.json", "latents.json"
TABLE_LIMIT = 64 * 2**20  # bytes of a table of labels


def files_below(folder: Path) -> list[Path]:
    """Files in a folder and its sub-folders, sorted, without hidden ones.

    A link to a folder elsewhere is followed. Links that lead back, links to files and folders that
    are listed already, and folders of trainings are passed over with a warning.

    Raises:
        ValueError: a folder cannot be listed.
    """
    entered: set[tuple[int, int]] = set()
    files, links = _walk(folder, entered)
    listed: set[str] | None = None
    passed_over: list[Path] = []
    while links:
        link = links.pop(0)
        target = Path(os.path.realpath(link))
        if target.is_dir():
            leads_back = Path(os.path.realpath(link.parent)).is_relative_to(target)
            if leads_back or _identity(target) in entered:
                passed_over.append(link)
                continue
            more_files, more_links = _walk(link, entered)
            files, links, listed = files + more_files, links + more_links, None
        else:
            listed = _real_paths(files) if listed is None else listed
            if str(target) in listed:
                passed_over.append(link)
                continue
            files.append(link)
            listed.add(str(target))
    if passed_over and is_main_process():
        _warn(
            f"{folder}: passed over {len(passed_over)} links to what is listed already, "
            f"for example {passed_over[0]}"
        )
    return sorted(files)


def images_among(files: Sequence[Path]) -> list[Path]:
    """The image files among files, by their endings, without the grids of our own generators.

    Raises:
        ValueError: the path of an image is not UTF-8.
    """
    images = [
        path for path in files if path.suffix.lower() in IMAGE_SUFFIXES and not _is_overview(path)
    ]
    for path in images:
        try:
            str(path).encode()
        except UnicodeEncodeError as error:
            raise ValueError(
                f"the path {ascii(str(path))[1:-1]} of an image is not UTF-8: rename it"
            ) from error
    return images


def _walk(start: Path, entered: set[tuple[int, int]]) -> tuple[list[Path], list[Path]]:
    """Files and, sorted, links below a folder; adds the identities of all its folders."""
    files, links, folders = [], [], [str(start)]
    while folders:
        folder = folders.pop()
        try:
            if _identity(Path(folder)) in entered:
                continue
            entered.add(_identity(Path(folder)))
            with os.scandir(folder) as entries:
                for entry in entries:
                    if entry.name.startswith("."):
                        continue
                    if entry.is_symlink():
                        links.append(Path(entry.path))
                    elif entry.is_dir(follow_symlinks=False):
                        if _is_run(Path(entry.path)):
                            _warn(
                                f"{entry.path}: passed over, its pictures are those of a training"
                            )
                        else:
                            folders.append(entry.path)
                    else:
                        files.append(Path(entry.path))
        except OSError as error:
            raise ValueError(f"{folder} cannot be listed ({error.strerror})") from error
    return files, sorted(links)


def _is_run(folder: Path) -> bool:
    """Whether a training wrote the folder: its pictures show training and held-out images."""
    logs = (folder / "metrics.jsonl").is_file() or (folder / "checkpoints").is_dir()
    return logs and (folder / "config.yaml").is_file()


def _identity(folder: Path) -> tuple[int, int]:
    status = folder.stat()
    return status.st_dev, status.st_ino


def _real_paths(files: Sequence[Path]) -> set[str]:
    """The paths of files without links; the files are links or lie in folders that are."""
    real_parent = functools.cache(os.path.realpath)
    return {
        os.path.realpath(path)
        if path.is_symlink()
        else os.path.join(real_parent(path.parent), path.name)
        for path in files
    }


def _is_overview(path: Path) -> bool:
    """Whether a file is a generator's grid: beside its record, and not in its table of labels."""
    if path.name != GRID_FILE:
        return False
    if not any(path.with_name(name).is_file() for name in (GENERATION_FILE, LATENTS_FILE)):
        return False
    try:
        table = read_regular(path.with_name(LABELS_FILE), TABLE_LIMIT)
    except ValueError:  # `latents.py` writes none for some operations
        return True
    cell = rb'(^|[,;\t"])' + re.escape(GRID_FILE.encode()) + rb'($|[,;\t"\r])'
    return re.search(cell, table, re.MULTILINE) is None


@functools.cache
def _warn(message: str) -> None:
    """Say something once, however often a folder is listed."""
    logging.getLogger("latent_prior").warning(message)
