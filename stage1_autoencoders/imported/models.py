"""Tokenizers of taming-transformers, latent diffusion and LlamaGen: `ImportedVQ`, `ImportedKL`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from latent_prior.data.codes import Level
from latent_prior.options import option
from latent_prior.stage1_autoencoders.autoencoder import AutoencoderConfig
from latent_prior.stage1_autoencoders.imported.network import Decoder, Encoder, NetworkOptions
from latent_prior.stage1_autoencoders.imported.tokenizer import (
    LATENTS,
    DiscreteTokenizer,
    GaussianTokenizer,
    Lookup,
)


@dataclass(kw_only=True)
class ImportedVQOptions(NetworkOptions):
    """Shape of an imported tokenizer with codes."""

    code_dim: int = option(256, at_least=1)
    """Length of a code vector."""
    codebook_size: int = option(1024, at_least=1)
    """Number of codes."""
    search: Literal["euclidean", "cosine", "logits"] = "euclidean"
    """How a vector finds its code: see `tokenizer.Lookup`."""


class ImportedVQConfig(AutoencoderConfig, ImportedVQOptions):
    """Options of an imported tokenizer with codes and the shape of its images."""

    model_type = "latent_prior_imported_vq"


class ImportedVQ(DiscreteTokenizer):
    """VQGAN (Esser et al., 2021), with its relatives in latent diffusion and LlamaGen."""

    config_class = ImportedVQConfig
    config: ImportedVQConfig

    def __init__(self, config: ImportedVQConfig) -> None:
        super().__init__(config)
        inner = config.inner_channels
        self.encoder = Encoder(config, config.image_channels, inner)
        self.quant_conv = nn.Conv2d(inner, config.code_dim, 1)
        self.quantize = Lookup(config.codebook_size, config.code_dim, config.search)
        self.post_quant_conv = nn.Conv2d(config.code_dim, inner, 1)
        self.decoder = Decoder(config, inner, config.image_channels)
        self._store_choices(config.search)
        self.post_init()

    @property
    def downsampling(self) -> int:
        """Image pixels per code, along one side."""
        return self.config.downsampling


@dataclass(kw_only=True)
class ImportedKLOptions(NetworkOptions):
    """Shape of an imported tokenizer with latents, and what makes its latents of unit scale."""

    latent_channels: int = option(4, at_least=1)
    """Channels of the latents."""
    latent_convolutions: bool = True
    """Whether 1x1 convolutions surround the posterior."""
    shift: float = 0.0
    """Subtracted from the network's own latents."""
    scale: float = option(1.0, above=0)
    """Factor after the subtraction."""


class ImportedKLConfig(AutoencoderConfig, ImportedKLOptions):
    """Options of an imported tokenizer with latents and the shape of its images."""

    model_type = "latent_prior_imported_kl"


class ImportedKL(GaussianTokenizer):
    """The VAE of latent diffusion (Rombach et al., 2022), also of Stable Diffusion and FLUX."""

    config_class = ImportedKLConfig
    config: ImportedKLConfig

    def __init__(self, config: ImportedKLConfig) -> None:
        super().__init__(config)
        inner, latent = config.inner_channels, config.latent_channels
        self.encoder = Encoder(config, config.image_channels, 2 * inner)
        self.decoder = Decoder(config, inner, config.image_channels)
        if config.latent_convolutions:
            self.quant_conv: nn.Module = nn.Conv2d(2 * inner, 2 * latent, 1)
            self.post_quant_conv: nn.Module = nn.Conv2d(latent, inner, 1)
        else:
            self.quant_conv, self.post_quant_conv = nn.Identity(), nn.Identity()
        self._store_choices(config.shift, config.scale)
        self.post_init()

    @property
    def downsampling(self) -> int:
        """Image pixels per latent position, along one side."""
        return self.config.downsampling

    @property
    def levels(self) -> tuple[Level, ...]:
        """One level, `latents`."""
        side = self.config.image_size // self.downsampling
        return (Level(LATENTS, side, side, channels=self.config.latent_channels),)

    def affine(self) -> tuple[Tensor, Tensor]:
        """Shift and scale, float32 (1, 1, 1)."""
        both = torch.tensor([self.config.shift, self.config.scale], device=self.device)
        shift, scale = both.view(2, 1, 1, 1)
        return shift, scale
