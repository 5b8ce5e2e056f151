"""Helpers of several tests: kinds of priors, random maps, and a chi-squared test of frequencies."""

import itertools
from collections import deque
from collections.abc import Iterable

import torch
from torch import Tensor

from latent_prior.data.codes import CodeMaps
from latent_prior.stage2_prior.network import Prefix
from latent_prior.stage2_prior.prior import TransformerPrior

RASTER = {
    "one map": (((3, 4, 11),), {}),
    "one map, rows and columns": (((3, 4, 11),), {"positions": "2d"}),
    "two maps": (((2, 2, 5), (3, 3, 7)), {}),
    "two maps, rows and columns": (((2, 2, 5), (4, 3, 7)), {"positions": "2d"}),
}
PATCHES = {
    "patches of a map": (((4, 6, 11),), {"patch": 2}),
    "patches of two maps, rows and columns": (
        ((2, 2, 5), (4, 4, 7)),
        {"patch": 2, "positions": "2d"},
    ),
}
MASKED = {
    f"masked, {name}": (levels, {**options, "order": "masked"})
    for name, (levels, options) in RASTER.items()
}
LATENTS = {
    "flat latents": ((), {"latents": (8, 1, 1)}),
    "flat latents in chunks of two": ((), {"latents": (8, 1, 1), "chunk": 2}),
    "a grid of latents": ((), {"latents": (3, 2, 3)}),
    "a grid in chunks, rows and columns": (
        (),
        {"latents": (4, 2, 2), "chunk": 2, "positions": "2d"},
    ),
}


def random_maps(prior: TransformerPrior, batch: int, seed: int = 0) -> CodeMaps:
    """Code maps, or latents, for a prior to look at."""
    generator = torch.Generator().manual_seed(seed)
    if prior.latents:
        (level,) = prior.code_spec.levels
        normals = torch.randn(batch, *level.shape, generator=generator)
        shift, scale = (x.view(-1, 1, 1) for x in (prior.latent_shift, prior.latent_scale))
        return {level.name: normals * scale + shift}
    return {
        span.name: torch.randint(
            span.last - span.first, (batch, span.height, span.width), generator=generator
        )
        for span in prior.levels
    }


def last_of(steps: Iterable[Tensor]) -> Tensor:
    """What a sampling loop ends with."""
    (last,) = deque(steps, maxlen=1)
    return last


def prefix(*tokens: int) -> Prefix:
    """One token in front of each image's codes."""
    return Prefix(torch.tensor(tokens).unsqueeze(1))


def start_tokens(prior: TransformerPrior, labels: Tensor) -> Prefix:
    """What stands in front of sequences with these labels."""
    return Prefix(
        torch.where(labels < 0, prior.null_token, labels + prior.first_class).unsqueeze(1)
    )


def all_sequences(prior: TransformerPrior) -> Tensor:
    """Every sequence of tokens (N, L) there can be, in lexicographic order."""
    codes = [
        range(level.first, level.last)
        for level in prior.levels
        for _ in range(level.start, level.stop)
    ]
    return torch.tensor(list(itertools.product(*codes)))


def counts_of(drawn: Tensor, prior: TransformerPrior) -> Tensor:
    """How often each of `all_sequences` is among the drawn ones (B, L)."""
    number, count = torch.zeros(len(drawn), dtype=torch.long), 1
    for level in prior.levels:
        for position in range(level.start, level.stop):
            vocabulary = level.last - level.first
            number = number * vocabulary + drawn[:, position] - level.first
            count *= vocabulary
    return number.bincount(minlength=count)


def chance_of(counts: Tensor, probabilities: Tensor) -> float:
    """p-value of counts by chi-squared; sequences of probability 0 must not occur.

    Cells with fewer than 5 expected draws are merged, as the approximation requires.
    """
    assert counts[probabilities == 0].sum() == 0
    torch.testing.assert_close(probabilities.sum().item(), 1.0, rtol=0, atol=1e-6)
    expected, counts = probabilities.double() * counts.sum(), counts.double()
    rare = expected < 5
    observed = torch.cat((counts[~rare], counts[rare].sum().view(1)))
    expected = torch.cat((expected[~rare], expected[rare].sum().view(1)))
    observed, expected = observed[expected >= 5], expected[expected >= 5]
    assert len(expected) >= 5  # or else nothing would be tested
    statistic = ((observed - expected) ** 2 / expected).sum()
    freedom = torch.tensor((len(expected) - 1) / 2, dtype=torch.float64)
    return float(torch.special.gammaincc(freedom, statistic / 2))
