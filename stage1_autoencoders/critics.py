"""Critics: networks that distinguish originals from generated images; never part of a saved model.

None uses batch normalisation: the logits of an image must not depend on the rest of its batch or on
earlier forward passes.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils import parametrizations

from latent_prior.stage1_autoencoders.options import CriticOptions

_LARGEST_MULTIPLIER = 8


@dataclass(frozen=True)
class CriticOutput:
    """The output of a critic for a batch of images.

    Attributes:
        logits: positive for originals; (B, 1, h, w) for patches, (B, 1) for whole images.
        features: one map (B, C, h, w) for every resolution, finest first.
    """

    logits: Tensor
    features: list[Tensor]


class Critic(nn.Module):
    """Abstract: images to logits and features."""

    def forward(self, images: Tensor) -> CriticOutput:
        """Logits and features of images (B, C, H, W) in [-1, 1]."""
        raise NotImplementedError

    def logits(self, images: Tensor) -> Tensor:
        """Logits outside the autocast that accelerate puts into an instance's `forward`."""
        return type(self).forward(self, images).logits


class PatchCritic(Critic):
    """PatchGAN (Isola et al., 2017, https://arxiv.org/abs/1611.07004): one logit per patch.

    Differences from the original: layer instead of batch normalisation (Gulrajani et al., 2017), or
    none with spectral norm, and 3x3 convolutions after the last halving, which keep the border that
    4x4 ones lose on small images. With three halvings the receptive field is 54 x 54 pixels.

    Args:
        widths: channels after each halving of the image.
        image_channels: channels of the images.
        spectral_norm: see `CriticOptions`.
    """

    def __init__(self, widths: Sequence[int], image_channels: int, *, spectral_norm: bool) -> None:
        super().__init__()
        self.stem = nn.Conv2d(image_channels, widths[0], 4, stride=2, padding=1)
        self.stages = nn.ModuleList()
        wider = min(2 * widths[-1], _LARGEST_MULTIPLIER * widths[0])
        for before, width in zip(widths, [*widths[1:], wider], strict=True):
            halving = len(self.stages) < len(widths) - 1
            kernel, stride = (4, 2) if halving else (3, 1)
            convolution = nn.Conv2d(before, width, kernel, stride=stride, padding=1)
            norm = nn.Identity() if spectral_norm else nn.GroupNorm(1, width)
            self.stages.append(nn.Sequential(convolution, norm, nn.LeakyReLU(0.2)))
        self.head = nn.Conv2d(wider, 1, 3, padding=1)
        if spectral_norm:
            _divide_out_spectral_norm(self)

    def forward(self, images: Tensor) -> CriticOutput:
        """(B, C, H, W) to logits (B, 1, h, w) and features."""
        # After the stem: one channel has both formats, and the convolution would pick the slow one.
        x = self.stem(images).contiguous(memory_format=torch.channels_last)
        features = [F.leaky_relu(x, 0.2)]
        for stage in self.stages:
            features.append(stage(features[-1]))
        return CriticOutput(self.head(features[-1]), features)


class ResidualCritic(Critic):
    """A residual network without normalisation, one logit per image (R3GAN, Huang et al., 2024).

    Residual branches start at zero (Fixup, Zhang et al., 2019, https://arxiv.org/abs/1901.09321)
    instead of normalisation; with spectral norm they start at random.

    Args:
        widths: channels at full resolution and after each halving of the image.
        image_size: height and width of the images.
        image_channels: channels of the images.
        spectral_norm: see `CriticOptions`.
    """

    def __init__(
        self, widths: Sequence[int], image_size: int, image_channels: int, *, spectral_norm: bool
    ) -> None:
        super().__init__()
        self.stem = nn.Conv2d(image_channels, widths[0], 3, padding=1)
        self.blocks = nn.ModuleList(_Block(width) for width in widths)
        # 1x1 after the pooling: the same function as before it, at a quarter of the cost.
        self.widen = nn.ModuleList(
            nn.Conv2d(before, width, 1) for before, width in itertools.pairwise(widths)
        )
        for _ in widths[1:]:
            image_size = -(-image_size // 2)
        self.head = nn.Linear(widths[-1] * image_size**2, 1)
        if spectral_norm:
            _divide_out_spectral_norm(self)
        else:
            self.apply(_keep_scale)

    def forward(self, images: Tensor) -> CriticOutput:
        """(B, C, H, W) to logits (B, 1) and features."""
        # After the stem: one channel has both formats, and the convolution would pick the slow one.
        x = self.stem(images).contiguous(memory_format=torch.channels_last)
        features = [self.blocks[0](x)]
        for widen, block in zip(self.widen, self.blocks[1:], strict=True):
            # Round up, so that odd sizes lose no row.
            x = F.avg_pool2d(features[-1], 2, ceil_mode=True)
            features.append(block(widen(x)))
        return CriticOutput(self.head(F.leaky_relu(features[-1], 0.2).flatten(1)), features)


class _Block(nn.Module):
    """Residual block without normalisation; shape in = shape out."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, channels, 3, padding=1)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        """(B, channels, H, W) to the same shape."""
        h = self.conv1(F.leaky_relu(x, 0.2))
        return x + self.conv2(F.leaky_relu(h, 0.2))


def _keep_scale(module: nn.Module) -> None:
    """Initialise so that activations keep the scale of the images at every depth."""
    if isinstance(module, nn.Conv2d):
        nn.init.kaiming_normal_(module.weight, a=0.2)
        assert module.bias is not None
        nn.init.zeros_(module.bias)
    if isinstance(module, _Block):  # `apply` visits its convolutions first
        nn.init.zeros_(module.conv2.weight)


def make_critic(options: CriticOptions, image_size: int, image_channels: int) -> Critic:
    """The critic that the options describe, for images of one size.

    Raises:
        ValueError: the image is too small for the halvings.
    """
    if image_size >> options.layers < 2:
        most = max(0, image_size.bit_length() - 2)
        raise ValueError(
            f"--critic.layers {options.layers} halves images of --image_size {image_size} to less than 2 x 2: choose at most {most}"
        )
    multipliers = [min(2**level, _LARGEST_MULTIPLIER) for level in range(options.layers + 1)]
    widths = [options.width * multiplier for multiplier in multipliers]
    if options.network == "patch":
        return PatchCritic(widths[:-1], image_channels, spectral_norm=options.spectral_norm)
    return ResidualCritic(widths, image_size, image_channels, spectral_norm=options.spectral_norm)


def feature_distance(real: Sequence[Tensor], fake: Sequence[Tensor]) -> Tensor:
    """Squared error of a critic's features, averaged within, then over maps (Larsen et al., Eq. 7).

    Args:
        real: `CriticOutput.features` of the originals; detached.
        fake: those of their reconstructions.
    """
    distances = [F.mse_loss(f.float(), r.detach().float()) for r, f in zip(real, fake, strict=True)]
    return torch.stack(distances).mean()


def _divide_out_spectral_norm(critic: Critic) -> None:
    """Divide weights by their spectral norm (Miyato et al., 2018, https://arxiv.org/abs/1802.05957).

    One power iteration per training forward pass; equal weights give all processes equal buffers.
    """
    for module in list(critic.modules()):
        if isinstance(module, nn.Conv2d | nn.Linear):
            parametrizations.spectral_norm(module)
