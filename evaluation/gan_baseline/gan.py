"""Two GANs: generators of images from noise and class, and their critics.

- `sngan`: DCGAN (Radford et al., 2016, arXiv:1511.06434) with a spectrally normalised critic
  (Miyato et al., 2018, arXiv:1802.05957) and class projection (Miyato & Koyama, 2018,
  arXiv:1802.05637). The generator modulates group normalisation by noise and class (Chen et al.,
  2019, arXiv:1810.01365), so that averaged weights need no batch statistics.
- `r3gan`: residual networks without normalisation (Huang et al., 2024, arXiv:2501.05441).

In both, the critic mirrors the generator, and both learn as R3GAN does.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import field
from typing import Any, TypeVar, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils import parametrizations

from latent_prior.evaluation.gan_baseline.options import GeneratorOptions
from latent_prior.losses.bounded import bounded
from latent_prior.models import ModelConfig, StrictModel

_GROUP = 16  # channels normalised together in sngan, convolved together in r3gan
_EXPANSION = 2  # inner channels of a residual block
_SLOPE = 0.2  # of leaky ReLU
_CLASS_SCALE = 0.2  # of class embeddings; the noise has scale 1

Layer = TypeVar("Layer", nn.Conv2d, nn.Linear)


class GeneratorConfig(ModelConfig, GeneratorOptions):
    """The options of a generator and the images it is made for."""

    model_type = "latent_prior_gan"

    image_size: int = 28
    """Height and width of the square images, in pixels."""
    image_channels: int = 1
    """1 (grey) or 3 (RGB)."""
    class_names: list[str] = field(default_factory=list)
    """Names of the classes that can be asked for; empty for an unconditional generator."""
    trained_classes: list[int] | None = None
    """Numbers of the classes with training images; null: all."""

    def __post_init__(self, **undeclared: Any) -> None:
        """Check the options, and that they fit the images.

        Raises:
            ValueError: naming the flag.
        """
        super().__post_init__(**undeclared)
        self.check_image_size(self.image_size)

    @property
    def start(self) -> int:
        """Height and width at the lowest resolution."""
        return self.image_size >> (len(self.multipliers) - 1)


class Generator(StrictModel):
    """Noise and class to an image; training and evaluation mode are the same."""

    config_class = GeneratorConfig
    config: GeneratorConfig

    def __init__(self, config: GeneratorConfig) -> None:
        super().__init__(config)
        count, dim = len(config.class_names), config.latent_dim
        self.classes = nn.Embedding(count, dim) if count else None
        if self.classes is not None:  # large ones start each class as a single image
            nn.init.normal_(self.classes.weight, std=_CLASS_SCALE)
        network = {"sngan": ConvolutionalGenerator, "r3gan": ResidualGenerator}[config.type]
        self.network = network(config, 2 * dim if count else dim)
        self.post_init()

    def forward(self, noise: Tensor, labels: Tensor) -> Tensor:
        """Images (B, C, H, W) in [-1, 1] from noise (B, latent_dim) and classes (B,)."""
        if self.classes is not None:
            noise = torch.cat([noise, self.classes(labels)], dim=1)
        return bounded(self.network(noise))

    @torch.no_grad()
    def sample(
        self, labels: Sequence[int], generators: Sequence[torch.Generator], truncation: float = 1.0
    ) -> Tensor:
        """One image for every label, float (B, C, H, W) in [-1, 1].

        Args:
            labels: class numbers; -1 draws one with training images at random.
            generators: every image's own source of randomness, on the CPU.
            truncation: multiplies the noise.
        """
        noise = [torch.randn(self.config.latent_dim, generator=one) for one in generators]
        known = self.config.trained_classes or list(range(max(1, len(self.config.class_names))))
        classes = [
            known[int(torch.randint(len(known), (), generator=one))] if label < 0 else label
            for label, one in zip(labels, generators, strict=True)
        ]
        on_device = torch.stack(noise).to(self.device) * truncation
        images: Tensor = self(on_device, torch.tensor(classes, device=self.device))
        return images.float()


class Critic(nn.Module):
    """Images and classes to logits, positive for images that look real.

    Args:
        features: of an image, (B, C, H, W) -> (B, `dim`).
        dim: how many features there are.
        num_classes: 0 for an unconditional critic.
    """

    def __init__(self, features: nn.Module, dim: int, num_classes: int) -> None:
        super().__init__()
        self.features = features
        self.judge = nn.Linear(dim, 1)
        self.classes = nn.Embedding(num_classes, dim) if num_classes else None

    def forward(self, images: Tensor, labels: Tensor) -> Tensor:
        """Logits (B,) from images (B, C, H, W) in [-1, 1] and labels (B,)."""
        return self.logits(images, labels)

    def logits(self, images: Tensor, labels: Tensor) -> Tensor:
        """f(x) w + f(x) v_class (Miyato & Koyama, 2018, Eq. 3), without accelerate's autocast."""
        features = self.features(images)
        logits: Tensor = self.judge(features).squeeze(1)
        if self.classes is not None:
            logits = logits + (features * self.classes(labels)).sum(1)
        return logits


def make_critic(config: GeneratorConfig, width: int | None = None) -> Critic:
    """The critic of a generator; `width` as in `CriticOptions`."""
    channels = [(width or config.width) * multiplier for multiplier in config.multipliers]
    return (_residual_critic if config.type == "r3gan" else _convolutional_critic)(config, channels)


class Modulated(nn.Module):
    """Modulated group normalisation, ReLU, nearest upsampling if `up`, and a 3x3 convolution.

    Not a transposed convolution: short trainings do not remove its chequerboard pattern (Odena et
    al., 2016, doi:10.23915/distill.00003).
    """

    def __init__(
        self, channels: int, out_channels: int, style_dim: int, *, up: bool = False
    ) -> None:
        super().__init__()
        self.up = up
        self.norm = nn.GroupNorm(_groups(channels), channels, affine=False)
        self.style = nn.Linear(style_dim, 2 * channels)
        self.convolution = nn.Conv2d(channels, out_channels, 3, padding=1)

    def forward(self, maps: Tensor, style: Tensor) -> Tensor:
        """Maps (B, C, h, w) and vectors (B, style_dim) to (B, C', h, w), or (B, C', 2h, 2w)."""
        gain, bias = self.style(style)[:, :, None, None].chunk(2, dim=1)
        maps = F.relu(torch.addcmul(bias, self.norm(maps), 1 + gain))
        if self.up:
            maps = F.interpolate(maps, scale_factor=2)
        return cast(Tensor, self.convolution(maps))


class ConvolutionalGenerator(nn.Module):
    """DCGAN's generator: a linear layer, then convolutions; `bounded` replaces its tanh."""

    def __init__(self, config: GeneratorConfig, style_dim: int) -> None:
        super().__init__()
        channels = [config.width * multiplier for multiplier in config.multipliers]
        self.layers = nn.ModuleList()
        for level in reversed(range(len(channels))):
            width = channels[level]
            for _ in range(config.blocks_per_resolution[level]):
                self.layers.append(Modulated(width, width, style_dim))
            if level:
                self.layers.append(Modulated(width, channels[level - 1], style_dim, up=True))
        self.layers.append(Modulated(channels[0], config.image_channels, style_dim))
        shape = (channels[-1], config.start, config.start)
        self.first = nn.Sequential(nn.Linear(style_dim, math.prod(shape)), nn.Unflatten(1, shape))

    def forward(self, style: Tensor) -> Tensor:
        """Vectors (B, style_dim) to images."""
        maps: Tensor = self.first(style)
        for layer in self.layers:
            maps = layer(maps, style)
        return maps


def _convolutional_critic(config: GeneratorConfig, channels: list[int]) -> Critic:
    """DCGAN's critic, every layer with spectral norm."""
    layers: list[nn.Module] = [nn.Conv2d(config.image_channels, channels[0], 3, padding=1)]
    for level, blocks in enumerate(config.blocks_per_resolution):
        if level:
            layers.append(nn.Conv2d(channels[level - 1], channels[level], 4, 2, 1))
        layers += [nn.Conv2d(channels[level], channels[level], 3, padding=1) for _ in range(blocks)]
    with_activations = [part for layer in layers for part in (layer, nn.LeakyReLU(0.1))]
    features = nn.Sequential(*with_activations, nn.Flatten())
    critic = Critic(features, channels[-1] * config.start**2, len(config.class_names))
    for module in list(critic.modules()):
        if isinstance(module, nn.Conv2d | nn.Linear | nn.Embedding):
            parametrizations.spectral_norm(module)
    return critic


class ResidualBlock(nn.Module):
    """x + 1x1(leaky(grouped 3x3(leaky(1x1 x)))), an inverted bottleneck with fix-up initialisation.

    The last convolution starts at zero, the others are scaled by L^(-1/4) for L blocks in the
    network (Zhang et al., 2019, arXiv:1901.09321).
    """

    def __init__(self, channels: int, num_blocks: int) -> None:
        super().__init__()
        inner = _EXPANSION * channels
        self.expand = nn.Conv2d(channels, inner, 1)
        self.mix = nn.Conv2d(inner, inner, 3, padding=1, groups=_groups(inner))
        self.project = nn.Conv2d(inner, channels, 1, bias=False)
        gain = math.sqrt(2 / (1 + _SLOPE**2)) * num_blocks**-0.25
        for layer, its_gain in ((self.expand, gain), (self.mix, gain), (self.project, 0.0)):
            _scaled(layer, its_gain)

    def forward(self, maps: Tensor) -> Tensor:
        """Maps (B, C, h, w) to the same shape."""
        inner = F.leaky_relu(self.expand(maps), _SLOPE, inplace=True)
        inner = F.leaky_relu(self.mix(inner), _SLOPE, inplace=True)
        return maps + self.project(inner)


class Resampled(nn.Module):
    """Bilinear resizing by 2 or 1/2; a 1x1 convolution at the smaller size changes channels."""

    def __init__(self, channels: int, out_channels: int, *, up: bool) -> None:
        super().__init__()
        self.up = up
        self.project: nn.Module = nn.Identity()
        if channels != out_channels:
            self.project = _scaled(nn.Conv2d(channels, out_channels, 1, bias=False), 1.0)

    def forward(self, maps: Tensor) -> Tensor:
        """Maps (B, C, h, w) to (B, C', 2h, 2w) or (B, C', h/2, w/2)."""
        if self.up:
            return F.interpolate(self.project(maps), scale_factor=2, mode="bilinear")
        return cast(Tensor, self.project(F.avg_pool2d(maps, 2)))  # equals bilinear halving


class ResidualGenerator(nn.Module):
    """R3GAN's generator: learned maps weighted by noise and class, residual blocks, upsampling.

    The convolution to colours is 3x3, not 1x1, like the critic's first: images are sharp without
    blocks at full resolution.
    """

    def __init__(self, config: GeneratorConfig, style_dim: int) -> None:
        super().__init__()
        channels = [config.width * multiplier for multiplier in config.multipliers]
        layers: list[nn.Module] = []
        for level in reversed(range(len(channels))):
            layers += _residual_blocks(config, channels, level)
            if level:
                layers.append(Resampled(channels[level], channels[level - 1], up=True))
        layers.append(_scaled(nn.Conv2d(channels[0], config.image_channels, 3, padding=1), 1.0))
        self.first = _scaled(nn.Linear(style_dim, channels[-1], bias=False), 1.0)
        self.basis = nn.Parameter(torch.randn(channels[-1], config.start, config.start))
        self.layers = nn.Sequential(*layers)

    def forward(self, style: Tensor) -> Tensor:
        """Vectors (B, style_dim) to images."""
        return cast(Tensor, self.layers(self.first(style)[:, :, None, None] * self.basis))


def _residual_critic(config: GeneratorConfig, channels: list[int]) -> Critic:
    """R3GAN's critic: residual blocks and halving, then a weighted sum per channel."""
    layers: list[nn.Module] = [
        _scaled(nn.Conv2d(config.image_channels, channels[0], 3, padding=1), 1.0)
    ]
    for level in range(len(channels)):
        if level:
            layers.append(Resampled(channels[level - 1], channels[level], up=False))
        layers += _residual_blocks(config, channels, level)
    last = nn.Conv2d(channels[-1], channels[-1], config.start, groups=channels[-1], bias=False)
    features = nn.Sequential(*layers, _scaled(last, 1.0), nn.Flatten())
    critic = Critic(features, channels[-1], len(config.class_names))
    _scaled(critic.judge, 1.0)
    if critic.classes is not None:
        nn.init.normal_(critic.classes.weight, std=channels[-1] ** -0.5)
    return critic


def _residual_blocks(config: GeneratorConfig, channels: list[int], level: int) -> list[nn.Module]:
    blocks = config.blocks_per_resolution
    return [ResidualBlock(channels[level], sum(blocks)) for _ in range(blocks[level])]


def _groups(channels: int) -> int:
    return channels // _GROUP if channels % _GROUP == 0 else 1


def _scaled(layer: Layer, gain: float) -> Layer:
    """Initialise with variance gain^2 / inputs (He et al., 2015) and bias 0."""
    nn.init.normal_(layer.weight, std=gain / math.sqrt(layer.weight[0].numel()))
    if layer.bias is not None:
        nn.init.zeros_(layer.bias)
    return layer
