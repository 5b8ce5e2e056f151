"""VAE-GAN (Larsen et al., 2016, https://arxiv.org/abs/1512.09300): a VAE whose decoder must fool a critic.

The model is a VAE; what is added is its opponent in training, see `adversary`. The critic judges reconstructions and
images decoded from N(0, I) alike, and its features can take the place of the pixels in the reconstruction error.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from latent_prior.options import option
from latent_prior.stage1_autoencoders.vae import VAE, VAEConfig, VAEOptions, VAEOutput


@dataclass(kw_only=True)
class VAEGANOptions(VAEOptions):
    """Shape of the VAE and its likelihood; the critic's options are `--critic.*`."""

    pixel_weight: float = option(1.0, at_least=0)
    """Weight of the pixels' likelihood; 0 leaves the reconstruction to `--critic.feature_matching` alone."""

    adversarial = True

    def __post_init__(self) -> None:
        """Check every number against its range.

        Raises:
            ValueError: naming the flag.
        """
        super().__post_init__()
        if self.autoregressive_layers:
            raise ValueError(
                "--model.autoregressive_layers must be 0: a critic would judge images drawn pixel by pixel"
            )


class VAEGANConfig(VAEConfig, VAEGANOptions):
    """The options of a VAE-GAN and the images it is made for."""

    model_type = "latent_prior_vaegan"


@dataclass(frozen=True)
class VAEGANOutput(VAEOutput):
    """What the objective and the critic need.

    Attributes:
        fakes: what the critic judges. In training the reconstructions once more, without a way back to the encoder,
            and behind them images decoded from N(0, I): (2 B, channels, size, size). Otherwise the reconstructions.
    """

    fakes: Tensor


class VAEGAN(VAE):
    """Encoder, Gaussian posterior, decoder, likelihood; trained against a critic of reconstructions and samples."""

    config_class = VAEGANConfig
    config: VAEGANConfig

    def forward(self, images: Tensor) -> VAEGANOutput:
        """As a VAE's; in training mode with what the critic judges.

        The adversarial loss teaches the decoder alone (Larsen et al., 2016, Algorithm 1): an encoder that may help to
        deceive the critic gives up the latent space for it.
        """
        posterior = self.posterior(images)
        if not self.training:
            prediction = self._features(posterior.mean)
            means = self.likelihood.mean(prediction)
            return VAEGANOutput(means, prediction, posterior, fakes=means)
        latent = posterior.sample()
        latents = torch.cat([latent, latent.detach(), torch.randn_like(latent)])
        prediction, judged = self._features(latents).split([len(images), 2 * len(images)])
        means = self.likelihood.mean(prediction)
        return VAEGANOutput(means, prediction, posterior, fakes=self.likelihood.mean(judged))

    def objective(self, images: Tensor, output: VAEOutput, step: int) -> dict[str, Tensor]:
        """A VAE's, with the pixels' likelihood weighed by `pixel_weight` (Larsen et al., 2016, Eq. 8)."""
        terms = super().objective(images, output, step)
        pixels = self.config.pixel_weight * terms["reconstruction"]
        total = terms["total"] - terms["reconstruction"] + pixels
        return terms | {"reconstruction": pixels, "total": total}
