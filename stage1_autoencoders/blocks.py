"""The convolutional residual encoder and decoder of all autoencoders.

Activations are in channels-last format: on a CPU upsampling is several times faster and nothing
else slower, on a GPU the fast convolutions need it.
"""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from latent_prior.stage1_autoencoders.options import BackboneOptions

Upsampling = Literal["nearest", "transposed"]


class Encoder(nn.Module):
    """Images to a grid of vectors, halved in size for every multiplier after the first.

    Args:
        options: shape of the network.
        image_size: of the images that the model is for; `attention` refers to it.
        in_channels: channels of the images.
        out_channels: length of the vectors.
    """

    def __init__(
        self, options: BackboneOptions, image_size: int, in_channels: int, out_channels: int
    ) -> None:
        super().__init__()
        widths = [options.width * multiplier for multiplier in options.multipliers]
        self.stem = nn.Conv2d(in_channels, widths[0], 3, padding=1)
        stages: list[nn.Module] = []
        for level, width in enumerate(widths):
            if level > 0:
                # 4x4, not 3x3: every pixel is then covered by equally many strided windows.
                stages.append(nn.Conv2d(widths[level - 1], width, 4, stride=2, padding=1))
            stages += _blocks(options, level, image_size)
        self.stages = nn.Sequential(*stages)
        self.head = _head(widths[-1], out_channels)

    def forward(self, images: Tensor) -> Tensor:
        """(B, in_channels, H, W) to (B, out_channels, H / downsampling, W / downsampling)."""
        # After the stem: one channel has both formats, and the convolution would pick the slow one.
        x = self.stem(images).contiguous(memory_format=torch.channels_last)  # (B, widths[0], H, W)
        return self.head(self.stages(x))


class Decoder(nn.Module):
    """A grid of vectors to images: the encoder in reverse, with unbounded output.

    Args:
        options: shape of the network, as for the encoder.
        image_size: of the images that the model is for; `attention` refers to it.
        in_channels: length of the vectors.
        out_channels: channels of the images.
    """

    def __init__(
        self, options: BackboneOptions, image_size: int, in_channels: int, out_channels: int
    ) -> None:
        super().__init__()
        widths = [options.width * multiplier for multiplier in options.multipliers]
        self.stem = nn.Conv2d(in_channels, widths[-1], 3, padding=1)
        stages: list[nn.Module] = []
        for level in reversed(range(len(widths))):
            stages += _blocks(options, level, image_size)
            if level > 0:
                stages.append(
                    upsampling_layer(options.upsampling, widths[level], widths[level - 1])
                )
        self.stages = nn.Sequential(*stages)
        self.head = _head(widths[0], out_channels)

    @property
    def last_layer(self) -> Tensor:
        """Weight of the last convolution."""
        weight = self.head[-1].weight
        assert isinstance(weight, Tensor)
        return weight

    def forward(self, vectors: Tensor) -> Tensor:
        """(B, in_channels, h, w) to (B, out_channels, h * downsampling, w * downsampling)."""
        x = self.stem(vectors)  # (B, widths[-1], h, w)
        return self.head(self.stages(x.contiguous(memory_format=torch.channels_last)))


def inner_kernels(model: nn.Module) -> list[Tensor]:
    """Kernels of the convolutions between the first and the last of every encoder and decoder."""
    return [
        layer.weight
        for part in model.modules()
        if isinstance(part, Encoder | Decoder)
        for layer in part.stages.modules()
        if isinstance(layer, nn.Conv2d | nn.ConvTranspose2d)
    ]


class ResBlock(nn.Module):
    """Pre-activation residual block (He et al., 2016b) with group normalisation."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        groups = _groups(channels)
        self.norm1 = nn.GroupNorm(groups, channels)
        self.conv1 = nn.Conv2d(channels, channels, 3, padding=1)
        self.norm2 = nn.GroupNorm(groups, channels)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        """(B, channels, H, W) to the same shape."""
        h = self.conv1(F.silu(self.norm1(x)))
        return x + self.conv2(F.silu(self.norm2(h)))


class AttentionBlock(nn.Module):
    """Residual single-head self-attention over all positions."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.norm = nn.GroupNorm(_groups(channels), channels)
        self.qkv = nn.Linear(channels, 3 * channels)
        self.out = nn.Linear(channels, channels)

    def forward(self, x: Tensor) -> Tensor:
        """(B, channels, H, W) to the same shape."""
        B, C, H, W = x.shape
        positions = self.norm(x).flatten(2).transpose(1, 2)  # (B, H * W, C)
        q, k, v = self.qkv(positions).chunk(3, dim=-1)
        mixed = self.out(F.scaled_dot_product_attention(q, k, v))
        return x + mixed.transpose(1, 2).reshape(B, C, H, W)


class NearestUpsample(nn.Module):
    """Nearest-neighbour doubling and a 3x3 convolution (Odena et al., 2016), in one pass.

    Doubling is a transposed convolution with a 2x2 kernel of ones; with the 3x3 convolution it is
    one transposed convolution, whose 4x4 kernel is the 3x3 kernel summed over the 2x2 shifts. This
    takes 4 instead of 9 multiplications per pixel and channel pair, and no doubled map in memory.
    """

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(in_channels, out_channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        """(B, in_channels, H, W) to (B, out_channels, 2 H, 2 W)."""
        kernel = self.conv.weight  # (out, in, 3, 3)
        kernel = F.pad(kernel, (0, 1)) + F.pad(kernel, (1, 0))
        kernel = F.pad(kernel, (0, 0, 0, 1)) + F.pad(kernel, (0, 0, 1, 0))  # (out, in, 4, 4)
        # A transposed convolution applies its kernel flipped.
        return F.conv_transpose2d(
            x, kernel.flip(2, 3).transpose(0, 1), self.conv.bias, stride=2, padding=1
        )


def upsampling_layer(kind: Upsampling, in_channels: int, out_channels: int) -> nn.Module:
    """A layer that doubles height and width exactly."""
    if kind == "nearest":
        return NearestUpsample(in_channels, out_channels)
    return nn.ConvTranspose2d(in_channels, out_channels, 4, stride=2, padding=1)


def _head(channels: int, out_channels: int) -> nn.Sequential:
    """Normalisation, activation and the last convolution."""
    norm = nn.GroupNorm(_groups(channels), channels)
    return nn.Sequential(norm, nn.SiLU(), nn.Conv2d(channels, out_channels, 3, padding=1))


def _blocks(options: BackboneOptions, level: int, image_size: int) -> list[nn.Module]:
    """Residual blocks at a resolution, level 0 the images' own, and self-attention after each."""
    channels = options.width * options.multipliers[level]
    layers: list[nn.Module] = []
    for _ in range(options.blocks_per_resolution[level]):
        layers.append(ResBlock(channels))
        if image_size >> level in options.attention:
            layers.append(AttentionBlock(channels))
    return layers


def _groups(channels: int) -> int:
    """Up to 32 groups of at least 8 channels: smaller ones would remove a channel's contrast."""
    return max(
        groups
        for groups in range(1, 33)
        if channels % groups == 0 and (channels // groups >= 8 or groups == 1)
    )
