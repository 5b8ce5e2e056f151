"""The Frechet distance that infinitely many images of the same source would have.

Fewer images have a larger distance, by an amount that depends on the generator (Chong and Forsyth,
2020, https://arxiv.org/abs/1911.07023). The distance at several sizes shows this bias.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

from latent_prior.evaluation.measures.fid import Gaussian, Moments, moments

POINTS = 8  # sizes
# The smallest subset's share. The line holds for many images only: for 1,000 images of 1,280
# features, subsets down to a tenth put the intercept several times above the true distance.
SMALLEST = 0.5


def random_subsets(
    features: NDArray[np.floating], rank: int, *, seed: int
) -> Iterator[tuple[int, NDArray[np.floating] | Gaussian]]:
    """Random subsets whose sizes are evenly spaced in 1/N, from all images down to half of them.

    They are consecutive arcs of a shuffled ring; nested subsets would understate the error. The
    moments of each piece between two ends of arcs are computed once.

    Args:
        features: (M, D), M >= 2.
        rank: subsets of more images are yielded as Gaussians, as `frechet_distance` needs them.
        seed: of the order.

    Yields:
        (N, features or Gaussian) of `POINTS` subsets; fewer below about 30 images, where sizes
        coincide.
    """
    count = len(features)
    order = np.random.default_rng(seed).permutation(count)
    shares = np.linspace(1 / SMALLEST, 1, POINTS)
    sizes = sorted({max(2, round(count / share)) for share in shares})
    starts = np.cumsum([0, *sizes[:-1]]) % count
    cuts = np.unique(starts)
    pieces: list[Moments] = []
    if count > rank:
        pieces = [moments(features[np.sort(rows)]) for rows in np.split(order, cuts[1:])]
    for start, size in zip(reversed(starts.tolist()), reversed(sizes), strict=True):
        if size <= rank:
            yield size, features[np.sort(np.roll(order, -start)[:size])]
        else:
            within = np.flatnonzero((cuts - start) % count < size)
            yield size, functools.reduce(Moments.joined, [pieces[i] for i in within]).gaussian()


def at_infinity(curve: Sequence[tuple[int, float]]) -> tuple[float, float]:
    """Intercept of the least-squares line of the distances over 1/N (Chong and Forsyth, section 3).

    With few images beside the features the line is bent and the intercept only a better guess than
    the distance itself. It may be negative where the true distance is small.

    Args:
        curve: (N, distance) at 3 sizes or more.

    Returns:
        The intercept and its standard error over other images of the same source.
    """
    assert len(curve) >= 3, "a line with a standard error needs three sizes"
    sizes, distances = np.array(curve, np.float64).T
    inverse = 1 / sizes
    offsets = inverse - inverse.mean()
    spread = float((offsets**2).sum())
    slope = float(offsets @ distances) / spread
    intercept = float(distances.mean()) - slope * float(inverse.mean())
    residual = distances - intercept - slope * inverse
    variance = float(residual @ residual) / (len(sizes) - 2)
    return intercept, math.sqrt(variance * (1 / len(sizes) + float(inverse.mean()) ** 2 / spread))
