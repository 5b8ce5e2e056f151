"""VAE (Kingma & Welling, 2014, https://arxiv.org/abs/1312.6114): a Gaussian latent vector, or a grid of them."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from latent_prior.data.codes import CodeMaps, Level
from latent_prior.options import option
from latent_prior.stage1_autoencoders.autoencoder import Autoencoder, AutoencoderConfig
from latent_prior.stage1_autoencoders.blocks import make_decoder, make_encoder
from latent_prior.stage1_autoencoders.kl import beta_at, capacity_at, kl_loss
from latent_prior.stage1_autoencoders.likelihoods import make_likelihood
from latent_prior.stage1_autoencoders.options import BackboneOptions, ModelOptions
from latent_prior.stage1_autoencoders.pixelcnn import AutoregressiveHead
from latent_prior.stage1_autoencoders.posteriors import Gaussian


@dataclass(kw_only=True)
class VAEOptions(BackboneOptions, ModelOptions):
    """Shape of a VAE, what it takes the pixels' distribution to be, and what keeps its latent alive."""

    latent_channels: int = option(16, at_least=1)
    """Channels of the latent grid; of a flat latent, of the feature map that it is computed from."""
    latent_dim: int | None = option(64, at_least=1)
    """Length of the flat latent vector; null keeps a grid, with latent_channels numbers at every place."""
    likelihood: Literal["gaussian", "laplace", "bernoulli", "logistic"] = "gaussian"
    """Distribution of a pixel around the decoder's output; bernoulli is for black-and-white images."""
    scale: float | None = option(None, above=0)
    """Standard deviation (laplace, logistic: scale) of a pixel in units of [-1, 1]; null learns one per colour."""
    beta: float = option(1.0, at_least=0)
    """Weight of the KL divergence; with 1 the objective is the evidence lower bound."""
    kl_schedule: Literal["constant", "linear", "cyclical"] = "constant"
    """How beta is reached: at once, in one rise over kl_warmup_steps, or in kl_cycles rises within them."""
    kl_warmup_steps: int = option(0, at_least=0)
    """Steps until the KL divergence has its full weight, or `capacity` its full size."""
    kl_cycles: int = option(4, at_least=1)
    """Rises of a cyclical schedule."""
    free_bits: float = option(0.0, at_least=0)
    """KL divergence of each latent dimension, in nats, that costs nothing (Kingma et al., 2016)."""
    capacity: float = option(0.0, at_least=0)
    """KL divergence in nats per image that is aimed at (Burgess et al., 2018); 0 makes it as small as it gets."""
    autoregressive_layers: int = option(0, at_least=0)
    """Masked convolutions that let the decoder see the pixels before each pixel: a decoder that may not need the latent."""

    def __post_init__(self) -> None:
        """Check every number against its range.

        Raises:
            ValueError: naming the flag.
        """
        super().__post_init__()
        if self.scale is not None and self.likelihood == "bernoulli":
            raise ValueError(
                "--model.scale: --model.likelihood bernoulli has no scale; leave the flag out"
            )
        if self.kl_schedule != "constant" and not self.kl_warmup_steps:
            raise ValueError(
                f"--model.kl_schedule {self.kl_schedule} needs --model.kl_warmup_steps"
            )


class VAEConfig(AutoencoderConfig, VAEOptions):
    """The options of a VAE and the images it is made for."""

    model_type = "latent_prior_vae"


@dataclass(frozen=True)
class VAEOutput:
    """What the objective needs.

    Attributes:
        images: the mean of the pixels' distribution (B, channels, size, size).
        prediction: the decoder's output, from which the likelihood makes that distribution; same shape.
        posterior: q(z | images), mean and log-variance (B, C, h, w); a flat latent has h = w = 1.
    """

    images: Tensor
    prediction: Tensor
    posterior: Gaussian


class VAE(Autoencoder):
    """Encoder, Gaussian posterior, decoder, likelihood."""

    config_class = VAEConfig
    config: VAEConfig

    def __init__(self, config: VAEConfig) -> None:
        super().__init__(config)
        size, pixels, channels = config.image_size, config.image_channels, config.latent_channels
        side = size // config.downsampling
        flat = config.latent_dim is not None
        self.encoder = make_encoder(config, size, pixels, channels if flat else 2 * channels)
        self.decoder = make_decoder(config, size, channels, pixels)
        if config.latent_dim is not None:
            features = channels * side**2
            self.to_posterior = nn.Sequential(
                nn.Flatten(),
                nn.Linear(features, 2 * config.latent_dim),
                nn.Unflatten(1, (-1, 1, 1)),
            )
            self.from_latent = nn.Sequential(
                nn.Flatten(), nn.Linear(config.latent_dim, features), nn.Unflatten(1, (channels, side, side))
            )  # fmt: skip
        else:
            self.to_posterior, self.from_latent = nn.Sequential(), nn.Sequential()
        self.head = (
            AutoregressiveHead(pixels, width=config.width, layers=config.autoregressive_layers)
            if config.autoregressive_layers
            else None
        )
        self.likelihood = make_likelihood(config.likelihood, channels=pixels, scale=config.scale)
        self.post_init()

    def forward(self, images: Tensor) -> VAEOutput:
        """Reconstruct images (B, channels, size, size) in [-1, 1]; in training mode from a draw of the posterior."""
        posterior = self.posterior(images)
        latent = posterior.sample() if self.training else posterior.mean
        prediction = self._predict(latent, images)
        return VAEOutput(self.likelihood.mean(prediction), prediction, posterior)

    def objective(self, images: Tensor, output: VAEOutput, step: int) -> dict[str, Tensor]:
        """The negative evidence lower bound (Kingma & Welling, 2014, Eq. 3), with what keeps the posterior from collapsing.

        `total` is per pixel value, so that a learning rate suits images of any size; `nll`, `kl` and `elbo` are nats
        per image, `bits_per_dim` the bound with the plain KL divergence, whatever its weight in training.
        """
        config = self.config
        nll, kl = self.likelihood.nll(images, output.prediction).mean(), output.posterior.kl()
        weighted = kl_loss(
            kl,
            beta=beta_at(
                step,
                beta=config.beta,
                schedule=config.kl_schedule,
                warmup_steps=config.kl_warmup_steps,
                cycles=config.kl_cycles,
            ),
            free_bits=config.free_bits,
            capacity=capacity_at(
                step, capacity=config.capacity, warmup_steps=config.kl_warmup_steps
            ),
        )
        dims = math.prod(images.shape[1:])
        plain = kl.sum((1, 2, 3)).mean()
        return {
            "reconstruction": nll / dims,
            "nll": nll,
            "kl": plain,
            "elbo": -(nll + plain),
            "bits_per_dim": self.likelihood.bits_per_dim(nll + plain, dims),
            "total": (nll + weighted) / dims,
        }

    def posterior(self, images: Tensor) -> Gaussian:
        """q(z | images) of images (B, channels, size, size) in [-1, 1]; (B, C, h, w), a flat latent has h = w = 1."""
        self.check_images(images)
        return Gaussian(*self.to_posterior(self.encoder(images)).chunk(2, dim=1))

    @torch.no_grad()
    def negative_elbo(self, images: Tensor) -> Tensor:
        """Upper bound of -log p(images) in nats per image, (B,), from one draw of the posterior for each."""
        posterior = self.posterior(images)
        nll = self.likelihood.nll(images, self._predict(posterior.sample(), images))
        return nll + posterior.kl().sum((1, 2, 3))

    @torch.no_grad()
    def encode(self, images: Tensor) -> CodeMaps:
        """Means of the posterior, (B, C, h, w)."""
        return {LEVEL: self.posterior(images).mean}

    def decode(self, codes: CodeMaps) -> Tensor:
        """Images of latents (B, C, h, w): the mean of the pixels' distribution.

        With autoregressive layers pixel after pixel, each the mean given the ones before it.
        """
        prediction = self._features(codes[LEVEL])
        if self.head is not None:
            return self.head.generate(prediction, self.likelihood.mean)
        return self.likelihood.mean(prediction)

    def embed(self, images: Tensor) -> CodeMaps:
        """As `encode`."""
        return self.encode(images)

    def decode_vectors(self, vectors: CodeMaps) -> Tensor:
        """As `decode`."""
        return self.decode(vectors)

    @property
    def levels(self) -> tuple[Level, ...]:
        """One level named `latents`."""
        config = self.config
        if config.latent_dim is not None:
            return (Level(LEVEL, 1, 1, channels=config.latent_dim),)
        side = config.image_size // config.downsampling
        return (Level(LEVEL, side, side, channels=config.latent_channels),)

    @property
    def last_layer(self) -> Tensor:
        """Weight of the decoder's last convolution."""
        return self.decoder.last_layer

    def _features(self, latents: Tensor) -> Tensor:
        """The decoder's output for latents (B, C, h, w); they are float32, the weights may have been loaded as half."""
        return self.decoder(self.from_latent(latents.to(self.dtype)))

    def _predict(self, latent: Tensor, images: Tensor) -> Tensor:
        """The decoder's output for latents (B, C, h, w); autoregressive layers see the true pixels before each."""
        prediction = self._features(latent)
        return prediction if self.head is None else self.head(prediction, images)


LEVEL = "latents"
