"""Folders that a command fills with images: what they hold is never mixed with something else."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from latent_prior.files import whole_file
from latent_prior.models import read_json


def holds_these(folder: Path, settings_file: str, settings: dict[str, Any]) -> bool:
    """Whether a folder holds images made with these very settings; it may also be new or empty.

    Raises:
        ValueError: it holds something else.
    """
    if not folder.exists() or (folder.is_dir() and not any(folder.iterdir())):
        return False
    if not (folder / settings_file).is_file():
        raise ValueError(
            f"--output_dir {folder} is not empty and was not written by this command; choose another folder"
        )
    before = read_json(folder / settings_file)
    differing = [key for key in settings if before.get(key) != settings[key]]
    if differing:
        raise ValueError(
            f"--output_dir {folder} holds images with {differing[0]} = {before.get(differing[0])!r}, this command says "
            f"{settings[differing[0]]!r}: choose another folder"
        )
    return True


def write_labels(
    path: Path, files: Sequence[str], labels: Sequence[int], names: Sequence[str]
) -> None:
    """A table of file, class number and class name; without classes the last two are empty."""
    with whole_file(path) as temporary, temporary.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["file", "label", "class"])
        for name, label in zip(files, labels, strict=True):
            writer.writerow([name, *((label, names[label]) if label >= 0 else ("", ""))])
