"""From the features of a set of images to its row of the table."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from types import MappingProxyType

import numpy as np
from numpy.typing import NDArray

from latent_prior.evaluation.features.networks import FeatureNetwork
from latent_prior.evaluation.measures import fid
from latent_prior.evaluation.measures.extrapolation import at_infinity, random_subsets
from latent_prior.evaluation.measures.inputs import MeasureInputs, ReferenceStatistics, Values
from latent_prior.evaluation.measures.precision_recall import radii
from latent_prior.evaluation.measures.table import MEASURES, Row
from latent_prior.evaluation.options import RECONSTRUCTIONS, ScoreOptions
from latent_prior.evaluation.sets import ScoredSet

FEWEST_POINTS = 3  # of a curve, for a line through them and its standard error


@dataclass(frozen=True, eq=False)
class Judge:
    """Measures sets of images against one reference."""

    network: FeatureNetwork
    reference: ReferenceStatistics
    training: NDArray[np.float32] | None
    """Features (T, D) of the generators' training images; None without `--nearest`."""
    options: ScoreOptions

    @cached_property
    def gaussian(self) -> fid.Reference:
        """The reference with its covariance factored, once for all rows."""
        return fid.Reference(self.reference.statistics)

    @cached_property
    def radii(self) -> NDArray[np.float32] | None:
        """The reference's neighbour distances; None if its features are not published."""
        return None if self.reference.features is None else radii(self.reference.features)

    def candidate(
        self,
        scored: ScoredSet,
        features: NDArray[np.float32],
        class_accuracy: float | None,
        fidelity: Mapping[str, NDArray[np.float32]] = MappingProxyType({}),
    ) -> Row:
        """The row of a set with features (N, D).

        If they were measured, with a class accuracy in [0, 1] and `fidelity`, see `MeasureInputs`.
        """
        probabilities = self.network.probabilities
        inputs = replace(
            self.inputs(features),
            training=self.training if scored.split is None else None,
            probabilities=None if probabilities is None else probabilities(features),
            labels=scored.labels(),
            fidelity=fidelity,
        )
        measured: Values = {} if class_accuracy is None else {"class_accuracy": class_accuracy}
        measured |= scored.costs()
        return self.row(scored.name, inputs, measured, contestant=not scored.is_baseline)

    def reconstructions(
        self, features: NDArray[np.float32], fidelity: Mapping[str, NDArray[np.float32]]
    ) -> Row:
        """The row of an autoencoder's reconstructions of the reference; see `MeasureInputs`."""
        inputs = replace(self.inputs(features), fidelity=fidelity)
        return self.row(RECONSTRUCTIONS, inputs, contestant=False)

    def inputs(self, features: NDArray[np.float32]) -> MeasureInputs:
        """Features (N, D) beside the reference."""
        return MeasureInputs(self.options, features, self.reference.features, self.radii)

    def row(
        self, name: str, inputs: MeasureInputs, measured: Values | None = None, *, contestant: bool
    ) -> Row:
        """The distance, every measure that the inputs allow, and the values measured elsewhere.

        A row that is no contestant is never marked best.
        """
        column = self.network.column
        subsets = random_subsets(inputs.features, self.gaussian.rank, seed=self.options.seed)
        num_images, whole = next(subsets)
        distance = fid.frechet_distance(self.gaussian, whole)
        curve = [(size, fid.frechet_distance(self.gaussian, subset)) for size, subset in subsets]
        curve = [*reversed(curve), (num_images, distance)]
        results: Values = {column: distance}
        if len(curve) >= FEWEST_POINTS:
            results[f"{column}_infinity"] = at_infinity(curve)
        for compute in dict.fromkeys(measure.compute for measure in MEASURES.values()):
            if compute is not None:
                results |= compute(inputs)
        results |= measured or {}
        return Row(
            name,
            num_images,
            {key: each[0] if isinstance(each, tuple) else each for key, each in results.items()},
            {key: each[1] for key, each in results.items() if isinstance(each, tuple)},
            self._notes(num_images),
            tuple(curve),
            contestant,
        )

    def _notes(self, num_images: int) -> tuple[str, ...]:
        fewest = min(num_images, self.reference.num_images or num_images)
        dimension, title = self.network.dimension, self.network.title
        if not fid.rank_deficient(fewest, dimension):
            return ()
        return (
            f"{fewest:,} images are too few for {dimension:,} features: the covariance lacks full rank, and much of "
            f"this {title} reflects the sample size.",
        )
