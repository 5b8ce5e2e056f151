"""The interface of every autoencoder of stage 1, and the loss of those with codes."""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Generator, Tensor

from latent_prior.data.codes import CodeMaps, CodeSpec, Level, write_spec
from latent_prior.losses.likelihoods import Likelihood
from latent_prior.models import ModelConfig, StrictModel
from latent_prior.stage1_autoencoders.blocks import Decoder
from latent_prior.stage1_autoencoders.gaussian import Gaussian
from latent_prior.stage1_autoencoders.imported import network
from latent_prior.stage1_autoencoders.options import ModelOptions


class AutoencoderConfig(ModelConfig):
    """Abstract: the shape of an autoencoder's images."""

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
        assert isinstance(self, ModelOptions), "a config must also inherit its model's options"
        self.check_image_size(self.image_size)


class Autoencoder(StrictModel):
    """Abstract: images to codes or latents and back.

    Images and reconstructions are float32 (B, channels, size, size) in [-1, 1].
    In training `forward(images)` returns an output with the reconstructions, `images`, and either
    `codes` (see `DiscreteOutput`) or a `posterior` (a `Gaussian`); with a critic, also `fakes`.

    A model with latents defines `likelihood`, `posterior` and `nll`; one with codes defines none.
    An imported one with latents has a posterior but no likelihood, and is not trained.
    """

    config_class: type[AutoencoderConfig] = AutoencoderConfig
    config: AutoencoderConfig
    likelihood: Likelihood | None
    """Distribution p(image | latents); None for a model with codes or from elsewhere."""

    def __init__(self, config: AutoencoderConfig) -> None:
        super().__init__(config)
        self.likelihood = None

    @abstractmethod
    def objective(self, images: Tensor, output: Any, step: int) -> dict[str, Tensor]:
        """The loss and its terms, for images and the output of `forward` for them.

        Returns:
            Scalars by name; `total` is minimised, `reconstruction` is its reconstruction error.
        """

    def posterior(self, images: Tensor) -> Gaussian | None:
        """q(latents | images), (B, C, h, w); None for a model with codes."""
        return None

    def nll(self, images: Tensor, latents: Tensor) -> Tensor:
        """-log p(images | latents) in nats per image, (B,), for latents (B, C, h, w)."""
        raise NotImplementedError("this model has no likelihood")

    @torch.no_grad()
    def negative_elbo(self, images: Tensor, generator: Generator | None = None) -> Tensor:
        """Upper bound of -log p(images) in nats per image, (B,), from one posterior sample each.

        Args:
            images: (B, C, H, W) in [-1, 1].
            generator: source of the noise. Default: torch's global generator.
        """
        posterior = self.posterior(images)
        assert posterior is not None, "a model with codes has no posterior"
        return self.nll(images, posterior.sample(generator)) + posterior.kl().sum((1, 2, 3))

    @abstractmethod
    def encode(self, images: Tensor) -> CodeMaps:
        """Codes (int64) or latents (float) of images by level, coarse first."""

    @abstractmethod
    def decode(self, codes: CodeMaps) -> Tensor:
        """Images of codes or latents."""

    def embed(self, images: Tensor) -> CodeMaps:
        """Latents or code vectors of images by level, float (B, C, height, width)."""
        return self.encode(images)

    def code_vectors(self, codes: CodeMaps) -> CodeMaps:
        """The vectors that `embed` returns for images of these codes; the maps may have any size.

        Latents are their own vectors.
        """
        return codes

    def decode_vectors(self, vectors: CodeMaps) -> Tensor:
        """Images of vectors as `embed` returns them, or of any others, such as interpolations."""
        return self.decode(vectors)

    @property
    @abstractmethod
    def levels(self) -> tuple[Level, ...]:
        """Names and shapes of the maps of codes or latents, coarse first."""

    @property
    def last_layer(self) -> Tensor:
        """Weight of the decoder's last convolution, for the adaptive adversarial weight."""
        assert isinstance(self.decoder, Decoder | network.Decoder), "others are not trained"
        return self.decoder.last_layer

    @property
    def code_spec(self) -> CodeSpec:
        """Format of the codes or latents, with the fingerprint of these weights."""
        return CodeSpec(
            kind="latents" if self.levels[0].vocabulary is None else "codes",
            levels=self.levels,
            image_size=self.config.image_size,
            image_channels=self.config.image_channels,
            autoencoder_type=self.config.model_type,
            autoencoder_fingerprint=self.fingerprint,
        )

    def _write_description(self, folder: Path) -> None:
        """Write `code_spec.json`."""
        write_spec(self.code_spec, folder)

    def check_images(self, images: Tensor) -> None:
        """Check the shape of images.

        Raises:
            ValueError: naming the expected and the actual shape.
        """
        expected = (self.config.image_channels, self.config.image_size, self.config.image_size)
        if tuple(images.shape[1:]) != expected:
            raise ValueError(
                f"this autoencoder takes images of shape (B, {expected[0]}, {expected[1]}, {expected[2]}), "
                f"found {tuple(images.shape)}"
            )


@dataclass(frozen=True)
class DiscreteOutput:
    """The training output of an autoencoder with codes.

    Attributes:
        images: reconstructions (B, channels, size, size).
        codes: int64 (B, height, width) by level.
        quantizer_loss: scalar, see `quantizers`.
    """

    images: Tensor
    codes: CodeMaps
    quantizer_loss: Tensor

    @property
    def fakes(self) -> Tensor:
        """The input of a critic: the reconstructions."""
        return self.images


def quantized_objective(
    images: Tensor, output: DiscreteOutput, reconstruction: Literal["l1", "l2"]
) -> dict[str, Tensor]:
    """The loss of autoencoders with codes (van den Oord et al., 2017, Eq. 3).

    Args:
        images: originals (B, C, H, W) in [-1, 1].
        output: the model's output for them.
        reconstruction: mean absolute (`l1`) or mean squared (`l2`) error.

    Returns:
        Scalars `reconstruction`, `quantizer` and their sum `total`.
    """
    error_of = F.l1_loss if reconstruction == "l1" else F.mse_loss
    error = error_of(output.images.float(), images.float())
    return {
        "reconstruction": error,
        "quantizer": output.quantizer_loss,
        "total": error + output.quantizer_loss,
    }
