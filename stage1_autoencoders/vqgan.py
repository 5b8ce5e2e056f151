"""VQ-VAE-GAN, known as VQGAN (Esser et al., 2021, https://arxiv.org/abs/2012.09841).

A VQ-VAE whose decoder is also trained against a critic; the critic is in `adversary.py`.
"""

from __future__ import annotations

from dataclasses import dataclass

from latent_prior.stage1_autoencoders.vqvae import VQVAE, VQVAEConfig, VQVAEOptions


@dataclass(kw_only=True)
class VQGANOptions(VQVAEOptions):
    """Shape of the VQ-VAE, and how its codebook learns; the critic's options are `--critic.*`."""

    adversarial = True


class VQGANConfig(VQVAEConfig, VQGANOptions):
    """Options of a VQGAN and the shape of its images."""

    model_type = "latent_prior_vqgan"


class VQGAN(VQVAE):
    """Encoder, quantizer, decoder; trained against a critic of reconstructions."""

    config_class = VQGANConfig
    config: VQGANConfig
