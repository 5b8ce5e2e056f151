"""The Inception Score, of the class probabilities that Inception gives to generated images."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

SEED = 0  # of the order in which images are split


def inception_score(probabilities: NDArray[np.floating], splits: int = 10) -> tuple[float, float]:
    """exp(E KL(p(y|x) || p(y))): high where each image shows one class clearly and all classes are shown.

    Salimans et al., 2016 (https://arxiv.org/abs/1606.03498), section 4. It knows no reference: copies of one good image of
    each class score best. The images are split at random: folders often go by class, and a split of one class alone
    would score 1.

    Args:
        probabilities: (N, C), N >= 1; rows sum to 1.
        splits: parts that are scored by themselves, no more than there are images. A score falls with the images of
            a part; the papers' have 5,000.

    Returns:
        Mean and standard deviation (as in the paper's code, divided by the number of parts) over the parts, the mean between
        1 and C.
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
    """Of one part; 0 log 0 = 0."""
    marginal = given.mean(0)
    ratio = np.divide(given, marginal, out=np.ones_like(given), where=given > 0)
    return float(np.exp((given * np.log(ratio)).sum(1).mean()))
