"""Raster order: one code, or one vector of latents, after the other, each given all before it."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

from latent_prior.stage2_prior.kv_cache import Decoder, decoder_for
from latent_prior.stage2_prior.logits import apply_guidance, choose, filter_logits, guidance_scales
from latent_prior.stage2_prior.mixtures import mixture_of, sample, sample_guided
from latent_prior.stage2_prior.network import CodeTransformer, Prefix
from latent_prior.stage2_prior.sampler import Sampler


def sample_codes(
    network: CodeTransformer,
    start: Prefix,
    known: Tensor | None,
    sampler: Sampler,
    uniforms: Tensor,
) -> Iterator[Tensor]:
    """Sample tokens int64 (B, L) of a network over codes in raster order.

    Args:
        network: with the weights to sample from.
        start: what stands in front of the codes of B images.
        known: int64 (B, L), known tokens, -1 where one is to be sampled; None samples all.
        sampler: the settings.
        uniforms: (B, L) in [0, 1).

    Yields:
        After each patch the same tensor (B, L), with -1 where a token is still to be sampled.
    """
    num_images = len(start)
    scales = guidance_scales(sampler, network.length)
    if known is None:
        sequence = torch.full((num_images, network.length), -1, device=uniforms.device)
    else:
        sequence = known.clone()
    with first_step(network, start, sampler) as (decoder, x, guided):
        for level in network.levels:
            for first in range(level.start, level.stop, network.slots):
                x = decoder.step(x, first // network.slots)
                for slot in range(network.slots):
                    position = first + slot
                    logits = decoder.outputs(x, level, slot)
                    if guided:
                        conditional, unconditional = logits.chunk(2)
                        logits = apply_guidance(conditional, unconditional, scales[position])
                    logits = filter_logits(logits[:num_images], sampler)
                    tokens = choose(logits, uniforms[:, position]) + level.first
                    if known is not None:
                        tokens = torch.where(known[:, position] < 0, tokens, known[:, position])
                    sequence[:, position] = tokens
                    if slot + 1 < network.slots:
                        decoder.add_code(x, tokens.repeat(2)[: decoder.rows], slot)
                patch = sequence[:, first : first + network.slots]
                x = decoder.embed_patch(patch.repeat(2, 1)[: decoder.rows])
                yield sequence


def sample_latents(
    network: CodeTransformer, start: Prefix, sampler: Sampler, uniforms: Tensor
) -> Iterator[Tensor]:
    """Sample latents float32 (B, L, D), of mean 0 and deviation 1 over the data.

    Args as in `sample_codes`, with uniforms (B, L, `mixtures.uniforms_per_vector`); top-k and top-p
    do not apply.

    Yields:
        After each vector the same tensor (B, L, D), NaN where one is still to be sampled.
    """
    num_images, (level,) = len(start), network.levels
    scales = guidance_scales(sampler, network.length)
    sequence: Tensor | None = None
    with first_step(network, start, sampler) as (decoder, x, guided):
        for position in range(network.length):
            outputs = decoder.outputs(decoder.step(x, position), level)
            conditional = mixture_of(outputs[:num_images], network.config.mixtures)
            if sampler.guidance_scale == 1:
                u = uniforms[:, position].unsqueeze(1)
                vector = sample(conditional, u, sampler.temperature).squeeze(1)
            else:
                # An unconditional image must not depend on whether its batch has guided ones.
                scale, unconditional = 1.0, conditional
                if guided:
                    scale = scales[position]
                    unconditional = mixture_of(outputs[num_images:], network.config.mixtures)
                vector = sample_guided(
                    conditional, unconditional, uniforms[:, position], sampler.temperature, scale
                )
            if sequence is None:
                shape = (num_images, network.length, vector.shape[1])
                sequence = vector.new_full(shape, math.nan)
            sequence[:, position] = vector
            x = decoder.project(vector.repeat(2, 1)[: decoder.rows])
            yield sequence


@contextmanager
def first_step(
    network: CodeTransformer, start: Prefix, sampler: Sampler
) -> Iterator[tuple[Decoder, Tensor, bool]]:
    """A decoder, the inputs of its first step, and whether there are unconditional rows.

    Unconditional rows follow the conditional ones if guidance changes any image. A single row would
    use other matrix kernels, which round differently, so there are at least two rows.
    """
    null = start.without(network.null_token)
    guided = sampler.guidance_scale != 1 and not torch.equal(start.tokens, null.tokens)
    rows = start.joined(null if guided else start)
    if not guided and len(start) > 1:
        rows = start
    with decoder_for(network, len(rows), rows.tokens.shape[1]) as decoder:
        yield decoder, decoder.read(rows), guided
