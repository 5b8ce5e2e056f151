"""Filling hidden parts of images: which codes a hole reaches, and how latents settle into what surrounds it."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from latent_prior.data.codes import CodeMaps, Level
from latent_prior.stage1_autoencoders.autoencoder import Autoencoder


def one_mask_each(mask: Tensor, images: Tensor) -> Tensor:
    """A mask for all images (H, W), or one for each (B, H, W), as bool (B, 1, H, W).

    Raises:
        ValueError: a mask of another type or shape.
    """
    expected = (len(images), *images.shape[2:])
    if mask.dtype != torch.bool or tuple(mask.shape) not in (expected, expected[1:]):
        raise ValueError(
            f"the mask must be bool of shape {expected[1:]} or {expected}, True where the image is hidden, "
            f"not {mask.dtype} of shape {tuple(mask.shape)}"
        )
    return mask.expand(expected).unsqueeze(1).to(images.device)


def fill_with_mean(images: Tensor, hidden: Tensor) -> Tensor:
    """Hidden pixels take the mean colour of the same image's visible ones; of a wholly hidden image, mid grey.

    Args:
        images: float (B, C, H, W) in [-1, 1].
        hidden: bool (B, 1, H, W).
    """
    visible = (~hidden).sum((2, 3), keepdim=True).clamp(min=1)
    mean = images.masked_fill(hidden, 0).sum((2, 3), keepdim=True) / visible
    return torch.where(hidden, mean, images)


def hidden_codes(hidden: Tensor, levels: Sequence[Level]) -> CodeMaps:
    """Which codes stand for a patch of the image that is hidden, be it in one pixel only.

    Args:
        hidden: bool (B, 1, H, W).
        levels: H and W are multiples of each one's height and width.

    Returns:
        level name -> bool (B, height, width)
    """
    pixels = hidden.float()
    return {
        level.name: F.adaptive_max_pool2d(pixels, (level.height, level.width)).squeeze(1) > 0
        for level in levels
    }


def settle(autoencoder: Autoencoder, images: Tensor, hidden: Tensor, rounds: int) -> CodeMaps:
    """Latents of images whose hidden part is unknown (Rezende et al., 2014, section 5, https://arxiv.org/abs/1401.4082).

    The image is encoded and decoded again and again; the hidden pixels are each time replaced by the decoded ones, the
    visible ones never. The paper draws from posterior and likelihood; here their means are taken, which settles on a
    likely completion in place of wandering among them.

    Args:
        autoencoder: a member with latents.
        images: float (B, C, H, W) in [-1, 1], the hidden pixels filled with a first guess.
        hidden: bool (B, 1, H, W).
        rounds: how often; each brings a decoder's answer nearer to what is visible.
    """
    for _ in range(rounds):
        decoded = autoencoder.decode(autoencoder.encode(images)).clamp(-1, 1)
        images = torch.where(hidden, decoded, images)
    return autoencoder.encode(images)
