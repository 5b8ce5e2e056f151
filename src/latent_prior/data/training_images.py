"""Training batches of images, from an index or a stream, with random crops and flips.

The images of a step and their augmentation are pure functions of (seed, step).
"""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TypeVar

import numpy as np
import torch
from accelerate import Accelerator
from numpy.typing import NDArray
from torch import Tensor

from latent_prior.data.batch_order import Batch, even_share, index_batches
from latent_prior.data.found import tell_found
from latent_prior.data.images import (
    ImageSet,
    crop_windows,
    open_images,
    random_offsets,
    square_size,
    stream_fingerprint,
    stream_images,
)
from latent_prior.options import TrainingImageOptions
from latent_prior.seeds import derive_seed, generator

Options = TypeVar("Options", bound=TrainingImageOptions)


def training_batches(
    start: int, images: ImageSet | None, options: TrainingImageOptions, accelerator: Accelerator
) -> Iterator[Batch]:
    """This process's share of every micro-batch from step `start` on.

    A batch holds `images`, uint8 (B, C, image_size, image_size), and, if the dataset has them,
    `labels`, int64 (B,), -1 if unknown. Without `images` the dataset is streamed.
    """
    if images is None:
        yield from _streamed_batches(start, options, accelerator)
        return
    labels = images.labels
    batches = index_batches(start, size=len(images), options=options, accelerator=accelerator)
    for step, indices, part in batches:
        batch = {"images": augment(images.read(indices), options, step, part)}
        yield batch if labels is None else {**batch, "labels": labels[indices]}


def open_training_images(options: Options) -> tuple[ImageSet | None, Options]:
    """Open the images and complete the options: size, channels and steps per epoch.

    The main process prints what the dataset holds. A stream is not opened: the images are None,
    and the options already hold all of these.

    Raises:
        ValueError: an image cannot be read, the images differ in size, or the run would lie among
            them.
    """
    run, data = Path(options.output_dir), Path(options.dataset)
    if data.is_dir() and run.is_dir() and run.samefile(data):
        raise ValueError(f"--output_dir {run} is the data set; name another folder")
    tell_found(options)
    if options.streaming:
        return None, options
    images = open_images(options, options.split)
    if options.image_size is None or options.channels is None:
        side, channels = options.image_size or square_size(images), images.channels
        options = dataclasses.replace(options, image_size=side, channels=channels)
        images = open_images(options, options.split)
    every = options.evaluate_every or math.ceil(len(images) / options.batch_size)
    return images, dataclasses.replace(options, evaluate_every=every)


def input_fingerprints(
    images: ImageSet | None, options: TrainingImageOptions, validation: ImageSet | None = None
) -> dict[str, str]:
    """Fingerprints of what a run learns from and is validated on; without `images`, of a stream."""
    learnt = stream_fingerprint(options, options.split) if images is None else images.fingerprint
    found = {"training images": learnt}
    return found if validation is None else {**found, "validation images": validation.fingerprint}


def _streamed_batches(
    start: int, options: TrainingImageOptions, accelerator: Accelerator
) -> Iterator[Batch]:
    """Every process reads the whole stream and keeps its share, as it would from an index."""
    rows = _streamed_epochs(options)
    size, processes = even_share(options, accelerator), accelerator.num_processes
    first = accelerator.process_index * size
    for number in itertools.count():
        step, micro = divmod(number, options.accumulation_steps)
        mine = list(itertools.islice(rows, processes * size))[first : first + size]
        if step >= start:
            begin = micro * processes * size + first
            images = _stack(array for array, _ in mine)
            yield {
                "images": augment(images, options, step, slice(begin, begin + size)),
                "labels": torch.tensor([label for _, label in mine]),
            }


def _streamed_epochs(options: TrainingImageOptions) -> Iterator[tuple[NDArray[np.uint8], int]]:
    """Images and labels, epoch after epoch."""
    for epoch in itertools.count():
        seed, empty = derive_seed(options.seed, epoch), True
        for _, array, label in stream_images(options, options.split, shuffle_seed=seed):
            empty = False
            yield array, label
        if empty:
            raise ValueError(f"--dataset {options.dataset}: not one image can be read")


def augment(images: Tensor, options: TrainingImageOptions, step: int, part: slice) -> Tensor:
    """Crop and flip at random.

    The random numbers are drawn for the whole batch of the step, of which `images` are `part`.
    """
    assert options.image_size is not None
    random = generator(options.seed, "augmentation", step)
    offsets = (
        random_offsets(options.batch_size, options, random)[part] if options.random_crop else None
    )
    images = crop_windows(images, options.image_size, options.crop_padding, offsets)
    if options.random_flip:
        flipped = torch.rand(options.batch_size, generator=random)[part] < 0.5
        images = torch.where(flipped[:, None, None, None], images.flip(-1), images)
    return images


def first_images(images: ImageSet | None, options: TrainingImageOptions, count: int = 16) -> Tensor:
    """The first images without augmentation, uint8 (B, C, image_size, image_size)."""
    if images is not None:
        return images.crops(range(min(count, len(images))))
    assert options.image_size is not None
    rows = itertools.islice(stream_images(options, options.split), count)
    return crop_windows(_stack(array for _, array, _ in rows), options.image_size, 0, None)


def _stack(arrays: Iterable[NDArray[np.uint8]]) -> Tensor:
    """Images (H, W, C) of one size to a batch (B, C, H, W)."""
    return torch.from_numpy(np.stack(list(arrays))).permute(0, 3, 1, 2)
