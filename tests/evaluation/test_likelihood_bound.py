import dataclasses
import math

import pytest
import torch

from latent_prior.evaluation.likelihood_bound import (
    LEARNED,
    STANDARD_NORMAL,
    UNIFORM,
    Bound,
    fit_logistic,
)
from latent_prior.losses.likelihoods import LogisticLikelihood
from latent_prior.pipelines import Pipeline
from latent_prior.seeds import generator
from latent_prior.stage2_prior.prior import PriorConfig, TransformerPrior


def levels(count, seed, size=16):
    """Random 8-bit images in [-1, 1]."""
    random = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (count, 3, size, size), generator=random) / 127.5 - 1


def any_class(images):
    return torch.full((len(images),), -1)


def noise(bound, count, seed=0):
    shape = bound.pipe.code_spec.levels[0].shape
    return torch.randn(count, *shape, generator=torch.Generator().manual_seed(seed))


def nats_of_level(level, location, scale):
    """-log of the discretised logistic probability, in float64 from its definition."""

    def below(value):
        return 1 / (1 + math.exp(-(value - location) / scale))

    centre = level / 127.5 - 1
    upper = 1.0 if level == 255 else below(centre + 1 / 255)
    lower = 0.0 if level == 0 else below(centre - 1 / 255)
    return -math.log(upper - lower)


@pytest.mark.parametrize(
    "shape",
    [
        {"likelihood": "gaussian", "scale": 0.3},
        {"likelihood": "laplace"},
        {"likelihood": "bernoulli"},
        {"likelihood": "logistic", "latent_dim": None},
        {"likelihood": "gaussian", "autoregressive_layers": 2},
    ],
)
def test_the_standard_normal_bound_is_the_elbo(parts, shape):
    vae = parts["autoencoder"]("vae", **shape)
    bound = Bound(Pipeline(vae))
    images, draws = levels(1, 1), 1500
    many = images.expand(draws, -1, -1, -1)
    found = bound(many, any_class(many), noise(bound, draws))
    assert bound.priors == (STANDARD_NORMAL,) == tuple(found.priors)
    ours = found.pixels + found.posterior + found.priors[STANDARD_NORMAL]["latents"]
    torch.manual_seed(2)
    expected = vae.negative_elbo(many)
    error = (ours.var() / draws + expected.var() / draws).sqrt()
    assert abs(ours.mean() - expected.mean()) < 4 * error
    # And the divergence by itself, where the pixels do not drown it.
    divergence = found.posterior + found.priors[STANDARD_NORMAL]["latents"]
    exact = vae.posterior(images).kl().sum()
    assert abs(divergence.mean() - exact) < 4 * divergence.std() / math.sqrt(draws) + 1e-5


def test_a_learned_prior_over_latents_is_measured_in_their_own_units(parts):
    vae = parts["autoencoder"]("vae")
    shift, scale = torch.arange(6) / 5.0, torch.arange(1, 7) / 2.0
    spec = dataclasses.replace(
        vae.code_spec, latent_shift=tuple(shift.tolist()), latent_scale=tuple(scale.tolist())
    )
    config = PriorConfig(code_spec=spec.to_dict(), width=16, depth=1, heads=2, mixtures=1)
    prior = TransformerPrior(config).eval()
    torch.nn.init.zeros_(prior.head.weight)  # one Gaussian, of mean 0 and deviation log 2 + 0.001
    bound = Bound(Pipeline(vae, prior))
    images = levels(4, 1)
    drawn = noise(bound, 4)
    found = bound(images, any_class(images), drawn)
    assert bound.priors == (LEARNED, STANDARD_NORMAL) == tuple(found.priors)
    posterior = vae.posterior(images)
    latents = posterior.mean + (posterior.log_variance / 2).exp() * drawn
    deviation = (math.log(2) + 0.001) * scale
    gaussian = torch.distributions.Normal(shift.double(), deviation.double())
    expected = -gaussian.log_prob(latents.double().flatten(1)).sum(1)
    torch.testing.assert_close(found.priors[LEARNED]["latents"], expected.float())
    own = torch.distributions.Normal(posterior.mean, (posterior.log_variance / 2).exp())
    torch.testing.assert_close(found.posterior, own.log_prob(latents).flatten(1).sum(1))


def test_codes_are_bounded_by_one_term_of_the_sum_over_all_codes(parts):
    # Images of 2 x 2 pixels have one code of 16: the sum can be computed.
    autoencoder = parts["autoencoder"]("vqvae", image_size=2)
    pipe = Pipeline(autoencoder, parts["prior"](autoencoder))
    bound = Bound(pipe, LogisticLikelihood(3, scale=0.2))
    images, labels = levels(5, 3, size=2), torch.tensor([0, 1, 2, -1, 0])
    (name,) = (level.name for level in pipe.code_spec.levels)
    found = bound(images, labels)
    ours = found.pixels + found.posterior + found.priors[LEARNED][name]
    terms = []
    for code in range(16):
        codes = {name: torch.full((5, 1, 1), code)}
        prediction = pipe.decode(codes)
        pixels = [
            sum(
                nats_of_level(level, location, 0.2)
                for level, location in zip(
                    ((image + 1) * 127.5).round().int().flatten().tolist(),
                    predicted.flatten().tolist(),
                    strict=True,
                )
            )
            for image, predicted in zip(images, prediction, strict=True)
        ]
        logits = pipe.prior(codes, labels).logits[:, 0].double()
        terms.append(torch.tensor(pixels) - logits.log_softmax(-1)[:, code].detach())
    terms = torch.stack(terms, dim=1)  # (5, 16)
    exact = -torch.logsumexp(-terms, dim=1)
    assert (ours.double() >= exact - 1e-4).all()
    of_encoder = terms.gather(1, pipe.encode(images)[name].flatten(1)).squeeze(1)
    torch.testing.assert_close(ours.double(), of_encoder, rtol=1e-5, atol=1e-4)
    assert found.posterior.tolist() == [0] * 5


@pytest.mark.parametrize("member", ["vqvae", "vqvae2", "vqgan"])
def test_uniform_codes_cost_the_logarithm_of_the_vocabulary(parts, member):
    autoencoder = parts["autoencoder"](member)
    pipe = Pipeline(autoencoder)
    bound = Bound(pipe, LogisticLikelihood(3, scale=0.2))
    assert bound.priors == (UNIFORM,)
    found = bound(levels(3, 0), any_class(range(3))).priors[UNIFORM]
    assert list(found) == [level.name for level in pipe.code_spec.levels]
    for level in pipe.code_spec.levels:
        expected = level.length * math.log(level.vocabulary)
        torch.testing.assert_close(found[level.name], torch.full((3,), expected))


def test_an_image_is_given_its_class_and_no_other(parts):
    autoencoder = parts["autoencoder"]("vqvae2")
    pipe = Pipeline(autoencoder, parts["prior"](autoencoder))
    bound = Bound(pipe, LogisticLikelihood(3, scale=0.2))
    images = levels(1, 0).expand(4, -1, -1, -1)
    found = bound(images, torch.tensor([0, 1, -1, 0])).priors[LEARNED]
    for nats in found.values():
        assert nats[0].item() == pytest.approx(nats[3].item(), rel=1e-6)
        assert torch.pdist(nats[:3, None]).min() > 1e-3


@pytest.mark.parametrize("number", [0, 3])
def test_the_bound_of_an_image_does_not_depend_on_its_batch(parts, number):
    for member in ("vae", "vqvae2"):
        pipe = Pipeline(parts["autoencoder"](member))
        bound = Bound(pipe, LogisticLikelihood(3, scale=0.2))
        images = levels(4, 0)
        drawn = noise(bound, 4) if member == "vae" else None
        together = bound(images, any_class(images), drawn)
        some = slice(number, number + 1)
        alone = bound(images[some], any_class(images[some]), None if drawn is None else drawn[some])
        torch.testing.assert_close(alone.pixels, together.pixels[some])
        torch.testing.assert_close(alone.posterior, together.posterior[some])


class Shrinking:
    """In place of a pipeline: gives images back with a different error in every channel."""

    def __init__(self, code_spec):
        self.code_spec = code_spec

    def reconstruct(self, images):
        random = torch.Generator().manual_seed(5)
        size = torch.tensor([0.01, 0.1, 0.4])[:, None, None]
        return (images + size * torch.randn(images.shape, generator=random)).clamp(-1, 1)


def test_fitted_scales_are_those_of_the_greatest_likelihood(parts):
    pipe = Shrinking(parts["autoencoder"]("vqvae").code_spec)
    images = levels(10, 4)
    fitted = fit_logistic(pipe, images.split(10), generator(0)).scale().flatten().tolist()
    reconstructions = pipe.reconstruct(images)
    for channel, scale in enumerate(fitted):

        def cost(scale, channel=channel):
            likelihood = LogisticLikelihood(1, scale=scale).double()
            one = slice(channel, channel + 1)
            return float(likelihood.nll(images[:, one], reconstructions[:, one]).double().mean())

        # Golden-section search for the minimum, on the logarithm of the scale.
        low, high, golden = math.log(1e-3), math.log(2.0), (math.sqrt(5) - 1) / 2
        for _ in range(40):
            left, right = high - golden * (high - low), low + golden * (high - low)
            if cost(math.exp(left)) < cost(math.exp(right)):
                high = right
            else:
                low = left
        assert scale == pytest.approx(math.exp(low), rel=2e-3)
    assert fitted == sorted(fitted)


def test_scales_do_not_depend_on_the_batches_they_are_fitted_to(parts):
    pipe = Pipeline(parts["autoencoder"]("vqvae"))
    images = levels(9, 4)
    whole, halves = (
        fit_logistic(pipe, images.split(size), generator(0)).scale() for size in (9, 4)
    )
    torch.testing.assert_close(whole, halves, rtol=1e-4, atol=0)


def test_what_is_random(parts):
    vqvae, pixels = parts["autoencoder"]("vqvae"), LogisticLikelihood(3, scale=0.2)
    assert Bound(Pipeline(parts["autoencoder"]("vae"))).is_random
    assert not Bound(Pipeline(vqvae), pixels).is_random
    assert not Bound(Pipeline(vqvae, parts["prior"](vqvae)), pixels).is_random
    spec = dataclasses.replace(vqvae.code_spec, class_names=())
    config = PriorConfig(code_spec=spec.to_dict(), order="masked", width=16, depth=1, heads=2)
    bound = Bound(Pipeline(vqvae, TransformerPrior(config)), pixels)
    assert bound.is_random
    images = levels(2, 0)
    draws = [
        bound(images, any_class(images), masks=generator(seed)).priors[LEARNED]
        for seed in (0, 0, 1)
    ]
    first, again, other = (nats["codes"].tolist() for nats in draws)
    assert first == again != other
