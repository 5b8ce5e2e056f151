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
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

INCEPTION_FILE = "inception-2015-12-05.pt"  # the name clean-fid's wrapper looks for
BLOCK = 1024  # images at a time


class Gaussian(NamedTuple):
    """What the Frechet distance keeps of a set of features."""

    mean: NDArray[np.float64]  # (D,)
    covariance: NDArray[np.float64]  # (D, D), divided by N - 1


class Moments(NamedTuple):
    """Mean and scatter of features, which can be joined with those of others."""

    num_images: int
    mean: NDArray[np.float64]  # (D,)
    scatter: NDArray[np.float64]  # (D, D): sum of (x - mean) (x - mean)^T

    def joined(self, other: Moments) -> Moments:
        """Of both sets together (Chan, Golub and LeVeque, 1979, Eq. 2.1)."""
        total = self.num_images + other.num_images
        shift = other.mean - self.mean
        scatter = np.outer(shift, shift * (self.num_images * other.num_images / total))
        scatter += self.scatter
        scatter += other.scatter
        return Moments(total, self.mean + shift * (other.num_images / total), scatter)

    def gaussian(self) -> Gaussian:
        """Of at least two images."""
        assert self.num_images >= 2, "a covariance needs two images"
        return Gaussian(self.mean, self.scatter / (self.num_images - 1))


def moments(features: NDArray[np.floating]) -> Moments:
    """Of features (N, D) with N >= 1, in float64; of a memory-mapped array a block at a time is in memory."""
    mean = features.mean(0, dtype=np.float64)
    scatter = np.zeros((len(mean), len(mean)))
    for start in range(0, len(features), BLOCK):
        values = features[start : start + BLOCK] - mean
        scatter += values.T @ values
    return Moments(len(features), mean, scatter)


def statistics(features: NDArray[np.floating]) -> Gaussian:
    """Mean and covariance, in float64, of features (N, D) with N >= 2, as `moments`."""
    return moments(features).gaussian()


def rank_deficient(num_images: int, dimension: int) -> bool:
    """Whether the covariance of so many images has directions without variance, whatever the images show.

    The distance is still the Frechet distance of the two Gaussians, but much of it is then owed to the number of images.
    """
    return num_images <= dimension


class Reference:
    """A Gaussian ready to be compared with many others: its covariance is factored once.

    With S1 = A A^T the product S1 S2 has the non-zero eigenvalues of the symmetric, positive semi-definite
    A^T S2 A, and for S2 = C^T C those of C S1 C^T. A symmetric eigensolver finds these reliably where the square root
    of the unsymmetric product breaks. A is the Cholesky factor; where there is none (fewer images than features, or a
    feature that never changes) directions without variance are left out of it.
    """

    def __init__(self, statistics: Gaussian) -> None:
        self.mean = np.asarray(statistics.mean, np.float64)
        covariance = np.asarray(statistics.covariance, np.float64)
        assert covariance.shape == (len(self.mean), len(self.mean))
        self._trace = float(np.trace(covariance))
        self._factor = _factor(covariance)  # (D, R)
        self.rank = self._factor.shape[1]

    def distance(self, found: Gaussian) -> float:
        """Squared Frechet distance to another Gaussian: |m1 - m2|^2 + tr(S1 + S2 - 2 (S1 S2)^1/2), at least 0."""
        covariance = np.asarray(found.covariance, np.float64)
        assert covariance.shape == (len(self.mean), len(self.mean)), (
            "features of different networks"
        )
        squares = self._factor.T @ (covariance @ self._factor)
        return self._distance(found.mean, float(np.trace(covariance)), squares)

    def distance_to(self, features: NDArray[np.floating]) -> float:
        """As `distance`, to the Gaussian of features (N, D), N >= 2; much faster for fewer images than features."""
        if len(features) > self.rank:
            return self.distance(statistics(features))
        assert len(features) >= 2, "a covariance needs two images"
        assert features.shape[1] == len(self.mean), "features of different networks"
        values = features.astype(np.float64)
        mean = values.mean(0)
        values -= mean
        values /= math.sqrt(len(values) - 1)
        projected = values @ self._factor
        return self._distance(mean, float(np.vdot(values, values)), projected @ projected.T)

    def _distance(
        self, mean: NDArray[np.floating], trace: float, squares: NDArray[np.float64]
    ) -> float:
        eigenvalues = torch.linalg.eigvalsh(torch.from_numpy(squares))
        overlap = float(eigenvalues.clamp(min=0).sqrt().sum())
        shift = float(((self.mean - mean) ** 2).sum())
        return max(shift + self._trace + trace - 2 * overlap, 0.0)


def _factor(covariance: NDArray[np.float64]) -> NDArray[np.float64]:
    """A (D, R) with A A^T = covariance, R its numerical rank."""
    matrix = torch.from_numpy(covariance)
    tolerance = len(covariance) * np.finfo(np.float64).eps
    lower, failed = torch.linalg.cholesky_ex(matrix)
    pivots = lower.diagonal().square()
    if not failed and pivots.min() > tolerance * pivots.max():
        return lower.numpy()
    variances, directions = torch.linalg.eigh(matrix)
    kept = variances > tolerance * variances[-1].clamp(min=0)
    factor: NDArray[np.float64] = (directions[:, kept] * variances[kept].sqrt()).numpy()
    return factor


def frechet_distance(
    mean1: NDArray[np.float64],
    covariance1: NDArray[np.float64],
    mean2: NDArray[np.float64],
    covariance2: NDArray[np.float64],
) -> float:
    """Squared Frechet (2-Wasserstein) distance of two Gaussians; of one and many others by `Reference`.

    Args:
        mean1: (D,).
        covariance1: (D, D), symmetric and positive semi-definite up to rounding.
        mean2: (D,).
        covariance2: (D, D).

    Returns:
        The distance, at least 0, in squared units of the features.
    """
    return Reference(Gaussian(mean1, covariance1)).distance(Gaussian(mean2, covariance2))


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
        features1: (N1, D), N1 >= 2; kernels are computed in the precision of the features.
        features2: (N2, D), N2 >= 2.
        subsets: number of subsets.
        subset_size: images drawn from each set, without replacement; no more than the smaller set has.
        seed: of the subsets.

    Returns:
        Mean (it may be slightly negative, as an unbiased estimate of 0 is) and its standard error, which is nan for
        subsets of two images.
    """
    assert features1.shape[1] == features2.shape[1], "features of different networks"
    counts = len(features1), len(features2)
    size = min(*counts, subset_size)
    assert size >= 2
    assert subsets >= 1
    if size == counts[0] == counts[1]:
        subsets = 1
    generator = np.random.default_rng(seed)
    draw = generator.choice
    chosen = [
        (draw(counts[0], size, replace=False), draw(counts[1], size, replace=False))
        for _ in range(subsets)
    ]
    # All pairs once, at twice the cost of a pair, or those of each subset.
    if 2 * sum(counts) ** 2 <= subsets * (2 * size) ** 2:
        draws = _unbiased_mmds(features1, features2, chosen)
    else:
        whole = [(np.arange(size), np.arange(size))]
        draws = np.concatenate(
            [_unbiased_mmds(features1[x], features2[y], whole) for x, y in chosen]
        )
    mean, variance1, variance2 = draws.mean(0)
    variance = variance1 * size / counts[0] + variance2 * size / counts[1]
    if subsets > 1:
        variance += draws[:, 0].var(ddof=1) / subsets
    return float(mean), math.sqrt(variance)


def _unbiased_mmds(
    features1: NDArray[np.floating],
    features2: NDArray[np.floating],
    chosen: Sequence[tuple[NDArray[np.int64], NDArray[np.int64]]],
) -> NDArray[np.float64]:
    """(S, 3): of each pair of subsets MMD^2 and what each set adds to its variance (delete-one jackknife).

    All subsets at once: each block of kernels is multiplied by the table of which image is in which subset.
    """
    features = np.concatenate((features1, features2))
    count1, subsets = len(features1), len(chosen)
    members = np.zeros((len(features), 2 * subsets))
    for subset, (x, y) in enumerate(chosen):
        members[x, subset] = 1
        members[count1 + y, subsets + subset] = 1
    sums = np.zeros_like(members)  # of an image's kernels with the other images of a subset
    for start in range(0, len(features), BLOCK):
        stop = min(start + BLOCK, len(features))
        kernels = features[start:stop] @ features[start:].T  # those before by symmetry
        kernels /= features.shape[1]
        kernels += 1
        kernels = (kernels * kernels * kernels).astype(np.float64)
        np.fill_diagonal(kernels, 0)
        sums[start:stop] += kernels @ members[start:]
        sums[stop:] += kernels[:, stop - start :].T @ members[start:stop]
    within, across = sums[:count1, :subsets], sums[:count1, subsets:]
    across2, within2 = sums[count1:, :subsets], sums[count1:, subsets:]
    return np.array(
        [
            _unbiased_mmd(within[x, i], within2[y, i], across[x, i], across2[y, i])
            for i, (x, y) in enumerate(chosen)
        ]
    )


def _unbiased_mmd(
    rows_x: NDArray[np.float64],
    rows_y: NDArray[np.float64],
    cross_x: NDArray[np.float64],
    cross_y: NDArray[np.float64],
) -> tuple[float, float, float]:
    """Of one pair of subsets, all arguments (M,): sums of an image's kernels with the others of its own set, or of the other."""
    size, total = len(rows_x), cross_x.sum()
    mmd = (rows_x.sum() + rows_y.sum()) / (size * (size - 1)) - 2 * total / size**2

    def jackknife(rows: NDArray[np.float64], crosses: NDArray[np.float64]) -> float:
        if size < 3:
            return math.nan
        within = (rows.sum() - 2 * rows) / ((size - 1) * (size - 2))
        # Up to the other set's constant.
        left_out = within - 2 * (total - crosses) / (size * (size - 1))
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
