"""VQ-VAE-2 (Razavi et al., 2019, https://arxiv.org/abs/1906.00446): code maps from coarse to fine.

The bottom map has the resolution of the backbone, every level above half of that below. Codes are
chosen top down, each map given those above it (Fig. 2a); one decoder reads all of them.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor, nn

from latent_prior.data.codes import CodeMaps, Level
from latent_prior.losses.bounded import bounded
from latent_prior.options import option
from latent_prior.stage1_autoencoders.autoencoder import (
    Autoencoder,
    AutoencoderConfig,
    DiscreteOutput,
    quantized_objective,
)
from latent_prior.stage1_autoencoders.blocks import Decoder, Encoder, upsampling_layer
from latent_prior.stage1_autoencoders.options import BackboneOptions
from latent_prior.stage1_autoencoders.quantizers import make_quantizer
from latent_prior.stage1_autoencoders.quantizers.base import Quantizer
from latent_prior.stage1_autoencoders.vqvae import VQVAEOptions


@dataclass(kw_only=True)
class VQVAE2Options(VQVAEOptions):
    """Shape of a VQ-VAE-2, and how its codebooks learn; `multipliers` end at the bottom map."""

    num_levels: int = option(2, at_least=2)
    """Code maps, each with its own codebook and half the size of the one below."""

    def __post_init__(self) -> None:
        """Also refuse another network.

        Raises:
            ValueError: naming the flag.
        """
        super().__post_init__()
        if self.network != "plain":
            raise ValueError(
                f"--model.network {self.network} is for one code map, --model.type vqvae or vqgan"
            )

    def check_image_size(self, image_size: int) -> None:
        """Also check that the image size fits the levels.

        Raises:
            ValueError: naming the size and what it must be.
        """
        super().check_image_size(image_size)
        top = self.downsampling << (self.num_levels - 1)
        if image_size % top:
            raise ValueError(
                f"--image_size {image_size} is not divisible by {top}, the downsampling of the top of "
                f"{self.num_levels} levels over {len(self.multipliers)} multipliers"
            )


class VQVAE2Config(AutoencoderConfig, VQVAE2Options):
    """Options of a VQ-VAE-2 and the shape of its images."""

    model_type = "latent_prior_vqvae2"


class VQVAE2(Autoencoder):
    """An encoder and a quantizer per level, and one decoder; module lists are ordered top down."""

    config_class = VQVAE2Config
    config: VQVAE2Config

    def __init__(self, config: VQVAE2Config) -> None:
        super().__init__(config)
        count, size, pixels = config.num_levels, config.image_size, config.image_channels
        width = config.width * config.multipliers[-1]
        quantizers = [make_quantizer(config) for _ in range(count)]
        dim = quantizers[0].dim
        self.quantizers = nn.ModuleList(quantizers)
        self.encoder = Encoder(config, size, pixels, width)
        # Between two levels: features up to the coarser one, code vectors down to the finer one.
        between = BackboneOptions(
            width=width,
            multipliers=[1, 1],
            blocks=[0, config.blocks_per_resolution[-1]],
            upsampling=config.upsampling,
        )
        self.encoders = nn.ModuleList(
            Encoder(between, size, width, width) for _ in range(count - 1)
        )
        self.decoders = nn.ModuleList(Decoder(between, size, dim, width) for _ in range(count - 1))
        # A level reads its features and, except for the top, the decoded codes of the level above.
        self.to_vectors = nn.ModuleList(
            nn.Conv2d(width if index == 0 else 2 * width, dim, 1) for index in range(count)
        )
        # Upsample every level's vectors to the bottom's size, in steps of two.
        self.to_bottom = nn.ModuleList(
            nn.Sequential(
                *(upsampling_layer(config.upsampling, dim, dim) for _ in range(count - 1 - index))
            )
            for index in range(count)
        )
        self.decoder = Decoder(config, size, count * dim, pixels)
        self.post_init()

    def forward(self, images: Tensor) -> DiscreteOutput:
        """Reconstruct images (B, channels, size, size); in training mode, update the codebooks."""
        self.check_images(images)
        features, above, quantized = self._features(images), None, []
        for index, quantizer in enumerate(self._quantizers):
            quantized.append(quantizer(self._vectors(index, features[index], above)))
            above = self._pass_down(index, quantized[-1].vectors)
        return DiscreteOutput(
            images=self._decode([output.vectors for output in quantized]),
            codes=self._by_level([output.codes for output in quantized]),
            quantizer_loss=torch.stack([output.loss for output in quantized]).sum(),
        )

    def objective(self, images: Tensor, output: DiscreteOutput, step: int) -> dict[str, Tensor]:
        """Reconstruction error and the sum of the quantizer losses (Razavi et al., 2019, Eq. 2)."""
        return quantized_objective(images, output, self.config.reconstruction)

    @torch.no_grad()
    def encode(self, images: Tensor) -> CodeMaps:
        """Codes of images (B, channels, size, size), top level first."""
        self.check_images(images)
        features, above, codes = self._features(images), None, []
        for index, quantizer in enumerate(self._quantizers):
            codes.append(quantizer.vectors_to_codes(self._vectors(index, features[index], above)))
            above = self._pass_down(index, quantizer.codes_to_vectors(codes[-1]))
        return self._by_level(codes)

    def decode(self, codes: CodeMaps) -> Tensor:
        """Images (B, channels, size, size) of the codes of all levels."""
        return self.decode_vectors(self.code_vectors(codes))

    @torch.no_grad()
    def embed(self, images: Tensor) -> CodeMaps:
        """The code vectors of images, (B, dim, height, width) per level."""
        return self.code_vectors(self.encode(images))

    def decode_vectors(self, vectors: CodeMaps) -> Tensor:
        """Images of any vectors (B, dim, height, width) per level, code vectors or not."""
        return self._decode([vectors[name] for name in self._names])

    @property
    def levels(self) -> tuple[Level, ...]:
        """`top`, `middle` (or `middle_1`, ...), `bottom`; with residual stages `top_0`, ..."""
        levels = []
        for index, (name, quantizer) in enumerate(zip(self._names, self._quantizers, strict=True)):
            downsampling = self.config.downsampling << (self.config.num_levels - 1 - index)
            side, stages = self.config.image_size // downsampling, quantizer.stages
            names = [name] if stages == 1 else [f"{name}_{stage}" for stage in range(stages)]
            levels += [Level(n, side, side, vocabulary=quantizer.vocabulary) for n in names]
        return tuple(levels)

    @property
    def _quantizers(self) -> list[Quantizer]:
        return cast(list[Quantizer], list(self.quantizers))

    @property
    def _names(self) -> list[str]:
        inner = self.config.num_levels - 2
        middle = ["middle"] if inner == 1 else [f"middle_{i}" for i in range(1, inner + 1)]
        return ["top", *middle, "bottom"]

    def _features(self, images: Tensor) -> list[Tensor]:
        """Features (B, width, h, w) of every level, top first."""
        features = [self.encoder(images)]
        for encoder in reversed(self.encoders):
            features.insert(0, encoder(features[0]))
        return features

    def _vectors(self, index: int, features: Tensor, above: Tensor | None) -> Tensor:
        """The vectors to quantize at a level, (B, dim, h, w)."""
        inputs = features if above is None else torch.cat([features, above], dim=1)
        return self.to_vectors[index](inputs)

    def _pass_down(self, index: int, vectors: Tensor) -> Tensor | None:
        """Decode a level's code vectors for the level below; None at the bottom."""
        return self.decoders[index](vectors) if index < len(self.decoders) else None

    def _decode(self, vectors: list[Tensor]) -> Tensor:
        enlarged = [enlarge(v) for enlarge, v in zip(self.to_bottom, vectors, strict=True)]
        return bounded(self.decoder(torch.cat(enlarged, dim=1)))

    def _by_level(self, codes: list[Tensor]) -> CodeMaps:
        """Codes (B, stages, h, w) of every quantizer as one map for each level."""
        maps = [stage for stages in codes for stage in stages.unbind(1)]
        return dict(zip((level.name for level in self.levels), maps, strict=True))

    def code_vectors(self, codes: CodeMaps) -> CodeMaps:
        """The vectors of codes (B, height, width), (B, dim, height, width) per level."""
        maps, vectors = iter([codes[level.name] for level in self.levels]), {}
        for name, quantizer in zip(self._names, self._quantizers, strict=True):
            stages = torch.stack([next(maps) for _ in range(quantizer.stages)], dim=1)
            vectors[name] = quantizer.codes_to_vectors(stages)
        return vectors
