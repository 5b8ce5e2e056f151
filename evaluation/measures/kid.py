"""The kernel distance of two sets of features: KID (Binkowski et al., 2018, arXiv:1801.01401).

Agrees with clean-fid (Parmar et al., 2022, https://arxiv.org/abs/2104.11222) on the same features.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from latent_prior.evaluation.measures.inputs import MeasureInputs, Values

BLOCK = 1024  # images at a time


def measure_kid(inputs: MeasureInputs) -> Values:
    """KID to the reference."""
    if inputs.reference is None:
        return {}
    options = inputs.options
    subsets = options.kid_subsets, options.kid_subset_size, options.seed
    return {"kid": kernel_distance(inputs.reference, inputs.features, *subsets)}


def kernel_distance(
    features1: NDArray[np.floating],
    features2: NDArray[np.floating],
    subsets: int = 100,
    subset_size: int = 1000,
    seed: int = 0,
) -> tuple[float, float]:
    """Unbiased squared MMD with the kernel (x.y / D + 1)^3, averaged over random subsets.

    The mean is clean-fid's (Binkowski et al., section 4). Sets that fit into one subset are used
    whole, once. The standard error is that over other images of the same two sources: the
    delete-one jackknife of each subset, scaled from the subset's to the sets' sizes, plus the error
    of averaging few subsets. The usual standard deviation over subsets would be 0 for whole sets.

    Args:
        features1: (N1, D), N1 >= 2; kernels are computed in the precision of the features.
        features2: (N2, D), N2 >= 2.
        subsets: number of subsets.
        subset_size: images drawn from each set without replacement, at most all of the smaller set.
        seed: of the subsets.

    Returns:
        Mean (an unbiased estimate of 0 may be slightly negative) and its standard error, nan for
        subsets of two images.
    """
    assert features1.shape[1] == features2.shape[1], "features of different networks"
    counts = len(features1), len(features2)
    size = min(*counts, subset_size)
    assert size >= 2
    assert subsets >= 1
    if size == counts[0] == counts[1]:
        subsets = 1
    draw = np.random.default_rng(seed).choice
    chosen = [
        (draw(counts[0], size, replace=False), draw(counts[1], size, replace=False))
        for _ in range(subsets)
    ]
    # Kernels of all pairs once cost twice as much each as those of every subset.
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
    """(S, 3): MMD^2 of each pair of subsets, and each set's part of its jackknife variance.

    A block of kernels serves all subsets: it is multiplied by the table of their members.
    """
    features = np.concatenate((features1, features2))
    count1, subsets = len(features1), len(chosen)
    members = np.zeros((len(features), 2 * subsets))
    for subset, (x, y) in enumerate(chosen):
        members[x, subset] = 1
        members[count1 + y, subsets + subset] = 1
    sums = np.zeros_like(members)  # of the kernels of an image with a subset's other images
    for start in range(0, len(features), BLOCK):
        stop = min(start + BLOCK, len(features))
        kernels = features[start:stop] @ features[start:].T  # earlier ones by symmetry
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
    """As `_unbiased_mmds`, from sums (M,) of each image's kernels within and across subsets."""
    size, total = len(rows_x), cross_x.sum()
    mmd = (rows_x.sum() + rows_y.sum()) / (size * (size - 1)) - 2 * total / size**2

    def jackknife(rows: NDArray[np.float64], crosses: NDArray[np.float64]) -> float:
        if size < 3:
            return math.nan
        within = (rows.sum() - 2 * rows) / ((size - 1) * (size - 2))
        # Without the other set's kernels, which are constant.
        left_out = within - 2 * (total - crosses) / (size * (size - 1))
        return float(left_out.var() * (size - 1))

    return float(mmd), jackknife(rows_x, cross_x), jackknife(rows_y, cross_y)
