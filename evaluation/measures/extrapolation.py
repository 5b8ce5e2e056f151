"""The Frechet distance that infinitely many images of the same source would have.

Fewer images have a larger distance, by an amount that differs from one generator to the next (Chong and Forsyth, 2020,
https://arxiv.org/abs/1911.07023): the distance at several sizes tells how much of it is owed to their number.
"""

from __future__ import annotations

import functools
import math

import numpy as np
from numpy.typing import NDArray

from latent_prior.evaluation.measures.fid import Moments, Reference, moments

POINTS = 8  # of a curve
# From all images to half of them. The line holds for many images only: for 1,000 images of 1,280 features a range down to
# a tenth puts the intercept above the distance of all images, several times the true one; half comes near it.
SMALLEST = 0.5


def distance_curve(
    reference: Reference, found: NDArray[np.floating], *, seed: int
) -> list[tuple[int, float]]:
    """Frechet distance of random subsets to a reference, their sizes evenly spaced in 1/N.

    The images are put in a random order, closed to a ring, and each subset begins where the last one ends. Subsets that
    hold each other would scatter less about the line than the line does from one set of images to another. The ring is cut where
    subsets begin, and each piece taken in once.

    Args:
        reference: the Gaussian compared with; all its images are always used.
        found: (M, D), M >= 2.
        seed: of the order.

    Returns:
        (N, distance) from the smallest N to N = M, whose distance is that of all images; POINTS of them or, for fewer
        than about 30 images, as many as there are different sizes.
    """
    count = len(found)
    order = np.random.default_rng(seed).permutation(count)
    shares = np.linspace(1 / SMALLEST, 1, POINTS)
    sizes = sorted({max(2, round(count / share)) for share in shares})
    starts = np.cumsum([0, *sizes[:-1]]) % count
    cuts = np.unique(starts)
    pieces: list[Moments] = []
    if count > reference.rank:
        pieces = [moments(found[np.sort(rows)]) for rows in np.split(order, cuts[1:])]
    curve = []
    for start, size in zip(starts.tolist(), sizes, strict=True):
        if size <= reference.rank:
            rows = np.roll(order, -start)[:size]
            distance = reference.distance_to(found[np.sort(rows)])
        else:
            within = np.flatnonzero((cuts - start) % count < size)
            joined = functools.reduce(Moments.joined, [pieces[i] for i in within])
            distance = reference.distance(joined.gaussian())
        curve.append((size, distance))
    return curve


def at_infinity(curve: list[tuple[int, float]]) -> tuple[float, float]:
    """Intercept of the least-squares line through the distances over 1/N (Chong and Forsyth, 2020, section 3).

    With few images beside the features the line is bent and the intercept only a better guess than the distance
    itself. It may be negative where the true distance is small.

    Args:
        curve: what `distance_curve` gives; at least 3 points, which 6 images are enough for.

    Returns:
        The intercept and its standard error, about what other images of the same source would change.
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
