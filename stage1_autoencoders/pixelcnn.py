"""An autoregressive decoder head (Gulrajani et al., 2017, PixelVAE, https://arxiv.org/abs/1611.05013).

It predicts every pixel from the decoder's features and from the pixels before it, row by row, through masked convolutions
(van den Oord et al., 2016, https://arxiv.org/abs/1601.06759). Such a decoder can do without the latents, which is what
tempts a posterior to collapse.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class MaskedConv2d(nn.Conv2d):
    """A convolution that sees no later pixel; the channels of one pixel are given jointly. Shape in = shape out.

    Args:
        in_channels: of the input.
        out_channels: of the output.
        kernel_size: odd.
        mask: `A` does not see the pixel itself, which the first layer must not; `B` does.
    """

    def __init__(
        self, in_channels: int, out_channels: int, kernel_size: int, *, mask: Literal["A", "B"]
    ) -> None:
        super().__init__(in_channels, out_channels, kernel_size, padding=kernel_size // 2)
        self.visible = kernel_size**2 // 2 + (mask == "B")

    def forward(self, x: Tensor) -> Tensor:
        """(B, in_channels, H, W) to (B, out_channels, H, W)."""
        place = torch.arange(self.weight[0, 0].numel(), device=x.device)
        mask = (place < self.visible).view(self.kernel_size)
        return self._conv_forward(x, self.weight * mask, self.bias)


class AutoregressiveHead(nn.Module):
    """A PixelCNN conditioned on features. Layers of 3x3 kernels leave it a blind spot to the upper right.

    There is no normalisation, because statistics over a whole map would carry later pixels to earlier ones.

    Args:
        channels: of features, images and prediction.
        width: channels of the layers.
        layers: residual layers after the first, masked 7x7 one.
    """

    def __init__(self, channels: int, width: int, layers: int) -> None:
        super().__init__()
        self.from_images = MaskedConv2d(channels, width, 7, mask="A")
        self.from_features = nn.Conv2d(channels, width, 1)
        self.layers = nn.ModuleList(
            nn.Sequential(
                nn.SiLU(),
                MaskedConv2d(width, width, 3, mask="B"),
                nn.SiLU(),
                nn.Conv2d(width, width, 1),
            )
            for _ in range(layers)
        )
        self.out = nn.Conv2d(width, channels, 1)
        self.rows_above = 3 + layers  # that a pixel is predicted from

    def forward(self, features: Tensor, images: Tensor) -> Tensor:
        """The prediction of every pixel, from the true pixels before it.

        Args:
            features: the decoder's output (B, channels, H, W).
            images: the images to predict (B, channels, H, W) in [-1, 1].

        Returns:
            (B, channels, H, W), to be read by a likelihood.
        """
        x = self.from_images(images) + self.from_features(features)
        for layer in self.layers:
            x = x + layer(x)
        return self.out(F.silu(x))

    @torch.no_grad()
    def generate(self, features: Tensor, draw: Callable[[Tensor], Tensor]) -> Tensor:
        """Images (B, channels, H, W) in [-1, 1], pixel by pixel: one pass over a few rows for each.

        Args:
            features: the decoder's output (B, channels, H, W).
            draw: prediction to images, a likelihood's `sample` or `mean`.
        """
        images = torch.zeros_like(features, dtype=torch.float32)
        for row in range(images.shape[2]):
            rows = slice(max(0, row - self.rows_above), row + 1)
            for column in range(images.shape[3]):
                seen = images[:, :, rows].to(
                    features.dtype
                )  # half where the weights were loaded as half
                prediction = self(features[:, :, rows], seen)[:, :, -1:, column, None]
                images[:, :, row, column] = draw(prediction).clamp(-1, 1)[:, :, 0, 0]
        return images
