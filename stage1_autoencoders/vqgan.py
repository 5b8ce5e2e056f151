"""VQ-VAE-GAN, known as VQGAN (Esser et al., 2021, https://arxiv.org/abs/2012.09841): a VQ-VAE whose decoder must fool a critic.

The model is a VQ-VAE; what is added is its opponent in training, see `adversary`.
"""

from __future__ import annotations

from dataclasses import dataclass

from latent_prior.stage1_autoencoders.vqvae import VQVAE, VQVAEConfig, VQVAEOptions


@dataclass(kw_only=True)
class VQGANOptions(VQVAEOptions):
    """Shape of the VQ-VAE and how its codebook learns; the critic's options are `--critic.*`."""

    adversarial = True


class VQGANConfig(VQVAEConfig, VQGANOptions):
    """The options of a VQGAN and the images it is made for."""

    model_type = "latent_prior_vqgan"


class VQGAN(VQVAE):
    """Encoder, quantizer, decoder; trained against a critic of reconstructions."""

    config_class = VQGANConfig
    config: VQGANConfig
