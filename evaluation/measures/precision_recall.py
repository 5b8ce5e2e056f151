"""What nearest neighbours among features tell: precision and recall, density and coverage, and copies.

All distances are Euclidean, in the units of the features. They are computed in blocks, so that memory does not grow
with the number of images and features may be memory-mapped; a block of squared distances is one float32 matrix
product of centred features.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

PRECISION_NEIGHBOURS = 3  # Kynkaanniemi et al., 2019, section 3
COVERAGE_NEIGHBOURS = 5  # Naeem et al., 2020, section 3.3
QUERIES, BASE = 1024, 4096  # images in the rows and in the columns of a block
ROUNDING = 4e-6  # of |x|^2: the error of a float32 squared distance; ties within it count as ties


class Manifolds(NamedTuple):
    """How two sets of features overlap; nan where a set has too few images (see `manifolds`)."""

    precision: float
    recall: float
    density: float
    coverage: float


class _Block(NamedTuple):
    """Consecutive features, centred."""

    rows: slice
    values: torch.Tensor  # float32 (B, D)
    squares: torch.Tensor  # float32 (B,): squared norms


def radii(features: NDArray[np.floating]) -> NDArray[np.float32]:
    """Distances to the nearest other images, ascending; what `manifolds` wants to know of each set by itself.

    Args:
        features: (N, D).

    Returns:
        (N, COVERAGE_NEIGHBOURS); nan from the place on where there is no such neighbour.
    """
    count = len(features)
    found = np.full((count, COVERAGE_NEIGHBOURS), np.nan, np.float32)
    available = min(COVERAGE_NEIGHBOURS, count - 1)
    if available < 1:
        return found
    centre = _centre(features)
    for queries in _blocks(features, centre, QUERIES):
        best = torch.full((len(queries.values), available), math.inf)
        for base in _blocks(features, centre, BASE):
            squares = _squared_distances(queries, base)
            _exclude(squares, base, np.arange(queries.rows.start, queries.rows.stop))
            nearest = squares.topk(min(available, squares.shape[1]), largest=False).values
            best = torch.cat((best, nearest), 1).topk(available, largest=False).values
        found[queries.rows, :available] = best.sqrt().numpy()
    return found


def manifolds(
    reference: NDArray[np.floating],
    found: NDArray[np.floating],
    *,
    reference_radii: NDArray[np.float32] | None = None,
) -> Manifolds:
    """Share of each set that lies in the other's neighbourhoods.

    Precision and recall (Kynkaanniemi et al., 2019, https://arxiv.org/abs/1904.06991, Eqs. 1-3, k = 3): share of the
    found images within the distance of any reference image to its k-th neighbour in the reference, and the same with
    the sets exchanged. Density and coverage (Naeem et al., 2020, https://arxiv.org/abs/2002.09797, Eqs. 4-5, k = 5):
    the mean number of reference neighbourhoods that hold a found image, divided by k (it may exceed 1), and the share of
    reference neighbourhoods that hold one. An image on the border of a neighbourhood is in it.

    Args:
        reference: (N, D).
        found: (M, D), M >= 1.
        reference_radii: `radii(reference)`, where it is known.

    Returns:
        Precision, recall and coverage in [0, 1], density at least 0. Precision is nan for N <= 3, recall for
        M <= 3, density and coverage for N <= 5.
    """
    assert len(found), "no images to compare"
    assert reference.shape[1] == found.shape[1], "features of different networks"
    if reference_radii is None:
        reference_radii = radii(reference)
    assert len(reference_radii) == len(reference), "radii of another reference"
    near, wide = PRECISION_NEIGHBOURS - 1, COVERAGE_NEIGHBOURS - 1
    expected_squares = torch.from_numpy(reference_radii).square()
    found_squares = torch.from_numpy(radii(found))[:, near].square()
    precise, recalled = (
        torch.zeros(len(found), dtype=torch.bool),
        torch.zeros(len(reference), dtype=torch.bool),
    )
    covered, held = torch.zeros(len(reference), dtype=torch.bool), 0
    centre = _centre(reference)
    for rows in _blocks(reference, centre, QUERIES):
        limits = expected_squares[rows.rows] + ROUNDING * rows.squares[:, None]
        for columns in _blocks(found, centre, BASE):
            squares = _squared_distances(rows, columns)
            precise[columns.rows] |= (squares - limits[:, near, None]).amin(0) <= 0
            held += int(torch.count_nonzero(squares <= limits[:, wide, None]))
            covered[rows.rows] |= squares.amin(1) <= limits[:, wide]
            squares -= found_squares[columns.rows] + ROUNDING * columns.squares
            recalled[rows.rows] |= squares.amin(1) <= 0
    return Manifolds(
        precision=_share(precise, len(reference) > PRECISION_NEIGHBOURS),
        recall=_share(recalled, len(found) > PRECISION_NEIGHBOURS),
        density=held / (COVERAGE_NEIGHBOURS * len(found)) if len(reference) > COVERAGE_NEIGHBOURS else math.nan,
        coverage=_share(covered, len(reference) > COVERAGE_NEIGHBOURS),
    )  # fmt: skip


def nearest(
    queries: NDArray[np.floating], base: NDArray[np.floating], *, exclude_self: bool = False
) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    """The nearest image of a base to each of some queries.

    Args:
        queries: (M, D).
        base: (N, D), N >= 1.
        exclude_self: the queries are the base, N >= 2, and none is its own neighbour.

    Returns:
        Its place in the base and its distance, both (M,). The distance is computed from the difference of the two, so a
        copy has distance 0.
    """
    assert not exclude_self or len(queries) == len(base), "other queries than the base"
    return _nearest(queries, base, np.arange(len(queries)) if exclude_self else None)


def authenticity(found: NDArray[np.floating], train: NDArray[np.floating]) -> float:
    """Share of found images that are no copies of training images, in [0, 1] (higher is better).

    Alaa et al., 2022 (https://arxiv.org/abs/2102.08921), section 3.2: an image counts as a copy unless it is farther from its
    nearest training image than that one is from its own nearest training image. Fresh images of the training images'
    source do not all pass either: compare with the value of held-out images.

    Args:
        found: (M, D), M >= 1.
        train: (N, D), N >= 2.
    """
    assert len(found), "no images to compare"
    places, distances = _nearest(found, train, None)
    originals, which = np.unique(places, return_inverse=True)
    _, own = _nearest(train[originals], train, originals)
    return float(np.mean(distances > own[which]))


def _nearest(
    queries: NDArray[np.floating], base: NDArray[np.floating], excluded: NDArray[np.int64] | None
) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    """As `nearest`; `excluded` (M,) names for each query the one image of the base that does not count."""
    assert queries.shape[1] == base.shape[1], "features of different networks"
    assert len(base) >= (1 if excluded is None else 2), "no neighbour to find"
    places = np.empty(len(queries), np.int64)
    distances = np.empty(len(queries), np.float32)
    centre = _centre(base)
    for block in _blocks(queries, centre, QUERIES):
        best = torch.full((len(block.values),), math.inf)
        at = torch.zeros(len(block.values), dtype=torch.int64)
        for columns in _blocks(base, centre, BASE):
            squares = _squared_distances(block, columns)
            if excluded is not None:
                _exclude(squares, columns, excluded[block.rows])
            least, place = squares.min(1)
            at = torch.where(least < best, place + columns.rows.start, at)
            best = torch.minimum(best, least)
        places[block.rows] = at.numpy()
        difference = queries[block.rows] - base[at.numpy()]
        distances[block.rows] = np.linalg.norm(difference, axis=1)
    return places, distances


def _centre(features: NDArray[np.floating]) -> NDArray[np.float32]:
    """What is subtracted before products are taken: small norms keep small distances exact."""
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


def _exclude(squares: torch.Tensor, columns: _Block, places: NDArray[np.int64]) -> None:
    """Put the image `places[i]` out of reach of row i, where it is among these columns."""
    rows = np.flatnonzero((places >= columns.rows.start) & (places < columns.rows.stop))
    squares[rows, places[rows] - columns.rows.start] = math.inf


def _share(true: torch.Tensor, known: bool) -> float:
    return true.double().mean().item() if known else math.nan
