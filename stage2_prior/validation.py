"""How likely a prior finds images that it was not trained on."""

from __future__ import annotations

import math

import torch
from accelerate import Accelerator

from latent_prior.data.codes import CodesSplit
from latent_prior.processes import share
from latent_prior.seeds import generator
from latent_prior.stage2_prior.options import TrainOptions
from latent_prior.stage2_prior.prior import TransformerPrior
from latent_prior.stage2_prior.splits import codes_and_labels


@torch.no_grad()
def validate(
    model: TransformerPrior,
    validation: CodesSplit,
    options: TrainOptions,
    accelerator: Accelerator,
) -> dict[str, float]:
    """Mean negative log-likelihood of validation images; all processes call it and get the same.

    Returns:
        `validation_nats_per_code` (of latents: `_per_latent`, a density in their own units), over all levels and, where
        there are several, `validation_nats_per_code_LEVEL`; for codes also `validation_bits_per_image`. Exact in raster
        order, in masked order an upper bound, drawn with the same masks each time.
    """
    # Sums over images: nats of every level, images.
    sums = torch.zeros(len(model.levels) + 1, dtype=torch.float64, device=accelerator.device)
    count = min(len(validation), options.validation_images)
    for rows in share(count, 128, accelerator):
        batch = validation.batch(torch.tensor(rows))
        codes, labels = codes_and_labels(batch, accelerator.device)
        masks = generator(options.seed, "validation masks", rows.start)
        nats = model.nats(codes, labels, generator=masks)
        totals = [nats[level.name].double().sum() for level in model.levels]
        sums += torch.stack([*totals, sums.new_tensor(len(rows))])
    *totals_by_level, images = accelerator.reduce(sums, "sum").tolist()
    unit, total = model.unit, sum(totals_by_level)
    numbers = [level.numbers for level in model.levels]
    figures = {f"validation_nats_per_{unit}": total / images / sum(numbers)}
    if len(model.levels) > 1:
        for level, nats_of_level, number in zip(
            model.levels, totals_by_level, numbers, strict=True
        ):
            figures[f"validation_nats_per_{unit}_{level.name}"] = nats_of_level / images / number
    if unit == "code":
        figures["validation_bits_per_image"] = total / images / math.log(2)
    return figures
