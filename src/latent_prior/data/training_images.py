"""Training batches of images, from an index or a stream, with random crops and flips.

The images of a step and their augmentation are pure functions of (seed, step).
"""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
import math
from collections import deque
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
    open_stream,
    random_offsets,
    square_size,
)
from latent_prior.data.shards.stream import ImageStream
from latent_prior.options import TrainingImageOptions
from latent_prior.seeds import generator

Images = ImageSet | ImageStream
"""What a run learns from, read by index or in sequence."""
Options = TypeVar("Options", bound=TrainingImageOptions)


def training_batches(
    start: int, images: Images, options: TrainingImageOptions, accelerator: Accelerator
) -> Iterator[Batch]:
    """This process's share of every micro-batch from step `start` on.

    A batch holds `images`, uint8 (B, C, image_size, image_size), and, if they were opened with
    classes, `labels`, int64 (B,), -1 if unknown.
    """
    if isinstance(images, ImageStream):
        yield from _streamed_batches(start, images, options, accelerator)
        return
    batches = index_batches(start, size=len(images), options=options, accelerator=accelerator)
    for step, indices, part in batches:
        batch = {"images": augment(images.read(indices), options, step, part)}
        labels = images.labels_of(indices)
        yield batch if labels is None else {**batch, "labels": labels}


def open_training_images(options: Options, classes: bool = False) -> tuple[Images, Options]:
    """Open the images and complete the options: size, channels and steps per epoch.

    The main process prints what the dataset holds.

    Args:
        options: which images.
        classes: whether they are needed of a stream too; other images always have theirs.

    Raises:
        ValueError: an image cannot be read, the images differ in size, or the run would lie among
            them.
    """
    run, data = Path(options.output_dir), Path(options.dataset)
    if data.is_dir() and run.is_dir() and run.samefile(data):
        raise ValueError(f"--output_dir {run} is the data set; name another folder")
    tell_found(options)
    images: Images
    if options.streaming:
        images = open_stream(options, options.split, classes)
    else:
        images = open_images(options, options.split)
    if isinstance(images, ImageSet) and None in (options.image_size, options.channels):
        side, channels = options.image_size or square_size(images), images.channels
        options = dataclasses.replace(options, image_size=side, channels=channels)
        images = open_images(options, options.split)
    every = options.evaluate_every or math.ceil(len(images) / options.batch_size)
    return images, dataclasses.replace(options, evaluate_every=every)


def input_fingerprints(images: Images, validation: ImageSet | None = None) -> dict[str, str]:
    """Fingerprints of what a run learns from and is validated on."""
    found = {"training images": images.fingerprint}
    return found if validation is None else {**found, "validation images": validation.fingerprint}


def _streamed_batches(
    start: int, stream: ImageStream, options: TrainingImageOptions, accelerator: Accelerator
) -> Iterator[Batch]:
    """A process reads only its own share, as it would from an index."""
    size = even_share(options, accelerator)
    every, first = accelerator.num_processes * size, accelerator.process_index * size
    begins = range(first, options.batch_size, every)
    parts = [slice(begin, begin + size) for begin in begins]
    # On a CPU decoding ahead would only compete with the step for cores.
    ahead = 0 if accelerator.device.type == "cpu" else 1
    batches = stream.batches(start, parts, options.batch_size, options.seed)
    with contextlib.closing(batches):
        waiting = deque(itertools.islice(batches, ahead))
        for number in itertools.count():
            waiting.append(next(batches))
            step, micro = divmod(number, options.accumulation_steps)
            decoded = (task.result() for task in waiting.popleft())
            pixels, rows = zip(*itertools.chain.from_iterable(decoded), strict=True)
            images = augment(_stack(pixels), options, start + step, parts[micro])
            batch = {"images": images}
            labels = None if stream.labels is None else stream.labels[list(rows)].long()
            yield batch if labels is None else {**batch, "labels": labels}


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


def first_images(images: Images, options: TrainingImageOptions, count: int = 16) -> Tensor:
    """The first images without augmentation, uint8 (B, C, image_size, image_size)."""
    if not isinstance(images, ImageStream):
        return images.crops(range(min(count, len(images))))
    assert options.image_size is not None
    return crop_windows(_stack(images.first(count)), options.image_size, 0, None)


def _stack(arrays: Iterable[NDArray[np.uint8]]) -> Tensor:
    """Images (H, W, C) of one size to a batch (B, C, H, W)."""
    return torch.from_numpy(np.stack(list(arrays))).permute(0, 3, 1, 2)
