"""The pictures of report.html: some images of each set, and generated images beside their nearest training images."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray

from latent_prior.evaluation.features.extract import as_batch
from latent_prior.evaluation.measures.precision_recall import nearest
from latent_prior.evaluation.measures.reconstruction import Reconstructing, reconstruct
from latent_prior.evaluation.options import RECONSTRUCTIONS
from latent_prior.evaluation.report.files import Grid, picture
from latent_prior.evaluation.sets import ScoredSet

PICTURED = 60  # images of each set
PAIRS = 30  # generated images beside their nearest training images


def pictured(scored: ScoredSet) -> Grid:
    """Images spread over a set."""
    split = f", {scored.split}" if scored.split else ""
    return picture(scored.name, f"{scored.source}{split}", scored.arrays(_positions(scored)))


def pictured_reconstructions(
    pipeline: Reconstructing, originals: ScoredSet, device: torch.device
) -> Grid:
    """What an autoencoder makes of the images that `pictured` shows of the originals."""
    images = as_batch(originals, _positions(originals))
    given_back = reconstruct(pipeline, images, device)
    return picture(
        RECONSTRUCTIONS,
        "in the places of their originals above",
        list(given_back.permute(0, 2, 3, 1).numpy()),
    )


def pictured_pairs(
    candidate: ScoredSet,
    found: NDArray[np.float32],
    training: ScoredSet,
    trained_on: NDArray[np.float32],
) -> Grid:
    """The images of a set that lie nearest to a training image, each followed by that one, nearest first.

    Args:
        candidate: the set.
        found: its features (N, D).
        training: the images that the generator has learnt from.
        trained_on: their features (M, D).
    """
    partners, distances = nearest(found, trained_on)
    closest = np.argsort(distances, kind="stable")[:PAIRS]
    pairs = zip(candidate.arrays(closest), training.arrays(partners[closest]), strict=True)
    caption = (
        f"each followed by its nearest image of split {training.split}, the nearest pairs first"
    )
    return picture(candidate.name, caption, [image for pair in pairs for image in pair])


def _positions(scored: ScoredSet) -> NDArray[np.int64]:
    """Spread over the whole set, whose order may go by class."""
    return np.unique(np.linspace(0, len(scored) - 1, PICTURED).astype(np.int64))
