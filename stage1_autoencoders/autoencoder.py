"""What all autoencoders of stage one have in common."""

from __future__ import annotations

import os
from abc import abstractmethod
from pathlib import Path

from torch import Tensor

from common.codes import CodeMaps, CodeSpec, write_spec
from common.pretrained import ModelConfig, StrictModel


class AutoencoderConfig(ModelConfig):
    """Abstract: the images an autoencoder is made for."""

    image_size: int = 28
    """Height and width of the square images, in pixels."""
    image_channels: int = 1
    """1 (grey) or 3 (RGB)."""


class Autoencoder(StrictModel):
    """Abstract: images to codes and back. Images are float32 (B, channels, size, size) in [-1, 1]."""

    config: AutoencoderConfig

    @abstractmethod
    def encode(self, images: Tensor) -> CodeMaps:
        """Codes of the images, level by level, coarse first."""

    @abstractmethod
    def decode(self, codes: CodeMaps) -> Tensor:
        """Images of the codes; values may lie a little outside [-1, 1]."""

    @property
    @abstractmethod
    def code_spec(self) -> CodeSpec:
        """What the codes look like, with the fingerprint of these weights."""

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
