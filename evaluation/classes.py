"""The class that was asked for, of every image of a set; classes meet by name, their numbers may differ."""

from __future__ import annotations

import csv
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from latent_prior.evaluation.options import REFERENCE
from latent_prior.evaluation.sets import ScoredSet

LABELS_FILE = "labels.csv"  # of file and class, written by the generators of this project
NAMES_SHOWN = 10  # of the classes, in a message


def asked_classes(scored: ScoredSet, class_names: Sequence[str]) -> NDArray[np.int64] | None:
    """The classes that the images taking part should show, from the data set or from a folder's labels.csv.

    Args:
        scored: a split of a data set, or a folder.
        class_names: the classes that a classifier knows, in the order of its numbers.

    Returns:
        int64 (N,), places in `class_names`, -1 for an image without a class; None where no image has one.

    Raises:
        ValueError: a class is not among `class_names`, or labels.csv is no such table or leaves out an image.
    """
    number_of = {name: number for number, name in enumerate(class_names)}
    numbers = _of_folder(scored, number_of) if scored.split is None else _of_split(scored, number_of)  # fmt: skip
    return None if numbers is None or (numbers < 0).all() else numbers


def own_classes(scored: ScoredSet) -> NDArray[np.int64] | None:
    """As `asked_classes`, of whatever classes the set itself has; the numbers mean nothing beside another set's.

    Raises:
        ValueError: labels.csv is no such table or leaves out an image.
    """
    if scored.split is not None:
        return asked_classes(scored, scored.images.class_names)
    path = Path(scored.source) / LABELS_FILE
    names = set(_read(path, _flag(scored)).values()) - {""} if path.is_file() else set()
    return asked_classes(scored, sorted(names)) if names else None


def _of_split(scored: ScoredSet, number_of: Mapping[str, int]) -> NDArray[np.int64] | None:
    labels, names = scored.images.labels, scored.images.class_names
    if labels is None:
        return None
    chosen = labels.numpy()[scored.chosen]
    numbers = np.full(len(names) + 1, -1)  # the last one is read by the label -1
    for label in np.unique(chosen[chosen >= 0]).tolist():
        numbers[label] = _known(
            names[label], number_of, f"{_flag(scored)}: {scored.source} has images of"
        )
    return numbers[chosen]


def _of_folder(scored: ScoredSet, number_of: Mapping[str, int]) -> NDArray[np.int64] | None:
    path = Path(scored.source) / LABELS_FILE
    if not path.is_file():
        return None
    class_of = _read(path, _flag(scored))
    known = {"": -1} | {
        name: _known(name, number_of, f"{_flag(scored)}: {path} asks for")
        for name in sorted(set(class_of.values()) - {""})
    }
    numbers = np.empty(len(scored), np.int64)
    rows = scored.images.source_index[scored.chosen]
    for place, row in enumerate(rows.tolist()):
        file = Path(scored.images.table.name_of(row)).relative_to(scored.source).as_posix()
        if file not in class_of:
            raise ValueError(
                f"{_flag(scored)}: {path} has no row for the image {file}; add it, or take the table away"
            )
        numbers[place] = known[class_of[file]]
    return numbers


def _read(path: Path, flag: str) -> dict[str, str]:
    """Class name by file, empty where an image has no class."""
    with path.open(newline="", encoding="utf-8") as file:
        table = csv.DictReader(file, restval="")
        if not {"file", "class"} <= set(table.fieldnames or ()):
            raise ValueError(f"{flag}: {path} needs the columns file and class")
        return {row["file"]: row["class"] for row in table}


def _known(name: str, number_of: Mapping[str, int], what: str) -> int:
    if name not in number_of:
        names = list(number_of)
        shown = ", ".join(names[:NAMES_SHOWN]) + (", ..." if len(names) > NAMES_SHOWN else "")
        raise ValueError(f"{what} the class {name!r}, which --train_split lacks; it has: {shown}")
    return number_of[name]


def _flag(scored: ScoredSet) -> str:
    return "--reference" if scored.name == REFERENCE else f"--candidates {scored.name}"
