"""Which split a file belongs to, and the parts that are held out of `train`.

Only whole names count, of folders and of table files. Test data must not be trained on: either
everything lies in places that are named like splits, or nothing does.

Training sees `train`. Whatever chooses between models, settings or stopping points uses
`validation`, so that `test` is left to the final scores. Data without these splits get them from
`train`, the same in every script.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Collection, Iterator, Sequence
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
"""Images of `train` from which on parts of it are held out."""
_SHARE = 0.1
_PIECE = 8192  # rows whose parts are in memory at a time
_HELD_OUT = ("test", "validation")  # an image's number decides: the first tenth, the second


def split_named(name: str) -> str | None:
    """The split that a name stands for: `train`, `Training`, `train2017`, `training_set`, `trainA`.

    A name is a word for a split, then optionally `set`, `data`, `split` or `images`, then a number.
    """
    return next((split for split, form in _FORMS.items() if form.fullmatch(name)), None)


def split_places(
    root: Path | str, places: Sequence[tuple[str, ...]]
) -> tuple[list[str], int | None]:
    """The split of every file, and where in its place the split's name stands.

    Args:
        root: the data set, for messages.
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


def missing_parts(splits: Collection[str]) -> tuple[str, ...]:
    """The splits that are held out of `train`, of data that have these splits.

    `validation` unless there is one, under any of its names, and `test` too if `train` is all
    there is.
    """
    if "train" not in splits or "validation" in map(split_named, splits):
        return ()
    return ("validation", "test") if len(splits) == 1 else ("validation",)


def parts_of_names(names: Sequence[str], parts: Collection[str]) -> NDArray[np.str_]:
    """`train` or one of the parts for each file, decided by its own name alone.

    Each part gets about one file in ten.
    """

    def number(name: str) -> float:
        digest = hashlib.blake2b(name.encode("utf-8", "surrogateescape"), digest_size=8).digest()
        return int.from_bytes(digest, "little") / 2**64

    return _parts(np.array([number(name) for name in names]), parts)


def parts_of_rows(count: int, parts: Collection[str], first: int = 0) -> NDArray[np.str_]:
    """The same for rows `first` to `first + count` of a table; added rows move no others."""
    numbers = np.random.PCG64(0)
    numbers.advance(first)  # a row takes one number
    return _parts(np.random.Generator(numbers).random(count), parts)


def rows_of_part(count: int, parts: Collection[str], part: str) -> Iterator[NDArray[np.int64]]:
    """The rows of `train` or of one of the parts of a table of `count` rows, piece by piece."""
    for first in range(0, count, _PIECE):
        own = parts_of_rows(min(_PIECE, count - first), parts, first) == part
        yield first + np.flatnonzero(own)


def _parts(numbers: NDArray[np.float64], parts: Collection[str]) -> NDArray[np.str_]:
    """`train` or one of the parts for each number in [0, 1)."""
    found = np.full(len(numbers), "train", dtype="<U10")
    for place, part in enumerate(_HELD_OUT):
        if part in parts:
            found[(place * _SHARE <= numbers) & (numbers < (place + 1) * _SHARE)] = part
    return found


def held_out_remark(parts: Sequence[str]) -> str:
    """`validation and test are held out of train`."""
    return f"{' and '.join(parts)} {'is' if len(parts) == 1 else 'are'} held out of train"
