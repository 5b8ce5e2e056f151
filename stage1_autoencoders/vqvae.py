"""VQ-VAE (van den Oord et al., 2017, https://arxiv.org/abs/1711.00937): one map of codes, or with residual stages several."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from latent_prior.data.codes import CodeMaps, Level
from latent_prior.stage1_autoencoders.autoencoder import (
    Autoencoder,
    AutoencoderConfig,
    DiscreteOutput,
)
from latent_prior.stage1_autoencoders.blocks import make_decoder, make_encoder
from latent_prior.stage1_autoencoders.objectives import quantized_objective
from latent_prior.stage1_autoencoders.options import (
    BackboneOptions,
    ModelOptions,
)
from latent_prior.stage1_autoencoders.quantizers.base import make_quantizer
from latent_prior.stage1_autoencoders.quantizers.options import QuantizerOptions


@dataclass(kw_only=True)
class VQVAEOptions(QuantizerOptions, BackboneOptions, ModelOptions):
    """Shape of a VQ-VAE and how its codebook learns."""

    reconstruction: Literal["l1", "l2"] = "l2"
    """Reconstruction error to minimise: mean absolute or mean squared difference."""


class VQVAEConfig(AutoencoderConfig, VQVAEOptions):
    """The options of a VQ-VAE and the images it is made for."""

    model_type = "latent_prior_vqvae"


class VQVAE(Autoencoder):
    """Encoder, quantizer, decoder."""

    config_class = VQVAEConfig
    config: VQVAEConfig

    def __init__(self, config: VQVAEConfig) -> None:
        super().__init__(config)
        self.quantizer = make_quantizer(config)
        size, channels = config.image_size, config.image_channels
        self.encoder = make_encoder(config, size, channels, self.quantizer.dim)
        self.decoder = make_decoder(config, size, self.quantizer.dim, channels)
        self.post_init()

    def forward(self, images: Tensor) -> DiscreteOutput:
        """Reconstruct images (B, channels, size, size) in [-1, 1]; in training mode the codebook learns from them."""
        self.check_images(images)
        quantized = self.quantizer(self.encoder(images))  # vectors (B, dim, h, w)
        return DiscreteOutput(
            images=self.decoder(quantized.vectors),
            codes=self._by_level(quantized.codes),
            quantizer_loss=quantized.loss,
        )

    def objective(self, images: Tensor, output: DiscreteOutput, step: int) -> dict[str, Tensor]:
        """Reconstruction error and the quantizer's loss (van den Oord et al., 2017, Eq. 3)."""
        return quantized_objective(images, output, self.config.reconstruction)

    @torch.no_grad()
    def encode(self, images: Tensor) -> CodeMaps:
        """Codes of images (B, channels, size, size) in [-1, 1]."""
        self.check_images(images)
        return self._by_level(self.quantizer.vectors_to_codes(self.encoder(images)))

    def decode(self, codes: CodeMaps) -> Tensor:
        """Images (B, channels, size, size) of codes (B, height, width); values may lie a little outside [-1, 1]."""
        return self.decode_vectors(self._code_vectors(codes))

    @torch.no_grad()
    def embed(self, images: Tensor) -> CodeMaps:
        """The code vectors of images, (B, dim, height, width)."""
        return self._code_vectors(self.encode(images))

    def decode_vectors(self, vectors: CodeMaps) -> Tensor:
        """Images of vectors (B, dim, height, width), which need not be code vectors."""
        return self.decoder(vectors[VECTORS])

    @property
    def levels(self) -> tuple[Level, ...]:
        """One level named `codes`; of residual stages `codes_0`, `codes_1`, ..., the roughest first."""
        side, stages = self.config.image_size // self.config.downsampling, self.quantizer.stages
        names = [LEVEL] if stages == 1 else [f"{LEVEL}_{stage}" for stage in range(stages)]
        return tuple(Level(n, side, side, vocabulary=self.quantizer.vocabulary) for n in names)

    @property
    def last_layer(self) -> Tensor:
        """Weight of the decoder's last convolution."""
        return self.decoder.last_layer

    def _by_level(self, codes: Tensor) -> CodeMaps:
        """Codes (B, stages, h, w) as one map for each level."""
        names = [level.name for level in self.levels]
        return dict(zip(names, codes.unbind(1), strict=True))

    def _code_vectors(self, codes: CodeMaps) -> CodeMaps:
        stages = torch.stack([codes[level.name] for level in self.levels], dim=1)
        return {VECTORS: self.quantizer.codes_to_vectors(stages)}


LEVEL = "codes"
VECTORS = "vectors"
