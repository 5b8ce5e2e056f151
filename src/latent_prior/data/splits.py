"""Which split a file belongs to, and a held-out part for data without one.

Only whole names count, of folders and of table files. Test data must not be trained on: either
everything lies in places that are named like splits, or nothing does.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

SPLITS = {
    "train": ("train", "training"),
    "validation": ("validation", "valid", "val", "dev", "development"),
    "test": ("test", "testing", "eval", "evaluation"),
}
_FORMS = {
    split: re.compile(rf"(?i:{'|'.join(words)})(?i:[ _-]?(?:set|data|split|images?))?(?:[ _-]?[0-9]+|[AB])?")
    for split, words in SPLITS.items()
}  # fmt: skip
FEWEST = 50
"""Images from which on a part of data without splits is held out."""
_SHARE = 0.1


def split_named(name: str) -> str | None:
    """The split that a name stands for: `train`, `Training`, `train2017`, `training_set`, `trainA`.

    A name is a word for a split, then optionally `set`, `data`, `split` or `images`, then a number.
    """
    return next((split for split, form in _FORMS.items() if form.fullmatch(name)), None)


def split_places(root: Path, places: Sequence[tuple[str, ...]]) -> tuple[list[str], int | None]:
    """The split of every file, and where in its place the split's name stands.

    Args:
        root: the folder, for messages.
        places: the names above each file, outermost first.

    Returns:
        A split for each, and the index of its name in all places; `train` and None if no place is
        named like a split. A class folder called `train` among others is no split.

    Raises:
        ValueError: some places are named like splits, others are not, or not at the same depth.
    """
    found = [
        next(((depth, split) for depth, name in enumerate(names) if (split := split_named(name))), None)
        for names in places
    ]  # fmt: skip
    depths = {None if each is None else each[0] for each in found}
    if depths <= {None}:
        return ["train"] * len(places), None
    if len(depths) == 1:
        return [each[1] for each in found if each is not None], depths.pop()
    splits = {each[1] for each in found if each is not None}
    if splits == {"train"} and {len(names) for names in places} == {1}:
        return ["train"] * len(places), None  # one of several classes
    first = min(each for each in found if each is not None)
    inside = places[found.index(first)][: first[0] + 1]
    other = next(
        names for names, each in zip(places, found, strict=True) if (each or (None,))[0] != first[0]
    )
    raise ValueError(
        f"--dataset {root}: {'/'.join(inside)} is named like a split, but there are also files "
        f"{'in ' + '/'.join(other) if other else 'beside it'}, so it is unclear what to train on: "
        "name one of the folders, move the others away, or, if all are classes, put them into a "
        "folder train"
    )


def held_out_names(names: Sequence[str]) -> NDArray[np.bool_]:
    """Which files are held out, about one in ten; a file's own name alone decides."""

    def number(name: str) -> float:
        digest = hashlib.blake2b(name.encode("utf-8", "surrogateescape"), digest_size=8).digest()
        return int.from_bytes(digest, "little") / 2**64

    return np.array([number(name) < _SHARE for name in names], dtype=bool)


def held_out_rows(count: int) -> NDArray[np.bool_]:
    """Which rows of a table are held out, about one in ten; added rows do not move the others."""
    return np.random.default_rng(0).random(count) < _SHARE
