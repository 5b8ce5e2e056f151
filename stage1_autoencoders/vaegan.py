"""VAE-GAN (Larsen et al., 2016, https://arxiv.org/abs/1512.09300).

A VAE whose decoder is also trained against a critic of reconstructions and of images decoded from
N(0, I); the critic is in `adversary.py`. Its features can replace the pixels in the reconstruction
error.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from latent_prior.options import option
from latent_prior.stage1_autoencoders.gaussian import standard_normal
from latent_prior.stage1_autoencoders.vae import VAE, VAEConfig, VAEOptions, VAEOutput


@dataclass(kw_only=True)
class VAEGANOptions(VAEOptions):
    """Options of the VAE; the critic's are `--critic.*`."""

    pixel_weight: float = option(1.0, at_least=0)
    """Weight of the pixels' likelihood; 0 leaves only `--critic.feature_matching`."""

    adversarial = True

    def __post_init__(self) -> None:
        """Also refuse autoregressive layers."""
        super().__post_init__()
        if self.autoregressive_layers:
            raise ValueError(
                "--model.autoregressive_layers must be 0: a critic needs images that are not sampled pixel by pixel"
            )


class VAEGANConfig(VAEConfig, VAEGANOptions):
    """Options of a VAE-GAN and the shape of its images."""

    model_type = "latent_prior_vaegan"


@dataclass(frozen=True)
class VAEGANOutput(VAEOutput):
    """The training output of a VAE-GAN.

    Attributes:
        fakes: the critic's input. In training mode (2 B, channels, size, size): the reconstructions
            without gradient to the encoder, then images decoded from N(0, I); in evaluation mode
            the reconstructions.
    """

    fakes: Tensor


class VAEGAN(VAE):
    """A VAE that is trained against a critic of reconstructions and samples."""

    config_class = VAEGANConfig
    config: VAEGANConfig

    def forward(self, images: Tensor) -> VAEGANOutput:
        """Reconstruct images as a VAE; in training mode, also decode samples for the critic.

        Only the decoder gets the adversarial gradient (Larsen et al., 2016, Algorithm 1): an
        encoder that is trained to fool the critic gives up the latent space for it.
        """
        posterior = self.posterior(images)
        if not self.training:
            prediction = self._features(posterior.mean)
            means = self.likelihood.mean(prediction)
            return VAEGANOutput(means, prediction, posterior, fakes=means)
        latent = posterior.sample()
        latents = torch.cat([latent, latent.detach(), standard_normal(latent)])
        prediction, fake_prediction = self._features(latents).split([len(images), 2 * len(images)])
        means = self.likelihood.mean(prediction)
        fakes = self.likelihood.mean(fake_prediction)
        return VAEGANOutput(means, prediction, posterior, fakes=fakes)

    def objective(self, images: Tensor, output: VAEOutput, step: int) -> dict[str, Tensor]:
        """The VAE's, with `pixel_weight` on the likelihood (Larsen et al., 2016, Eq. 8)."""
        terms = super().objective(images, output, step)
        pixels = self.config.pixel_weight * terms["reconstruction"]
        total = terms["total"] - terms["reconstruction"] + pixels
        return terms | {"reconstruction": pixels, "total": total}
