"""Exact sampling distributions of tiny priors, by enumeration in float64."""

import itertools
import math
from functools import cache

import torch
from torch import Tensor

from latent_prior.stage2_prior.prior import TransformerPrior
from latent_prior.stage2_prior.sampler import Sampler
from tests.stage2_prior.samples import all_sequences, prefix


def scale_at(step: int, steps: int, sampler: Sampler) -> float:
    share = step / (steps - 1) if steps > 1 else 1.0
    low, high = sampler.guidance_interval
    if not low <= share <= high:
        return 1.0
    ramp = {"constant": 1.0, "linear": share, "cosine": (1 - math.cos(math.pi * share)) / 2}
    return 1 + (sampler.guidance_scale - 1) * ramp[sampler.guidance_schedule]


def guided(conditional: Tensor, unconditional: Tensor, scale: float) -> Tensor:
    """Log of p(code | class)^scale p(code)^(1 - scale), normalised."""
    both = scale * conditional.log_softmax(-1) + (1 - scale) * unconditional.log_softmax(-1)
    return both.log_softmax(-1)


def filtered(log_probabilities: Tensor, sampler: Sampler) -> Tensor:
    """Probabilities (K,) of the draw after temperature, top-k and top-p."""
    p = (log_probabilities / sampler.temperature).softmax(-1)
    order = sorted(range(len(p)), key=lambda code: -float(p[code]))
    kept = order[: sampler.top_k or len(order)]
    p = torch.where(torch.tensor([code in kept for code in range(len(p))]), p, 0)
    p = p / p.sum()
    mass, nucleus = 0.0, []
    for code in kept:
        if mass < sampler.top_p:
            nucleus.append(code)
        mass += float(p[code])
    p = torch.where(torch.tensor([code in nucleus for code in range(len(p))]), p, 0)
    return p / p.sum()


def raster_distribution(prior: TransformerPrior, start: int, sampler: Sampler) -> Tensor:
    """Probability of each of `all_sequences`, (N,), from teacher-forced logits."""
    everything = all_sequences(prior)
    first = prefix(*[start] * len(everything))
    with torch.no_grad():
        conditional = prior.logits_of(first, everything).double()
        unconditional = prior.logits_of(first.without(prior.null_token), everything).double()
    probabilities = torch.ones(len(everything), dtype=torch.float64)
    for level in prior.levels:
        codes_of_level = slice(level.first, level.last)
        for position in range(level.start, level.stop):
            scale = scale_at(position, prior.length, sampler)
            logs = guided(
                conditional[:, position, codes_of_level],
                unconditional[:, position, codes_of_level],
                scale,
            )
            draws = torch.stack([filtered(row, sampler) for row in logs])
            codes = everything[:, position, None] - level.first
            probabilities *= draws.gather(1, codes).squeeze(1)
    return probabilities


def masked_distribution(
    prior: TransformerPrior, start: int, sampler: Sampler, given: tuple[int, ...]
) -> Tensor:
    """Probability of each of `all_sequences`, (N,), after filling in the -1 positions of `given`.

    In each round, a joint draw of the hidden positions has the product of their probabilities. The
    positions of the smallest log-probabilities stay hidden; with Gumbel noise any set, by chance.
    """

    @cache
    def log_probabilities(state: tuple[int, ...], scale: float) -> tuple[Tensor, ...]:
        tokens = torch.tensor([[prior.mask_token if token < 0 else token for token in state]])
        with torch.no_grad():
            conditional = prior.logits_of(prefix(start), tokens)[0].double()
            unconditional = prior.logits_of(prefix(prior.null_token), tokens)[0].double()
        return tuple(
            guided(
                conditional[position, level.first : level.last],
                unconditional[position, level.first : level.last],
                scale,
            )
            for level in prior.levels
            for position in range(level.start, level.stop)
        )

    first_code = [level.first for level in prior.levels for _ in range(level.start, level.stop)]
    steps, at_first = sampler.steps, sum(token < 0 for token in given)
    states = {given: 1.0}
    for step in range(steps):
        after: dict[tuple[int, ...], float] = {}
        noise = sampler.choice_temperature * (1 - (step + 1) / steps)
        for state, probability in states.items():
            hidden = [position for position, token in enumerate(state) if token < 0]
            if not hidden:
                after[state] = after.get(state, 0.0) + probability
                continue
            left = math.floor(at_first * math.cos(math.pi / 2 * (step + 1) / steps) + 1e-6)
            left = min(left, len(hidden) - 1)
            logs = log_probabilities(state, scale_at(step, steps, sampler))
            draws = {position: filtered(logs[position], sampler) for position in hidden}
            for codes in itertools.product(*(range(len(draws[position])) for position in hidden)):
                chance = math.prod(
                    float(draws[position][code])
                    for position, code in zip(hidden, codes, strict=True)
                )
                confidence = [
                    float(logs[position][code])
                    for position, code in zip(hidden, codes, strict=True)
                ]
                for kept, share in kept_sets(tuple(confidence), len(hidden) - left, noise).items():
                    drawn = list(state)
                    for index in kept:
                        drawn[hidden[index]] = codes[index] + first_code[hidden[index]]
                    key = tuple(drawn)
                    after[key] = after.get(key, 0.0) + probability * chance * share
        states = after
    return torch.tensor(
        [states.get(tuple(row), 0.0) for row in all_sequences(prior).tolist()], dtype=torch.float64
    )


def kept_sets(
    confidence: tuple[float, ...], count: int, noise: float
) -> dict[tuple[int, ...], float]:
    """Probability of each set of `count` positions to have the largest noisy confidence.

    Without replacement, the next position has a probability proportional to
    exp(confidence / noise).
    """
    positions = range(len(confidence))
    if noise == 0:
        return {tuple(sorted(sorted(positions, key=lambda i: -confidence[i])[:count])): 1.0}
    weights = [math.exp(value / noise) for value in confidence]
    chances: dict[tuple[int, ...], float] = {}
    for order in itertools.permutations(positions, count):
        left, chance = sum(weights), 1.0
        for position in order:
            chance *= weights[position] / left
            left -= weights[position]
        key = tuple(sorted(order))
        chances[key] = chances.get(key, 0.0) + chance
    return chances
