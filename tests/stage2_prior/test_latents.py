"""Priors over latents as a whole: their density, their draws, and what they refuse."""

import dataclasses

import pytest
import torch
from torch.distributions import Categorical, Independent, MixtureSameFamily, Normal

from latent_prior.stage2_prior.mixtures import mixture_of, uniforms_per_vector
from latent_prior.stage2_prior.prior import PriorConfig, TransformerPrior
from latent_prior.stage2_prior.raster import sample_latents
from latent_prior.stage2_prior.sampler import Sampler
from tests.stage2_prior.samples import (
    LATENTS,
    chance_of,
    last_of,
    prefix,
    random_maps,
    start_tokens,
)
from tests.stage2_prior.slow_transformer import slow_outputs

FLAT = {"latents": (2, 1, 1), "chunk": 1, "width": 8, "depth": 1}


def nats_of(prior, maps, labels=None):
    with torch.no_grad():
        (nats,) = prior.nats(maps, labels).values()
    return nats.double()


@pytest.mark.parametrize("kind", LATENTS)
def test_nats_are_those_of_torchs_mixtures_in_the_latents_own_units(make_prior, kind):
    prior = make_prior(**LATENTS[kind][1])
    maps, labels = random_maps(prior, 3), torch.tensor([0, 2, -1])
    found = nats_of(prior, maps, labels)
    sequence, scale = prior._sequence(maps), prior.latent_scale.double()
    for image, start in enumerate(start_tokens(prior, labels).tokens[:, 0].tolist()):
        weights, means, deviations = mixture_of(slow_outputs(prior, start, sequence[image]), 3)
        gaussians = Independent(Normal(means.double(), deviations.double()), 1)
        mixture = MixtureSameFamily(Categorical(logits=weights.double()), gaussians)
        logs = mixture.log_prob(sequence[image].double()).sum()
        places = maps["latents"][0, 0].numel()
        expected = places * float(scale.log().sum()) - float(logs)
        assert float(found[image]) == pytest.approx(expected, rel=1e-4)
    with torch.no_grad():
        output = prior(maps, labels)
    assert float(output.loss) == pytest.approx(float(found.mean()) / maps["latents"][0].numel())
    torch.testing.assert_close(output.nats.sum(1).double(), found)


def rescaled(prior, factor):
    """The same function of latents that are larger by a factor."""
    spec = prior.code_spec
    larger = {
        name: tuple(factor * value for value in getattr(spec, name))
        for name in ("latent_shift", "latent_scale")
    }
    values = {field.name: getattr(prior.config, field.name) for field in dataclasses.fields(prior.config)}  # fmt: skip
    shape = {name: values[name] for name in ("width", "depth", "heads", "mixtures", "chunk")}
    other = TransformerPrior(
        PriorConfig(code_spec=dataclasses.replace(spec, **larger).to_dict(), **shape)
    )
    other.load_state_dict(dict(prior.named_parameters()), strict=False)
    return other.eval()


@pytest.mark.parametrize("factor", [0.01, 3.0])
def test_larger_latents_have_a_smaller_density(make_prior, factor):
    prior = make_prior(latents=(8, 1, 1), chunk=2)
    larger = rescaled(prior, factor)
    maps = random_maps(prior, 4)
    scaled = {"latents": factor * maps["latents"]}
    difference = nats_of(larger, scaled) - nats_of(prior, maps)
    expected = 8 * torch.tensor(factor).log().double()
    torch.testing.assert_close(difference, expected.expand(4), rtol=1e-4, atol=1e-4)
    drawn = [each.sample(2, generator=torch.Generator().manual_seed(0)) for each in (prior, larger)]
    torch.testing.assert_close(drawn[1]["latents"], factor * drawn[0]["latents"])


@pytest.mark.parametrize("label", [-1, 1])
def test_the_density_of_one_number_integrates_to_one(make_prior, label):
    prior = make_prior(latents=(1, 1, 1), num_classes=3)
    values = torch.linspace(-15, 15, 200_001).view(-1, 1, 1, 1)
    with torch.no_grad():
        output = prior.logits_of(
            start_tokens(prior, torch.tensor([label])), torch.zeros(1, 1, 1)
        ).expand(len(values), -1, -1)
        density = (-prior._nats(output, prior._sequence({"latents": values}))).double().exp()
        few = values[::20_000]
        same = nats_of(prior, {"latents": few}, torch.full((len(few),), label))
    torch.testing.assert_close(density[::20_000, 0], (-same).exp(), rtol=1e-4, atol=1e-6)
    assert float(torch.trapezoid(density[:, 0], values.flatten().double())) == pytest.approx(
        1.0, abs=1e-4
    )


def test_the_density_of_two_numbers_integrates_to_one(make_prior):
    prior = make_prior(**FLAT, spread=3.0)
    line = torch.linspace(-6, 6, 401)
    values = torch.cartesian_prod(line - 1, line - 0.5).view(-1, 2, 1, 1)
    density = (-nats_of(prior, {"latents": values})).exp()
    assert float(density.sum() * (line[1] - line[0]) ** 2) == pytest.approx(1.0, abs=1e-3)


@pytest.mark.parametrize("settings", [{}, {"guidance_scale": 1.5}])
def test_draws_have_the_density_that_nats_states(make_prior, settings):
    """Each number through its distribution function, given those before it, is uniform.

    A class whose guidance leads nowhere (to the null class's own density) is drawn like any other.
    """
    prior, count = make_prior(**FLAT), 100_000
    if settings:
        with torch.no_grad():
            prior.embedding.weight[1] = prior.embedding.weight[prior.null_token]
    guided = bool(settings)
    numbers = uniforms_per_vector(1, guided=guided)
    count = count // 4 if guided else count
    generator = torch.Generator().manual_seed(0)
    uniforms = torch.rand(count, 2, numbers, dtype=torch.float64, generator=generator)
    start = prefix(*[1] * count)
    with torch.inference_mode():
        drawn = last_of(sample_latents(prior, start, Sampler(**settings), uniforms))
        weights, means, deviations = mixture_of(prior.logits_of(start, drawn), 3)
        functions = Normal(means[..., 0].double(), deviations[..., 0].double())
        below = (weights.double().exp() * functions.cdf(drawn.double())).sum(-1)
    cells = (below * 10).long().clamp(0, 9)
    counts = (cells[:, 0] * 10 + cells[:, 1]).bincount(minlength=100)
    assert chance_of(counts, torch.full((100,), 0.01)) > 1e-3


def test_guidance_moves_draws_away_from_what_they_are_without_a_class(make_prior):
    prior = make_prior(latents=(4, 2, 2))
    maps = {}
    for scale in (0.0, 1.0, 3.0):
        drawn = prior.sample(
            400, [0] * 400, guidance_scale=scale, generator=torch.Generator().manual_seed(0)
        )
        evidence = nats_of(prior, drawn) - nats_of(prior, drawn, torch.zeros(400).long())
        maps[scale] = float(evidence.mean())
    assert maps[0.0] < 0 < maps[1.0] < maps[3.0]


def own_generators(places):
    return [torch.Generator().manual_seed(place) for place in places]


@pytest.mark.parametrize("kind", LATENTS)
@pytest.mark.parametrize("settings", [{}, {"guidance_scale": 2.0, "guidance_schedule": "linear"}])
def test_draws_depend_neither_on_their_batch_nor_on_the_call(make_prior, kind, settings):
    """An image without a class among guided ones, too."""
    prior = make_prior(**LATENTS[kind][1])
    labels = [number % 4 - 1 for number in range(16)]
    whole = prior.sample(16, labels, generator=own_generators(range(16)), **settings)["latents"]
    assert whole.shape == (16, *prior.code_spec.levels[0].shape)
    for places in ([0], [3], [4, 8], [5, 2], list(range(7))):
        own = [labels[place] for place in places]
        part = prior.sample(len(places), own, generator=own_generators(places), **settings)
        torch.testing.assert_close(part["latents"], whole[places], rtol=1e-5, atol=1e-5)
    shared = torch.Generator().manual_seed(3)
    whole = prior.sample(6, labels[:6], generator=shared, **settings)["latents"]
    shared.manual_seed(3)
    parts = [
        prior.sample(len(own), own, generator=shared, **settings)["latents"]
        for own in (labels[:1], labels[1:3], labels[3:6])
    ]
    torch.testing.assert_close(torch.cat(parts), whole, rtol=1e-5, atol=1e-5)


def test_a_guidance_scale_of_one_is_none_whatever_its_schedule(make_prior):
    prior = make_prior(latents=(4, 2, 2))
    drawn = [
        prior.sample(2, [0, 1], guidance_schedule=schedule, generator=own_generators((0, 1)))
        for schedule in ("constant", "cosine")
    ]
    assert torch.equal(drawn[0]["latents"], drawn[1]["latents"])


def test_temperature_zero_draws_means(make_prior):
    prior = make_prior(latents=(4, 2, 2))
    drawn = prior.sample(5, [0, 1, 2, -1, 0], temperature=0.0)
    sequence = prior._sequence(drawn)
    with torch.no_grad():
        start = start_tokens(prior, torch.tensor([0, 1, 2, -1, 0]))
        means = mixture_of(prior.logits_of(start, sequence), 3).means
    distances = (means - sequence.unsqueeze(2)).abs().amax(-1).amin(-1)
    assert (distances < 1e-4).all()


def test_draws_are_ordinary_tensors(make_prior):
    """Tensors made in inference mode could not be used in training, a decoder's fine-tuning say."""
    drawn = make_prior(latents=(4, 2, 2)).sample(2)["latents"]
    assert drawn.dtype == torch.float32
    assert not drawn.is_inference()
    layer = torch.nn.Conv2d(4, 4, 1)
    layer(drawn).sum().backward()
    assert layer.weight.grad is not None


def test_half_the_bytes_give_nearly_the_same_density(make_prior):
    prior = make_prior(latents=(4, 2, 2), spread=2.0)
    maps = random_maps(prior, 8)
    expected = nats_of(prior, maps)
    torch.testing.assert_close(nats_of(prior.bfloat16(), maps), expected, rtol=0.1, atol=0.5)


def test_a_vector_changes_only_what_comes_after_it(make_prior):
    prior = make_prior(latents=(4, 2, 2), chunk=2, positions="2d")
    sequence, start = prior._sequence(random_maps(prior, 1)), prefix(0)
    with torch.no_grad():
        before = prior.logits_of(start, sequence)
        for place in range(prior.length):
            changed = sequence.clone()
            changed[0, place, 1] += 1
            after = prior.logits_of(start, changed)
            assert torch.equal(after[:, : place + 1], before[:, : place + 1])
            assert (after != before)[:, place + 1 :].any(-1).all()


def test_what_latents_do_not_have_is_refused(make_prior):
    prior = make_prior(latents=(4, 2, 2))
    assert prior.settings == ("guidance_scale", "guidance_schedule", "guidance_interval", "temperature")  # fmt: skip
    maps = random_maps(prior, 1)
    with pytest.raises(ValueError, match="whole images only"):
        prior.sample(1, known=maps, keep={"latents": torch.ones(1, 4, 2, 2).bool()})
    with pytest.raises(ValueError, match="latents need --model"):
        make_prior(latents=(4, 2, 2), order="masked")
    with pytest.raises(ValueError, match="does not divide"):
        make_prior(latents=(4, 2, 2), chunk=3)
    unmeasured = PriorConfig(
        code_spec=dataclasses.replace(prior.code_spec, latent_scale=None).to_dict()
    )
    with pytest.raises(ValueError, match=r"encode with encode\.py"):
        TransformerPrior(unmeasured)
