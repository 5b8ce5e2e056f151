"""Likelihood of sources with a known distribution: memorised images, a Markov chain's entropy."""

import math

import pytest
import torch

from latent_prior.stage2_prior.sequences import sequence_to_maps
from tests.stage2_prior.samples import all_sequences, random_maps


def train(prior, batches, learning_rate=1e-2):
    """A few steps of AdamW with a falling learning rate; one batch is (maps, labels)."""
    prior.train()
    optimizer = torch.optim.AdamW(prior.parameters(), lr=learning_rate, weight_decay=0.0)
    falling = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1 - step / len(batches))
    for maps, labels in batches:
        optimizer.zero_grad()
        prior(maps, labels).loss.backward()
        torch.nn.utils.clip_grad_norm_(
            prior.parameters(), 1.0
        )  # the default of stage2_prior/train.py
        optimizer.step()
        falling.step()
    return prior.eval()


def nats_per_code(prior, maps, labels=None, **options):
    with torch.no_grad():
        total = sum(prior.nats(maps, labels, **options).values())
    return total / sum(level.num_values for level in prior.levels)


@pytest.mark.parametrize("label", [None, 1])
@pytest.mark.parametrize("levels", [((2, 2, 4),), ((1, 1, 3), (1, 3, 4))])
@pytest.mark.parametrize("positions", ["1d", "2d"])
def test_the_probabilities_of_all_images_sum_to_one(make_prior, levels, label, positions):
    prior = make_prior(*levels, positions=positions)
    everything = all_sequences(prior)
    maps = sequence_to_maps(everything, prior.code_spec)
    labels = None if label is None else torch.full((len(everything),), label)
    with torch.no_grad():
        nats = prior.nats(maps, labels)
        loss = prior(maps, labels).loss
    assert list(nats) == [level.name for level in prior.levels]
    total = torch.stack(list(nats.values())).sum(0).double()
    assert float((-total).exp().sum()) == pytest.approx(1.0, abs=1e-5)
    assert float(loss) == pytest.approx(float(total.mean()) / prior.length, rel=1e-5)
    # The coarse map's is a distribution by itself: it does not look at the finer one.
    coarse = prior.levels[0]
    first = nats[coarse.name].double()
    finer = len(everything) // (coarse.last - coarse.first) ** (coarse.stop - coarse.start)
    assert float((-first).exp().sum()) / finer == pytest.approx(1.0, abs=1e-5)


@pytest.mark.parametrize(
    ("levels", "options"),
    [
        (((2, 2, 8), (4, 4, 16)), {}),
        (((4, 4, 16),), {"positions": "2d"}),
        (((2, 2, 8), (4, 4, 16)), {"positions": "2d"}),
    ],
)
def test_sixteen_images_are_learnt_by_heart(make_prior, levels, options):
    prior = make_prior(*levels, num_classes=16, spread=1.0, **options)
    maps, labels = random_maps(prior, 16), torch.arange(16)
    train(prior, [(maps, labels)] * 100)
    assert float(nats_per_code(prior, maps, labels).mean()) < 0.01
    again = prior.sample(16, labels, temperature=0.0)
    assert all(torch.equal(again[name], codes) for name, codes in maps.items())


@pytest.mark.parametrize("levels", [((4, 4, 16),), ((2, 2, 8), (3, 3, 16))])
def test_a_masked_prior_learns_an_image_of_each_class_by_heart(make_prior, levels):
    """The class determines the image, so the bound itself can vanish."""
    prior = make_prior(*levels, order="masked", num_classes=16, spread=1.0)
    maps, labels = random_maps(prior, 16), torch.arange(16)
    train(prior, [(maps, labels)] * 150)
    generator = torch.Generator().manual_seed(0)
    bounds = [nats_per_code(prior, maps, labels, generator=generator).mean() for _ in range(10)]
    assert sum(map(float, bounds)) / 10 < 0.01
    for steps in (1, 4):
        again = prior.sample(16, labels, temperature=0.0, steps=steps)
        assert all(torch.equal(again[name], codes) for name, codes in maps.items())


@pytest.mark.parametrize("latents", [(8, 1, 1), (4, 2, 2)])
def test_a_latent_prior_learns_sixteen_images_by_heart(make_prior, latents):
    """Below -2 nats per number of deviation 1; a Gaussian of that deviation needs 1.42.

    Over 20 seeds the likelihood was below -2.5 and the median error of the drawn numbers below 0.12
    (0.95 between two normal numbers), the same with AVX2 and AVX-512.
    """
    prior = make_prior(latents=latents, num_classes=16, spread=1.0)
    maps, labels = random_maps(prior, 16), torch.arange(16)
    train(prior, [(maps, labels)] * 200, learning_rate=5e-3)
    of_scale = float(prior.latent_scale.log().mean())
    assert float(nats_per_code(prior, maps, labels).mean()) - of_scale < -2
    drawn = prior.sample(16, labels, generator=torch.Generator().manual_seed(0))["latents"]
    scale = prior.latent_scale.view(-1, 1, 1)
    assert float(((drawn - maps["latents"]) / scale).abs().median()) < 0.3


class MarkovChain:
    """Codes in raster order, each given the one before; the first is stationary."""

    def __init__(self, states: int, seed: int) -> None:
        self.generator = torch.Generator().manual_seed(seed)
        logits = 1.5 * torch.randn(states, states, generator=self.generator, dtype=torch.float64)
        self.transitions = logits.softmax(-1)
        self.stationary = torch.linalg.matrix_power(self.transitions, 1000)[0]
        torch.testing.assert_close(self.stationary @ self.transitions, self.stationary)

    def draw(self, count: int, length: int) -> torch.Tensor:
        def next_of(chances):
            return chances.multinomial(1, generator=self.generator).squeeze(1)

        codes = [next_of(self.stationary.expand(count, -1))]
        while len(codes) < length:
            codes.append(next_of(self.transitions[codes[-1]]))
        return torch.stack(codes, dim=1)

    def entropy(self, length: int) -> float:
        """Of a whole sequence in nats: that of the start and of every step."""
        of_start = -float((self.stationary * self.stationary.log()).sum())
        of_step = -float(
            (self.stationary.unsqueeze(1) * self.transitions * self.transitions.log()).sum()
        )
        return of_start + (length - 1) * of_step


@pytest.mark.parametrize(
    ("levels", "options"), [(((4, 4, 5),), {}), (((1, 4, 5), (3, 4, 5)), {"positions": "2d"})]
)
def test_likelihood_comes_within_two_percent_of_a_markov_chains_entropy(
    make_prior, levels, options
):
    """Never below it but by chance: no model codes a source in fewer nats than its entropy.

    Two maps are two parts of one sequence to the prior.
    """
    chain, length = MarkovChain(states=5, seed=1), 16
    prior = make_prior(*levels, spread=1.0, num_classes=0, **options)
    first = torch.tensor([level.first for level in prior.levels for _ in range(level.start, level.stop)])  # fmt: skip

    def draw(count):
        return sequence_to_maps(chain.draw(count, length) + first, prior.code_spec)

    train(prior, [(draw(64), None) for _ in range(200)])
    nats = nats_per_code(prior, draw(8000)).double()
    entropy = chain.entropy(length) / length
    assert 0.5 < entropy < 0.9 * math.log(5)  # there is something to learn
    error = float(nats.std()) / len(nats) ** 0.5
    assert error < 0.005 * entropy
    assert entropy - 3 * error < float(nats.mean()) < 1.02 * entropy
