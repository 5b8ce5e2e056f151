"""An autoregressive decoder head (PixelVAE, Gulrajani et al., 2017, https://arxiv.org/abs/1611.05013).

It predicts every pixel from the decoder's features and the preceding pixels, row by row, through
masked convolutions (van den Oord et al., 2016, https://arxiv.org/abs/1601.06759). Such a decoder
can ignore the latents, so the posterior may collapse.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class MaskedConv2d(nn.Conv2d):
    """A convolution without later pixels in raster order; it keeps height and width.

    Args:
        in_channels: of the input.
        out_channels: of the output.
        kernel_size: odd.
        mask: `A` also leaves out the pixel itself, as the first layer must; `B` reads it.
    """

    def __init__(
        self, in_channels: int, out_channels: int, kernel_size: int, *, mask: Literal["A", "B"]
    ) -> None:
        super().__init__(in_channels, out_channels, kernel_size, padding=kernel_size // 2)
        self.visible = kernel_size**2 // 2 + (mask == "B")

    def forward(self, x: Tensor) -> Tensor:
        """(B, in_channels, H, W) to (B, out_channels, H, W)."""
        index = torch.arange(self.weight[0, 0].numel(), device=x.device)
        mask = (index < self.visible).view(self.kernel_size)
        return self._conv_forward(x, self.weight * mask, self.bias)


class AutoregressiveHead(nn.Module):
    """A PixelCNN conditioned on features; its 3x3 kernels have a blind spot to the upper right.

    No normalisation: statistics over a whole map would leak later pixels to earlier ones.

    Args:
        channels: of features, images and prediction.
        width: channels of the layers.
        layers: residual layers after the first layer, a masked 7x7 one.
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
        self.rows_above = 3 + layers  # height of the receptive field above a pixel

    def forward(self, features: Tensor, images: Tensor) -> Tensor:
        """Predict every pixel from the true pixels before it.

        Args:
            features: the decoder's output (B, channels, H, W).
            images: the images to predict (B, channels, H, W) in [-1, 1].

        Returns:
            The parameter of a likelihood, (B, channels, H, W).
        """
        x = self.from_images(images) + self.from_features(features)
        for layer in self.layers:
            x = x + layer(x)
        return self.out(F.silu(x))

    @torch.no_grad()
    def generate(self, features: Tensor, to_images: Callable[[Tensor], Tensor]) -> Tensor:
        """Images (B, channels, H, W) in [-1, 1], pixel by pixel, one pass over a few rows for each.

        Args:
            features: the decoder's output (B, channels, H, W).
            to_images: prediction to images, a likelihood's `sample` or `mean`.
        """
        images = torch.zeros_like(features, dtype=torch.float32)
        for row in range(images.shape[2]):
            rows = slice(max(0, row - self.rows_above), row + 1)
            for column in range(images.shape[3]):
                context = images[:, :, rows].to(features.dtype)
                prediction = self(features[:, :, rows], context)[:, :, -1:, column, None]
                images[:, :, row, column] = to_images(prediction).clamp(-1, 1)[:, :, 0, 0]
        return images
