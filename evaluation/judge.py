"""From features to a row of the table: every measure of one set of images."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from latent_prior.evaluation.features.extract import Reconstructions
from latent_prior.evaluation.features.networks import FeatureNetwork
from latent_prior.evaluation.features.reference_cache import ReferenceStatistics
from latent_prior.evaluation.measures import fid
from latent_prior.evaluation.measures.diversity import within_class_diversity
from latent_prior.evaluation.measures.extrapolation import at_infinity, distance_curve
from latent_prior.evaluation.measures.inception_score import inception_score
from latent_prior.evaluation.measures.precision_recall import authenticity, manifolds, radii
from latent_prior.evaluation.measures.reconstruction import mean_psnr
from latent_prior.evaluation.measures.table import Row
from latent_prior.evaluation.options import RECONSTRUCTIONS, ScoreOptions
from latent_prior.evaluation.sets import ScoredSet

FEWEST_POINTS = 3  # of a curve, for a line through them and its standard error


@dataclass(frozen=True, eq=False)
class Judge:
    """What sets of images are measured by.

    Attributes:
        network: where features come from.
        reference: what they are compared with.
        trained_on: features (M, D) of the images that the generators have learnt from; None where nobody looks.
        options: of the call.
    """

    network: FeatureNetwork
    reference: ReferenceStatistics
    trained_on: NDArray[np.float32] | None
    options: ScoreOptions

    @cached_property
    def gaussian(self) -> fid.Reference:
        """The reference with its covariance decomposed, once for all rows."""
        return fid.Reference(self.reference.statistics)

    @cached_property
    def radii(self) -> NDArray[np.float32] | None:
        """How near the neighbours of each image of the reference are; None where its features are not known."""
        return None if self.reference.features is None else radii(self.reference.features)

    def candidate(
        self,
        scored: ScoredSet,
        found: NDArray[np.float32],
        labels: NDArray[np.int64] | None,
        accuracy: float | None,
    ) -> Row:
        """The row of a set.

        Args:
            scored: the set; splits of data sets are points of reference rather than contestants.
            found: its features (N, D).
            labels: class of each image, -1 where it has none; None where no image has one.
            accuracy: its class accuracy in [0, 1], where it was measured.
        """
        row = self.row(scored.name, found, contestant=scored.split is None)
        values, errors = row.values, row.errors
        if self.network.probabilities is not None:
            score, spread = inception_score(self.network.probabilities(found))
            values["inception_score"], errors["inception_score"] = score, spread
        if accuracy is not None:
            values["class_accuracy"] = accuracy
        if self.trained_on is not None and scored.split is None:
            values["authenticity"] = authenticity(found, self.trained_on)
        if labels is not None:
            known = labels >= 0
            values["diversity"] = within_class_diversity(found[known], labels[known])
        values.update(costs(scored.about))
        return row

    def reconstructions(self, given_back: Reconstructions) -> Row:
        """The row of an autoencoder's reconstructions of the reference."""
        row = self.row(RECONSTRUCTIONS, given_back.features, contestant=False)
        row.values["psnr"] = mean_psnr(given_back.psnr)
        if given_back.ssim is not None:
            row.values["ssim"] = float(given_back.ssim.mean(dtype=np.float64))
        if given_back.lpips is not None:
            row.values["lpips"] = float(given_back.lpips.mean(dtype=np.float64))
        return row

    def row(self, name: str, found: NDArray[np.float32], *, contestant: bool) -> Row:
        """What the features (N, D) of a set say by themselves; a point of reference is no contestant."""
        column, options = self.network.column, self.options
        curve = distance_curve(self.gaussian, found, seed=options.seed)
        row = Row(
            name,
            len(found),
            {column: curve[-1][1]},
            notes=self._notes(len(found)),
            curve=tuple(curve),
            contestant=contestant,
        )
        if len(curve) >= FEWEST_POINTS:
            infinity = f"{column}_infinity"
            row.values[infinity], row.errors[infinity] = at_infinity(curve)
        if self.reference.features is not None:
            row.values["kid"], row.errors["kid"] = fid.kernel_distance(
                self.reference.features,
                found,
                options.kid_subsets,
                options.kid_subset_size,
                options.seed,
            )
            overlap = manifolds(self.reference.features, found, reference_radii=self.radii)
            row.values.update(overlap._asdict())
        return row

    def _notes(self, num_images: int) -> tuple[str, ...]:
        fewest = min(num_images, self.reference.num_images or num_images)
        if not fid.rank_deficient(fewest, self.network.dimension):
            return ()
        return (
            f"{fewest:,} images are too few for {self.network.dimension:,} features: a covariance without full rank, and a "
            f"{self.network.title} much of which is owed to the number of images.",
        )


def costs(about: dict[str, Any] | None) -> dict[str, float]:
    """What a generator says about itself in `about.json`: its size, its speed and what its training has cost."""
    if about is None:
        return {}
    training = about.get("training") or {}
    clock = "cpu_seconds" if training.get("device") == "cpu" else "seconds"
    found = {
        "seconds_per_image": about.get("seconds_per_image"),
        "parameters": about.get("parameters"),
        "training_images": training.get("images_seen"),
        "training_seconds": training.get(clock),
    }
    return {key: float(value) for key, value in found.items() if isinstance(value, int | float)}
