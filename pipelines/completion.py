"""Images of which a part is hidden: masks, the codes behind them, and what is shown meanwhile."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from latent_prior.data.codes import CodeMaps, Level
from latent_prior.stage1_autoencoders.autoencoder import Autoencoder


def one_mask_each(mask: Tensor, images: Tensor) -> Tensor:
    """Expand a mask for all images (H, W), or one per image (B, H, W), to bool (B, 1, H, W).

    Raises:
        ValueError: the mask has another type or shape.
    """
    expected = (len(images), *images.shape[2:])
    if mask.dtype != torch.bool or tuple(mask.shape) not in (expected, expected[1:]):
        raise ValueError(
            f"the mask must be bool of shape {expected[1:]} or {expected}, True where the image "
            f"is hidden, not {mask.dtype} of shape {tuple(mask.shape)}"
        )
    return mask.expand(expected).unsqueeze(1).to(images.device)


def fill_with_mean(images: Tensor, hidden: Tensor) -> Tensor:
    """Set hidden pixels to the mean colour of the image's visible ones, or mid grey without any.

    Images are float (B, C, H, W) in [-1, 1], `hidden` is bool (B, 1, H, W).
    """
    visible = (~hidden).sum((2, 3), keepdim=True).clamp(min=1)
    mean = images.masked_fill(hidden, 0).sum((2, 3), keepdim=True) / visible
    return torch.where(hidden, mean, images)


def hidden_codes(hidden: Tensor, levels: Sequence[Level]) -> CodeMaps:
    """Which codes stand for a patch with at least one hidden pixel.

    Hidden pixels are bool (B, 1, H, W); the levels' heights and widths divide H and W.

    Returns:
        level name -> bool (B, height, width)
    """
    pixels = hidden.float()
    return {
        level.name: F.adaptive_max_pool2d(pixels, (level.height, level.width)).squeeze(1) > 0
        for level in levels
    }


def not_sampled(codes: CodeMaps) -> CodeMaps:
    """Where a stream's maps are still to be sampled, level name -> bool (B, height, width).

    A position with latents counts as sampled as soon as one of its channels is.
    """
    return {
        name: values.isnan().all(1) if values.is_floating_point() else values < 0
        for name, values in codes.items()
    }


def hide_grey(images: Tensor, hidden: CodeMaps) -> Tensor:
    """Images (B, C, H, W) in [-1, 1], mid grey where not even the coarsest code is known.

    `hidden` is bool (B, height, width) by level, coarse first; the sizes divide H and W.
    """
    coarsest = next(iter(hidden.values())).unsqueeze(1)
    height, width = (images.shape[axis] // coarsest.shape[axis] for axis in (2, 3))
    pixels = coarsest.repeat_interleave(height, 2).repeat_interleave(width, 3)
    return images.masked_fill(pixels, 0.0)


def settle(autoencoder: Autoencoder, images: Tensor, hidden: Tensor, rounds: int) -> CodeMaps:
    """Latents of partly hidden images (Rezende et al., 2014, section 5).

    Each round encodes and decodes the image and replaces the hidden pixels by the decoded ones. The
    paper samples from posterior and likelihood; their means, used here, converge to one likely
    completion instead of wandering among many. Paper: https://arxiv.org/abs/1401.4082

    Images are float (B, C, H, W) in [-1, 1], with a first guess where `hidden`, bool (B, 1, H, W).

    Returns:
        Level name -> latents, float (B, channels, height, width).
    """
    for _ in range(rounds):
        decoded = autoencoder.decode(autoencoder.encode(images)).clamp(-1, 1)
        images = torch.where(hidden, decoded, images)
    return autoencoder.encode(images)
