"""One sampling call: its random numbers, and the order that they are used in."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Generator, Tensor

from latent_prior.stage2_prior import masked, mixtures, raster
from latent_prior.stage2_prior.sampler import Sampler
from latent_prior.stage2_prior.sampling import draw_uniforms

if TYPE_CHECKING:
    from latent_prior.stage2_prior.prior import TransformerPrior


def draw_sequence(
    prior: TransformerPrior,
    start: Tensor,
    given: Tensor | None,
    sampler: Sampler,
    generator: Generator | Sequence[Generator] | None,
) -> Tensor:
    """Draw codes or latents of images; leaves no trace in the prior but its decoder, to be used again.

    Args:
        prior: of any kind and order.
        start: first tokens (B,), on the prior's device.
        given: int64 (B, L), tokens that are known and -1 where one is to be drawn; None draws all.
        sampler: the settings.
        generator: one for all images, one for each, or torch's global one.

    Returns:
        tokens int64 (B, L), or normalised latents float32 (B, L, D).
    """
    images, length = len(start), prior.length
    if prior.latents:
        guided = sampler.guidance_scale != 1
        count = length * mixtures.numbers_per_draw(prior.chunk, guided=guided)
    else:
        count = masked.numbers_per_image(length, sampler.steps) if prior.masked else length
    # Metal has no float64.
    precision = torch.float32 if start.device.type == "mps" else torch.float64
    # Rounding may make them 1, which is outside of their range.
    below_one = 1 - torch.finfo(precision).eps / 2
    uniforms = draw_uniforms(images, count, generator)
    uniforms = uniforms.to(start.device, precision).clamp(max=below_one)
    training = prior.training
    prior.eval()  # masked rounds go through the blocks, dropout included
    try:
        with torch.inference_mode(), torch.autocast(start.device.type, enabled=False):
            if prior.latents:
                return raster.draw_latents(
                    prior, start, sampler, uniforms.unflatten(1, (length, -1))
                )
            if not prior.masked:
                return raster.draw_codes(prior, start, given, sampler, uniforms)
            if given is None:
                given = torch.full((images, length), -1, device=start.device)
            return masked.draw_masked(prior, start, given, sampler, uniforms)
    finally:
        prior.train(training)
