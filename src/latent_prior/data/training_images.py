"""The batches of a training on images: uint8 from an index or a stream, cut and mirrored as the options say.

Which images a step sees and how they are augmented are pure functions of (seed, step).
"""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Iterator, Sequence
from typing import TypeVar

import numpy as np
import torch
from accelerate import Accelerator
from numpy.typing import NDArray
from torch import Tensor

from latent_prior.data.batch_order import Batch, even_share, index_batches
from latent_prior.data.images import (
    ImageSet,
    crop_windows,
    open_images,
    random_offsets,
    square_size,
    stream_images,
)
from latent_prior.options import TrainingImageOptions
from latent_prior.seeds import derive_seed, generator

Options = TypeVar("Options", bound=TrainingImageOptions)


def training_batches(
    start: int, images: ImageSet | None, options: TrainingImageOptions, accelerator: Accelerator
) -> Iterator[Batch]:
    """This process's share of every micro-batch from a step on.

    `images` are uint8 (B, C, image_size, image_size); `labels`, where the source has any, int64 (B,), -1 for none.
    """
    source = streamed_batches if options.streaming else indexed_batches
    return source(start, images, options, accelerator)


def open_training_images(options: Options) -> tuple[ImageSet | None, Options]:
    """The images, and the options with what the images decide: size, channels, the length of an epoch.

    Raises:
        ValueError: images that cannot be read, or do not fit the model.
    """
    if options.streaming:
        return None, options
    images = open_images(options, options.split)
    if options.image_size is None or options.channels is None:
        side, channels = options.image_size or square_size(images), images.channels
        options = dataclasses.replace(options, image_size=side, channels=channels)
        images = open_images(options, options.split)
    every = options.evaluate_every or math.ceil(len(images) / options.batch_size)
    return images, dataclasses.replace(options, evaluate_every=every)


def indexed_batches(
    start: int, images: ImageSet | None, options: TrainingImageOptions, accelerator: Accelerator
) -> Iterator[Batch]:
    """Batches of uint8 images from a step on; windows and mirroring depend on (seed, step, place in the batch) only."""
    assert images is not None
    assert options.image_size is not None
    labels = images.labels
    places = index_batches(start, size=len(images), options=options, accelerator=accelerator)
    for step, indices, place in places:
        batch = {"images": augment(images.read(indices), options, step, place)}
        yield batch if labels is None else {**batch, "labels": labels[indices]}


def streamed_batches(
    start: int, images: ImageSet | None, options: TrainingImageOptions, accelerator: Accelerator
) -> Iterator[Batch]:
    """Batches from a stream: every process reads all of it and keeps its share, so the batch of a step is the same."""
    rows = itertools.chain.from_iterable(
        _streamed_epoch(epoch, options) for epoch in itertools.count()
    )
    share = even_share(options, accelerator)
    for number in itertools.count():
        step, micro = divmod(number, options.accumulation_steps)
        begin = accelerator.process_index * share
        taken = list(itertools.islice(rows, accelerator.num_processes * share))[
            begin : begin + share
        ]
        if step >= start:
            stacked = torch.stack(
                [torch.from_numpy(array.copy()) for _, array, _ in taken]
            ).permute(0, 3, 1, 2)
            place = slice((micro * accelerator.num_processes) * share + begin, None)
            yield {
                "images": augment(stacked, options, step, slice(place.start, place.start + share)),
                "labels": torch.tensor([label for _, _, label in taken]),
            }


def _streamed_epoch(
    epoch: int, options: TrainingImageOptions
) -> Iterator[tuple[int, NDArray[np.uint8], int]]:
    """The rows of an epoch.

    Raises:
        ValueError: there is none, and epoch after epoch would bring none.
    """
    seed, empty = derive_seed(options.seed, epoch), True
    for row in stream_images(options, options.split, shuffle_seed=seed):
        empty = False
        yield row
    if empty:
        raise ValueError(f"--dataset {options.dataset}: not one image can be read")


def augment(images: Tensor, options: TrainingImageOptions, step: int, place: slice) -> Tensor:
    """Windows and mirror images, drawn for the whole batch of the step, of which `images` are the part at `place`."""
    assert options.image_size is not None
    random = generator(options.seed, "augmentation", step)
    offsets = (
        random_offsets(options.batch_size, options, random)[place] if options.random_crop else None
    )
    images = crop_windows(images, options.image_size, options.crop_padding, offsets)
    if options.random_flip:
        flipped = torch.rand(options.batch_size, generator=random)[place] < 0.5
        images = torch.where(flipped[:, None, None, None], images.flip(-1), images)
    return images


def plain(
    images: ImageSet, options: TrainingImageOptions, indices: Sequence[int] | Tensor
) -> Tensor:
    """Images without augmentation, uint8 (B, C, image_size, image_size)."""
    assert options.image_size is not None
    return crop_windows(images.read(indices), options.image_size, 0, None)


def first_images(images: ImageSet | None, options: TrainingImageOptions, count: int = 16) -> Tensor:
    """The images of the sample grid; see `plain`."""
    if images is not None:
        return plain(images, options, range(min(count, len(images))))
    assert options.image_size is not None
    rows = itertools.islice(stream_images(options, options.split), count)
    stacked = torch.stack([torch.from_numpy(array.copy()) for _, array, _ in rows]).permute(
        0, 3, 1, 2
    )
    return crop_windows(stacked, options.image_size, 0, None)
