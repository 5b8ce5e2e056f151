"""The Frechet distance of two sets of features: FID (Heusel et al., 2017, arXiv:1706.08500, Eq. 6).

Agrees with clean-fid (Parmar et al., 2022, https://arxiv.org/abs/2104.11222) on the same features,
needs no SciPy, and works for fewer images than features.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

BLOCK = 1024  # images at a time


class Gaussian(NamedTuple):
    """Mean and covariance of a set of features."""

    mean: NDArray[np.float64]  # (D,)
    covariance: NDArray[np.float64]  # (D, D), divided by N - 1


class Moments(NamedTuple):
    """Mean and scatter of a set of features, which can be joined with those of another set."""

    num_images: int
    mean: NDArray[np.float64]  # (D,)
    scatter: NDArray[np.float64]  # (D, D): sum of (x - mean) (x - mean)^T

    def joined(self, other: Moments) -> Moments:
        """Moments of the union of two disjoint sets (Chan, Golub and LeVeque, 1979, Eq. 2.1)."""
        total = self.num_images + other.num_images
        shift = other.mean - self.mean
        scatter = np.outer(shift, shift * (self.num_images * other.num_images / total))
        scatter += self.scatter
        scatter += other.scatter
        return Moments(total, self.mean + shift * (other.num_images / total), scatter)

    def gaussian(self) -> Gaussian:
        """Mean and covariance of at least two images."""
        assert self.num_images >= 2, "a covariance needs two images"
        return Gaussian(self.mean, self.scatter / (self.num_images - 1))


def moments(features: NDArray[np.floating]) -> Moments:
    """Moments in float64 of features (N, D), N >= 1; reads memory-mapped features in blocks."""
    mean = features.mean(0, dtype=np.float64)
    scatter = np.zeros((len(mean), len(mean)))
    for start in range(0, len(features), BLOCK):
        values = features[start : start + BLOCK] - mean
        scatter += values.T @ values
    return Moments(len(features), mean, scatter)


def statistics(features: NDArray[np.floating]) -> Gaussian:
    """Mean and covariance in float64 of features (N, D), N >= 2."""
    return moments(features).gaussian()


def rank_deficient(num_images: int, dimension: int) -> bool:
    """Whether the covariance of so many images must lack full rank.

    The Frechet distance is still defined, but much of it then reflects the number of images.
    """
    return num_images <= dimension


class Reference:
    """A Gaussian with its covariance factored, to be compared with many others.

    The factor A (D, R), A A^T = covariance, is the Cholesky factor. Where there is none (fewer
    images than features, or a constant feature) it leaves out directions without variance.
    """

    def __init__(self, statistics: Gaussian) -> None:
        self.mean = np.asarray(statistics.mean, np.float64)
        covariance = np.asarray(statistics.covariance, np.float64)
        assert covariance.shape == (len(self.mean), len(self.mean))
        self.trace = float(np.trace(covariance))
        self.factor = _factor(covariance)

    @property
    def rank(self) -> int:
        """Numerical rank R of the covariance."""
        return self.factor.shape[1]


def frechet_distance(reference: Reference, compared: NDArray[np.floating] | Gaussian) -> float:
    """Squared Frechet distance of two Gaussians: |m1 - m2|^2 + tr(S1 + S2 - 2 (S1 S2)^1/2).

    With S1 = A A^T the product S1 S2 has the non-zero eigenvalues of the symmetric, positive
    semi-definite A^T S2 A, and for S2 = C^T C those of C S1 C^T. A symmetric eigensolver finds them
    reliably where the square root of the unsymmetric product breaks.

    Args:
        reference: the first Gaussian.
        compared: features (N, D), N >= 2, or their Gaussian. Features are much faster where N is at
            most the reference's rank.

    Returns:
        The distance, at least 0, in squared units of the features.
    """
    dimension = len(reference.mean)
    if not isinstance(compared, Gaussian) and len(compared) > reference.rank:
        compared = statistics(compared)
    if isinstance(compared, Gaussian):
        mean, covariance = compared.mean, np.asarray(compared.covariance, np.float64)
        assert covariance.shape == (dimension, dimension), "features of different networks"
        trace = float(np.trace(covariance))
        squares = reference.factor.T @ (covariance @ reference.factor)
    else:
        assert len(compared) >= 2, "a covariance needs two images"
        assert compared.shape[1] == dimension, "features of different networks"
        values = compared.astype(np.float64)
        mean = values.mean(0)
        values -= mean
        values /= math.sqrt(len(values) - 1)
        trace = float(np.vdot(values, values))
        projected = values @ reference.factor
        squares = projected @ projected.T
    eigenvalues = torch.linalg.eigvalsh(torch.from_numpy(squares))
    overlap = float(eigenvalues.clamp(min=0).sqrt().sum())
    shift = float(((reference.mean - mean) ** 2).sum())
    return max(shift + reference.trace + trace - 2 * overlap, 0.0)


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
