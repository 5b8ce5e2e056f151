"""Train a Transformer prior on a codes dataset.

accelerate launch stage2_prior/train.py --config stage2_prior/configs/mnist.yaml --codes runs/mnist/codes --output_dir runs/mnist/prior
"""

from __future__ import annotations

from common.cli import parse_config, run
from stage2_prior.options import TrainOptions

if __name__ == "__main__":
    parse_config(TrainOptions)  # --help and mistakes are answered before torch is imported

import dataclasses
import math
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import torch
from accelerate import Accelerator
from torch import Tensor

from common import training
from common.checkpoint import whole_folder
from common.codes import CodeMaps, CodeSpec, CodesSplit, check_same_codes, open_codes
from common.ema import EMA
from common.images import grid, save_png, to_uint8
from common.metrics import Figures
from common.optim import make_optimizer, update
from common.pretrained import ImageDecoder, load_decoder
from common.processes import start_training_processes
from common.seeds import generator
from stage2_prior.prior import PriorConfig, TransformerPrior

GRID_ROWS, GRID_COLUMNS = 6, 10


def main(argv: Sequence[str] | None = None) -> None:
    """Entry point.

    Raises:
        ValueError: options, codes, autoencoder or the run folder are at fault.
    """
    options = parse_config(TrainOptions, argv)
    accelerator = start_training_processes(options)
    splits, spec = open_codes(options.codes)
    train_codes, validation = choose_splits(splits, options)
    decoder = (
        None
        if options.autoencoder is None
        else open_decoder(options.autoencoder, spec, options, accelerator)
    )
    every = options.evaluate_every or math.ceil(len(train_codes) / options.batch_size)
    options = dataclasses.replace(options, evaluate_every=every)

    model = TransformerPrior(
        PriorConfig(**dataclasses.asdict(options.model), code_spec=spec.to_dict())
    )
    optimizer = make_optimizer(model, options)
    wrapped, optimizer = accelerator.prepare(model, optimizer)
    ema = EMA(model, options.ema_decay)
    state = training.TrainState({"model": model, "optimizer": optimizer, "ema": ema})

    def step(batch: training.Batch) -> training.Metrics:
        """Everything that learns in a prior."""
        labels = batch["labels"].to(accelerator.device, non_blocking=True)
        with accelerator.accumulate(wrapped):
            loss = wrapped(maps_of(batch), labels).loss
            accelerator.backward(loss)
            updated = update(
                accelerator, optimizer, wrapped, loss=loss, step=state.step, options=options
            )
        if accelerator.sync_gradients:
            ema.update(model)
        return {"nats_per_code": loss, **updated}

    def maps_of(batch: training.Batch) -> CodeMaps:
        return {
            level.name: batch[level.name].to(accelerator.device, non_blocking=True)
            for level in spec.levels
        }

    @torch.no_grad()
    def evaluate() -> Figures:
        """Validation loss of the averaged weights, and a grid of samples."""
        model.eval()
        with ema.applied_to(model):
            nats = torch.zeros(
                2, dtype=torch.float64, device=accelerator.device
            )  # sum over images, images
            for indices in training.shares(
                min(len(validation), options.validation_images), accelerator
            ):
                batch = validation.batch(indices)
                loss = model(maps_of(batch), batch["labels"].to(accelerator.device)).loss
                nats += torch.tensor(
                    [float(loss) * len(indices), len(indices)], device=accelerator.device
                )
            if accelerator.is_main_process:
                path = Path(options.output_dir, "samples", f"step-{state.step:09d}.png")
                save_png(sample_grid(model, decoder, options), path)
        model.train()
        total, images = accelerator.reduce(nats, "sum").tolist()
        return {
            "validation_nats_per_code": total / images,
            "validation_bits_per_image": total / images * spec.length / math.log(2),
        }

    def export() -> None:
        if accelerator.is_main_process:
            with whole_folder(Path(options.output_dir, "model")) as folder:
                model.save_pretrained(folder, state_dict=ema.state_for(model))

    def batches(start: int) -> Iterator[training.Batch]:
        places = training.index_batches(
            start, size=len(train_codes), options=options, accelerator=accelerator
        )
        return (train_codes.batch(indices) for _, indices, _ in places)

    training.train(accelerator, step, batches, state, options, evaluate=evaluate, export=export)
    if accelerator.is_main_process:
        print(f"prior: {Path(options.output_dir, 'model')}")


def choose_splits(
    splits: dict[str, CodesSplit], options: TrainOptions
) -> tuple[CodesSplit, CodesSplit]:
    """The rows to train on, and plain rows of other images to validate on.

    Raises:
        ValueError: there is no such split.
    """
    for flag, name in (("split", options.split), ("validation_split", options.validation_split)):
        if name is not None and name not in splits:
            raise ValueError(f"--{flag} {name}: the codes have the splits {', '.join(splits)}")
    chosen = splits[options.split]
    held_out = options.validation_split or next(
        (name for name in ("validation", "test") if name in splits), None
    )
    if held_out is not None and held_out != options.split:
        validation = splits[held_out]
        return chosen, validation.rows(validation.view == 0)
    # Without a split of its own, images are set aside with all their views.
    images = np.unique(chosen.source_index)
    order = torch.randperm(len(images), generator=generator(options.seed, "validation")).numpy()
    count = max(1, round(len(images) * options.validation_fraction))
    if count >= len(images):
        raise ValueError(
            f"--codes {options.codes}: {len(images)} images are too few to set some aside for validation"
        )
    aside = np.isin(chosen.source_index, images[order[:count]])
    return chosen.rows(~aside), chosen.rows(aside & (chosen.view == 0))


def open_decoder(
    autoencoder: str, spec: CodeSpec, options: TrainOptions, accelerator: Accelerator
) -> ImageDecoder:
    """The autoencoder for the sample grids.

    Raises:
        ValueError: it is another one than wrote the codes.
    """
    decoder = load_decoder(autoencoder)
    check_same_codes(
        spec, decoder.code_spec, f"--codes {options.codes}", f"--autoencoder {autoencoder}"
    )
    assert isinstance(decoder, torch.nn.Module)
    decoder.to(accelerator.device)
    return decoder


def sample_grid(
    model: TransformerPrior, decoder: ImageDecoder | None, options: TrainOptions
) -> Tensor:
    """A picture of samples, class by class along the columns; without a decoder the codes themselves as grey levels."""
    count = GRID_ROWS * GRID_COLUMNS
    labels = [place % model.num_classes for place in range(count)] if model.num_classes else None
    codes = model.sample(
        count,
        labels,
        guidance_scale=options.guidance_scale,
        generator=generator(options.seed, "grid"),
    )
    if decoder is not None:
        return grid(to_uint8(decoder.decode(codes)), GRID_COLUMNS)
    level = model.code_spec.levels[-1]
    assert level.vocabulary is not None
    grey = codes[level.name].float() * (255 / (level.vocabulary - 1))
    return grid(
        grey.to(torch.uint8).unsqueeze(1).repeat_interleave(4, 2).repeat_interleave(4, 3),
        GRID_COLUMNS,
    )


if __name__ == "__main__":
    run(main)
