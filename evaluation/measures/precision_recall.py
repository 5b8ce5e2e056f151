"""Nearest neighbours among features: precision and recall, density and coverage, authenticity.

All distances are Euclidean, in the units of the features. They are computed in blocks, so memory
does not grow with the number of images and features may be memory-mapped. A block of squared
distances is one float32 matrix product of centred features.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from latent_prior.evaluation.measures.inputs import MeasureInputs, Values

PRECISION_NEIGHBOURS = 3  # Kynkaanniemi et al., 2019, section 3
COVERAGE_NEIGHBOURS = 5  # Naeem et al., 2020, section 3.3
QUERIES, BASE = 1024, 4096  # images in the rows and in the columns of a block
ROUNDING = 4e-6  # error of a float32 squared distance, as a share of |x|^2; within it are ties


class Manifolds(NamedTuple):
    """How two sets of features overlap; nan for too few images (see `manifolds`)."""

    precision: float
    recall: float
    density: float
    coverage: float


class _Block(NamedTuple):
    """Consecutive features, centred."""

    rows: slice
    values: torch.Tensor  # float32 (B, D)
    squares: torch.Tensor  # float32 (B,): squared norms


def measure_overlap(inputs: MeasureInputs) -> Values:
    """Precision, recall, density and coverage beside the reference."""
    if inputs.reference is None:
        return {}
    return manifolds(
        inputs.reference, inputs.features, reference_radii=inputs.reference_radii
    )._asdict()


def measure_authenticity(inputs: MeasureInputs) -> Values:
    """Authenticity beside the training images."""
    if inputs.training is None:
        return {}
    return {"authenticity": authenticity(inputs.features, inputs.training)}


def radii(features: NDArray[np.floating]) -> NDArray[np.float32]:
    """Distances from each image (N, D) to its nearest other images, ascending.

    Returns:
        (N, COVERAGE_NEIGHBOURS); nan beyond the last neighbour.
    """
    count = len(features)
    distances = np.full((count, COVERAGE_NEIGHBOURS), np.nan, np.float32)
    available = min(COVERAGE_NEIGHBOURS, count - 1)
    if available < 1:
        return distances
    centre = _centre(features)
    for queries in _blocks(features, centre, QUERIES):
        best = torch.full((len(queries.values), available), math.inf)
        for base in _blocks(features, centre, BASE):
            squares = _squared_distances(queries, base)
            _exclude(squares, base, np.arange(queries.rows.start, queries.rows.stop))
            least = squares.topk(min(available, squares.shape[1]), largest=False).values
            best = torch.cat((best, least), 1).topk(available, largest=False).values
        distances[queries.rows, :available] = best.sqrt().numpy()
    return distances


def manifolds(
    reference: NDArray[np.floating],
    features: NDArray[np.floating],
    *,
    reference_radii: NDArray[np.float32] | None = None,
) -> Manifolds:
    """Share of each set that lies in the other's neighbourhoods.

    Precision and recall (Kynkaanniemi et al., 2019, https://arxiv.org/abs/1904.06991, Eqs. 1-3,
    k = 3): share of the images that lie within the distance of any reference image to its k-th
    neighbour in the reference, and the same with the sets exchanged. Density and coverage (Naeem et
    al., 2020, https://arxiv.org/abs/2002.09797, Eqs. 4-5, k = 5): the mean number of reference
    neighbourhoods that contain an image, divided by k, and the share of reference neighbourhoods
    that contain one. A neighbourhood includes its border.

    Args:
        reference: (N, D).
        features: (M, D), M >= 1.
        reference_radii: `radii(reference)`, if known.

    Returns:
        Precision, recall and coverage in [0, 1], density at least 0 and possibly above 1. Precision
        is nan for N <= 3, recall for M <= 3, density and coverage for N <= 5.
    """
    assert len(features), "no images to compare"
    assert reference.shape[1] == features.shape[1], "features of different networks"
    if reference_radii is None:
        reference_radii = radii(reference)
    assert len(reference_radii) == len(reference), "radii of another reference"
    near, wide = PRECISION_NEIGHBOURS - 1, COVERAGE_NEIGHBOURS - 1
    reference_squares = torch.from_numpy(reference_radii).square()
    feature_squares = torch.from_numpy(radii(features))[:, near].square()
    precise = torch.zeros(len(features), dtype=torch.bool)
    recalled, covered = torch.zeros(2, len(reference), dtype=torch.bool)
    contained = 0
    centre = _centre(reference)
    for rows in _blocks(reference, centre, QUERIES):
        limits = reference_squares[rows.rows] + ROUNDING * rows.squares[:, None]
        for columns in _blocks(features, centre, BASE):
            squares = _squared_distances(rows, columns)
            precise[columns.rows] |= (squares - limits[:, near, None]).amin(0) <= 0
            contained += int(torch.count_nonzero(squares <= limits[:, wide, None]))
            covered[rows.rows] |= squares.amin(1) <= limits[:, wide]
            squares -= feature_squares[columns.rows] + ROUNDING * columns.squares
            recalled[rows.rows] |= squares.amin(1) <= 0
    enough = len(reference) > COVERAGE_NEIGHBOURS
    return Manifolds(
        precision=_share(precise, len(reference) > PRECISION_NEIGHBOURS),
        recall=_share(recalled, len(features) > PRECISION_NEIGHBOURS),
        density=contained / (COVERAGE_NEIGHBOURS * len(features)) if enough else math.nan,
        coverage=_share(covered, enough),
    )


def authenticity(features: NDArray[np.floating], training: NDArray[np.floating]) -> float:
    """Share of images that are no copies of training images, in [0, 1] (higher is better).

    Alaa et al., 2022 (https://arxiv.org/abs/2102.08921), section 3.2: an image is a copy unless it
    is farther from its nearest training image than that image is from its own nearest training
    image. New images of the same source do not all pass: compare with held-out images.

    Args:
        features: (M, D), M >= 1.
        training: (N, D), N >= 2.
    """
    assert len(features), "no images to compare"
    indices, distances = nearest(features, training)
    neighbours, index = np.unique(indices, return_inverse=True)
    _, between = nearest(training[neighbours], training, excluded=neighbours)
    return float(np.mean(distances > between[index]))


def nearest(
    queries: NDArray[np.floating],
    base: NDArray[np.floating],
    *,
    excluded: NDArray[np.int64] | None = None,
) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    """The nearest image of a base to each query.

    Args:
        queries: (M, D).
        base: (N, D), N >= 1.
        excluded: (M,), for each query an index of the base to leave out, such as its own; N >= 2.

    Returns:
        Indices and distances, both (M,). Distances are computed from differences, so that of a copy
        is 0.
    """
    assert queries.shape[1] == base.shape[1], "features of different networks"
    assert excluded is None or len(excluded) == len(queries), "one index for each query"
    assert len(base) >= (1 if excluded is None else 2), "no neighbour to find"
    indices = np.empty(len(queries), np.int64)
    distances = np.empty(len(queries), np.float32)
    centre = _centre(base)
    for block in _blocks(queries, centre, QUERIES):
        best = torch.full((len(block.values),), math.inf)
        closest = torch.zeros(len(block.values), dtype=torch.int64)
        for columns in _blocks(base, centre, BASE):
            squares = _squared_distances(block, columns)
            if excluded is not None:
                _exclude(squares, columns, excluded[block.rows])
            least, index = squares.min(1)
            closest = torch.where(least < best, index + columns.rows.start, closest)
            best = torch.minimum(best, least)
        indices[block.rows] = closest.numpy()
        difference = queries[block.rows] - base[closest.numpy()]
        distances[block.rows] = np.linalg.norm(difference, axis=1)
    return indices, distances


def _centre(features: NDArray[np.floating]) -> NDArray[np.float32]:
    """Subtracted before products are taken: small norms keep small distances exact."""
    return features.mean(0, dtype=np.float64).astype(np.float32)


def _blocks(
    features: NDArray[np.floating], centre: NDArray[np.float32], size: int
) -> Iterator[_Block]:
    for start in range(0, len(features), size):
        rows = slice(start, min(start + size, len(features)))
        values = torch.from_numpy(features[rows].astype(np.float32) - centre)
        yield _Block(rows, values, values.square().sum(1))


def _squared_distances(rows: _Block, columns: _Block) -> torch.Tensor:
    """float32 (B, C), at least 0."""
    squares = torch.addmm(columns.squares, rows.values, columns.values.T, alpha=-2)
    return squares.add_(rows.squares[:, None]).clamp_(min=0)


def _exclude(squares: torch.Tensor, columns: _Block, excluded: NDArray[np.int64]) -> None:
    """Set the distance of row i to the image `excluded[i]` to infinity, if it is in this block."""
    rows = np.flatnonzero((excluded >= columns.rows.start) & (excluded < columns.rows.stop))
    squares[rows, excluded[rows] - columns.rows.start] = math.inf


def _share(true: torch.Tensor, known: bool) -> float:
    return true.double().mean().item() if known else math.nan
