"""Train a stage-1 autoencoder on images.

accelerate launch stage1_autoencoders/train.py --config stage1_autoencoders/configs/mnist_vqvae.yaml --output_dir runs/mnist/vqvae
"""

from __future__ import annotations

from common.cli import parse_config, run
from stage1_autoencoders.options import TrainOptions

if __name__ == "__main__":
    parse_config(TrainOptions)  # --help and mistakes are answered before torch is imported

import dataclasses
import itertools
import math
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch
from accelerate import Accelerator
from torch import Tensor

from common import training
from common.checkpoint import whole_folder
from common.ema import EMA
from common.images import (
    ImageSet,
    crop_windows,
    grid,
    open_images,
    random_offsets,
    save_png,
    square_size,
    stream_images,
    to_float,
    to_uint8,
)
from common.optim import make_optimizer, update
from common.processes import start_training_processes
from common.seeds import derive_seed, generator
from stage1_autoencoders.meters import Meter
from stage1_autoencoders.objectives import vqvae_objective
from stage1_autoencoders.vqvae import VQVAE, VQVAEConfig


def main(argv: Sequence[str] | None = None) -> None:
    """Entry point.

    Raises:
        ValueError: options, images or the run folder are at fault.
    """
    options = parse_config(TrainOptions, argv)
    accelerator = start_training_processes(options)
    images, options = open_training_images(options)
    validation = (
        None if options.validation_split is None else open_images(options, options.validation_split)
    )
    assert options.image_size is not None
    assert options.channels is not None

    config = VQVAEConfig(
        **dataclasses.asdict(options.model),
        image_size=options.image_size,
        image_channels=options.channels,
    )
    model = VQVAE(config)
    torch.nn.Module.to(model, memory_format=torch.channels_last)
    optimizer = make_optimizer(model, options)
    wrapped, optimizer = accelerator.prepare(model, optimizer)
    ema = EMA(model, options.ema_decay)
    meter = Meter(model.code_spec).to(accelerator.device)
    state = training.TrainState(
        {"model": model, "optimizer": optimizer, "ema": ema, "meter": meter}
    )

    def step(batch: training.Batch) -> training.Metrics:
        """Everything that learns in a VQ-VAE."""
        pixels = prepare(batch["images"])
        with accelerator.accumulate(wrapped):
            output = wrapped(pixels)
            losses = vqvae_objective(pixels, output, reconstruction=options.reconstruction)
            accelerator.backward(losses["total"])
            updated = update(
                accelerator,
                optimizer,
                wrapped,
                loss=losses["total"],
                step=state.step,
                options=options,
            )
        if accelerator.sync_gradients:
            ema.update(model)
        meter.update(pixels, output.images, output.codes)
        return {**losses, **updated}

    def prepare(batch: Tensor) -> Tensor:
        on_device = batch.to(accelerator.device, non_blocking=True)
        return to_float(on_device).contiguous(memory_format=torch.channels_last)

    def evaluate() -> dict[str, float]:
        """Whole-epoch figures of training, figures of validation, and originals beside reconstructions."""
        metrics = meter.compute(accelerator, "epoch_")
        model.eval()
        with ema.applied_to(model), torch.no_grad():
            if validation is not None:
                held_out = Meter(model.code_spec).to(accelerator.device)
                for indices in training.shares(
                    min(len(validation), options.validation_images), accelerator
                ):
                    pixels = prepare(plain(validation, options, indices))
                    output = model(pixels)
                    held_out.update(pixels, output.images, output.codes)
                metrics |= held_out.compute(accelerator, "validation_")
            if accelerator.is_main_process:
                shown = prepare(first_images(validation or images, options))
                pairs = torch.stack([shown, model(shown).images], dim=1).flatten(0, 1)
                save_png(
                    grid(to_uint8(pairs), 8),
                    Path(options.output_dir, "samples", f"step-{state.step:09d}.png"),
                )
        model.train()
        return metrics

    def export() -> None:
        if accelerator.is_main_process:
            with whole_folder(Path(options.output_dir, "model")) as folder:
                model.save_pretrained(folder, state_dict=ema.state_for(model))

    def batches(start: int) -> Iterator[training.Batch]:
        source = streamed_batches if options.streaming else indexed_batches
        return source(start, images, options, accelerator)

    training.train(accelerator, step, batches, state, options, evaluate=evaluate, export=export)
    if accelerator.is_main_process:
        print(f"autoencoder: {Path(options.output_dir, 'model')}")


def open_training_images(options: TrainOptions) -> tuple[ImageSet | None, TrainOptions]:
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
    start: int, images: ImageSet | None, options: TrainOptions, accelerator: Accelerator
) -> Iterator[training.Batch]:
    """Batches of uint8 images from a step on; windows and mirroring depend on (seed, step, place in the batch) only."""
    assert images is not None
    assert options.image_size is not None
    places = training.index_batches(
        start, size=len(images), options=options, accelerator=accelerator
    )
    for step, indices, place in places:
        yield {"images": augment(images.read(indices), options, step, place)}


def streamed_batches(
    start: int, images: ImageSet | None, options: TrainOptions, accelerator: Accelerator
) -> Iterator[training.Batch]:
    """Batches from a stream: every process reads all of it and keeps its share, so the batch of a step is the same."""
    rows = itertools.chain.from_iterable(
        stream_images(options, options.split, shuffle_seed=derive_seed(options.seed, epoch))
        for epoch in itertools.count()
    )
    share = options.batch_size // (accelerator.num_processes * options.accumulation_steps)
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
                "images": augment(stacked, options, step, slice(place.start, place.start + share))
            }


def augment(images: Tensor, options: TrainOptions, step: int, place: slice) -> Tensor:
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


def plain(images: ImageSet, options: TrainOptions, indices: Sequence[int] | Tensor) -> Tensor:
    """Images without augmentation, uint8 (B, C, image_size, image_size)."""
    assert options.image_size is not None
    return crop_windows(images.read(indices), options.image_size, 0, None)


def first_images(images: ImageSet | None, options: TrainOptions, count: int = 16) -> Tensor:
    """The images of the sample grid; see `plain`."""
    if images is not None:
        return plain(images, options, range(min(count, len(images))))
    assert options.image_size is not None
    rows = itertools.islice(stream_images(options, options.split), count)
    stacked = torch.stack([torch.from_numpy(array.copy()) for _, array, _ in rows]).permute(
        0, 3, 1, 2
    )
    return crop_windows(stacked, options.image_size, 0, None)


if __name__ == "__main__":
    run(main)
