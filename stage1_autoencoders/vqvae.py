"""VQ-VAE (van den Oord et al., 2017, https://arxiv.org/abs/1711.00937): one map of codes."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from common.codes import CodeMaps, CodeSpec, Level
from stage1_autoencoders.autoencoder import Autoencoder, AutoencoderConfig
from stage1_autoencoders.blocks import Decoder, Encoder
from stage1_autoencoders.options import VQVAEOptions
from stage1_autoencoders.quantizers import EMACodebook, GradientCodebook

LEVEL = "codes"
_CODEBOOKS = {"ema": EMACodebook, "gradient": GradientCodebook}


class VQVAEConfig(AutoencoderConfig, VQVAEOptions):
    """The options of a VQ-VAE and the images it is made for."""

    model_type = "latent_prior_vqvae"

    def __post_init__(self, **undeclared: object) -> None:
        """Check the options, and that the resolutions fit the images.

        Raises:
            ValueError: naming the flag.
        """
        super().__post_init__(**undeclared)
        self.check_image_size(self.image_size)


@dataclass(frozen=True)
class VQVAEOutput:
    """What the objective needs.

    Attributes:
        images: reconstructions (B, channels, size, size).
        codes: the codes, int64 (B, height, width), under the level's name.
        quantizer_loss: scalar, see `quantizers`.
    """

    images: Tensor
    codes: CodeMaps
    quantizer_loss: Tensor


class VQVAE(Autoencoder):
    """Encoder, codebook, decoder."""

    config_class = VQVAEConfig
    config: VQVAEConfig

    def __init__(self, config: VQVAEConfig) -> None:
        super().__init__(config)
        widths = [config.width * multiplier for multiplier in config.multipliers]
        attention = [config.image_size >> level in config.attention for level in range(len(widths))]
        self.encoder = Encoder(
            in_channels=config.image_channels,
            out_channels=config.code_dim,
            widths=widths,
            blocks=config.blocks_per_resolution,
            attention=attention,
        )
        self.quantizer = _CODEBOOKS[config.codebook](
            size=config.codebook_size,
            dim=config.code_dim,
            distance=config.distance,
            commitment=config.commitment,
            decay=config.codebook_decay,
            restart_below=config.restart_below,
        )
        self.decoder = Decoder(
            in_channels=config.code_dim,
            out_channels=config.image_channels,
            widths=widths,
            blocks=config.blocks_per_resolution,
            attention=attention,
            upsampling=config.upsampling,
        )
        self.post_init()

    def forward(self, images: Tensor) -> VQVAEOutput:
        """Reconstruct images (B, channels, size, size) in [-1, 1]; in training mode the codebook learns from them."""
        self.check_images(images)
        quantized = self.quantizer(self.encoder(images))  # vectors (B, code_dim, h, w)
        return VQVAEOutput(
            images=self.decoder(quantized.vectors),
            codes={LEVEL: quantized.codes},
            quantizer_loss=quantized.loss,
        )

    @torch.no_grad()
    def encode(self, images: Tensor) -> CodeMaps:
        """Codes of images (B, channels, size, size) in [-1, 1]."""
        self.check_images(images)
        return {LEVEL: self.quantizer.vectors_to_codes(self.encoder(images))}

    def decode(self, codes: CodeMaps) -> Tensor:
        """Images (B, channels, size, size) of codes (B, height, width); values may lie a little outside [-1, 1]."""
        return self.decoder(self.quantizer.codes_to_vectors(codes[LEVEL]))

    @property
    def code_spec(self) -> CodeSpec:
        """One level named `codes`."""
        side = self.config.image_size // self.config.downsampling
        return CodeSpec(
            kind="codes",
            levels=(Level(LEVEL, side, side, vocabulary=self.config.codebook_size),),
            image_size=self.config.image_size,
            image_channels=self.config.image_channels,
            autoencoder_type=self.config.model_type,
            autoencoder_fingerprint=self.fingerprint,
        )
