"""Distances between two sets of features, and the pieces of clean-fid that make the features comparable.

`frechet_distance` is the distance of FID (Heusel et al., 2017, https://arxiv.org/abs/1706.08500, Eq. 6) and
`kernel_distance` the one of KID (Binkowski et al., 2018, https://arxiv.org/abs/1801.01401, section 4). Both agree
with clean-fid's (Parmar et al., 2022, https://arxiv.org/abs/2104.11222) on the same features, need no SciPy,
and work for fewer images than features.

No other file imports clean-fid, which would by itself expect a GPU, keep its weights in the global temporary
folder and write statistics into its own installation: only its resizer and its Inception wrapper are used here.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

INCEPTION_FILE = "inception-2015-12-05.pt"  # the name clean-fid's wrapper looks for


class Gaussian(NamedTuple):
    """What the Frechet distance keeps of a set of features."""

    mean: NDArray[np.float64]  # (D,)
    covariance: NDArray[np.float64]  # (D, D), divided by N - 1


def statistics(features: NDArray[np.floating]) -> Gaussian:
    """Mean and covariance, in float64, of features (N, D) with N >= 2."""
    assert len(features) >= 2, "a covariance needs two images"
    values = features.astype(np.float64)
    mean = values.mean(0)
    values -= mean
    return Gaussian(mean, values.T @ values / (len(values) - 1))


def frechet_distance(
    mean1: NDArray[np.floating],
    covariance1: NDArray[np.floating],
    mean2: NDArray[np.floating],
    covariance2: NDArray[np.floating],
) -> float:
    """Squared Frechet (2-Wasserstein) distance of two Gaussians: |m1 - m2|^2 + tr(S1 + S2 - 2 (S1 S2)^1/2).

    With S1 = A A^T the product S1 S2 has the non-zero eigenvalues of the symmetric, positive semi-definite
    A^T S2 A. A symmetric eigensolver finds these reliably where the square root of the unsymmetric product
    breaks, and directions in which S1 has no variance (fewer images than features) are left out beforehand.

    Args:
        mean1: (D,).
        covariance1: (D, D), symmetric and positive semi-definite up to rounding.
        mean2: (D,).
        covariance2: (D, D).

    Returns:
        The distance, at least 0, in squared units of the features.
    """
    mean1, mean2 = np.asarray(mean1, np.float64), np.asarray(mean2, np.float64)
    covariance1, covariance2 = (
        np.asarray(covariance1, np.float64),
        np.asarray(covariance2, np.float64),
    )
    assert mean1.shape == mean2.shape, "features of different networks"
    assert covariance1.shape == covariance2.shape == (len(mean1), len(mean1))
    variances, directions = np.linalg.eigh(covariance1)
    kept = variances > max(variances[-1], 0.0) * len(variances) * np.finfo(np.float64).eps
    factor = directions[:, kept] * np.sqrt(variances[kept])  # (D, R): covariance1 = factor factor^T
    squares = np.linalg.eigvalsh(factor.T @ covariance2 @ factor)
    overlap = np.sqrt(squares.clip(min=0.0)).sum()
    shift = float(((mean1 - mean2) ** 2).sum())
    return max(shift + float(np.trace(covariance1) + np.trace(covariance2) - 2.0 * overlap), 0.0)


def kernel_distance(
    features1: NDArray[np.floating],
    features2: NDArray[np.floating],
    subsets: int = 100,
    subset_size: int = 1000,
    seed: int = 0,
) -> tuple[float, float]:
    """Unbiased squared maximum mean discrepancy with the kernel (x.y / D + 1)^3, averaged over random subsets.

    The mean is clean-fid's. Sets that fit into one subset are used whole, once. The standard error says how far
    the number would move with other images of the same two sources: the delete-one jackknife of each subset,
    brought from the subset's to the sets' sizes, plus the scatter left by averaging few subsets. The usual
    standard deviation over subsets would fall to 0 when the subset is the whole set.

    Args:
        features1: (N1, D).
        features2: (N2, D).
        subsets: number of subsets.
        subset_size: images drawn from each set, without replacement; no more than the smaller set has.
        seed: of the subsets.

    Returns:
        Mean (it may be slightly negative, as an unbiased estimate of 0 is) and its standard error.
    """
    assert features1.shape[1] == features2.shape[1], "features of different networks"
    size = min(len(features1), len(features2), subset_size)
    assert size >= 2
    assert subsets >= 1
    if size == len(features1) == len(features2):
        subsets = 1
    generator = np.random.default_rng(seed)
    draws = np.empty((subsets, 3))
    for draw in draws:
        x = features1[generator.choice(len(features1), size, replace=False)]
        y = features2[generator.choice(len(features2), size, replace=False)]
        draw[:] = _unbiased_mmd(x, y)
    mean, variance1, variance2 = draws.mean(0)
    variance = variance1 * size / len(features1) + variance2 * size / len(features2)
    if subsets > 1:
        variance += draws[:, 0].var(ddof=1) / subsets
    return float(mean), math.sqrt(variance)


def _unbiased_mmd(x: NDArray[np.floating], y: NDArray[np.floating]) -> tuple[float, float, float]:
    """MMD^2 of x and y, both (M, D), and what each set adds to its variance (delete-one jackknife)."""
    size, dimension = x.shape

    def kernel(a: NDArray[np.floating], b: NDArray[np.floating]) -> NDArray[np.floating]:
        return (a @ b.T / dimension + 1) ** 3

    def row_sums(values: NDArray[np.floating]) -> NDArray[np.float64]:
        np.fill_diagonal(values, 0)
        return values.sum(1, dtype=np.float64)

    rows_x, rows_y = row_sums(kernel(x, x)), row_sums(kernel(y, y))
    cross = kernel(x, y)
    cross_x, cross_y = cross.sum(1, dtype=np.float64), cross.sum(0, dtype=np.float64)
    total = cross_x.sum()
    mmd = (rows_x.sum() + rows_y.sum()) / (size * (size - 1)) - 2 * total / size**2

    def jackknife(rows: NDArray[np.float64], crosses: NDArray[np.float64]) -> float:
        if size < 3:
            return math.nan
        within = (rows.sum() - 2 * rows) / ((size - 1) * (size - 2))
        left_out = within - 2 * (total - crosses) / (
            size * (size - 1)
        )  # up to the other set's constant
        return float(left_out.var() * (size - 1))

    return float(mmd), jackknife(rows_x, cross_x), jackknife(rows_y, cross_y)


def clean_resizer(size: int) -> Callable[[NDArray[np.uint8]], NDArray[np.float32]]:
    """clean-fid's "clean" resizing: uint8 (H, W, 3) -> float32 (size, size, 3) in [0, 255].

    PIL's antialiased bicubic filter in float32 without rounding to whole grey values.
    """
    from cleanfid.resize import make_resizer

    return make_resizer("PIL", False, "bicubic", (size, size))


def inception_url() -> str:
    """Where clean-fid's Inception lies."""
    from cleanfid import downloads_helper

    return downloads_helper.inception_url


def inception(folder: Path) -> torch.nn.Module:
    """clean-fid's Inception from `folder/INCEPTION_FILE`: float (N, 3, 299, 299) in [0, 255] -> (N, 2048)."""
    from cleanfid.inception_torchscript import InceptionV3W

    with warnings.catch_warnings():
        # torch 2.14 calls TorchScript deprecated; clean-fid's network exists in no other form.
        warnings.filterwarnings("ignore", message=".*torch.jit", category=FutureWarning)
        warnings.filterwarnings("ignore", message=".*torch.jit", category=DeprecationWarning)
        return InceptionV3W(str(folder), download=False)
