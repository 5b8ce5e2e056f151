"""The Frechet distance that infinitely many images of the same source would have.

Fewer images have a larger distance, by an amount that differs from one generator to the next (Chong and Forsyth, 2020,
https://arxiv.org/abs/1911.07023): the distance at several sizes tells how much of it is owed to their number.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from evaluation.fid import Moments, Reference

POINTS = 8  # of a curve
# From all images to half of them. The line holds for many images only: for 1,000 images of 1,280 features a range down to
# a tenth puts the intercept above the distance of all images, several times the true one; half comes near it.
SMALLEST = 0.5


def distance_curve(
    reference: Reference, found: NDArray[np.floating], *, seed: int
) -> list[tuple[int, float]]:
    """Frechet distance of random subsets to a reference, their sizes evenly spaced in 1/N.

    Each subset holds the smaller ones, so that every image is taken in once.

    Args:
        reference: the Gaussian compared with; all its images are always used.
        found: (M, D), M >= 2.
        seed: of the subsets.

    Returns:
        (N, distance) from the smallest N to N = M, POINTS of them or, for fewer than about 30 images, as many as
        there are different sizes.
    """
    count = len(found)
    order = np.random.default_rng(seed).permutation(count)
    shares = np.linspace(1 / SMALLEST, 1, POINTS)
    sizes = sorted({max(2, round(count / share)) for share in shares})
    curve, moments = [], Moments()
    for size in sizes:
        if size <= reference.rank:
            distance = reference.distance_to(found[np.sort(order[:size])])
        else:
            moments.add(found[np.sort(order[moments.count : size])])
            distance = reference.distance(moments.gaussian())
        curve.append((size, distance))
    return curve


def at_infinity(curve: list[tuple[int, float]]) -> tuple[float, float]:
    """Intercept of the least-squares line through the distances over 1/N (Chong and Forsyth, 2020, section 3).

    With few images beside the features the line is bent and the intercept only a better guess than the distance
    itself. It may be negative where the true distance is small.

    Args:
        curve: what `distance_curve` gives; at least 3 points, which 6 images are enough for.

    Returns:
        The intercept and its standard error: of the line through these points, hence without what other images of the
        same source would change in all of them.
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
