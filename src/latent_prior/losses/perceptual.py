"""Perceptual distance between images and reconstructions, behind one call and never with a download.

Zhang et al., 2018, https://arxiv.org/abs/1801.03924: feature vectors of a pretrained network, scaled to length one,
compared at every place of several of its stages.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor, nn

from latent_prior.losses.efficientnet import load_efficientnet_lite0

PerceptualNetwork = Literal["none", "lpips", "efficientnet_lite0"]

# The last block of EfficientNet-Lite0 at 1/2, 1/4, 1/8 and 1/16 of the image's size; at 1/32 small images are one place.
_STAGE_ENDS = (0, 2, 4, 10)
_EPSILON = 1e-6  # keeps the gradient of an all-zero feature vector finite


class PerceptualDistance(nn.Module):
    """Abstract: a frozen network that compares images (Zhang et al., 2018, Eq. 1).

    Training state, never part of the saved model.
    """

    def forward(self, images: Tensor, reconstructions: Tensor) -> Tensor:
        """Mean of `each` over the images, a scalar."""
        return self.each(images, reconstructions).mean()

    def each(self, images: Tensor, reconstructions: Tensor) -> Tensor:
        """Distance of every pair (B,): sum over stages of the mean over places.

        Args:
            images: originals (B, C, H, W) in [-1, 1]; grey ones are seen with three equal channels.
            reconstructions: of the same shape; the gradient flows to them.
        """
        with torch.no_grad():
            originals = self.features(images.expand(-1, 3, -1, -1))
        others = self.features(reconstructions.expand(-1, 3, -1, -1))
        distances = []
        for stage, (a, b) in enumerate(zip(originals, others, strict=True)):
            difference = _unit_length(a.float()) - _unit_length(b.float())
            distances.append(self.weigh(difference.square(), stage).mean((1, 2, 3)))
        return torch.stack(distances).sum(0)

    def features(self, images: Tensor) -> Sequence[Tensor]:
        """RGB images (B, 3, H, W) in [-1, 1] to a map (B, C, h, w) per stage."""
        raise NotImplementedError

    def weigh(self, squares: Tensor, stage: int) -> Tensor:
        """Sum of squares (B, C, h, w) over the channels of a stage, (B, 1, h, w), perhaps with learned weights."""
        return squares.sum(1, keepdim=True)


class EfficientNetDistance(PerceptualDistance):
    """The distance on EfficientNet-Lite0, whose weights come with their package, all channels weighing alike.

    A model trained against this network must not be scored with it: its FD-EffNet-Lite0 would tell how well it
    learnt to please the network, not how good its images are. Score such a model with another network.
    """

    def __init__(self, flag: str) -> None:
        super().__init__()
        network, _ = load_efficientnet_lite0(flag)
        self.stem = nn.Sequential(network._conv_stem, network._bn0, network._swish)
        self.blocks = network._blocks[: _STAGE_ENDS[-1] + 1]

    def features(self, images: Tensor) -> list[Tensor]:
        """See `PerceptualDistance`."""
        pixels = (127.5 * images + 0.5) / 128  # (x - 127) / 128 of x in [0, 255], as it was trained
        x = self.stem(pixels.contiguous(memory_format=torch.channels_last))
        features = []
        for number, block in enumerate(self.blocks):
            x = block(x)
            if number in _STAGE_ENDS:
                features.append(x)
        return features


class LPIPSDistance(PerceptualDistance):
    """LPIPS: torchvision's VGG-16, channels weighing as the `lpips` package's networks have learnt from people.

    The package's own call is not used, because its gradient is not a number where all features of a place are zero.
    """

    def __init__(self, flag: str) -> None:
        super().__init__()
        try:
            import lpips
        except ImportError as error:
            raise ValueError(
                f'{flag} lpips needs the extra `perceptual`: pip install -e ".[perceptual]"'
            ) from error
        from torchvision.models import VGG16_Weights

        url = VGG16_Weights.IMAGENET1K_V1.url
        path = Path(torch.hub.get_dir(), "checkpoints", Path(url).name)
        if not path.is_file():
            raise ValueError(
                f"{flag} lpips needs the weights of VGG-16, which are not downloaded unasked: put {url} at {path}"
            )
        with warnings.catch_warnings():
            # lpips 0.1.4 asks torchvision for them in a way that it calls deprecated.
            warnings.filterwarnings("ignore", module="torchvision")
            self.network = lpips.LPIPS(net="vgg", verbose=False)

    def features(self, images: Tensor) -> Sequence[Tensor]:
        """See `PerceptualDistance`."""
        features: Sequence[Tensor] = self.network.net(self.network.scaling_layer(images))
        return features

    def weigh(self, squares: Tensor, stage: int) -> Tensor:
        """See `PerceptualDistance`."""
        weighed: Tensor = self.network.lins[stage](squares)
        return weighed


def make_perceptual(
    name: PerceptualNetwork, device: torch.device | str, flag: str
) -> PerceptualDistance | None:
    """A network by its name, frozen and in evaluation mode; None for `none`.

    Args:
        name: which.
        device: where it computes.
        flag: the option that asks for it, as errors name it.

    Raises:
        ValueError: one sentence on the package or the weights that are missing and how to get them.
    """
    if name == "none":
        return None
    distance = LPIPSDistance(flag) if name == "lpips" else EfficientNetDistance(flag)
    nn.Module.to(distance, memory_format=torch.channels_last)
    return distance.to(device).requires_grad_(False).eval()


def _unit_length(features: Tensor) -> Tensor:
    return features * torch.rsqrt(features.square().sum(1, keepdim=True) + _EPSILON)
