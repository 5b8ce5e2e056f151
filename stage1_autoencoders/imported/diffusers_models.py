"""Tokenizers of the `diffusers` package, which computes them: `DiffusersVQ`, `DiffusersKL`.

The package's own modules are built from the fields below, never from the name of a class in a file.
The parameters keep the names that the package gives them.
"""

from __future__ import annotations

from dataclasses import dataclass, field, fields
from typing import Any, Literal

import torch
from torch import Tensor, nn

from latent_prior.data.codes import Level
from latent_prior.options import option
from latent_prior.stage1_autoencoders.autoencoder import AutoencoderConfig
from latent_prior.stage1_autoencoders.imported.network import GROUPS, check_divisible
from latent_prior.stage1_autoencoders.imported.tokenizer import (
    LATENTS,
    DiscreteTokenizer,
    GaussianTokenizer,
    Lookup,
)
from latent_prior.stage1_autoencoders.options import ModelOptions

DownBlock = Literal["DownEncoderBlock2D", "AttnDownEncoderBlock2D"]
UpBlock = Literal["UpDecoderBlock2D", "AttnUpDecoderBlock2D"]


@dataclass(kw_only=True)
class DiffusersOptions(ModelOptions):
    """Shape of the encoder and decoder; names, defaults and meaning are those of diffusers."""

    block_out_channels: list[int] = option(factory=lambda: [64], at_least=1)
    """Channels at each resolution, full resolution first."""
    down_block_types: list[DownBlock] = field(default_factory=lambda: ["DownEncoderBlock2D"])
    """Blocks of the encoder at each resolution, with or without attention."""
    up_block_types: list[UpBlock] = field(default_factory=lambda: ["UpDecoderBlock2D"])
    """Blocks of the decoder, lowest resolution first."""
    layers_per_block: int = option(1, at_least=1, at_most=1000)
    """Residual blocks per resolution of the encoder; the decoder has one more."""
    act_fn: Literal["silu", "swish", "mish", "gelu", "relu"] = "silu"
    """Activation within residual blocks."""
    norm_num_groups: int = option(32, at_least=1)
    """Groups of the norms."""
    mid_block_add_attention: bool = True
    """Whether there is self-attention in the middle."""
    force_upcast: bool = True
    """Whether pipelines of diffusers compute in float32; not used here."""
    unit_pixels: bool = False
    """Whether the network's pixels lie in [0, 1] instead of [-1, 1]; not a field of diffusers."""

    def __post_init__(self) -> None:
        """Also check that the lists fit each other.

        Raises:
            ValueError: naming the field.
        """
        super().__post_init__()
        levels = len(self.block_out_channels)
        for name in ("down_block_types", "up_block_types"):
            if len(getattr(self, name)) != levels or not levels:
                raise ValueError(
                    f"{name} must have one entry for each of block_out_channels {self.block_out_channels}"
                )
        if any(width % self.norm_num_groups for width in self.block_out_channels):
            raise ValueError(
                f"norm_num_groups {self.norm_num_groups} must divide block_out_channels {self.block_out_channels}"
            )

    @property
    def downsampling(self) -> int:
        """Image pixels per position of the lowest resolution, along one side."""
        return 2 ** (len(self.block_out_channels) - 1)

    def check_image_size(self, image_size: int) -> None:
        """Check that the image size is divisible by the downsampling.

        Raises:
            ValueError: if it is not.
        """
        check_divisible(image_size, self.downsampling)


@dataclass(kw_only=True)
class DiffusersVQOptions(DiffusersOptions):
    """Shape of a `diffusers.VQModel`."""

    latent_channels: int = option(3, at_least=1)
    """Channels between the encoder or decoder and the 1x1 convolutions."""
    num_vq_embeddings: int = option(256, at_least=1)
    """Number of codes."""
    vq_embed_dim: int | None = option(None, at_least=1)
    """Length of a code vector; null: latent_channels."""
    norm_type: Literal["group", "spatial"] = "group"
    """Norms of the decoder; `spatial` ones see the code vectors (MoVQ, Zheng et al., 2022)."""
    lookup_from_codebook: bool = False
    """Whether the package decodes codes; here a decoder takes both codes and vectors."""
    scaling_factor: float = 0.18215
    """Factor of vectors in pipelines of diffusers; not used here."""
    force_upcast: bool = False

    def __post_init__(self) -> None:
        """Also check what spatial norms need.

        Raises:
            ValueError: naming the field.
        """
        super().__post_init__()
        if self.norm_type == "spatial":
            if self.vq_embed_dim not in (None, self.latent_channels):
                raise ValueError(
                    f"norm_type spatial needs vq_embed_dim {self.vq_embed_dim} to be latent_channels {self.latent_channels}"
                )
            if any(width % GROUPS for width in self.block_out_channels):
                raise ValueError(
                    f"norm_type spatial has {GROUPS} groups, which must divide block_out_channels {self.block_out_channels}"
                )


@dataclass(kw_only=True)
class DiffusersKLOptions(DiffusersOptions):
    """Shape of a `diffusers.AutoencoderKL`, and what makes its latents of unit scale."""

    latent_channels: int = option(4, at_least=1)
    """Channels of the latents."""
    use_quant_conv: bool = True
    """Whether a 1x1 convolution follows the encoder."""
    use_post_quant_conv: bool = True
    """Whether a 1x1 convolution precedes the decoder."""
    scaling_factor: float = option(0.18215, above=0)
    """Factor of the latents."""
    shift_factor: float | None = None
    """Subtracted from the network's own latents before the factor; null: nothing."""
    latents_mean: list[float] | None = None
    """The same for each channel; it takes the place of the shift factor."""
    latents_std: list[float] | None = option(None, above=0)
    """Divides each channel."""

    def __post_init__(self) -> None:
        """Also check the statistics.

        Raises:
            ValueError: naming the field.
        """
        super().__post_init__()
        for name in ("latents_mean", "latents_std"):
            numbers = getattr(self, name)
            if numbers is not None and len(numbers) != self.latent_channels:
                raise ValueError(
                    f"{name} must have {self.latent_channels} numbers, not {len(numbers)}"
                )


class DiffusersVQConfig(AutoencoderConfig, DiffusersVQOptions):
    """Options of a `diffusers.VQModel` and the shape of its images."""

    model_type = "latent_prior_diffusers_vq"


class DiffusersKLConfig(AutoencoderConfig, DiffusersKLOptions):
    """Options of a `diffusers.AutoencoderKL` and the shape of its images."""

    model_type = "latent_prior_diffusers_kl"


class DiffusersVQ(DiscreteTokenizer):
    """`VQModel`: VQGAN (Esser et al., 2021), with spatial norms MoVQ (Zheng et al., 2022)."""

    config_class = DiffusersVQConfig
    config: DiffusersVQConfig

    def __init__(self, config: DiffusersVQConfig) -> None:
        super().__init__(config)
        model = package_model("VQModel", config, DiffusersVQOptions)
        self.encoder, self.decoder = model.encoder, model.decoder
        self.quant_conv, self.post_quant_conv = model.quant_conv, model.post_quant_conv
        dim = config.vq_embed_dim or config.latent_channels
        # The package's own look-up holds the distances to all codes in memory at once.
        self.quantize = Lookup(config.num_vq_embeddings, dim)
        self._store_choices(config.act_fn, config.norm_num_groups, config.unit_pixels)
        self.post_init()

    @property
    def downsampling(self) -> int:
        """Image pixels per code, along one side."""
        return self.config.downsampling

    @property
    def unit_pixels(self) -> bool:
        """Whether the network's pixels lie in [0, 1], as aMUSEd's do."""
        return self.config.unit_pixels

    def decode_unbounded(self, vectors: Tensor) -> Tensor:
        """The network's own pixels; spatial norms see the vectors as well."""
        condition = vectors if self.config.norm_type == "spatial" else None
        return self.decoder(self.post_quant_conv(vectors), condition)


class DiffusersKL(GaussianTokenizer):
    """`AutoencoderKL`, the VAE of latent diffusion (Rombach et al., 2022)."""

    config_class = DiffusersKLConfig
    config: DiffusersKLConfig

    def __init__(self, config: DiffusersKLConfig) -> None:
        super().__init__(config)
        model = package_model("AutoencoderKL", config, DiffusersKLOptions)
        self.encoder, self.decoder = model.encoder, model.decoder
        self.quant_conv = model.quant_conv or nn.Identity()
        self.post_quant_conv = model.post_quant_conv or nn.Identity()
        scale = config.scaling_factor, config.shift_factor, config.latents_mean, config.latents_std
        self._store_choices(config.act_fn, config.norm_num_groups, config.unit_pixels, *scale)
        self.post_init()

    @property
    def downsampling(self) -> int:
        """Image pixels per latent position, along one side."""
        return self.config.downsampling

    @property
    def unit_pixels(self) -> bool:
        """Whether the network's pixels lie in [0, 1]."""
        return self.config.unit_pixels

    @property
    def levels(self) -> tuple[Level, ...]:
        """One level, `latents`."""
        side = self.config.image_size // self.downsampling
        return (Level(LATENTS, side, side, channels=self.config.latent_channels),)

    def affine(self) -> tuple[Tensor, Tensor]:
        """Shift and scale, float32 (C, 1, 1) or (1, 1, 1), as the package's pipelines have them."""
        config = self.config
        shift = torch.tensor(
            config.latents_mean or [config.shift_factor or 0.0], device=self.device
        )
        divisor = torch.tensor(config.latents_std or [1.0], device=self.device)
        return shift[:, None, None], (config.scaling_factor / divisor)[:, None, None]


def package_fields(options: type[DiffusersOptions]) -> list[str]:
    """The names of the options that are fields of a config of diffusers."""
    return [each.name for each in fields(options) if each.name != "unit_pixels"]


def package_model(name: str, config: Any, options: type[DiffusersOptions]) -> Any:
    """A model of the package for the options of a config, with random weights.

    Raises:
        ValueError: the package is missing, or cannot build a model of this shape.
    """
    try:
        import diffusers
    except ImportError as error:
        raise ValueError(
            "a tokenizer in diffusers' format needs the extra `diffusers`: "
            'pip install "latent-prior[diffusers]"'
        ) from error
    shape = {each: getattr(config, each) for each in package_fields(options)}
    channels = config.image_channels
    built = {"VQModel": diffusers.VQModel, "AutoencoderKL": diffusers.AutoencoderKL}[name]
    return built(in_channels=channels, out_channels=channels, **shape)
