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
from latent_prior.evaluation.measures.reconstruction import Reconstructing, reconstruct
from latent_prior.evaluation.options import RECONSTRUCTIONS
from latent_prior.evaluation.report.html import Grid
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
    """The images nearest to a training image, each followed by that one, nearest first.

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


def picture(
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
