import itertools

import pytest
import torch

from stage2_prior.decoding import Decoder
from stage2_prior.sampling import apply_guidance, keep_top_k
from stage2_prior.tokens import maps_to_sequence, sequence_to_maps

SHAPES = [((3, 4, 11),), ((2, 2, 5), (3, 3, 7))]


@pytest.mark.parametrize("levels", SHAPES)
def test_cached_steps_give_the_logits_of_forward(make_prior, levels):
    prior = make_prior(*levels)
    labels = torch.tensor([0, 2, -1])
    codes = prior.sample(3, labels, generator=torch.Generator().manual_seed(0))
    sequence = maps_to_sequence(codes, prior.code_spec)
    with torch.no_grad():
        expected = prior(codes, labels).logits
        decoder = Decoder(prior, 3)
        tokens = torch.where(labels < 0, prior.null_token, labels + prior.num_codes)
        for level in prior.levels:
            for position in range(level.start, level.stop):
                found = decoder.step(tokens, position, level)
                within = expected[:, position, level.first : level.last]
                torch.testing.assert_close(found, within, rtol=1e-5, atol=1e-5)
                tokens = sequence[:, position]


@pytest.mark.parametrize("scale", [1.0, 0.0, 2.5])
def test_greedy_samples_are_the_argmax_of_guided_forward_logits(make_prior, scale):
    """Teacher forcing: what sampling chose at each step is what `forward` finds likeliest there."""
    prior = make_prior()
    labels = torch.tensor([0, 1, 2, -1])
    codes = prior.sample(4, labels, guidance_scale=scale, temperature=0.0)
    with torch.no_grad():
        logits = apply_guidance(prior(codes, labels).logits, prior(codes).logits, scale)
    best_two = logits.topk(2).values
    assert (best_two[..., 0] - best_two[..., 1]).min() > 1e-4  # the test is about no ties
    assert torch.equal(logits.argmax(-1), maps_to_sequence(codes, prior.code_spec))


def exact_distribution(prior, label, scale, top_k):
    """Probability of every possible image, from `forward` alone."""
    length, vocabulary = prior.length, prior.num_codes
    everything = torch.tensor(list(itertools.product(range(vocabulary), repeat=length)))
    maps = sequence_to_maps(everything, prior.code_spec)
    with torch.no_grad():
        conditional = prior(maps, torch.full((len(everything),), label)).logits.double()
        logits = apply_guidance(conditional, prior(maps).logits.double(), scale)
    chosen = keep_top_k(logits, top_k).log_softmax(-1).gather(-1, everything.unsqueeze(-1))
    return chosen.sum((1, 2)).exp()


@pytest.mark.parametrize(("scale", "top_k"), [(1.0, 0), (2.0, 0), (1.0, 2)])
def test_frequencies_are_the_exact_distribution(make_prior, scale, top_k):
    prior = make_prior((1, 3, 3))
    expected = exact_distribution(prior, 1, scale, top_k)
    assert expected.sum() == pytest.approx(1.0)
    count = 20_000
    codes = prior.sample(
        count,
        [1] * count,
        guidance_scale=scale,
        top_k=top_k,
        generator=torch.Generator().manual_seed(0),
    )
    numbers = (codes["codes"].flatten(1) * torch.tensor([9, 3, 1])).sum(1)
    observed = numbers.bincount(minlength=27).double()
    assert observed[expected == 0].sum() == 0
    # Cells with few expected images are counted together, as the test's approximation wants.
    rare = expected * count < 5
    observed = torch.cat((observed[~rare], observed[rare].sum().view(1)))
    wanted = torch.cat((expected[~rare], expected[rare].sum().view(1))) * count
    observed, wanted = observed[wanted > 0], wanted[wanted > 0]
    chi_squared = ((observed - wanted) ** 2 / wanted).sum()
    assert len(wanted) >= 5
    assert chi_squared < 54  # 0.1 % of the distribution with 26 degrees of freedom


def test_all_codes_are_reachable_and_only_codes(make_prior):
    """A bare `generate()` draws from the 50 likeliest, ends at code 2 and can return class tokens."""
    prior = make_prior((6, 6, 200), num_classes=3, spread=0.01)  # near-uniform
    codes = prior.sample(200, [0] * 200, generator=torch.Generator().manual_seed(0))["codes"]
    assert codes.shape == (200, 6, 6)
    assert len(codes.unique()) == 200
    assert int(codes.max()) == 199
    after_two = codes.flatten(1)[:, 1:][codes.flatten(1)[:, :-1] == 2]
    assert len(after_two.unique()) > 10


def test_levels_keep_to_their_vocabularies(make_prior):
    prior = make_prior((2, 2, 5), (4, 4, 70), spread=0.01)
    codes = prior.sample(100, generator=torch.Generator().manual_seed(0))
    assert codes["level0"].unique().tolist() == list(range(5))
    assert len(codes["level1"].unique()) == 70


def test_weights_of_another_type_sample_the_same_function(make_prior):
    prior = make_prior()
    expected = prior.sample(4, [0, 1, 2, -1], temperature=0.0)
    doubled = prior.double().sample(4, [0, 1, 2, -1], temperature=0.0)
    assert torch.equal(doubled["codes"], expected["codes"])
    with torch.autocast("cpu", dtype=torch.bfloat16):
        inside = prior.float().sample(4, [0, 1, 2, -1], temperature=0.0)
    assert torch.equal(inside["codes"], expected["codes"])
