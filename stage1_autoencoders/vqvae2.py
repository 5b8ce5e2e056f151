"""VQ-VAE-2 (Razavi et al., 2019, https://arxiv.org/abs/1906.00446): maps of codes from coarse to fine, decoded together.

The bottom map is half or a quarter of the image's size, every further one half of the one below. Codes are chosen from the
top down, so each map says what the ones above it have left open (Fig. 2a of the paper).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor, nn

from latent_prior.data.codes import CodeMaps, Level
from latent_prior.options import option
from latent_prior.stage1_autoencoders.autoencoder import (
    Autoencoder,
    AutoencoderConfig,
    DiscreteOutput,
)
from latent_prior.stage1_autoencoders.blocks import make_decoder, make_encoder, upsampling_layer
from latent_prior.stage1_autoencoders.objectives import quantized_objective
from latent_prior.stage1_autoencoders.options import BackboneOptions
from latent_prior.stage1_autoencoders.quantizers.base import Quantizer, make_quantizer
from latent_prior.stage1_autoencoders.vqvae import VQVAEOptions


@dataclass(kw_only=True)
class VQVAE2Options(VQVAEOptions):
    """Shape of a VQ-VAE-2 and how its codebooks learn; `multipliers` lead down to the bottom map."""

    num_levels: int = option(2, at_least=2)
    """Maps of codes, each with its own codebook; every one above the bottom is half the size of the one below."""

    def check_image_size(self, image_size: int) -> None:
        """Stop before an image size that the levels do not fit.

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
    """The options of a VQ-VAE-2 and the images it is made for."""

    model_type = "latent_prior_vqvae2"


class VQVAE2(Autoencoder):
    """An encoder and a quantizer for every level, and one decoder. Lists of modules run from the top level down."""

    config_class = VQVAE2Config
    config: VQVAE2Config

    def __init__(self, config: VQVAE2Config) -> None:
        super().__init__(config)
        count, size, pixels = config.num_levels, config.image_size, config.image_channels
        width = config.width * config.multipliers[-1]
        quantizers = [make_quantizer(config) for _ in range(count)]
        dim = quantizers[0].dim
        self.quantizers = nn.ModuleList(quantizers)
        self.encoder = make_encoder(config, size, pixels, width)
        # Between two levels: features up to the coarser one, its code vectors back down to the finer one.
        between = BackboneOptions(
            width=width,
            multipliers=[1, 1],
            blocks=[0, config.blocks_per_resolution[-1]],
            upsampling=config.upsampling,
        )
        self.encoders = nn.ModuleList(
            make_encoder(between, size, width, width) for _ in range(count - 1)
        )
        self.decoders = nn.ModuleList(
            make_decoder(between, size, dim, width) for _ in range(count - 1)
        )
        # A level sees the features of its size and, but for the top, what the level above has decoded.
        self.to_vectors = nn.ModuleList(
            nn.Conv2d(width if place == 0 else 2 * width, dim, 1) for place in range(count)
        )
        # Every level's vectors brought to the bottom's size, in steps of two.
        self.to_bottom = nn.ModuleList(
            nn.Sequential(
                *(upsampling_layer(config.upsampling, dim, dim) for _ in range(count - 1 - place))
            )
            for place in range(count)
        )
        self.decoder = make_decoder(config, size, count * dim, pixels)
        self.post_init()

    def forward(self, images: Tensor) -> DiscreteOutput:
        """Reconstruct images (B, channels, size, size) in [-1, 1]; in training mode the codebooks learn from them."""
        self.check_images(images)
        features, above, quantized = self._features(images), None, []
        for place, quantizer in enumerate(self._quantizers):
            quantized.append(quantizer(self._vectors(place, features[place], above)))
            above = self._pass_down(place, quantized[-1].vectors)
        return DiscreteOutput(
            images=self._decode([output.vectors for output in quantized]),
            codes=self._by_level([output.codes for output in quantized]),
            quantizer_loss=torch.stack([output.loss for output in quantized]).sum(),
        )

    def objective(self, images: Tensor, output: DiscreteOutput, step: int) -> dict[str, Tensor]:
        """Reconstruction error and the quantizers' losses, summed over the levels (Razavi et al., 2019, Eq. 2)."""
        return quantized_objective(images, output, self.config.reconstruction)

    @torch.no_grad()
    def encode(self, images: Tensor) -> CodeMaps:
        """Codes of images (B, channels, size, size) in [-1, 1], top level first."""
        self.check_images(images)
        features, above, codes = self._features(images), None, []
        for place, quantizer in enumerate(self._quantizers):
            codes.append(quantizer.vectors_to_codes(self._vectors(place, features[place], above)))
            above = self._pass_down(place, quantizer.codes_to_vectors(codes[-1]))
        return self._by_level(codes)

    def decode(self, codes: CodeMaps) -> Tensor:
        """Images (B, channels, size, size) of every level's codes; values may lie a little outside [-1, 1]."""
        return self.decode_vectors(self._code_vectors(codes))

    @torch.no_grad()
    def embed(self, images: Tensor) -> CodeMaps:
        """The code vectors of images, (B, dim, height, width) level by level."""
        return self._code_vectors(self.encode(images))

    def decode_vectors(self, vectors: CodeMaps) -> Tensor:
        """Images of vectors (B, dim, height, width) level by level, which need not be code vectors."""
        return self._decode([vectors[name] for name in self._names])

    @property
    def levels(self) -> tuple[Level, ...]:
        """`top`, `middle` where there are three (or `middle_1`, ...), `bottom`; with residual stages `top_0`, ..."""
        levels = []
        for place, name in enumerate(self._names):
            quantizer = self._quantizers[place]
            down = self.config.downsampling << (self.config.num_levels - 1 - place)
            side, stages = self.config.image_size // down, quantizer.stages
            names = [name] if stages == 1 else [f"{name}_{stage}" for stage in range(stages)]
            levels += [Level(each, side, side, vocabulary=quantizer.vocabulary) for each in names]
        return tuple(levels)

    @property
    def last_layer(self) -> Tensor:
        """Weight of the decoder's last convolution."""
        return self.decoder.last_layer

    @property
    def _quantizers(self) -> list[Quantizer]:
        return cast(list[Quantizer], list(self.quantizers))

    @property
    def _names(self) -> list[str]:
        inner = self.config.num_levels - 2
        middle = ["middle"] if inner == 1 else [f"middle_{place}" for place in range(1, inner + 1)]
        return ["top", *middle, "bottom"]

    def _features(self, images: Tensor) -> list[Tensor]:
        """Features (B, width, h, w) of every level."""
        features = [self.encoder(images)]
        for encoder in reversed(self.encoders):
            features.insert(0, encoder(features[0]))
        return features

    def _vectors(self, place: int, features: Tensor, above: Tensor | None) -> Tensor:
        """What is to be quantized at a level, (B, dim, h, w)."""
        seen = features if above is None else torch.cat([features, above], dim=1)
        return self.to_vectors[place](seen)

    def _pass_down(self, place: int, vectors: Tensor) -> Tensor | None:
        """What the next level sees of this one's code vectors; nothing comes after the bottom."""
        return self.decoders[place](vectors) if place < len(self.decoders) else None

    def _decode(self, vectors: list[Tensor]) -> Tensor:
        enlarged = [up(each) for up, each in zip(self.to_bottom, vectors, strict=True)]
        return self.decoder(torch.cat(enlarged, dim=1))

    def _by_level(self, codes: list[Tensor]) -> CodeMaps:
        """Codes (B, stages, h, w) of every quantizer as one map for each level."""
        maps = [stage for each in codes for stage in each.unbind(1)]
        return {level.name: each for level, each in zip(self.levels, maps, strict=True)}

    def _code_vectors(self, codes: CodeMaps) -> CodeMaps:
        maps, vectors = iter([codes[level.name] for level in self.levels]), {}
        for name, quantizer in zip(self._names, self._quantizers, strict=True):
            stages = torch.stack([next(maps) for _ in range(quantizer.stages)], dim=1)
            vectors[name] = quantizer.codes_to_vectors(stages)
        return vectors
