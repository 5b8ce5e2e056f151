"""The Inception Score, from Inception's class probabilities of generated images."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from latent_prior.evaluation.measures.inputs import MeasureInputs, Values

SEED = 0  # of the order in which images are split


def measure_inception_score(inputs: MeasureInputs) -> Values:
    """The Inception Score, if the feature network has classes."""
    if inputs.probabilities is None:
        return {}
    return {"inception_score": inception_score(inputs.probabilities)}


def inception_score(probabilities: NDArray[np.floating], splits: int = 10) -> tuple[float, float]:
    """exp(E KL(p(y|x) || p(y))): high if images are clear and their classes varied.

    Salimans et al., 2016 (https://arxiv.org/abs/1606.03498), section 4. There is no reference:
    copies of one good image of each class score best. The images are split at random, because
    folders are often sorted by class and a split of one class alone would score 1.

    Args:
        probabilities: (N, C), N >= 1; rows sum to 1.
        splits: parts that are scored separately, at most one per image. Smaller parts score lower;
            the papers' have 5,000 images.

    Returns:
        Mean, between 1 and C, and standard deviation over the parts (divided by their number, as in
        the paper's code).
    """
    assert len(probabilities), "no images to score"
    assert splits >= 1
    order = np.random.default_rng(SEED).permutation(len(probabilities))
    scores = [
        _score(probabilities[np.sort(part)].astype(np.float64))
        for part in np.array_split(order, min(splits, len(order)))
    ]
    return float(np.mean(scores)), float(np.std(scores))


def _score(given: NDArray[np.float64]) -> float:
    """Score of one part; 0 log 0 = 0."""
    marginal = given.mean(0)
    ratio = np.divide(given, marginal, out=np.ones_like(given), where=given > 0)
    return float(np.exp((given * np.log(ratio)).sum(1).mean()))
