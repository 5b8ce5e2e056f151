"""What measures are computed from: the reference, and the arrays of one set of images."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from latent_prior.evaluation.measures.fid import Gaussian
from latent_prior.evaluation.options import ScoreOptions

Values = dict[str, float | tuple[float, float]]
"""Values, or values with their standard errors, by the keys of `MEASURES`."""


@dataclass(frozen=True, eq=False)
class ReferenceStatistics:
    """The reference's features and their statistics.

    Attributes:
        statistics: mean and covariance of the features.
        features: float32 (N, D), memory-mapped; None if only statistics were published.
        num_images: N; None if it was not published.
        source: data set and split, or the name of the published statistics.
        key: names all that the numbers depend on; of the cache entry, or of the published file.
    """

    statistics: Gaussian
    features: NDArray[np.float32] | None
    num_images: int | None
    source: str
    key: str


@dataclass(frozen=True, eq=False)
class MeasureInputs:
    """Arrays that describe N images and what they are compared with; None for what is not known.

    Attributes:
        options: of the call.
        features: float32 (N, D).
        reference: float32 (M, D), the features of the reference.
        reference_radii: distances to each reference image's neighbours, see `radii`.
        training: float32 (T, D), the features of the images that the generator was trained on.
        probabilities: float32 (N, K), the network's class probabilities.
        labels: int64 (N,), the class of each image, -1 without one.
        fidelity: float32 (N,) each, a value of every image, by the keys of `MEASURES`.
    """

    options: ScoreOptions
    features: NDArray[np.float32]
    reference: NDArray[np.float32] | None = None
    reference_radii: NDArray[np.float32] | None = None
    training: NDArray[np.float32] | None = None
    probabilities: NDArray[np.float32] | None = None
    labels: NDArray[np.int64] | None = None
    fidelity: Mapping[str, NDArray[np.float32]] = field(default_factory=dict)
