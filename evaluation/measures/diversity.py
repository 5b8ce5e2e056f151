"""How much images of one class differ from each other."""

from __future__ import annotations

import math

import numpy as np
import torch
from numpy.typing import NDArray

from latent_prior.evaluation.measures.inputs import MeasureInputs, Values

BLOCK = 1024  # images at a time


def measure_diversity(inputs: MeasureInputs) -> Values:
    """Diversity within the classes, if there are any."""
    if inputs.labels is None:
        return {}
    return {"diversity": within_class_diversity(inputs.features, inputs.labels)}


def within_class_diversity(features: NDArray[np.floating], labels: NDArray[np.int64]) -> float:
    """Mean Euclidean distance between two images of one class, averaged over the classes.

    Compare it with the reference's: a generator that repeats a few images of each class falls far
    below, one that confuses classes rises above.

    Args:
        features: (M, D).
        labels: (M,), the class of each image; images with a negative one are left out.

    Returns:
        The distance in the units of the features; nan where no class has two images.
    """
    assert len(features) == len(labels), "as many labels as images"
    means = []
    for label in np.unique(labels[labels >= 0]):
        members = np.flatnonzero(labels == label)
        if len(members) >= 2:
            means.append(_mean_distance(features, members))
    return float(np.mean(means)) if means else math.nan


def _mean_distance(features: NDArray[np.floating], members: NDArray[np.int64]) -> float:
    """Mean distance over the pairs of at least 2 images."""
    total = 0.0
    parts = [members[start : start + BLOCK] for start in range(0, len(members), BLOCK)]
    for number, part in enumerate(parts):
        rows = torch.from_numpy(features[part].astype(np.float32))
        for other in parts[: number + 1]:
            columns = torch.from_numpy(features[other].astype(np.float32))
            # Centred, so that the squares of near images do not cancel.
            centre = columns.mean(0)
            distances = torch.cdist(rows - centre, columns - centre)
            if other is part:
                distances.fill_diagonal_(0)
                distances /= 2  # both halves of the table hold each pair
            total += distances.sum(dtype=torch.float64).item()
    return total / (len(members) * (len(members) - 1) / 2)
