"""The networks: shapes at every size, independence of other images, the papers' initialisation."""

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from latent_prior.evaluation.gan_baseline.gan import (
    Generator,
    Resampled,
    ResidualBlock,
    make_critic,
)
from latent_prior.losses.adversarial import gradient_penalty


def inputs(generator, count=6, seed=1):
    random = torch.Generator().manual_seed(seed)
    noise = torch.randn(count, generator.config.latent_dim, generator=random)
    return noise, torch.arange(count) % 3


def own(count, seed=0):
    return [torch.Generator().manual_seed(1000 * seed + n) for n in range(count)]


@pytest.mark.parametrize("names", [[], ["a", "b", "c"]])
@pytest.mark.parametrize(
    ("size", "multipliers"), [(28, [1, 2, 3]), (32, [1, 1, 2, 2]), (24, [1, 2, 2, 2]), (9, [1])]
)
def test_every_size_that_halves(config, size, multipliers, names):
    shape = config(
        image_size=size, multipliers=multipliers, image_channels=1, class_names=names, blocks=2
    )
    generator, critic = Generator(shape), make_critic(shape, width=4)
    images = generator(*inputs(generator))
    assert images.shape == (6, 1, size, size)
    assert critic(images, torch.zeros(6, dtype=torch.int64)).shape == (6,)


def test_a_size_that_does_not_halve_is_refused(config):
    with pytest.raises(ValueError, match="--image_size 15"):
        config(image_size=15)


def test_an_image_does_not_depend_on_those_beside_it_nor_on_the_mode(make_gan):
    generator = make_gan()
    noise, labels = inputs(generator)
    together = generator(noise, labels)
    for place in range(6):
        alone = generator(noise[place : place + 1], labels[place : place + 1])
        torch.testing.assert_close(alone, together[place : place + 1])
    torch.testing.assert_close(generator.train()(noise, labels), together, rtol=0, atol=0)
    # Averaged weights would need averages of these, too.
    assert not list(generator.buffers())


def test_noise_and_class_change_the_image(make_gan):
    generator = make_gan()
    noise, labels = inputs(generator)
    images = generator(noise, labels)
    assert (generator(noise.flip(0), labels) - images).abs().mean() > 0.01
    assert (generator(noise, (labels + 1) % 3) - images).abs().mean() > 0.01
    free = make_gan(class_names=[])
    assert torch.equal(free(noise, labels), free(noise, labels + 1))


def test_images_end_at_black_and_white(make_gan):
    generator = make_gan()
    noise, labels = inputs(generator, 60)
    images = generator(30 * noise, labels)
    assert images.min() == -1
    assert images.max() == 1
    unbounded = generator.network(torch.cat([30 * noise, generator.classes(labels)], 1))
    assert torch.equal(images, unbounded.clamp(-1, 1))


def test_a_critic_judges_every_image_by_itself(config):
    critic = make_critic(config()).eval()
    images, labels = torch.randn(6, 3, 16, 16), torch.arange(6) % 3
    together = critic(images, labels)
    for place in range(6):
        alone = critic(images[place : place + 1], labels[place : place + 1])
        torch.testing.assert_close(alone, together[place : place + 1])


def test_the_class_enters_by_projection(config):
    """Two classes differ by the product of the features with the difference of their vectors."""
    critic = make_critic(config()).eval()
    images = torch.randn(5, 3, 16, 16)
    first, second = (critic(images, torch.full((5,), label)) for label in (0, 1))
    vectors = critic.classes.weight
    expected = critic.features(images).double() @ (vectors[0] - vectors[1]).double()
    torch.testing.assert_close((first - second).double(), expected, rtol=1e-4, atol=1e-6)
    free = make_critic(config(class_names=[])).eval()
    assert torch.equal(free(images, torch.full((5,), 0)), free(images, torch.full((5,), 2)))


def test_the_critics_gradient_has_a_gradient(config):
    """R1 and R2 need it in every layer, also through resampling and grouped convolutions."""
    critic = make_critic(config()).train()
    with torch.no_grad():
        for parameter in critic.parameters():
            if not parameter.any():
                parameter.normal_(std=0.3)
    images, labels = torch.randn(4, 3, 16, 16), torch.arange(4) % 3
    gradient_penalty(lambda seen: critic.logits(seen, labels), images).backward()
    reached = {name for name, p in critic.named_parameters() if p.grad is not None and p.grad.any()}
    weights = {name for name, p in critic.named_parameters() if p.ndim > 1}
    assert weights <= reached


@pytest.mark.parametrize("kind", ["sngan"], indirect=True)
def test_spectral_norm_makes_every_largest_singular_value_one(config):
    critic = make_critic(config())
    images, labels = torch.randn(4, 3, 16, 16), torch.arange(4) % 3
    for _ in range(60):  # each training pass is a step of the power iteration
        critic(images, labels)
    critic.eval()
    layers = [m for m in critic.modules() if isinstance(m, nn.Conv2d | nn.Linear | nn.Embedding)]
    assert len(layers) == 6
    for layer in layers:
        values = torch.linalg.svdvals(layer.weight.double().flatten(1))
        assert 0.98 < values[0] < 1.02


@pytest.mark.parametrize("kind", ["r3gan"], indirect=True)
def test_r3gan_has_no_normalisation_and_starts_shallow(config):
    generator, critic = Generator(config()), make_critic(config())
    for network in (generator, critic):
        for module in network.modules():
            assert "Norm" not in type(module).__name__
    # The deepest network starts as the same function, of the same size, as one without blocks.
    maps = torch.randn(4, 32, 8, 8)
    for block in (ResidualBlock(32, 1), ResidualBlock(32, 100)):
        assert torch.equal(block(maps), maps)
    assert 0.3 < float(generator(*inputs(generator, 60)).detach().std()) < 3


def test_inner_layers_keep_the_size_of_their_inputs_up_to_the_depth():
    """He initialisation times L^(-1/4) in two layers: a branch of L blocks is L^(-1/2) as large."""
    torch.manual_seed(0)
    maps = torch.randn(8, 64, 16, 16)

    def branch(num_blocks):
        block = ResidualBlock(64, num_blocks)
        inner = F.leaky_relu(block.expand(maps), 0.2)
        return float(F.leaky_relu(block.mix(inner), 0.2).detach().square().mean().sqrt())

    assert 0.85 < branch(1) < 1.15
    assert 0.85 < branch(16) / branch(1) * 4 < 1.15


def test_resampling_is_bilinear():
    maps = torch.randn(2, 4, 8, 8)
    halved = F.interpolate(maps, scale_factor=0.5, mode="bilinear", antialias=False)
    torch.testing.assert_close(Resampled(4, 4, up=False)(maps), halved)
    doubled = Resampled(4, 4, up=True)(maps)
    assert doubled.shape == (2, 4, 16, 16)
    # Inside, a pixel takes 3/4 of its own and 1/4 of the nearest other, in both directions.
    rows = 0.75 * maps[:, :, 3] + 0.25 * maps[:, :, 2]
    torch.testing.assert_close(doubled[:, :, 6, 8], 0.75 * rows[..., 4] + 0.25 * rows[..., 3])
    assert Resampled(4, 8, up=True)(maps).shape == (2, 8, 16, 16)


def test_a_sample_depends_on_its_own_randomness_and_class_only(make_gan):
    generator = make_gan()
    images = generator.sample([0, 1, 2, 0], own(4))
    assert images.shape == (4, 3, 16, 16)
    assert float(images.abs().max()) <= 1
    torch.testing.assert_close(generator.sample([2, 0], own(4)[2:]), images[2:])
    assert (generator.sample([1], own(1)) - images[:1]).abs().mean() > 0.01


def test_truncation_takes_variety_away(make_gan):
    generator = make_gan()
    spreads = [
        float(generator.sample([0] * 8, own(8), truncation=psi).std(0).mean())
        for psi in (0, 0.5, 1)
    ]
    assert spreads[0] < 1e-6 < spreads[1] < spreads[2]


def test_any_class_is_one_of_them_at_random(make_gan):
    generator = make_gan()
    found = generator.sample([-1] * 30, own(30), truncation=0.0)
    of_class = generator.sample([0, 1, 2], own(3), truncation=0.0)
    distances = (found[:, None] - of_class[None]).abs().flatten(2).mean(2)
    assert set(distances.argmin(1).tolist()) == {0, 1, 2}
    assert float(distances.min(1).values.max()) < 1e-5


def test_saved_and_loaded_it_draws_the_same(make_gan, tmp_path):
    generator = make_gan()
    generator.config.training = None
    generator.save_pretrained(tmp_path / "gan")
    loaded = Generator.from_pretrained(tmp_path / "gan")
    assert loaded.config.class_names == ["apple", "bee", "car"]
    assert loaded.fingerprint == generator.fingerprint
    assert torch.equal(loaded.sample([0, 1], own(2)), generator.sample([0, 1], own(2)))
    other = copy.deepcopy(generator.state_dict())
    other["classes.weight"] += 1
    generator.save_pretrained(tmp_path / "other", state_dict=other)
    (tmp_path / "other" / "model.safetensors").rename(tmp_path / "gan" / "model.safetensors")
    with pytest.raises(ValueError, match="exchanged"):
        Generator.from_pretrained(tmp_path / "gan")
