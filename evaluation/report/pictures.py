"""Pictures of report.html: images of each set, and pairs of nearest images."""

from __future__ import annotations

import io
from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, ImageOps

from latent_prior.data.images import grid, to_pil
from latent_prior.evaluation.features.extract import as_batch
from latent_prior.evaluation.measures.precision_recall import nearest
from latent_prior.evaluation.measures.reconstruction import reconstruct
from latent_prior.evaluation.options import RECONSTRUCTIONS
from latent_prior.evaluation.report.html import Grid
from latent_prior.evaluation.sets import ScoredSet
from latent_prior.pipelines import Pipeline

PICTURED = 60  # images of each set
PAIRS = 30  # generated images beside their nearest training images


def set_grid(scored: ScoredSet) -> Grid:
    """Images spread over a set."""
    split = f", {scored.split}" if scored.split else ""
    return make_grid(scored.name, f"{scored.source}{split}", scored.arrays(_positions(scored)))


def reconstruction_grid(pipeline: Pipeline, originals: ScoredSet, device: torch.device) -> Grid:
    """Reconstructions of the originals that `set_grid` shows."""
    images = as_batch(originals, _positions(originals))
    reconstructions = reconstruct(pipeline, images, device)
    return make_grid(
        RECONSTRUCTIONS,
        "in the order of their originals above",
        list(reconstructions.permute(0, 2, 3, 1).numpy()),
    )


def pairs_grid(
    candidate: ScoredSet,
    features: NDArray[np.float32],
    training: ScoredSet,
    training_features: NDArray[np.float32],
) -> Grid:
    """The images nearest to a training image, each followed by that one, nearest first.

    Args:
        candidate: the set.
        features: its features (N, D).
        training: the generator's training images.
        training_features: their features (M, D).
    """
    partners, distances = nearest(features, training_features)
    closest = np.argsort(distances, kind="stable")[:PAIRS]
    pairs = zip(candidate.arrays(closest), training.arrays(partners[closest]), strict=True)
    caption = (
        f"each followed by its nearest image of split {training.split}, the nearest pairs first"
    )
    return make_grid(candidate.name, caption, [image for pair in pairs for image in pair])


def make_grid(
    name: str, caption: str, images: Sequence[NDArray[np.uint8]], columns: int = 10
) -> Grid:
    """Lay out uint8 images (H, W, C) of any sizes; larger than 128 pixels are shrunk."""
    side = min(128, max(max(image.shape[:2]) for image in images))
    cells = []
    for image in images:
        cell = Image.fromarray(np.repeat(image, 3, axis=2) if image.shape[2] == 1 else image)
        cells.append(
            np.asarray(ImageOps.pad(cell, (side, side)) if cell.size != (side, side) else cell)
        )
    sheet = to_pil(grid(torch.from_numpy(np.stack(cells)).permute(0, 3, 1, 2), columns))
    buffer = io.BytesIO()
    sheet.save(buffer, "png")
    return Grid(name, caption, buffer.getvalue(), sheet.width)


def _positions(scored: ScoredSet) -> NDArray[np.int64]:
    """Spread over the whole set, whose order may go by class."""
    return np.unique(np.linspace(0, len(scored) - 1, PICTURED).astype(np.int64))
