"""`--model.trained_guidance`: one pass samples what guidance needs two for."""

import math

import pytest
import torch

from latent_prior.stage2_prior.logits import apply_guidance
from latent_prior.stage2_prior.options import PriorOptions
from tests.stage2_prior.samples import MASKED, PATCHES, RASTER, random_maps

KINDS = RASTER | PATCHES | MASKED
GUIDED = {"trained_guidance": 2.0, "label_dropout": 0.1}


@pytest.mark.parametrize("kind", KINDS)
def test_trained_guidance_is_taken_out_of_the_likelihood(make_prior, kind):
    levels, options = KINDS[kind]
    plain = make_prior(*levels, **options)
    guided = make_prior(*levels, **options, **GUIDED)
    codes, labels = random_maps(plain, 4), torch.tensor([0, 1, -1, 2])

    def logits(prior, labels):
        torch.manual_seed(0)  # the masks
        with torch.no_grad():
            return prior(codes, labels).logits

    expected = apply_guidance(logits(plain, labels), logits(plain, None), 0.5)
    seen = expected.isfinite()  # a level has no logits for another's codes
    torch.testing.assert_close(logits(guided, labels)[seen], expected[seen])
    assert torch.equal(logits(guided, None), logits(plain, None))
    masks = torch.Generator()
    for level, nats in guided.nats(codes, labels, generator=masks.manual_seed(0)).items():
        unguided = plain.nats(codes, labels, generator=masks.manual_seed(0))[level]
        assert torch.equal(nats == unguided, labels < 0)


def test_trained_guidance_trains_the_logits_of_any_class_by_images_without_one_alone(make_prior):
    prior = make_prior(**GUIDED)
    prior(random_maps(prior, 4), torch.tensor([0, 1, 2, 0])).loss.backward()
    gradient = prior.embedding.weight.grad
    assert not gradient[prior.null_token].any()
    assert gradient[prior.first_class].any()


def test_one_pass_of_a_prior_with_trained_guidance_samples_as_two_of_one_without(make_prior):
    # Class 0 has code 0 in 8 of 10 images, class 1 in 2 of 10; any class in half of them.
    codes = {"codes": torch.tensor([0] * 8 + [1] * 2 + [0] * 2 + [1] * 8).view(-1, 1, 1)}
    labels = torch.tensor([0] * 10 + [1] * 10)
    options = {"num_classes": 2, "spread": 1.0, "label_dropout": 0.5, "trained_guidance": 2.0}
    prior = make_prior((1, 1, 2), **options).train()
    optimizer = torch.optim.Adam(prior.parameters(), lr=1e-2)
    torch.manual_seed(0)
    for _ in range(120):
        loss = prior({"codes": codes["codes"].repeat(2, 1, 1)}, labels.repeat(2)).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    chance = torch.Generator().manual_seed(0)
    drawn = prior.sample(4000, [0, 1] * 2000, generator=chance)["codes"]
    # Guidance 2 squares the ratio of 0.8 to 0.2: 16 to 1.
    shares = drawn.view(-1, 2).float().mean(0).tolist()
    assert shares == pytest.approx([1 / 17, 16 / 17], abs=0.04)
    with torch.no_grad():
        nats = prior.eval().nats(codes, labels)["codes"].mean()
    assert float(nats) == pytest.approx(-0.8 * math.log(0.8) - 0.2 * math.log(0.2), abs=0.01)


def test_trained_guidance_is_for_codes(make_prior):
    with pytest.raises(ValueError, match=r"--model\.trained_guidance 2\.0 is for codes"):
        make_prior(latents=(2, 3, 3), **GUIDED)


@pytest.mark.parametrize("options", [{"label_dropout": 0.0}, {"condition": "none"}])
def test_trained_guidance_needs_images_with_and_without_a_condition(options):
    with pytest.raises(ValueError, match=r"--model\.trained_guidance 2\.0 needs a class"):
        PriorOptions(trained_guidance=2.0, **options)
