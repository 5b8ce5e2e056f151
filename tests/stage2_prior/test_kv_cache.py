import copy

import pytest
import torch

from latent_prior.stage2_prior.kv_cache import Decoder
from latent_prior.stage2_prior.logits import apply_guidance
from latent_prior.stage2_prior.sequences import maps_to_sequence
from latent_prior.training.ema import EMA
from tests.stage2_prior.samples import LATENTS, PATCHES, RASTER, random_maps, start_tokens

LABELS = torch.tensor([0, 2, -1])


@pytest.mark.parametrize("kind", [*RASTER, *PATCHES, *LATENTS])
def test_cached_steps_give_the_outputs_of_forward(make_prior, kind):
    """Of the rows with their classes, and of as many without, which is what guidance computes."""
    levels, options = (RASTER | PATCHES | LATENTS)[kind]
    prior = make_prior(*levels, **options)
    maps = random_maps(prior, 3)
    sequence = prior._sequence(maps)
    with torch.no_grad():
        expected = torch.cat((prior(maps, LABELS).logits, prior(maps).logits))
        assert expected[expected.isfinite()].std() > 0.5
        decoder = Decoder(prior, 6)
        start = start_tokens(prior, LABELS)
        x = decoder.read(start.joined(start.without(prior.null_token)))
        for level in prior.levels:
            for first in range(level.start, level.stop, prior.slots):
                x = decoder.step(x, first // prior.slots)
                drawn = sequence[:, first : first + prior.slots].repeat(
                    2, *[1] * (sequence.ndim - 1)
                )
                for slot in range(prior.slots):
                    found = decoder.outputs(x, level, slot)
                    within = expected[:, first + slot, level.first : level.last]
                    torch.testing.assert_close(found, within, rtol=1e-5, atol=1e-5)
                    if slot + 1 < prior.slots:
                        decoder.add_code(x, drawn[:, slot], slot)
                x = decoder.project(drawn[:, 0]) if prior.latents else decoder.embed_patch(drawn)


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


def drawn(prior, count=4):
    generator = torch.Generator().manual_seed(7)
    labels = [0, 1, 2, -1] * (count // 4)
    return prior.sample(count, labels, generator=generator)["codes"]


def fresh_copy(prior, **weights):
    """The same prior without a decoder of earlier calls."""
    other = type(prior)(prior.config)
    other.load_state_dict({**prior.state_dict(), **weights})
    return other.eval()


def test_a_decoder_is_made_once_and_again_for_other_rows_or_weights(make_prior, monkeypatch):
    made = []

    class Counting(Decoder):
        def __init__(self, prior, rows, front):
            made.append(rows)
            super().__init__(prior, rows, front)

    monkeypatch.setattr("latent_prior.stage2_prior.kv_cache.Decoder", Counting)
    prior = make_prior()
    first = drawn(prior)
    assert torch.equal(drawn(prior), first)
    assert made == [4]
    drawn(prior, 8)
    assert torch.equal(drawn(prior), first)
    assert made == [4, 8, 4]
    with torch.no_grad():
        prior.head.weight[0, 0] += 1
    drawn(prior)
    assert made == [4, 8, 4, 4]


def test_averaged_weights_in_place_of_the_own_are_those_that_draw(make_prior):
    """Evaluation swaps averaged weights in place: a decoder must not keep the old ones."""
    prior = make_prior()
    ema = EMA(prior, 0.5)
    for weight in ema.weights.values():
        weight += 0.3 * torch.randn_like(weight)
    own = drawn(prior)
    with ema.applied_to(prior):
        averaged = drawn(prior)
    assert torch.equal(averaged, drawn(fresh_copy(prior, **ema.weights)))
    assert not torch.equal(averaged, own)
    assert torch.equal(drawn(prior), own)


@pytest.mark.parametrize("settings", [{"fused": True}, {"foreach": True}, {"foreach": False}])
def test_every_kind_of_optimizer_step_is_noticed(make_prior, settings):
    """A fused one changes the weights, but not the versions that torch keeps of them."""
    prior = make_prior()
    before = drawn(prior)
    optimizer = torch.optim.AdamW(prior.parameters(), lr=0.1, **settings)
    prior(random_maps(prior, 4)).loss.backward()
    optimizer.step()
    after = drawn(prior)
    assert torch.equal(after, drawn(fresh_copy(prior)))
    assert not torch.equal(after, before)


def test_a_prior_made_in_inference_mode_samples(make_prior):
    with torch.inference_mode():
        inside = drawn(make_prior())
    assert torch.equal(inside, drawn(make_prior()))


def test_a_prior_that_has_drawn_can_be_copied(make_prior):
    prior = make_prior()
    before = drawn(prior)
    again = copy.deepcopy(prior)
    with torch.no_grad():
        prior.head.weight.zero_()
    assert torch.equal(drawn(again), before)


def test_all_codes_are_reachable_and_only_codes(make_prior):
    """A bare `generate()` samples the 50 likeliest, ends at code 2, can return class tokens."""
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


@pytest.mark.parametrize("latents", [None, (4, 2, 2)])
def test_weights_of_another_type_sample_the_same_function(make_prior, latents):
    prior = make_prior(latents=latents)

    def values():
        generator = torch.Generator().manual_seed(1)
        (found,) = prior.sample(4, [0, 1, 2, -1], temperature=0.0, generator=generator).values()
        return found.float()

    expected = values()
    prior.double()
    torch.testing.assert_close(values(), expected)
    prior.float()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(values(), expected)
