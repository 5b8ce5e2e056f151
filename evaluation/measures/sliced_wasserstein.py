"""The sliced Wasserstein distance of two sets of features (Bonneel et al., 2015).

Features are projected on random directions, where the Wasserstein distance of order 2 comes from
sorting (on Inception's features this is MIND, Berthet et al., 2026, arXiv:2605.06797). No
covariance is estimated, so few images suffice: its minimum over the deviation of the features is
at the reference's, while that of the Frechet distance lies below it.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

DIRECTIONS = 512
MOST = 50_000  # images of a reference; a larger one is represented by a random choice
BLOCK = 64  # directions at a time


class SlicedReference:
    """Features (M, D) on random directions, to be compared with many other sets.

    Args:
        features: (M, D), M >= 1; memory-mapped features are read once.
        seed: of the directions, which all distances to this reference share.
    """

    def __init__(self, features: NDArray[np.floating], seed: int = 0) -> None:
        random = np.random.default_rng(seed)
        directions = random.standard_normal((DIRECTIONS, features.shape[1]))
        directions /= np.linalg.norm(directions, axis=1, keepdims=True)
        self.directions = directions.astype(np.float32)
        if len(features) > MOST:
            features = features[np.sort(random.choice(len(features), MOST, replace=False))]
        self.sorted = self._project(features)

    def distance(self, features: NDArray[np.floating]) -> float:
        """Mean squared distance over the directions, times D, of features (N, D) to the reference.

        In squared units of the features. The factor makes a shift of the mean count as much as in
        the Frechet distance, on average over the directions.
        """
        ours, theirs = self.sorted, self._project(features)
        M, N = ours.shape[1], theirs.shape[1]
        # Both quantile functions are constant between these steps, in units of 1 / (M N).
        steps = np.union1d(np.arange(1, M + 1) * N, np.arange(1, N + 1) * M)
        weights = np.diff(steps, prepend=0) / (M * N)
        i, j = (steps - 1) // N, (steps - 1) // M
        total = 0.0
        for start in range(0, DIRECTIONS, BLOCK):
            block = slice(start, start + BLOCK)
            gaps = ours[block][:, i].astype(np.float64) - theirs[block][:, j]
            total += float((gaps**2 @ weights).sum())
        return total / DIRECTIONS * features.shape[1]

    def _project(self, features: NDArray[np.floating]) -> NDArray[np.float32]:
        """Sorted projections (DIRECTIONS, N) of features (N, D)."""
        assert features.shape[1] == self.directions.shape[1], "features of different networks"
        projected: NDArray[np.float32] = self.directions @ features.astype(np.float32).T
        projected.sort(axis=1)
        return projected
