"""Columns of tables of images, and what their cells hold or name."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from latent_prior.data.captions import NO_CAPTIONS
from latent_prior.data.image_files import FILE_LIMIT
from latent_prior.data.labels import NO_LABELS
from latent_prior.files import read_regular
from latent_prior.options import ImageOptions

LONGEST_PATH = 4096  # characters of a path that a table names
Cell = dict[str, Any] | None
"""Of a column of images: `bytes` and `path`, as `datasets` stores them."""


def check_columns(
    options: ImageOptions, names: Sequence[str], elsewhere: Iterable[str] = ()
) -> None:
    """Refuse columns that are not there.

    Args:
        options: which columns.
        names: those of a split.
        elsewhere: those of other splits, where captions may be.

    Raises:
        ValueError: naming one and those that there are.
    """
    for flag, others in (
        ("image_column", {NO_LABELS}),
        ("label_column", {NO_LABELS}),
        ("caption_column", {NO_CAPTIONS, *elsewhere}),  # a split may have none
    ):
        column = getattr(options, flag)
        if column is not None and column not in {*names, *others}:
            raise ValueError(
                f"--{flag} {column}: there is no such column; there are: {', '.join(names)}"
            )


def no_images(column: str) -> ValueError:
    """The error about a column of something else."""
    return ValueError(f"--image_column {column}: the column does not hold images")


def own_folders(dataset: str) -> list[str]:
    """The folders that a table may name files of: its own, or the caches of the hub."""
    import datasets
    import huggingface_hub

    if Path(dataset).is_dir():
        return [os.path.abspath(dataset)]
    caches = (datasets.config.HF_DATASETS_CACHE, huggingface_hub.constants.HF_HUB_CACHE)
    return [os.path.abspath(cache) for cache in caches]


def own_file(path: str, folders: Sequence[str]) -> Path | None:
    """A path that a cell names, from here or from the data set's folder; None if it leads away."""
    if len(path) > LONGEST_PATH:
        return None
    for candidate in (path, *(os.path.join(folder, path) for folder in folders)):
        absolute = Path(os.path.abspath(candidate))
        if any(absolute.is_relative_to(folder) for folder in folders):
            return absolute
    return None


def cell_name(cell: Cell, otherwise: str, folders: Sequence[str]) -> str:
    """The path of an image file that is there; `otherwise` for an image stored in the table."""
    if not cell or cell["bytes"] is not None or not cell["path"]:
        return otherwise
    path = own_file(cell["path"], folders)
    return str(cell["path"]) if path is not None and os.path.lexists(path) else otherwise


def content(cell: Cell, folders: Sequence[str]) -> bytes:
    """The encoded image, from the table or from the file it points to.

    Raises:
        ValueError: there is none, or the file cannot be read or is not one of `folders`.
    """
    if not cell or (cell["bytes"] is None and cell["path"] is None):
        raise ValueError("the cell is empty")
    if cell["bytes"] is not None:
        return bytes(cell["bytes"])
    path = own_file(cell["path"], folders)
    if path is None:
        raise ValueError(f"it names {cell['path'][:200]}, a file outside of the data set's folder")
    return read_regular(path, FILE_LIMIT)
