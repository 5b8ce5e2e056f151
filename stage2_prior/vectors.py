"""Latents to a sequence of vectors and back, without loss but for rounding.

A grid becomes one vector per place in raster order; a flat latent, which has one place, is cut into chunks of channels
(Tschannen et al., GIVT, 2023, https://arxiv.org/abs/2312.02116, section 3). Every channel is shifted and scaled to mean
0 and deviation 1 with what encode.py measured, so that one head suits all autoencoders.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from latent_prior.data.codes import CodeMaps, CodeSpec, Level

FLAT_CHUNK = 4
# A channel that never changes would be divided by 0; float16 does not resolve less than this around 1 anyway.
SMALLEST_SCALE = 1e-4


def latent_level(spec: CodeSpec) -> Level:
    """The one level of latents.

    Raises:
        ValueError: there are several, or nobody measured the latents' mean and deviation.
    """
    if len(spec.levels) != 1:
        names = ", ".join(level.name for level in spec.levels)
        raise ValueError(f"a prior over latents needs one level, not {names}")
    if spec.latent_shift is None or spec.latent_scale is None:
        raise ValueError("the latents' mean and deviation were not measured: encode with encode.py")
    return spec.levels[0]


def chunk_width(level: Level, chunk: int | None) -> int:
    """Latent channels drawn at a time, D.

    Raises:
        ValueError: the level's channels cannot be cut into such chunks.
    """
    assert level.channels is not None
    if chunk is None:
        return level.channels if level.length > 1 else math.gcd(level.channels, FLAT_CHUNK)
    if level.channels % chunk:
        raise ValueError(f"--model.chunk {chunk} does not divide the {level.channels} channels")
    return chunk


def latents_to_sequence(latents: Tensor, shift: Tensor, scale: Tensor, chunk: int) -> Tensor:
    """Flatten latents to vectors of mean 0 and deviation 1.

    Args:
        latents: float (B, C, height, width).
        shift: mean per channel (C,).
        scale: standard deviation per channel (C,).
        chunk: D, channels per vector.

    Returns:
        float32 (B, L, D) with L = height x width x C / D: place after place, chunk after chunk at each.
    """
    places = latents.float().flatten(2).transpose(1, 2)  # (B, height width, C)
    return ((places - shift) / scale).reshape(len(latents), -1, chunk)


def sequence_to_latents(sequence: Tensor, shift: Tensor, scale: Tensor, level: Level) -> CodeMaps:
    """The inverse of `latents_to_sequence`: (B, L, D) -> level name -> (B, C, height, width)."""
    places = sequence.reshape(len(sequence), level.length, -1) * scale + shift
    return {level.name: places.transpose(1, 2).reshape(len(sequence), *level.shape)}


def latents_of(maps: CodeMaps, level: Level) -> Tensor:
    """The latents (B, C, height, width) of a batch.

    Raises:
        ValueError: another level, or a map of another shape or of integers.
    """
    latents = maps.get(level.name)
    if latents is None or set(maps) != {level.name}:
        raise ValueError(
            f"the latents are {', '.join(maps)}; the prior's code spec has {level.name}"
        )
    if tuple(latents.shape[1:]) != level.shape or not torch.is_floating_point(latents):
        expected = ", ".join(map(str, ("batch", *level.shape)))
        raise ValueError(
            f"latents {level.name} are {latents.dtype} of shape {tuple(latents.shape)}, expected floats ({expected})"
        )
    return latents
