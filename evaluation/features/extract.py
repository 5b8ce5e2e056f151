"""Features and reconstructions of whole sets, in batches shared among the processes.

The batches do not depend on the number of processes and the results are gathered in the order of
the images, so two processes give the numbers of one.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import closing

import numpy as np
import torch
from accelerate import Accelerator
from numpy.typing import NDArray
from torch import Tensor

from latent_prior.data.batch_order import prefetch
from latent_prior.evaluation.features.networks import FeatureNetwork
from latent_prior.evaluation.measures.attributes import AS_ASKED, as_asked, asks
from latent_prior.evaluation.measures.reconstruction import (
    FIDELITY,
    SSIM_WINDOW,
    lpips,
    psnr,
    reconstruct,
    ssim,
)
from latent_prior.evaluation.sets import ScoredSet
from latent_prior.losses.perceptual import PerceptualDistance
from latent_prior.pipelines import Pipeline
from latent_prior.processes import share
from latent_prior.progress import Progress


def extract(
    network: FeatureNetwork, scored: ScoredSet, batch_size: int, accelerator: Accelerator
) -> NDArray[np.float32]:
    """Features (N, D) of a set in the order of its images, the same in every process.

    Raises:
        ValueError: an image cannot be read.
    """
    batches = share(len(scored), batch_size, accelerator)
    features = stream(network, scored, batches, accelerator)
    return gather_in_order(features, network.dimension, accelerator)


def stream(
    network: FeatureNetwork,
    scored: ScoredSet,
    batches: Sequence[range],
    accelerator: Accelerator,
) -> Iterator[NDArray[np.float32]]:
    """Yield the features of each batch, while the next ones are read and resized.

    Raises:
        ValueError: an image cannot be read.
    """
    prepared = prefetch(network.prepare(scored.arrays(batch)) for batch in batches)
    with closing(prepared), progress(scored, batches, accelerator) as line:
        for batch in batches:
            features = network.features(next(prepared))
            line.advance(len(batch))
            yield features


def progress(scored: ScoredSet, batches: Sequence[range], accelerator: Accelerator) -> Progress:
    """The line of progress while a process scores its batches of a set."""
    processes = accelerator.num_processes
    return Progress(
        f"scoring {scored.name}",
        len(scored),
        shown=accelerator.is_main_process,
        start=max(0, len(scored) - processes * sum(map(len, batches))),
        processes=processes,
    )


def extract_reconstructions(
    network: FeatureNetwork,
    pipeline: Pipeline,
    scored: ScoredSet,
    perceptual: PerceptualDistance | None,
    batch_size: int,
    accelerator: Accelerator,
) -> tuple[NDArray[np.float32], dict[str, NDArray[np.float32]]]:
    """Features of the reconstructions of a set and what is measured of each of them.

    That is PSNR, SSIM, LPIPS with its network `perceptual`, and for classes of `shapes` whether
    the reconstruction still shows the original's attributes; the same in every process. The
    originals must have the size and channels that the autoencoder takes.

    Raises:
        ValueError: an image cannot be read.
    """
    features: list[NDArray[np.float32]] = []
    fidelity: list[NDArray[np.float32]] = []
    batches = share(len(scored), batch_size, accelerator)
    for batch in progress(scored, batches, accelerator).over(batches):
        images = as_batch(scored, batch)
        reconstructions = reconstruct(pipeline, images, accelerator.device)
        features.append(network(reconstructions))
        unknown = torch.full((len(images),), torch.nan)
        fits = min(images.shape[2:]) >= SSIM_WINDOW
        measured = (
            psnr(images, reconstructions),
            ssim(images, reconstructions) if fits else unknown,
            unknown if perceptual is None else lpips(perceptual, images, reconstructions),
        )
        values = torch.stack([each.float() for each in measured], 1).numpy()
        kept = _attributes(list(reconstructions.permute(0, 2, 3, 1).numpy()), scored, batch)
        fidelity.append(np.concatenate([values, kept], 1))
    keys = FIDELITY + AS_ASKED
    gathered = gather_in_order(features, network.dimension, accelerator)
    columns = dict(zip(keys, gather_in_order(fidelity, len(keys), accelerator).T, strict=True))
    return gathered, {key: each for key, each in columns.items() if not np.isnan(each).any()}


def extract_attributes(
    scored: ScoredSet, batch_size: int, accelerator: Accelerator
) -> dict[str, NDArray[np.float32]]:
    """Whether the images of a set show what their classes of `shapes` say, (N,) each.

    Empty for other classes; the same in every process.

    Raises:
        ValueError: an image cannot be read.
    """
    if not asks(scored.classes):
        return {}
    batches = share(len(scored), batch_size, accelerator)
    rows = [_attributes(scored.arrays(batch), scored, batch) for batch in batches]
    return dict(zip(AS_ASKED, gather_in_order(rows, len(AS_ASKED), accelerator).T, strict=True))


def _attributes(
    images: Sequence[NDArray[np.uint8]], scored: ScoredSet, positions: range
) -> NDArray[np.float32]:
    """`as_asked` of images made of those at `positions`; NaN for classes of other data."""
    if scored.classes is None or not asks(scored.classes):
        return np.full((len(images), len(AS_ASKED)), np.nan, np.float32)
    return as_asked(images, scored.classes[positions.start : positions.stop])


def as_batch(scored: ScoredSet, positions: range | NDArray[np.int64]) -> Tensor:
    """Images of one size as uint8 (B, C, H, W)."""
    return torch.from_numpy(np.stack(scored.arrays(positions))).permute(0, 3, 1, 2)


def gather_in_order(
    batches: Iterable[NDArray[np.float32]], width: int, accelerator: Accelerator
) -> NDArray[np.float32]:
    """Concatenate the batches (n, width) of all processes in every process; some may have none."""
    values = np.concatenate([np.empty((0, width), np.float32), *batches])
    if accelerator.num_processes == 1:
        return values
    count = torch.tensor([len(values)], device=accelerator.device)
    counts: list[int] = accelerator.gather(count).tolist()
    padded = torch.zeros((max(counts), width), device=accelerator.device)
    padded[: len(values)] = torch.from_numpy(values)
    gathered: Tensor = accelerator.gather(padded)
    parts = [part[:n] for part, n in zip(gathered.split(max(counts)), counts, strict=True)]
    return torch.cat(parts).cpu().numpy()
