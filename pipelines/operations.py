"""Operations on the latents of any family member: images in, images out.

All of them work on what `Pipeline.embed` says about an image and `Pipeline.decode_vectors` turns back into one: the latents
of a VAE, the code vectors of a discrete member, which need not stay codes on the way. Reconstruction and completion are
`Pipeline.reconstruct` and `Pipeline.complete`. The command is `latents.py`.

    pipe = Pipeline.from_pretrained("runs/mnist/vae_pipeline")
    glasses = attribute_direction(pipe, batches)
    without = move(pipe, images, glasses, [-1.0])

Images are float (B, C, H, W) in [-1, 1]; a batch of vectors is level name -> float (B, channels, height, width).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Literal

import torch
from torch import Tensor

from latent_prior.data.codes import CodeMaps
from latent_prior.pipelines.directions import attribute_direction, channel_deviations, class_means
from latent_prior.pipelines.pipeline import Pipeline

__all__ = [
    "arithmetic",
    "attribute_direction",
    "channel_deviations",
    "class_means",
    "combine",
    "interpolate",
    "linear",
    "move",
    "spherical",
    "traverse",
]

SMALLEST_SINE = 1e-4
"""Vectors with a smaller sine between them are parallel: the arc is the chord up to 1e-9 of its length."""


def linear(start: Tensor, end: Tensor, share: float) -> Tensor:
    """The point at `share` of the straight line between vectors of one shape (B, ...)."""
    return torch.lerp(start, end, share)


def spherical(start: Tensor, end: Tensor, share: float) -> Tensor:
    """The point at `share` of the arc between vectors (Shoemake, 1985, https://doi.org/10.1145/325334.325242).

    The direction turns at constant speed while the length changes evenly. Where there is no arc, because the vectors are
    parallel or one of them is 0, it is the straight line.

    Args:
        start: float (B, ...), each image's numbers one vector.
        end: same shape.
        share: 0 is the start, 1 the end.
    """
    first, last = start.flatten(1), end.flatten(1)
    first_length, last_length = (each.norm(dim=1, keepdim=True) for each in (first, last))
    tiny = torch.finfo(first.dtype).tiny
    u, v = first / first_length.clamp(min=tiny), last / last_length.clamp(min=tiny)
    # Twice the angle between the difference and the sum of two unit vectors: no digits are lost near 0 and pi.
    angle = 2 * torch.atan2((u - v).norm(dim=1, keepdim=True), (u + v).norm(dim=1, keepdim=True))
    sine = angle.sin()
    arc = (sine > SMALLEST_SINE) & (first_length > 0) & (last_length > 0)
    turned = ((1 - share) * angle).sin() * u + (share * angle).sin() * v
    turned = turned / torch.where(arc, sine, 1.0) * torch.lerp(first_length, last_length, share)
    return torch.where(arc, turned, torch.lerp(first, last, share)).view_as(start)


MIXES: dict[str, Callable[[Tensor, Tensor, float], Tensor]] = {
    "linear": linear,
    "spherical": spherical,
}


def interpolate(
    pipe: Pipeline,
    starts: Tensor,
    ends: Tensor,
    *,
    steps: int = 9,
    method: Literal["linear", "spherical"] = "linear",
) -> Tensor:
    """Images on the way from each start to its end, the reconstructions of both included.

    Args:
        pipe: any.
        starts: images (B, C, H, W).
        ends: same shape.
        steps: images on the way, at least 2.
        method: `linear`, or `spherical`, which takes each level's numbers of an image as one vector.

    Returns:
        (B, steps, C, H, W)

    Raises:
        ValueError: fewer than two steps, or an unknown method.
    """
    if steps < 2:
        raise ValueError(f"steps must be at least 2, not {steps}")
    if method not in MIXES:
        raise ValueError(f"method must be one of {', '.join(MIXES)}, not {method!r}")
    first, last = pipe.embed(starts), pipe.embed(ends)
    return _decode_columns(
        pipe,
        (
            {name: MIXES[method](first[name], last[name], step / (steps - 1)) for name in first}
            for step in range(steps)
        ),
    )


def move(pipe: Pipeline, images: Tensor, direction: CodeMaps, strengths: Sequence[float]) -> Tensor:
    """Images with a direction added to their vectors; a negative strength takes it away.

    Args:
        pipe: any.
        images: (B, C, H, W).
        direction: see `attribute_direction`.
        strengths: multiples of the direction; 0 is the reconstruction.

    Returns:
        (B, len(strengths), C, H, W)
    """
    vectors = pipe.embed(images)
    step = {name: values.to(vectors[name]) for name, values in direction.items()}
    return _decode_columns(
        pipe,
        (
            {name: values + strength * step[name] for name, values in vectors.items()}
            for strength in strengths
        ),
    )


def traverse(
    pipe: Pipeline,
    images: Tensor,
    deviations: CodeMaps,
    dimension: int,
    *,
    steps: int = 9,
    span: float = 3.0,
) -> Tensor:
    """Images with one dimension of their vectors changed, all others as they are.

    Args:
        pipe: any.
        images: (B, C, H, W).
        deviations: see `channel_deviations`.
        dimension: number of a channel, counted through the levels; in a grid it changes at all places alike.
        steps: images from -span to +span; with an odd number the middle one is the reconstruction.
        span: largest change, in standard deviations of the dimension.

    Returns:
        (B, steps, C, H, W)

    Raises:
        ValueError: no such dimension, or fewer than two steps.
    """
    if steps < 2:
        raise ValueError(f"steps must be at least 2, not {steps}")
    every = torch.cat([values.flatten() for values in deviations.values()])
    if not 0 <= dimension < len(every):
        raise ValueError(f"dimension {dimension} is out of range: there are {len(every)}, from 0")
    change = torch.where(torch.arange(len(every)) == dimension, every, 0.0)
    parts = change.split([values.numel() for values in deviations.values()])
    direction = {
        name: part.view_as(values)
        for (name, values), part in zip(deviations.items(), parts, strict=True)
    }
    strengths = [span * (2 * step / (steps - 1) - 1) for step in range(steps)]
    return move(pipe, images, direction, strengths)


def combine(a: CodeMaps, b: CodeMaps, c: CodeMaps) -> CodeMaps:
    """The vectors a - b + c, all of one shape."""
    return {name: a[name] - b[name] + c[name] for name in a}


def arithmetic(pipe: Pipeline, a: Tensor, b: Tensor, c: Tensor) -> Tensor:
    """The images of a - b + c, for images (B, C, H, W) each."""
    return pipe.decode_vectors(combine(*(pipe.embed(images) for images in (a, b, c))))


def _decode_columns(pipe: Pipeline, columns: Iterable[CodeMaps]) -> Tensor:
    """The images of batches of vectors side by side, (B, columns, C, H, W) on the CPU; one batch at a time is decoded."""
    return torch.stack([pipe.decode_vectors(vectors).cpu() for vectors in columns], dim=1)
