"""Likelihood of held-out images: which rows to hold out, the figures, the lowest so far."""

from __future__ import annotations

import dataclasses
import math

import numpy as np
import torch
from accelerate import Accelerator
from torch import Tensor

from latent_prior.data.batch_order import Batch
from latent_prior.data.codes import CodeMaps, CodeSpec
from latent_prior.data.codes_dataset import CodesSplit, open_codes
from latent_prior.data.splits import split_named
from latent_prior.processes import share
from latent_prior.seeds import generator
from latent_prior.stage2_prior.options import TrainOptions
from latent_prior.stage2_prior.prior import TransformerPrior
from latent_prior.stage2_prior.text.reading import CaptionReader, Text, captions_of


def open_splits(options: TrainOptions) -> tuple[CodesSplit, CodesSplit, CodeSpec, TrainOptions]:
    """Rows to train on, rows to validate on, their spec, and the options with `evaluate_every` set.

    Raises:
        ValueError: there is no codes dataset, or no such split.
    """
    splits, spec = open_codes(options.codes)
    train_codes, validation = choose_splits(splits, options)
    every = options.evaluate_every or math.ceil(len(train_codes) / options.batch_size)
    return train_codes, validation, spec, dataclasses.replace(options, evaluate_every=every)


def choose_splits(
    splits: dict[str, CodesSplit], options: TrainOptions
) -> tuple[CodesSplit, CodesSplit]:
    """Rows to train on, and plain rows of other images to validate on.

    Raises:
        ValueError: there is no such split, or it has too few images to hold some out.
    """
    for flag, name in (("split", options.split), ("validation_split", options.validation_split)):
        if name is not None and name not in splits:
            raise ValueError(f"--{flag} {name}: the codes have the splits {', '.join(splits)}")
    train_codes = splits[options.split]
    held_out = options.validation_split or next(
        (name for name in splits if split_named(name) == "validation"), None
    )
    if held_out is not None and held_out != options.split:
        return train_codes, _plain(splits[held_out], f"split {held_out}", options)
    # Without a split for validation, images are held out with all their views.
    sources = train_codes.source_index
    images = np.unique(sources)
    if len(images) and images[0] < 0:
        raise ValueError(f"--codes {options.codes}: source_index is negative; encode again")
    order = torch.randperm(len(images), generator=generator(options.seed, "validation")).numpy()
    count = max(1, round(len(images) * options.validation_fraction))
    if count >= len(images):
        raise ValueError(
            f"--codes {options.codes}: {len(images)} images are too few to hold some out"
        )
    aside = np.isin(sources, images[order[:count]])
    held_out_codes = _plain(train_codes.rows(aside), "the images held out", options)
    return train_codes.rows(~aside), held_out_codes


def _plain(codes: CodesSplit, name: str, options: TrainOptions) -> CodesSplit:
    """The rows of images without augmentation."""
    plain = codes.rows(codes.view == 0)
    if not len(plain):
        raise ValueError(
            f"--codes {options.codes}: no image of {name} is there without augmentation (view 0); "
            "encode again"
        )
    return plain


def read_batch(
    codes: CodesSplit,
    indices: Tensor,
    reader: CaptionReader | None,
    draw: tuple[int, int] | None = None,
) -> Batch:
    """Rows of codes with their labels, and one caption of each if there is a reader.

    Args:
        codes: the rows of a split.
        indices: which of them.
        reader: of captions.
        draw: see `captions_of`.
    """
    batch = codes.batch(indices)
    if reader is not None:
        text = reader.read(captions_of(codes, indices, draw))
        batch["text"] = text.tokens
        if text.states is not None:
            batch["states"] = text.states
    return batch


def codes_and_conditions(
    batch: Batch, device: torch.device
) -> tuple[CodeMaps, Tensor, Text | None]:
    """Move a batch of `read_batch` to the device: maps by level, labels (-1: none), captions."""
    maps = {name: values.to(device, non_blocking=True) for name, values in batch.items()}
    labels, text, states = (maps.pop(name, None) for name in ("labels", "text", "states"))
    assert labels is not None
    return maps, labels, None if text is None else Text(text, states)


@torch.no_grad()
def validate(
    model: TransformerPrior,
    validation: CodesSplit,
    reader: CaptionReader | None,
    options: TrainOptions,
    accelerator: Accelerator,
) -> dict[str, float]:
    """Mean negative log-likelihood of validation images, given their class or first caption.

    All processes call it, with one result.

    Returns:
        `validation_nats_per_code` (of latents `_per_latent`, a density in their own units) over all
        levels; with several levels also `validation_nats_per_code_LEVEL`; for codes also
        `validation_bits_per_image`. Exact in raster order; in masked order an upper bound, with the
        same masks each time.
    """
    # Sums over images: nats of every level, number of images.
    sums = torch.zeros(len(model.levels) + 1, dtype=torch.float64, device=accelerator.device)
    count = min(len(validation), options.validation_images)
    for rows in share(count, 128, accelerator):
        batch = read_batch(validation, torch.tensor(rows), reader)
        codes, labels, text = codes_and_conditions(batch, accelerator.device)
        masks = generator(options.seed, "validation masks", rows.start)
        nats = model.nats(codes, labels, text, generator=masks)
        totals = [nats[level.name].double().sum() for level in model.levels]
        sums += torch.stack([*totals, sums.new_tensor(len(rows))])
    *totals_by_level, images = accelerator.reduce(sums, "sum").tolist()
    total, num_values = sum(totals_by_level), sum(level.num_values for level in model.levels)
    name = f"validation_nats_per_{model.unit}"
    figures = {name: total / images / num_values}
    if len(model.levels) > 1:
        for level, total_of_level in zip(model.levels, totals_by_level, strict=True):
            figures[f"{name}_{level.name}"] = total_of_level / images / level.num_values
    if model.unit == "code":
        figures["validation_bits_per_image"] = total / images / math.log(2)
    return figures


class Best:
    """The lowest validation figure so far; part of the checkpoint, so that it survives a resume."""

    figure = math.inf

    def improves(self, figure: float) -> bool:
        """Whether a figure is lower than all before it; if so, it is remembered."""
        if not figure < self.figure:
            return False
        self.figure = figure
        return True

    def state_dict(self) -> dict[str, float]:
        """The figure."""
        return {"figure": self.figure}

    def load_state_dict(self, state: dict[str, float]) -> None:
        """Restore the figure."""
        self.figure = state["figure"]
