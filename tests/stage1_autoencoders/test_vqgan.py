"""VQGAN: the very model of the VQ-VAE, trained against a critic."""

import pytest
import torch

from latent_prior.stage1_autoencoders.options import TrainOptions
from latent_prior.stage1_autoencoders.vqgan import VQGAN, VQGANConfig, VQGANOptions
from latent_prior.stage1_autoencoders.vqvae import VQVAE, VQVAEConfig, VQVAEOptions

SHAPE = {"width": 8, "multipliers": [1, 2], "codebook_size": 16, "code_dim": 4, "image_size": 8}


def test_it_is_a_vqvae_with_an_opponent():
    models = []
    for model, config in ((VQGAN, VQGANConfig), (VQVAE, VQVAEConfig)):
        torch.manual_seed(0)
        models.append(model(config(**SHAPE)))
    pixels = torch.rand(4, 1, 8, 8) * 2 - 1
    outputs = []
    for model in models:
        torch.manual_seed(1)  # k-means draws its first centres
        outputs.append(model(pixels))
    ours, its = outputs
    assert torch.equal(ours.images, its.images)
    assert torch.equal(ours.fakes, ours.images)
    assert models[0].objective(pixels, ours, 0) == models[1].objective(pixels, its, 0)
    assert models[0].state_dict().keys() == models[1].state_dict().keys()
    assert (VQGANOptions.adversarial, VQVAEOptions.adversarial) == (True, False)


def test_neither_loads_the_others_folder(tmp_path):
    VQGAN(VQGANConfig(**SHAPE)).save_pretrained(tmp_path)
    assert VQGAN.from_pretrained(tmp_path).code_spec.autoencoder_type == "latent_prior_vqgan"
    with pytest.raises(ValueError, match=r"'latent_prior_vqgan', expected 'latent_prior_vqvae'"):
        VQVAE.from_pretrained(tmp_path)


def test_its_options_are_checked_as_a_vqvaes():
    for options_class in (VQGANOptions, VQGANConfig):
        for name, value in (("codebook_size", 1), ("reconstruction", "l3"), ("width", 0)):
            with pytest.raises(ValueError, match=f"--model.{name}"):
                options_class(**{name: value})


def test_only_a_member_with_a_critic_takes_the_critics_options():
    critic = TrainOptions(output_dir="x", model=VQGANOptions()).critic
    critic.weight = 0.5
    TrainOptions(output_dir="x", model=VQGANOptions(), critic=critic)
    with pytest.raises(ValueError, match=r"--critic\.\*: --model.type vqvae is trained without"):
        TrainOptions(output_dir="x", model=VQVAEOptions(), critic=critic)
