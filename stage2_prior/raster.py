"""Raster order: one code, or one vector of latents, after the other, each given all before it."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from latent_prior.stage2_prior.mixtures import draw, draw_guided, mixture_of
from latent_prior.stage2_prior.sampler import Sampler
from latent_prior.stage2_prior.sampling import (
    apply_guidance,
    choose,
    filter_logits,
    guidance_scales,
)

if TYPE_CHECKING:
    from latent_prior.stage2_prior.prior import TransformerPrior


def draw_codes(
    prior: TransformerPrior,
    start: Tensor,
    given: Tensor | None,
    sampler: Sampler,
    uniforms: Tensor,
) -> Tensor:
    """Draw the codes of images.

    Args:
        prior: of raster order, over codes.
        start: first tokens (B,).
        given: int64 (B, L), tokens that are known and -1 where one is to be drawn; None draws all.
        sampler: the settings.
        uniforms: (B, L) in [0, 1).

    Returns:
        int64 (B, L), tokens.
    """
    scales = scales_of(prior, start, sampler, prior.length)
    images = len(start)
    decoder = prior.decoder(rows_for(images, guided=scales is not None))
    sequence = torch.empty(images, prior.length, dtype=torch.long, device=start.device)
    x = decoder.embed(start_rows(prior, start, guided=scales is not None)[: decoder.rows])
    for level in prior.levels:
        for position in range(level.start, level.stop):
            logits = decoder.outputs(decoder.step(x, position), level)
            if scales is not None:
                along, without = logits.chunk(2)
                logits = apply_guidance(along, without, scales[position])
            logits = filter_logits(
                logits[:images], sampler.temperature, sampler.top_k, sampler.top_p
            )
            chosen = choose(logits, uniforms[:, position]) + level.first
            if given is not None:
                chosen = torch.where(given[:, position] < 0, chosen, given[:, position])
            sequence[:, position] = chosen
            x = decoder.embed(chosen.repeat(2)[: decoder.rows])
    return sequence


def draw_latents(
    prior: TransformerPrior, start: Tensor, sampler: Sampler, uniforms: Tensor
) -> Tensor:
    """Draw the latents of images.

    Args:
        prior: over latents.
        start: first tokens (B,).
        sampler: the settings; top-k and top-p are for codes.
        uniforms: (B, L, N) in [0, 1), N as `mixtures.numbers_per_draw` says.

    Returns:
        float32 (B, L, D), of mean 0 and deviation 1 over the data.
    """
    scales = scales_of(prior, start, sampler, prior.length)
    images, (level,) = len(start), prior.levels
    decoder = prior.decoder(rows_for(images, guided=scales is not None))
    vectors = []
    x = decoder.embed(start_rows(prior, start, guided=scales is not None)[: decoder.rows])
    for position in range(prior.length):
        outputs = decoder.outputs(decoder.step(x, position), level)
        own = uniforms[:, position]
        if scales is None:
            mixture = mixture_of(outputs[:images], prior.config.mixtures)
            if sampler.guidance_scale == 1:
                vector = draw(mixture, own.unsqueeze(1), sampler.temperature).squeeze(1)
            else:  # an image without a class is the same whatever the rest of its batch has
                vector = draw_guided(mixture, mixture, own, sampler.temperature, scale=1.0)
        else:
            conditional, unconditional = (
                mixture_of(each, prior.config.mixtures) for each in outputs.chunk(2)
            )
            vector = draw_guided(
                conditional, unconditional, own, sampler.temperature, scales[position]
            )
        vectors.append(vector)
        x = decoder.project(vector.repeat(2, 1)[: decoder.rows])
    return torch.stack(vectors, dim=1)


def scales_of(
    prior: TransformerPrior, start: Tensor, sampler: Sampler, steps: int
) -> list[float] | None:
    """The guidance of every step, or None where there is none: the second half of the rows is then not computed."""
    if sampler.guidance_scale == 1 or not bool((start != prior.null_token).any()):
        return None
    return guidance_scales(
        steps, sampler.guidance_scale, sampler.guidance_schedule, sampler.guidance_interval
    )


def rows_for(images: int, *, guided: bool) -> int:
    """Rows to compute: a lone one goes through other matrix kernels with other rounding than two or more."""
    return max(2, images * (2 if guided else 1))


def start_rows(prior: TransformerPrior, start: Tensor, *, guided: bool) -> Tensor:
    """First tokens of the conditional rows, then of the others."""
    return torch.cat((start, torch.full_like(start, prior.null_token) if guided else start))
