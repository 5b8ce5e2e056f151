"""Differentiable augmentation of a critic's inputs (Zhao et al., 2020).

https://arxiv.org/abs/2006.10738: originals and generated images are augmented alike, which keeps
the critic from memorising the originals. Each image has its own random parameters, from torch's
global generator on its device; in a training step they depend on its place in the whole batch.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor

from latent_prior.seeds import own_rows, step_rows

Augmentation = Literal["color", "translation", "cutout"]

_LONGEST_SHIFT = 1 / 8  # of the side
_CUTOUT = 1 / 2  # of the side


def augment(images: Tensor, augmentations: Sequence[Augmentation], groups: int = 1) -> Tensor:
    """Apply random augmentations in the given order.

    Args:
        images: (B, C, H, W) in [-1, 1], C 1 or 3.
        augmentations: `color` changes brightness, saturation and contrast and may leave [-1, 1];
            `translation` moves by up to an eighth of the side; `cutout` covers a square of half the
            side, part of which may lie outside. Uncovered and covered pixels are 0.
        groups: batches that lie in `images` one after the other, such as originals and generated
            images.

    Returns:
        Images of the same shape, differentiable with respect to the input.
    """
    changes = {"color": change_color, "translation": translate, "cutout": cut_out}
    for name in augmentations:
        images = changes[name](images, groups)
    return images


def change_color(images: Tensor, groups: int = 1) -> Tensor:
    """Shift brightness by up to 0.5, scale saturation by 0 to 2 and contrast by 0.5 to 1.5."""
    shape = (3, *_shape(images, groups))
    drawn = torch.rand(shape, device=images.device, dtype=images.dtype)
    brightness, saturation, contrast = own_rows(drawn, 2).reshape(3, -1, 1, 1, 1)
    images = images + (brightness - 0.5)
    grey = images.mean(1, keepdim=True)
    images = grey + 2 * saturation * (images - grey)
    mean = images.mean((1, 2, 3), keepdim=True)
    return mean + (0.5 + contrast) * (images - mean)


def translate(images: Tensor, groups: int = 1) -> Tensor:
    """Move every image by whole pixels, up to an eighth of its side in each direction."""
    shape = _shape(images, groups)
    for dim in (2, 3):
        size = images.shape[dim]
        longest = round(size * _LONGEST_SHIFT)
        drawn = torch.randint(-longest, longest + 1, shape, device=images.device)
        shifts = own_rows(drawn, 1).reshape(-1, 1)
        source = _along(dim, torch.arange(size, device=images.device) + shifts)
        inside = (source >= 0) & (source < size)
        images = images.gather(dim, source.clamp(0, size - 1).expand_as(images)) * inside
    return images


def cut_out(images: Tensor, groups: int = 1) -> Tensor:
    """Cover one square of half the side, whose centre lies anywhere in the image."""
    covered = torch.ones(1, dtype=torch.bool, device=images.device)
    shape = _shape(images, groups)
    for dim in (2, 3):
        size = images.shape[dim]
        length = round(size * _CUTOUT)
        # Of an even square: the line between its two middle pixels.
        drawn = torch.randint(0, size + 1 - length % 2, shape, device=images.device)
        centres = own_rows(drawn, 1).reshape(-1, 1)
        offsets = torch.arange(size, device=images.device) - (centres - length // 2)
        covered = covered & _along(dim, (offsets >= 0) & (offsets < length))
    return images * ~covered


def _shape(images: Tensor, groups: int) -> tuple[int, int]:
    """A number for every image of the step's whole batch."""
    return groups, step_rows(len(images) // groups)


def _along(dim: int, rows: Tensor) -> Tensor:
    """(B, size) as (B, 1, size, 1) for dimension 2 of images, (B, 1, 1, size) for dimension 3."""
    return rows[:, None, :, None] if dim == 2 else rows[:, None, None, :]
