"""The encoder and decoder that VQGAN, latent diffusion and LlamaGen share.

The U-Net of DDPM (Ho et al., 2020, https://arxiv.org/abs/2006.11239) without skip connections, as
in VQGAN (Esser et al., 2021, https://arxiv.org/abs/2012.09841), latent diffusion (Rombach et al.,
2022, https://arxiv.org/abs/2112.10752) and LlamaGen (Sun et al., 2024,
https://arxiv.org/abs/2406.06525). It differs from `blocks.py` in what weights depend on: 32 groups,
epsilon 1e-6, where the width changes, the residual and attention blocks in the middle, one more
block per level in the decoder, and downsampling that pads on the right and below only.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch.nn.functional as F
from torch import Tensor, nn

from latent_prior.options import option
from latent_prior.stage1_autoencoders.options import ModelOptions

GROUPS = 32
EPSILON = 1e-6


@dataclass(kw_only=True)
class NetworkOptions(ModelOptions):
    """Shape of the encoder and decoder; level 0 is the full resolution."""

    width: int = option(128, at_least=1)
    """Channels of the encoder's first convolution."""
    encoder_widths: list[int] = option(factory=lambda: [128, 128, 256, 256, 512], at_least=1)
    """Channels of the encoder at each level."""
    decoder_widths: list[int] = option(factory=lambda: [128, 128, 256, 256, 512], at_least=1)
    """Channels of the decoder at each level."""
    blocks: int = option(2, at_least=1, at_most=1000)
    """Residual blocks per level of the encoder; the decoder has one more."""
    attention_levels: list[int] = field(default_factory=lambda: [4])
    """Levels at which each residual block is followed by self-attention."""
    middle_attention: bool = True
    """Whether there is self-attention between the two residual blocks in the middle."""
    resampling_convolutions: bool = True
    """Whether resolutions change by convolutions, or by averages and repetition alone."""
    inner_channels: int = option(256, at_least=1)
    """Channels between the encoder or decoder and the 1x1 convolutions around the quantizer."""

    def __post_init__(self) -> None:
        """Also check that the lists fit each other and the groups.

        Raises:
            ValueError: naming the option.
        """
        super().__post_init__()
        levels = len(self.encoder_widths)
        if not levels or len(self.decoder_widths) != levels:
            raise ValueError(
                f"encoder_widths {self.encoder_widths} and decoder_widths {self.decoder_widths} "
                "must have one number for each level"
            )
        for width in (self.width, *self.encoder_widths, *self.decoder_widths):
            if width % GROUPS:
                raise ValueError(f"every width must be divisible by {GROUPS}, not {width}")
        if not set(self.attention_levels) <= set(range(levels)):
            raise ValueError(
                f"attention_levels {self.attention_levels} must be below {levels}, the number of levels"
            )

    @property
    def downsampling(self) -> int:
        """Image pixels per position of the lowest resolution, along one side."""
        return 2 ** (len(self.encoder_widths) - 1)

    def check_image_size(self, image_size: int) -> None:
        """Check that the image size is divisible by the downsampling.

        Raises:
            ValueError: if it is not.
        """
        check_divisible(image_size, self.downsampling)


def check_divisible(image_size: int, downsampling: int) -> None:
    """Check that an image size is divisible by the downsampling.

    Raises:
        ValueError: if it is not.
    """
    if image_size < 1 or image_size % downsampling:
        raise ValueError(
            f"--image_size {image_size} is not divisible by the tokenizer's downsampling {downsampling}"
        )


class Encoder(nn.Module):
    """Images to a grid of vectors, halved in size between the levels."""

    def __init__(self, options: NetworkOptions, in_channels: int, out_channels: int) -> None:
        super().__init__()
        widths = options.encoder_widths
        self.conv_in = nn.Conv2d(in_channels, options.width, 3, padding=1)
        self.levels = nn.ModuleList()
        before = options.width
        for level, width in enumerate(widths):
            resample: nn.Module | None = None
            if level < len(widths) - 1:
                resample = Downsample(width, options.resampling_convolutions)
            attends = level in options.attention_levels
            self.levels.append(Level(before, width, options.blocks, attends, resample))
            before = width
        self.middle = _middle(before, options.middle_attention)
        self.norm_out = _norm(before)
        self.conv_out = nn.Conv2d(before, out_channels, 3, padding=1)

    def forward(self, images: Tensor) -> Tensor:
        """(B, in_channels, H, W) to (B, out_channels, H / downsampling, W / downsampling)."""
        x = self.conv_in(images)
        for level in self.levels:
            x = level(x)
        return self.conv_out(F.silu(self.norm_out(self.middle(x))))


class Decoder(nn.Module):
    """A grid of vectors to images, without bounds; the levels run from the last to the first."""

    def __init__(self, options: NetworkOptions, in_channels: int, out_channels: int) -> None:
        super().__init__()
        widths = options.decoder_widths
        self.conv_in = nn.Conv2d(in_channels, widths[-1], 3, padding=1)
        self.middle = _middle(widths[-1], options.middle_attention)
        self.levels = nn.ModuleList()
        for level, width in enumerate(widths):
            above = widths[min(level + 1, len(widths) - 1)]
            resample = Upsample(width, options.resampling_convolutions) if level else None
            attends = level in options.attention_levels
            self.levels.append(Level(above, width, options.blocks + 1, attends, resample))
        self.norm_out = _norm(widths[0])
        self.conv_out = nn.Conv2d(widths[0], out_channels, 3, padding=1)

    @property
    def last_layer(self) -> Tensor:
        """Weight of the last convolution."""
        return self.conv_out.weight

    def forward(self, vectors: Tensor) -> Tensor:
        """(B, in_channels, h, w) to (B, out_channels, h * downsampling, w * downsampling)."""
        x = self.middle(self.conv_in(vectors))
        for level in reversed(self.levels):
            x = level(x)
        return self.conv_out(F.silu(self.norm_out(x)))


class Level(nn.Module):
    """Residual blocks at one resolution, attention after each, and the change of resolution."""

    def __init__(
        self, before: int, width: int, blocks: int, attends: bool, resample: nn.Module | None
    ) -> None:
        super().__init__()
        widths = [before] + [width] * (blocks - 1)
        self.blocks = nn.ModuleList(Block(each, width) for each in widths)
        self.attention = nn.ModuleList(
            Attention(width) if attends else nn.Identity() for _ in widths
        )
        self.resample = nn.Identity() if resample is None else resample

    def forward(self, x: Tensor) -> Tensor:
        """(B, before, H, W) to (B, width, H', W')."""
        for block, attention in zip(self.blocks, self.attention, strict=True):
            x = attention(block(x))
        return self.resample(x)


class Block(nn.Module):
    """Pre-activation residual block; a 1x1 convolution carries the input to another width."""

    def __init__(self, before: int, width: int) -> None:
        super().__init__()
        self.norm1 = _norm(before)
        self.conv1 = nn.Conv2d(before, width, 3, padding=1)
        self.norm2 = _norm(width)
        self.conv2 = nn.Conv2d(width, width, 3, padding=1)
        self.shortcut = nn.Identity() if before == width else nn.Conv2d(before, width, 1)

    def forward(self, x: Tensor) -> Tensor:
        """(B, before, H, W) to (B, width, H, W)."""
        h = self.conv1(F.silu(self.norm1(x)))
        h = self.conv2(F.silu(self.norm2(h)))
        return self.shortcut(x) + h


class Attention(nn.Module):
    """Residual self-attention over all positions, with one head."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm = _norm(width)
        self.q, self.k, self.v, self.out = (nn.Linear(width, width) for _ in range(4))

    def forward(self, x: Tensor) -> Tensor:
        """(B, width, H, W) to the same shape."""
        B, C, H, W = x.shape
        positions = self.norm(x.flatten(2)).transpose(1, 2)  # (B, H * W, C)
        heads = (layer(positions)[:, None] for layer in (self.q, self.k, self.v))
        mixed = self.out(F.scaled_dot_product_attention(*heads)[:, 0])
        return mixed.transpose(1, 2).reshape(B, C, H, W) + x


class Downsample(nn.Module):
    """Half the height and width: a strided 3x3 convolution, or averages of 2x2."""

    def __init__(self, width: int, convolution: bool) -> None:
        super().__init__()
        self.conv = nn.Conv2d(width, width, 3, stride=2) if convolution else None

    def forward(self, x: Tensor) -> Tensor:
        """(B, width, H, W) to (B, width, H / 2, W / 2)."""
        if self.conv is None:
            return F.avg_pool2d(x, 2)
        return self.conv(F.pad(x, (0, 1, 0, 1)))  # zeros on the right and below only


class Upsample(nn.Module):
    """Twice the height and width: repetition, then a 3x3 convolution or nothing."""

    def __init__(self, width: int, convolution: bool) -> None:
        super().__init__()
        self.conv = nn.Conv2d(width, width, 3, padding=1) if convolution else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        """(B, width, H, W) to (B, width, 2 H, 2 W)."""
        return self.conv(F.interpolate(x, scale_factor=2.0, mode="nearest"))


def _middle(width: int, attends: bool) -> nn.Sequential:
    attention = Attention(width) if attends else nn.Identity()
    return nn.Sequential(Block(width, width), attention, Block(width, width))


def _norm(width: int) -> nn.GroupNorm:
    return nn.GroupNorm(GROUPS, width, eps=EPSILON)
