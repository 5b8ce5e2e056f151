"""What all autoencoders of stage one have in common."""

from __future__ import annotations

import os
from abc import abstractmethod
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from latent_prior.data.codes import CodeMaps, CodeSpec, Level, write_spec
from latent_prior.models import ModelConfig, StrictModel
from latent_prior.stage1_autoencoders.options import ModelOptions


class AutoencoderConfig(ModelConfig):
    """Abstract: the images an autoencoder is made for."""

    image_size: int = 28
    """Height and width of the square images, in pixels."""
    image_channels: int = 1
    """1 (grey) or 3 (RGB)."""

    def __post_init__(self, **undeclared: Any) -> None:
        """Check the options, and that they fit the images.

        Raises:
            ValueError: naming the flag.
        """
        super().__post_init__(**undeclared)
        assert isinstance(self, ModelOptions), "a member's config has its options among its bases"
        self.check_image_size(self.image_size)


@dataclass(frozen=True)
class DiscreteOutput:
    """What an autoencoder with codebooks returns in training.

    Attributes:
        images: reconstructions (B, channels, size, size).
        codes: the codes, int64 (B, height, width), level by level.
        quantizer_loss: scalar, see `quantizers`.
    """

    images: Tensor
    codes: CodeMaps
    quantizer_loss: Tensor

    @property
    def fakes(self) -> Tensor:
        """What a critic judges: the reconstructions."""
        return self.images


class Autoencoder(StrictModel):
    """Abstract: images to codes or latents and back. Images are float32 (B, channels, size, size) in [-1, 1].

    In training `forward(images)` returns an output whose `images` are the reconstructions, and with them either `codes`
    (see `DiscreteOutput`) or a `posterior` (see `vae`), which the epoch's meters count.
    """

    config: AutoencoderConfig

    @abstractmethod
    def objective(self, images: Tensor, output: Any, step: int) -> dict[str, Tensor]:
        """The scalars this member minimises, for images and the output of `forward` for them.

        Returns:
            The terms by name, each a mean; `total` is what is minimised, `reconstruction` its part about the images.
        """

    @abstractmethod
    def encode(self, images: Tensor) -> CodeMaps:
        """Codes (integers) or latents (floats) of the images, level by level, coarse first."""

    @abstractmethod
    def decode(self, codes: CodeMaps) -> Tensor:
        """Images of the codes or latents; values may lie a little outside [-1, 1]."""

    @abstractmethod
    def embed(self, images: Tensor) -> CodeMaps:
        """Continuous vectors of the images, float (B, C, height, width) level by level: what can be mixed and moved.

        Latents themselves, or the code vectors of discrete members.
        """

    @abstractmethod
    def decode_vectors(self, vectors: CodeMaps) -> Tensor:
        """Images of vectors as `embed` returns them, or of any between and around them."""

    @property
    @abstractmethod
    def levels(self) -> tuple[Level, ...]:
        """The maps of codes or latents, coarse first."""

    @property
    @abstractmethod
    def last_layer(self) -> Tensor:
        """Weight of the decoder's last convolution, where an adaptive adversarial weight compares gradients."""

    @property
    def code_spec(self) -> CodeSpec:
        """What the codes or latents look like, with the fingerprint of these weights."""
        return CodeSpec(
            kind="latents" if self.levels[0].vocabulary is None else "codes",
            levels=self.levels,
            image_size=self.config.image_size,
            image_channels=self.config.image_channels,
            autoencoder_type=self.config.model_type,
            autoencoder_fingerprint=self.fingerprint,
        )

    def save_pretrained(  # type: ignore[override]  # as StrictModel
        self,
        save_directory: str | os.PathLike[str],
        *,
        state_dict: dict[str, Tensor] | None = None,
        max_shard_size: int | str = "50GB",
    ) -> None:
        """Write `config.json`, `model.safetensors` and `code_spec.json`; the arguments are those of `StrictModel`."""
        super().save_pretrained(
            save_directory, state_dict=state_dict, max_shard_size=max_shard_size
        )
        write_spec(self.code_spec, Path(save_directory))

    def check_images(self, images: Tensor) -> None:
        """Stop before images of another shape reach the network.

        Raises:
            ValueError: naming the expected and the found shape.
        """
        expected = (self.config.image_channels, self.config.image_size, self.config.image_size)
        if tuple(images.shape[1:]) != expected:
            raise ValueError(
                f"this autoencoder takes images of shape (B, {expected[0]}, {expected[1]}, {expected[2]}), "
                f"found {tuple(images.shape)}"
            )
