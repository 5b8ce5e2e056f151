"""VQ-VAE (van den Oord et al., 2017, https://arxiv.org/abs/1711.00937): images as maps of codes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import torch
from torch import Tensor, nn

from latent_prior.data.codes import CodeMaps, Level
from latent_prior.losses.bounded import bounded
from latent_prior.stage1_autoencoders.autoencoder import (
    Autoencoder,
    AutoencoderConfig,
    DiscreteOutput,
    quantized_objective,
)
from latent_prior.stage1_autoencoders.blocks import Decoder, Encoder
from latent_prior.stage1_autoencoders.imported import network as ddpm
from latent_prior.stage1_autoencoders.options import (
    BackboneOptions,
    ModelOptions,
    QuantizerOptions,
)
from latent_prior.stage1_autoencoders.quantizers import (
    QUANTIZERS,
    check_quantizer,
    make_quantizer,
)

if TYPE_CHECKING:
    QuantizerName = str
else:  # the choices that --help shows
    QuantizerName = Literal[tuple(QUANTIZERS)]

CODES, VECTORS = "codes", "vectors"


@dataclass(kw_only=True)
class VQVAEOptions(QuantizerOptions, BackboneOptions, ModelOptions):
    """Shape of a VQ-VAE, and how its codebook learns."""

    quantizer: QuantizerName = "ema"
    network: Literal["plain", "ddpm"] = "plain"
    """Encoder and decoder: this project's, or VQGAN's own (Esser et al., 2021), which diffusers can
    compute; the latter have attention in the middle and one more block per decoder resolution."""
    reconstruction: Literal["l1", "l2"] = "l2"
    """Reconstruction error to minimise: mean absolute or mean squared difference."""

    def __post_init__(self) -> None:
        """Also check that the options fit the quantizer."""
        super().__post_init__()
        check_quantizer(self)
        if self.network == "ddpm":
            self._check_ddpm()

    def _check_ddpm(self) -> None:
        """Check what that network cannot have.

        Raises:
            ValueError: naming the flag.
        """
        if not isinstance(self.blocks, int) or self.blocks < 1:
            raise ValueError(
                f"--model.network ddpm needs --model.blocks to be one number above 0, not {self.blocks}"
            )
        if self.upsampling != "nearest":
            raise ValueError("--model.network ddpm needs --model.upsampling nearest")
        for multiplier in self.multipliers:
            if self.width * multiplier % ddpm.GROUPS:
                raise ValueError(
                    f"--model.network ddpm needs --model.width times each multiplier to be divisible by "
                    f"{ddpm.GROUPS}, not {self.width} x {multiplier}"
                )

    def ddpm_shape(self, image_size: int, code_dim: int) -> ddpm.NetworkOptions:
        """The shape of encoder and decoder with `network` ddpm."""
        widths = [self.width * multiplier for multiplier in self.multipliers]
        assert isinstance(self.blocks, int)
        return ddpm.NetworkOptions(
            width=widths[0],
            encoder_widths=widths,
            decoder_widths=widths,
            blocks=self.blocks,
            attention_levels=[
                level for level in range(len(widths)) if image_size >> level in self.attention
            ],
            inner_channels=code_dim,
        )


class VQVAEConfig(AutoencoderConfig, VQVAEOptions):
    """Options of a VQ-VAE and the shape of its images."""

    model_type = "latent_prior_vqvae"


class VQVAE(Autoencoder):
    """Encoder, quantizer, decoder."""

    config_class = VQVAEConfig
    config: VQVAEConfig

    def __init__(self, config: VQVAEConfig) -> None:
        super().__init__(config)
        self.quantizer = make_quantizer(config)
        size, channels = config.image_size, config.image_channels
        dim = self.quantizer.dim
        self.encoder: nn.Module
        self.decoder: nn.Module
        if config.network == "ddpm":
            shape = config.ddpm_shape(size, dim)
            self.encoder = ddpm.Encoder(shape, channels, dim)
            self.decoder = ddpm.Decoder(shape, dim, channels)
        else:
            self.encoder = Encoder(config, size, channels, dim)
            self.decoder = Decoder(config, size, dim, channels)
        self.post_init()

    def forward(self, images: Tensor) -> DiscreteOutput:
        """Reconstruct images (B, channels, size, size); in training mode, update the codebook."""
        self.check_images(images)
        quantized = self.quantizer(self.encoder(images))  # vectors (B, dim, h, w)
        return DiscreteOutput(
            images=bounded(self.decoder(quantized.vectors)),
            codes=self._by_level(quantized.codes),
            quantizer_loss=quantized.loss,
        )

    def objective(self, images: Tensor, output: DiscreteOutput, step: int) -> dict[str, Tensor]:
        """Reconstruction error and quantizer loss (van den Oord et al., 2017, Eq. 3)."""
        return quantized_objective(images, output, self.config.reconstruction)

    @torch.no_grad()
    def encode(self, images: Tensor) -> CodeMaps:
        """Codes (B, height, width) of images (B, channels, size, size)."""
        self.check_images(images)
        return self._by_level(self.quantizer.vectors_to_codes(self.encoder(images)))

    def decode(self, codes: CodeMaps) -> Tensor:
        """Images (B, channels, size, size) of codes (B, height, width)."""
        return self.decode_vectors(self.code_vectors(codes))

    @torch.no_grad()
    def embed(self, images: Tensor) -> CodeMaps:
        """The code vectors of images, (B, dim, height, width)."""
        return self.code_vectors(self.encode(images))

    def decode_vectors(self, vectors: CodeMaps) -> Tensor:
        """Images of any vectors (B, dim, height, width), code vectors or not."""
        return bounded(self.decoder(vectors[VECTORS]))

    @property
    def levels(self) -> tuple[Level, ...]:
        """One level `codes`; with residual stages `codes_0`, `codes_1`, ..., coarse first."""
        side, stages = self.config.image_size // self.config.downsampling, self.quantizer.stages
        names = [CODES] if stages == 1 else [f"{CODES}_{stage}" for stage in range(stages)]
        return tuple(
            Level(name, side, side, vocabulary=self.quantizer.vocabulary) for name in names
        )

    def _by_level(self, codes: Tensor) -> CodeMaps:
        """Codes (B, stages, h, w) as one map for each level."""
        names = [level.name for level in self.levels]
        return dict(zip(names, codes.unbind(1), strict=True))

    def code_vectors(self, codes: CodeMaps) -> CodeMaps:
        """The vectors of codes (B, height, width), (B, dim, height, width)."""
        stages = torch.stack([codes[level.name] for level in self.levels], dim=1)
        return {VECTORS: self.quantizer.codes_to_vectors(stages)}
