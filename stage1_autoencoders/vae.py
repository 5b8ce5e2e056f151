"""VAE (Kingma & Welling, 2014, https://arxiv.org/abs/1312.6114), with a latent vector or grid."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from latent_prior.data.codes import CodeMaps, Level
from latent_prior.losses.likelihoods import Likelihood, make_likelihood
from latent_prior.options import option
from latent_prior.stage1_autoencoders.autoencoder import Autoencoder, AutoencoderConfig
from latent_prior.stage1_autoencoders.blocks import Decoder, Encoder
from latent_prior.stage1_autoencoders.gaussian import Gaussian, beta_at, capacity_at, kl_loss
from latent_prior.stage1_autoencoders.options import BackboneOptions, ModelOptions
from latent_prior.stage1_autoencoders.pixelcnn import AutoregressiveHead

LATENTS = "latents"


@dataclass(kw_only=True)
class VAEOptions(BackboneOptions, ModelOptions):
    """Shape of a VAE, its likelihood, and its KL loss."""

    latent_channels: int = option(16, at_least=1)
    """Channels of the latent grid, or of the feature map from which a flat latent is computed."""
    latent_dim: int | None = option(64, at_least=1)
    """Length of a flat latent vector; null keeps a grid with latent_channels at each position."""
    likelihood: Literal["gaussian", "laplace", "bernoulli", "logistic"] = "gaussian"
    """Distribution of a pixel given the latent; bernoulli is for black-and-white images."""
    scale: float | None = option(None, above=0)
    """Standard deviation (laplace, logistic: scale) in units of [-1, 1]. Default: learned."""
    beta: float = option(1.0, at_least=0)
    """Weight of the KL divergence; 1 gives the evidence lower bound."""
    kl_schedule: Literal["constant", "linear", "cyclical"] = "constant"
    """Schedule of the KL weight: constant, one rise over kl_warmup_steps, or kl_cycles rises."""
    kl_warmup_steps: int = option(0, at_least=0)
    """Steps until the KL divergence has its full weight and `capacity` its full size."""
    kl_cycles: int = option(4, at_least=1)
    """Number of rises of a cyclical schedule."""
    free_bits: float = option(0.0, at_least=0)
    """KL divergence per latent dimension, in nats, without loss (Kingma et al., 2016)."""
    capacity: float = option(0.0, at_least=0)
    """Target KL divergence in nats per image (Burgess et al., 2018); 0 disables it."""
    autoregressive_layers: int = option(0, at_least=0)
    """Masked convolutions by which the decoder also reads the preceding pixels (PixelVAE)."""

    def __post_init__(self) -> None:
        """Also check the scale and the KL schedule."""
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
    """Options of a VAE and the shape of its images."""

    model_type = "latent_prior_vae"


@dataclass(frozen=True)
class VAEOutput:
    """The training output of a VAE.

    Attributes:
        images: the mean of the likelihood (B, channels, size, size).
        prediction: the decoder's output, the parameter of the likelihood; same shape.
        posterior: q(z | images), mean and log-variance (B, C, h, w); a flat latent has h = w = 1.
    """

    images: Tensor
    prediction: Tensor
    posterior: Gaussian


class VAE(Autoencoder):
    """Encoder, Gaussian posterior, decoder, likelihood."""

    config_class = VAEConfig
    config: VAEConfig
    likelihood: Likelihood

    def __init__(self, config: VAEConfig) -> None:
        super().__init__(config)
        size, pixels, channels = config.image_size, config.image_channels, config.latent_channels
        side = size // config.downsampling
        flat = config.latent_dim is not None
        self.encoder = Encoder(config, size, pixels, channels if flat else 2 * channels)
        self.decoder = Decoder(config, size, channels, pixels)
        if config.latent_dim is not None:
            features = channels * side**2
            self.to_posterior = nn.Sequential(
                nn.Flatten(),
                nn.Linear(features, 2 * config.latent_dim),
                nn.Unflatten(1, (-1, 1, 1)),
            )
            self.from_latent = nn.Sequential(
                nn.Flatten(),
                nn.Linear(config.latent_dim, features),
                nn.Unflatten(1, (channels, side, side)),
            )
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
        """Reconstruct images (B, channels, size, size); in training mode, from a sample."""
        posterior = self.posterior(images)
        latent = posterior.sample() if self.training else posterior.mean
        prediction = self._predict(latent, images)
        return VAEOutput(self.likelihood.mean(prediction), prediction, posterior)

    def objective(self, images: Tensor, output: VAEOutput, step: int) -> dict[str, Tensor]:
        """The negative ELBO (Kingma & Welling, 2014, Eq. 3) with the weighted KL of `kl_loss`.

        `total` is per pixel value, so that a learning rate suits images of any size. `nll`, `kl`
        and `elbo` are in nats per image; they and `bits_per_dim` use the unweighted KL.
        """
        config = self.config
        nll = self.likelihood.nll(images, output.prediction).mean()
        kl = output.posterior.kl()
        warmup = config.kl_warmup_steps
        beta = beta_at(
            step,
            beta=config.beta,
            schedule=config.kl_schedule,
            warmup_steps=warmup,
            cycles=config.kl_cycles,
        )
        capacity = capacity_at(step, capacity=config.capacity, warmup_steps=warmup)
        weighted_kl = kl_loss(kl, beta=beta, free_bits=config.free_bits, capacity=capacity)
        dims = math.prod(images.shape[1:])
        unweighted_kl = kl.sum((1, 2, 3)).mean()
        return {
            "reconstruction": nll / dims,
            "nll": nll,
            "kl": unweighted_kl,
            "elbo": -(nll + unweighted_kl),
            "bits_per_dim": self.likelihood.bits_per_dim(nll + unweighted_kl, dims),
            "total": (nll + weighted_kl) / dims,
        }

    def posterior(self, images: Tensor) -> Gaussian:
        """q(z | images), (B, C, h, w); a flat latent has h = w = 1."""
        self.check_images(images)
        return Gaussian(*self.to_posterior(self.encoder(images)).chunk(2, dim=1))

    def nll(self, images: Tensor, latents: Tensor) -> Tensor:
        """-log p(images | latents) in nats per image, (B,), for latents (B, C, h, w)."""
        return self.likelihood.nll(images, self._predict(latents, images))

    @torch.no_grad()
    def encode(self, images: Tensor) -> CodeMaps:
        """The posterior means, (B, C, h, w)."""
        return {LATENTS: self.posterior(images).mean}

    def decode(self, codes: CodeMaps) -> Tensor:
        """The mean of the likelihood for latents (B, C, h, w).

        With autoregressive layers, pixel by pixel, each the mean given those before it.
        """
        prediction = self._features(codes[LATENTS])
        if self.head is not None:
            return self.head.generate(prediction, self.likelihood.mean)
        return self.likelihood.mean(prediction)

    @property
    def levels(self) -> tuple[Level, ...]:
        """One level, `latents`."""
        config = self.config
        if config.latent_dim is not None:
            return (Level(LATENTS, 1, 1, channels=config.latent_dim),)
        side = config.image_size // config.downsampling
        return (Level(LATENTS, side, side, channels=config.latent_channels),)

    def _features(self, latents: Tensor) -> Tensor:
        """The decoder's output for float32 latents (B, C, h, w), in the dtype of the weights."""
        return self.decoder(self.from_latent(latents.to(self.dtype)))

    def _predict(self, latents: Tensor, images: Tensor) -> Tensor:
        """The prediction for latents (B, C, h, w); autoregressive layers read the true images."""
        prediction = self._features(latents)
        return prediction if self.head is None else self.head(prediction, images)
