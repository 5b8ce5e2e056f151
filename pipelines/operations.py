"""Operations in the latent space of any autoencoder, images in, images out, for `latents.py`.

They work on the vectors of `Pipeline.embed`, which `Pipeline.decode_vectors` decodes: a VAE's
latents or the code vectors of a discrete member, which may leave the codebook on the way.
Reconstruction and completion are `Pipeline.reconstruct` and `Pipeline.complete`.

    pipe = Pipeline.from_pretrained("runs/mnist/vae_pipeline")
    glasses = attribute_direction(pipe, batches)
    without = move(pipe, images, glasses, [-1.0])

Images are float (B, C, H, W) in [-1, 1]; vectors are level name -> float (B, channels, height,
width).
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Literal

import torch
from torch import Tensor

from latent_prior.data.codes import CodeMaps
from latent_prior.pipelines.inputs import (
    ImageInput,
    as_count,
    as_tensor,
    as_whole,
    check_finite,
    check_same_count,
)
from latent_prior.pipelines.pipeline import Pipeline

SMALLEST_SINE = 1e-4
"""Below this sine vectors count as parallel: arc and chord differ by 1e-9 of their length."""


def linear(start: Tensor, end: Tensor, share: float) -> Tensor:
    """Linear interpolation between vectors (B, ...); share 0 is the start, 1 the end."""
    return torch.lerp(start, end, share)


def spherical(start: Tensor, end: Tensor, share: float) -> Tensor:
    """Spherical interpolation (Shoemake, 1985, https://doi.org/10.1145/325334.325242).

    The direction turns at constant speed while the length changes linearly. Vectors that are
    parallel or 0 have no arc between them and are interpolated linearly.

    Start and end, float (B, ...), are flattened to one vector per image; share 0 is the start.
    """
    first, last = start.flatten(1), end.flatten(1)
    first_length, last_length = (row.norm(dim=1, keepdim=True) for row in (first, last))
    tiny = torch.finfo(first.dtype).tiny
    u, v = first / first_length.clamp(min=tiny), last / last_length.clamp(min=tiny)
    # From difference and sum of the unit vectors, which is precise near 0 and pi, unlike acos.
    angle = 2 * torch.atan2((u - v).norm(dim=1, keepdim=True), (u + v).norm(dim=1, keepdim=True))
    sine = angle.sin()
    arc = (sine > SMALLEST_SINE) & (first_length > 0) & (last_length > 0)
    turned = ((1 - share) * angle).sin() * u + (share * angle).sin() * v
    turned = turned / torch.where(arc, sine, 1.0) * torch.lerp(first_length, last_length, share)
    return torch.where(arc, turned, torch.lerp(first, last, share)).view_as(start)


MIXES = {"linear": linear, "spherical": spherical}


def interpolate(
    pipe: Pipeline,
    starts: ImageInput,
    ends: ImageInput,
    *,
    steps: int = 9,
    method: Literal["linear", "spherical"] = "linear",
) -> Tensor:
    """Images from each start to its end, including the reconstructions of both.

    Each level of an image is one vector.

    Returns:
        Images (B, steps, C, H, W).

    Raises:
        ValueError: fewer than two steps, an unknown method, or not as many starts as ends.
    """
    steps = as_count(steps, "steps", 2)
    if method not in MIXES:
        raise ValueError(f"method must be one of {', '.join(MIXES)}, not {method!r}")
    first, last = pipe.embed(starts), pipe.embed(ends)
    _check_pairs(starts=first, ends=last)
    mixed = (
        {name: MIXES[method](first[name], last[name], step / (steps - 1)) for name in first}
        for step in range(steps)
    )
    return _side_by_side(pipe, mixed)


def move(
    pipe: Pipeline, images: ImageInput, direction: CodeMaps, strengths: Sequence[float]
) -> Tensor:
    """Images with multiples of a direction added to their vectors; 0 is the reconstruction.

    Directions are those of `directions.attribute_direction`.

    Returns:
        Images (B, len(strengths), C, H, W).

    Raises:
        ValueError: there is no strength, one is not finite, or the direction does not fit.
    """
    vectors = pipe.embed(images)
    amounts = as_tensor(strengths, "strengths")
    if amounts.ndim != 1 or not len(amounts) or not bool(amounts.isfinite().all()):
        raise ValueError(f"strengths must be one or more finite numbers, not {strengths!r}")
    step = {}
    for name, values in vectors.items():
        if name not in direction:
            raise ValueError(f"the direction lacks the level {name!r}")
        part = as_tensor(direction[name], f"the direction's level {name!r}").to(values)
        check_finite(part, f"the direction's level {name!r}")
        try:
            step[name] = part.expand(values.shape[1:])
        except RuntimeError as error:
            raise ValueError(
                f"the direction's level {name!r} has shape {tuple(part.shape)}, "
                f"the vectors {tuple(values.shape[1:])}"
            ) from error
    moved = (
        {name: values + strength * step[name] for name, values in vectors.items()}
        for strength in amounts.tolist()
    )
    return _side_by_side(pipe, moved)


def traverse(
    pipe: Pipeline,
    images: ImageInput,
    deviations: CodeMaps,
    dimension: int,
    *,
    steps: int = 9,
    span: float = 3.0,
) -> Tensor:
    """Images with one channel of their vectors changed, from -span to +span standard deviations.

    Channels are counted through the levels; one changes at all positions of a grid alike. See
    `directions.channel_deviations`. Of an odd number of steps the middle one is the reconstruction.

    Returns:
        Images (B, steps, C, H, W).

    Raises:
        ValueError: no such dimension, or fewer than two steps.
    """
    steps, dimension = as_count(steps, "steps", 2), as_whole(dimension, "dimension")
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
    """The vectors a - b + c, all of one shape.

    Raises:
        ValueError: they have different levels, or belong to different numbers of images.
    """
    _check_pairs(a=a, b=b, c=c)
    return {name: a[name] - b[name] + c[name] for name in a}


def arithmetic(pipe: Pipeline, a: ImageInput, b: ImageInput, c: ImageInput) -> Tensor:
    """The images of a - b + c, for as many images each.

    Raises:
        ValueError: the numbers of images differ.
    """
    return pipe.decode_vectors(combine(*(pipe.embed(images) for images in (a, b, c))))


def _check_pairs(**groups: CodeMaps) -> None:
    """Check that the vectors of each group of images have the same levels and number of rows."""
    first = next(iter(groups.values()))
    for name, vectors in groups.items():
        if vectors.keys() != first.keys():
            raise ValueError(f"{name} has the levels {list(vectors)}, others {list(first)}")
    for level in first:
        check_same_count({name: vectors[level] for name, vectors in groups.items()})


def _side_by_side(pipe: Pipeline, columns: Iterable[CodeMaps]) -> Tensor:
    """Decode batches of vectors one after the other, to images (B, columns, C, H, W) on the CPU."""
    return torch.stack([pipe.decode_vectors(vectors).cpu() for vectors in columns], dim=1)
