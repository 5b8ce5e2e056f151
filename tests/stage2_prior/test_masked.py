import itertools
import math

import pytest
import torch

from latent_prior.stage2_prior.masked import (
    hide_for_bound,
    hide_for_training,
    sample_codes,
    uniforms_per_image,
)
from latent_prior.stage2_prior.sampler import Sampler
from latent_prior.stage2_prior.sequences import sequence_to_maps
from tests.stage2_prior.exact import masked_distribution
from tests.stage2_prior.samples import (
    MASKED,
    all_sequences,
    chance_of,
    counts_of,
    last_of,
    prefix,
    random_maps,
    start_tokens,
)
from tests.stage2_prior.slow_transformer import slow_outputs

DRAWS = 100_000
ONE = ((1, 3, 3),)
TWO = ((1, 1, 3), (1, 2, 4))
CPU = torch.device("cpu")


def uniforms_for(images, length, steps, seed=0):
    generator = torch.Generator().manual_seed(seed)
    shape = images, uniforms_per_image(length, steps)
    return torch.rand(*shape, dtype=torch.float64, generator=generator)


def draw(prior, labels, sampler, given=None, seed=0):
    """Tokens (B, L) of some images."""
    start = start_tokens(prior, torch.as_tensor(labels))
    if given is None:
        given = torch.full((len(start), prior.length), -1)
    with torch.inference_mode():
        uniforms = uniforms_for(len(start), prior.length, sampler.steps, seed)
        return last_of(sample_codes(prior, start, given, sampler, uniforms))


@pytest.mark.parametrize(
    ("levels", "settings"),
    [
        (ONE, {"steps": 1}),
        (ONE, {"steps": 2}),
        (TWO, {"steps": 3}),
        (TWO, {"steps": 2, "guidance_scale": 2.0}),
        (ONE, {"steps": 3, "guidance_scale": 3.0, "guidance_schedule": "linear"}),
        (ONE, {"steps": 3, "guidance_scale": 3.0, "guidance_schedule": "cosine"}),
        (ONE, {"steps": 3, "guidance_scale": 3.0, "guidance_interval": (0.4, 0.6)}),
        (TWO, {"steps": 2, "temperature": 2.0, "top_k": 3, "top_p": 0.9}),
        (ONE, {"steps": 3, "choice_temperature": 1.5}),
        (TWO, {"steps": 2, "choice_temperature": 4.5, "guidance_scale": 2.0}),
    ],
)
def test_frequencies_are_the_exact_distribution(make_prior, levels, settings):
    prior = make_prior(*levels, order="masked", width=4, heads=1, depth=1, spread=20.0)
    sampler = Sampler(**{"choice_temperature": 0.0, **settings})
    drawn = draw(prior, [1] * DRAWS, sampler)
    expected = masked_distribution(prior, prior.num_codes + 1, sampler, (-1,) * prior.length)
    assert chance_of(counts_of(drawn, prior), expected) > 1e-3


@pytest.mark.parametrize("choice_temperature", [0.0, 2.0])
@pytest.mark.parametrize(("levels", "given"), [(((1, 4, 3),), (2, -1, -1, 0)), (TWO, (-1, 5, -1))])
def test_completions_have_their_exact_distribution(make_prior, levels, given, choice_temperature):
    prior = make_prior(*levels, order="masked", width=4, heads=1, depth=1, spread=20.0)
    sampler = Sampler(steps=2, choice_temperature=choice_temperature)
    drawn = draw(prior, [2] * DRAWS, sampler, torch.tensor(given).expand(DRAWS, -1))
    expected = masked_distribution(prior, prior.num_codes + 2, sampler, given)
    assert chance_of(counts_of(drawn, prior), expected) > 1e-3
    for position, token in enumerate(given):
        assert token < 0 or (drawn[:, position] == token).all()


def watch(prior, monkeypatch):
    """What every round shows to the prior and gets from it: [(start, sequence, logits)]."""
    rounds, original = [], prior.logits_of

    def logits_of(start, sequence):
        logits = original(start, sequence)
        rounds.append((start, sequence.clone(), logits.clone()))
        return logits

    monkeypatch.setattr(prior, "logits_of", logits_of)
    return rounds


@pytest.mark.parametrize("kind", MASKED)
def test_every_round_sees_what_is_known_so_far_with_and_without_the_class(
    make_prior, monkeypatch, kind
):
    """Its logits are those of `forward` and of a slow reference for the final codes."""
    levels, options = MASKED[kind]
    prior = make_prior(*levels, **options)
    rounds = watch(prior, monkeypatch)
    labels = torch.tensor([0, 2, -1])
    drawn = draw(prior, labels, Sampler(steps=4, guidance_scale=2.0))
    monkeypatch.undo()
    start, null = start_tokens(prior, labels), prefix(*[prior.null_token] * 3)
    assert len(rounds) == 4
    for number, (starts, visible, logits) in enumerate(rounds):
        assert torch.equal(starts.tokens, start.joined(null).tokens)
        assert torch.equal(visible[:3], visible[3:])
        known = visible[:3] != prior.mask_token
        assert torch.equal(visible[:3][known], drawn[known])
        with torch.no_grad():
            again = [prior.logits_of(each, visible[:3]) for each in (start, null)]
        for level in prior.levels:
            of_level = slice(level.start, level.stop), slice(level.first, level.last)
            for half, expected in zip(logits.chunk(2), again, strict=True):
                torch.testing.assert_close(
                    half[:, *of_level], expected[:, *of_level], rtol=1e-5, atol=1e-5
                )
            if number == 1:
                slow = slow_outputs(prior, int(start.tokens[1]), visible[1])
                torch.testing.assert_close(
                    logits[1][of_level].double(), slow[of_level], rtol=1e-5, atol=1e-5
                )


@pytest.mark.parametrize("kind", MASKED)
def test_forward_predicts_the_hidden_codes_from_the_rest_alone(make_prior, monkeypatch, kind):
    levels, options = MASKED[kind]
    prior = make_prior(*levels, **options)
    maps, labels = random_maps(prior, 3), torch.tensor([0, 1, -1])
    sequence = prior._sequence(maps)
    hidden = torch.rand(3, prior.length, generator=torch.Generator().manual_seed(1)) < 0.5
    hidden[:, 0], hidden[:, -1] = True, False
    monkeypatch.setattr(
        "latent_prior.stage2_prior.masked.hide_for_training", lambda *_: (hidden, hidden.sum())
    )
    with torch.no_grad():
        output = prior(maps, labels)
        visible = torch.where(hidden, prior.mask_token, sequence)
        assert torch.equal(output.logits, prior.logits_of(start_tokens(prior, labels), visible))
        expected = -output.logits.double().log_softmax(-1).gather(-1, sequence[..., None])[..., 0]
        torch.testing.assert_close(output.nats.double(), expected * hidden, rtol=1e-5, atol=1e-5)
        assert float(output.loss) == pytest.approx(float(expected[hidden].mean()), rel=1e-5)
        for position in range(prior.length):
            changed = sequence.clone()
            level = next(level for level in prior.levels if level.start <= position < level.stop)
            changed[:, position] = level.first + (changed[:, position] - level.first + 1) % (
                level.last - level.first
            )
            other = prior(sequence_to_maps(changed, prior.code_spec), labels).logits
            for image in range(3):
                same = other[image] == output.logits[image]
                if hidden[image, position]:
                    assert same.all()
                else:  # seen from all positions, those before it too
                    within = slice(prior.levels[0].first, prior.levels[0].last)
                    assert not same[0, within].any()
                    assert not same.all(-1).any()


@pytest.mark.parametrize("steps", [1, 2, 3, 7, 12, 16, 40])
@pytest.mark.parametrize("known", [0, 5, 11, 12])
def test_the_number_of_masks_follows_the_cosine_and_known_codes_stay(
    make_prior, monkeypatch, steps, known
):
    prior = make_prior(order="masked")
    given = torch.full((4, 12), -1)
    for image in range(4):
        positions = torch.randperm(12, generator=torch.Generator().manual_seed(image))[:known]
        given[image, positions] = positions % 11
    rounds = watch(prior, monkeypatch)
    drawn = draw(prior, [0, 1, 2, -1], Sampler(steps=steps), given)
    monkeypatch.undo()
    assert len(rounds) == steps
    n = left = 12 - known
    for number, (_, visible, _) in enumerate(rounds):
        hidden = visible == prior.mask_token
        assert (hidden.sum(1) == left).all()
        assert torch.equal(visible[~hidden], drawn[~hidden])
        cosine = math.floor(n * math.cos(math.pi * (number + 1) / (2 * steps)) + 1e-6)
        left = max(0, min(cosine, left - 1))  # at least one is kept in every round
    assert left == 0
    assert ((drawn >= 0) & (drawn < prior.num_codes)).all()
    assert torch.equal(drawn[given >= 0], given[given >= 0])


def test_images_with_other_numbers_of_known_codes_share_a_batch(make_prior):
    prior = make_prior(order="masked")
    given = torch.full((3, 12), -1)
    given[1, :7], given[2] = 3, torch.arange(12) % 11
    sampler = Sampler(steps=5)
    drawn = draw(prior, [0, 1, 2], sampler, given)
    assert torch.equal(drawn[2], given[2])
    with torch.inference_mode():
        start, uniforms = start_tokens(prior, torch.tensor([1])), uniforms_for(3, 12, 5)[1:2]
        alone = last_of(sample_codes(prior, start, given[1:2], sampler, uniforms))
    assert torch.equal(drawn[1:2], alone)


@pytest.mark.parametrize("levels", [((4, 4, 64),), ((2, 2, 16), (4, 4, 64))])
@pytest.mark.parametrize("settings", [{}, {"guidance_scale": 2.0, "guidance_schedule": "cosine"}])
def test_samples_depend_neither_on_their_batch_nor_on_the_call(make_prior, levels, settings):
    prior = make_prior(*levels, order="masked", positions="2d")
    labels = [number % 4 - 1 for number in range(16)]

    def own_generators(images):
        generators = [torch.Generator().manual_seed(image) for image in images]
        own_labels = [labels[image] for image in images]
        return prior.sample(len(images), own_labels, steps=6, generator=generators, **settings)

    whole = own_generators(range(16))
    for size in (1, 2, 7):
        for first in range(0, 16, size):
            part = own_generators(range(first, min(first + size, 16)))
            for name, codes in part.items():
                assert torch.equal(codes, whole[name][first : first + size])
    shared = torch.Generator().manual_seed(3)
    whole = prior.sample(16, labels, generator=shared, **settings)
    shared.manual_seed(3)
    parts = [
        prior.sample(5, labels[:5], generator=shared, **settings),
        prior.sample(11, labels[5:], generator=shared, **settings),
    ]
    for name, codes in whole.items():
        assert torch.equal(torch.cat([part[name] for part in parts]), codes)


def test_guidance_without_a_class_changes_nothing_and_computes_nothing(make_prior, monkeypatch):
    prior = make_prior(order="masked")
    rounds = watch(prior, monkeypatch)
    plain = draw(prior, [-1] * 3, Sampler(steps=4))
    assert torch.equal(draw(prior, [-1] * 3, Sampler(steps=4, guidance_scale=3.0)), plain)
    assert {len(start) for start, _, _ in rounds} == {3}
    mixed = draw(prior, [-1, 0, 1], Sampler(steps=4, guidance_scale=3.0))
    assert torch.equal(mixed[0], plain[0])
    assert not torch.equal(mixed, draw(prior, [-1, 0, 1], Sampler(steps=4)))


def test_sampling_in_training_mode_has_no_dropout_and_leaves_the_mode(make_prior):
    prior = make_prior(order="masked", dropout=0.5, gradient_checkpointing=True)
    expected = prior.sample(4, generator=torch.Generator().manual_seed(0))["codes"]
    prior.train()
    found = prior.sample(4, generator=torch.Generator().manual_seed(0))["codes"]
    assert torch.equal(found, expected)
    assert all(module.training for module in prior.modules())


def test_the_choice_is_greedy_at_zero_and_by_chance_at_a_large_temperature(make_prior, monkeypatch):
    """The codes kept first are the most confident ones, or any, whatever their probability."""
    prior = make_prior(order="masked")
    kept_first = {}
    for choice_temperature in (0.0, 1e4):
        rounds = watch(prior, monkeypatch)
        sampler = Sampler(steps=12, temperature=0.0, choice_temperature=choice_temperature)
        draw(prior, [0] * 500, sampler)
        monkeypatch.undo()
        kept_first[choice_temperature] = (rounds[1][1] != prior.mask_token).double().mean(0)
    assert kept_first[0.0].unique().tolist() == [0.0, 1.0]
    assert (kept_first[1e4] - 1 / 12).abs().max() < 5 * (1 / 12 / 500) ** 0.5


@pytest.mark.parametrize("length", [1, 3, 16])
def test_training_hides_shares_by_the_cosine_law(length):
    torch.manual_seed(0)
    hidden, count = hide_for_training(50_000, length, CPU)
    assert count == hidden.sum()
    counts = hidden.sum(1).bincount(minlength=length + 1).double() / len(hidden)
    assert counts[0] == 0
    for count in range(1, length + 1):
        # ceil(length cos(pi u / 2)) = count for u in [2 / pi acos(count / length), ...)
        chance = (math.acos((count - 1) / length) - math.acos(count / length)) * 2 / math.pi
        assert float(counts[count]) == pytest.approx(chance, abs=4 * (chance / 50_000) ** 0.5)
    everywhere = hidden.double().mean(0)
    assert (everywhere - everywhere.mean()).abs().max() < 4 * 0.5 / 50_000**0.5


def test_the_bound_hides_each_number_and_each_set_alike():
    generator = torch.Generator().manual_seed(0)
    hidden, weight = hide_for_bound(torch.rand(70_000, 4, generator=generator))
    counts = hidden.sum(1)
    torch.testing.assert_close(weight[:, 0], 3 / counts)
    sets = (hidden * torch.tensor([1, 2, 4])).sum(1)
    expected = torch.tensor([0, 1, 1, 1, 1, 1, 1, 3]) / 9.0
    assert chance_of(sets.bincount(minlength=8), expected) > 1e-3
    last = torch.tensor([[1 - 2**-24, 0.0, 0.0, 0.0]])
    assert hide_for_bound(last)[0].all()
    assert hide_for_bound(torch.zeros(1, 4))[0].sum() == 1


def chain_nats(prior, start, sequence, order):
    """-log p of a sequence, code by code in any order, from logits that see the codes so far."""
    visible, total = torch.full_like(sequence, prior.mask_token), 0.0
    for position in order:
        level = next(level for level in prior.levels if level.start <= position < level.stop)
        logits = prior.logits_of(start, visible.unsqueeze(0))[0, position, level.first : level.last]
        total -= float(logits.double().log_softmax(-1)[sequence[position] - level.first])
        visible[position] = sequence[position]
    return total


@pytest.mark.parametrize("levels", [ONE, TWO])
def test_the_bound_is_the_mean_over_all_orders(make_prior, monkeypatch, levels):
    """Over all masks that `nats` may draw (Hoogeboom et al., 2022, Eq. 6), at least the likelihood.

    By Jensen's inequality the mean over orders of -log p is at least -log of the mean of p.
    """
    prior = make_prior(*levels, order="masked")
    maps, labels = random_maps(prior, 1), torch.tensor([1])
    sequence, start = prior._sequence(maps)[0], start_tokens(prior, labels)
    mean = 0.0
    with torch.no_grad():
        for count in (1, 2, 3):
            sets = list(itertools.combinations(range(3), count))
            for positions in sets:
                hidden = torch.zeros(1, 3, dtype=torch.bool)
                hidden[0, list(positions)] = True
                drawn = hidden, torch.tensor([[3 / count]])
                monkeypatch.setattr("latent_prior.stage2_prior.masked.hide_for_bound", lambda _, drawn=drawn: drawn)  # fmt: skip
                total = sum(float(nats) for nats in prior.nats(maps, labels).values())
                mean += total / 3 / len(sets)
        monkeypatch.undo()
        chains = [
            chain_nats(prior, start, sequence, order) for order in itertools.permutations(range(3))
        ]
        assert mean == pytest.approx(sum(chains) / len(chains), rel=1e-5)
        assert mean > -math.log(sum(math.exp(-chain) for chain in chains) / len(chains))
        # And `nats` itself draws around it.
        many = {name: codes.expand(30_000, -1, -1) for name, codes in maps.items()}
        found = prior.nats(many, labels.expand(30_000), generator=torch.Generator().manual_seed(0))
    total = torch.stack(list(found.values())).sum(0).double()
    assert float(total.mean()) == pytest.approx(mean, abs=4 * float(total.std()) / 30_000**0.5)


def test_any_order_is_a_distribution_over_all_images(make_prior):
    prior = make_prior(*TWO, order="masked")
    start = prefix(prior.null_token)
    with torch.no_grad():
        for order in ((0, 1, 2), (2, 0, 1)):
            chances = [
                math.exp(-chain_nats(prior, start, sequence, order))
                for sequence in all_sequences(prior)
            ]
            assert sum(chances) == pytest.approx(1.0, abs=1e-5)


def test_the_masks_of_the_bound_follow_their_generator_alone(make_prior):
    prior = make_prior(order="masked")
    maps = random_maps(prior, 5)

    def nats(seed):
        with torch.no_grad():
            return prior.nats(maps, generator=torch.Generator().manual_seed(seed))["codes"]

    state = torch.get_rng_state()
    assert torch.equal(nats(1), nats(1))
    assert not torch.equal(nats(1), nats(2))
    assert torch.equal(torch.get_rng_state(), state)
