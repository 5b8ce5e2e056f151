"""Which rows of a codes dataset to train on, which to validate on, and their way to the device."""

from __future__ import annotations

import dataclasses
import math

import numpy as np
import torch
from torch import Tensor

from latent_prior.data.codes import CodeMaps, CodeSpec, CodesSplit, open_codes
from latent_prior.seeds import generator
from latent_prior.stage2_prior.options import TrainOptions


def open_splits(options: TrainOptions) -> tuple[CodesSplit, CodesSplit, CodeSpec, TrainOptions]:
    """The rows to train on, those to validate on, what the codes are, and the options with an evaluation each epoch.

    Raises:
        ValueError: no codes dataset, or no such split.
    """
    splits, spec = open_codes(options.codes)
    train_codes, validation = choose_splits(splits, options)
    every = options.evaluate_every or math.ceil(len(train_codes) / options.batch_size)
    return train_codes, validation, spec, dataclasses.replace(options, evaluate_every=every)


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
    images = np.flatnonzero(np.bincount(chosen.source_index))
    order = torch.randperm(len(images), generator=generator(options.seed, "validation")).numpy()
    count = max(1, round(len(images) * options.validation_fraction))
    if count >= len(images):
        raise ValueError(
            f"--codes {options.codes}: {len(images)} images are too few to set some aside for validation"
        )
    aside = np.isin(chosen.source_index, images[order[:count]])
    return chosen.rows(~aside), chosen.rows(aside & (chosen.view == 0))


def codes_and_labels(batch: dict[str, Tensor], device: torch.device) -> tuple[CodeMaps, Tensor]:
    """A batch of `CodesSplit.batch` on the device: its maps by level, and its labels (-1 where there is none)."""
    moved = {name: values.to(device, non_blocking=True) for name, values in batch.items()}
    labels = moved.pop("labels")
    return moved, labels
