"""VAE-GAN: the model of the VAE; what its critic gets to see, and what the pixels weigh."""

import pytest
import torch
from torch import Tensor

from latent_prior.stage1_autoencoders.vae import VAE, VAEConfig
from latent_prior.stage1_autoencoders.vaegan import VAEGAN, VAEGANConfig, VAEGANOptions

SHAPE = {"width": 8, "multipliers": [1, 2], "latent_channels": 3, "latent_dim": 5, "image_size": 8}


def small(**options) -> VAEGAN:
    torch.manual_seed(0)
    return VAEGAN(VAEGANConfig(**{**SHAPE, **options}))


def images(count: int = 6) -> Tensor:
    return torch.rand(count, 1, 8, 8, generator=torch.Generator().manual_seed(1)) * 2 - 1


def test_it_is_a_vae_with_an_opponent():
    model, peer = small(), VAE(VAEConfig(**SHAPE))
    peer.load_state_dict(model.state_dict())
    for each in (model, peer):
        each.eval()
    with torch.no_grad():
        ours, its = model(images()), peer(images())
        assert torch.equal(ours.images, its.images)
        assert torch.equal(ours.fakes, ours.images)
        assert torch.equal(model.encode(images())["latents"], peer.encode(images())["latents"])
    terms = [each.objective(images(), output, 0) for each, output in ((model, ours), (peer, its))]
    assert terms[0].keys() == terms[1].keys()
    for name, value in terms[0].items():
        torch.testing.assert_close(value, terms[1][name])


@pytest.mark.parametrize("latent_dim", [5, None])
def test_in_training_the_critic_sees_reconstructions_and_samples(latent_dim):
    """As many images from N(0, I) as there are originals, behind the reconstructions."""
    model = small(latent_dim=latent_dim).train()
    latents: list[Tensor] = []
    decode = model._features
    model._features = lambda z: latents.append(z) or decode(z)
    torch.manual_seed(3)
    output = model(images(64))
    torch.manual_seed(3)
    drawn = model.posterior(images(64)).sample()
    assert torch.equal(latents[0][:64], drawn)
    both = latents[0][64:].detach()
    assert torch.equal(both[:64], drawn)
    assert abs(both[64:].mean()) < 0.15
    assert both[64:].std() == pytest.approx(1, abs=0.1)
    torch.manual_seed(3)
    model(-images(64))
    assert torch.equal(latents[1][128:], both[64:])  # no image has a part in the samples
    assert output.fakes.shape == (128, 1, 8, 8)
    torch.testing.assert_close(output.fakes[:64], output.images)
    torch.testing.assert_close(model.decode({"latents": both}), output.fakes)


def test_the_critic_teaches_the_decoder_and_not_the_encoder():
    """Larsen et al., 2016, Algorithm 1; the reconstruction itself still teaches both."""
    model = small().train()
    for seen, learning in (("fakes", {"decoder", "from_latent"}), ("images", None)):
        model.zero_grad()
        getattr(model(images()), seen).square().sum().backward()
        learns = {
            name.partition(".")[0]
            for name, parameter in model.named_parameters()
            if parameter.grad is not None and parameter.grad.abs().sum() > 0
        }
        assert learns == (learning or {"encoder", "to_posterior", "decoder", "from_latent"})


@pytest.mark.parametrize("weight", [0.0, 0.25, 1.0])
def test_the_pixels_weigh_what_they_are_told_to(weight):
    model = small(pixel_weight=weight, beta=2.0).eval()
    terms = model.objective(images(), model(images()), 0)
    pixels, kl = terms["nll"].item() / 64, terms["kl"].item() / 64
    assert terms["reconstruction"].item() == pytest.approx(weight * pixels, rel=1e-6)
    assert terms["total"].item() == pytest.approx(weight * pixels + 2 * kl, rel=1e-5, abs=1e-6)


def test_without_weight_no_pixel_reaches_the_decoder():
    """Only the KL divergence is left, and it knows no decoder."""
    model = small(pixel_weight=0.0).train()
    torch.manual_seed(0)
    model.objective(images(), model(images()), 0)["total"].backward()
    for name, parameter in model.named_parameters():
        learns = name.startswith(("encoder", "to_posterior"))
        assert (parameter.grad.abs().sum() > 1e-6) == learns, name


@pytest.mark.parametrize(
    ("flags", "culprit"),
    [
        ({"pixel_weight": -1.0}, "--model.pixel_weight"),
        ({"autoregressive_layers": 1}, "--model.autoregressive_layers must be 0"),
        ({"beta": -1.0}, "--model.beta"),
        ({"width": 0}, "--model.width"),
    ],
)
def test_an_impossible_value_is_named(flags, culprit):
    for options_class in (VAEGANOptions, VAEGANConfig):
        with pytest.raises(ValueError, match=culprit):
            options_class(**flags)


def test_neither_loads_the_others_folder(tmp_path):
    small().save_pretrained(tmp_path)
    loaded = VAEGAN.from_pretrained(tmp_path)
    assert torch.equal(loaded(images()).images, small().eval()(images()).images)
    with pytest.raises(ValueError, match=r"'latent_prior_vaegan', expected 'latent_prior_vae'"):
        VAE.from_pretrained(tmp_path)
