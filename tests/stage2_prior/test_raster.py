import pytest
import torch

from latent_prior.stage2_prior.raster import first_step, sample_codes
from latent_prior.stage2_prior.sampler import Sampler
from tests.stage2_prior.exact import raster_distribution
from tests.stage2_prior.samples import all_sequences, chance_of, counts_of, last_of, prefix

DRAWS = 100_000
ONE = ((1, 3, 3),)
TWO = ((1, 1, 3), (1, 2, 4))
PATCHED = ((2, 2, 3),)


@pytest.mark.parametrize(
    ("levels", "settings"),
    [
        (ONE, {}),
        (TWO, {}),
        (ONE, {"guidance_scale": 0.0}),
        (TWO, {"guidance_scale": 2.0}),
        (ONE, {"guidance_scale": 3.0, "guidance_schedule": "linear"}),
        (TWO, {"guidance_scale": 3.0, "guidance_schedule": "cosine"}),
        (ONE, {"guidance_scale": 3.0, "guidance_interval": (0.2, 0.8)}),
        (ONE, {"temperature": 1.5, "top_k": 2}),
        (TWO, {"temperature": 2.0, "top_p": 0.8}),
        (TWO, {"guidance_scale": 1.5, "top_k": 3, "top_p": 0.9, "temperature": 1.5}),
        (PATCHED, {}),
        (PATCHED, {"guidance_scale": 3.0, "guidance_schedule": "linear"}),
    ],
)
def test_frequencies_are_the_exact_distribution(make_prior, levels, settings):
    positions = "2d" if levels == TWO else "1d"
    shape = {"width": 4, "heads": 1, "depth": 1, "patch": 2 if levels == PATCHED else 1}
    prior = make_prior(*levels, spread=20.0, positions=positions, **shape)
    sampler, start = Sampler(**settings), prior.first_class + 1
    generator = torch.Generator().manual_seed(0)
    uniforms = torch.rand(DRAWS, prior.length, dtype=torch.float64, generator=generator)
    with torch.inference_mode():
        drawn = last_of(sample_codes(prior, prefix(*[start] * DRAWS), None, sampler, uniforms))
    expected = raster_distribution(prior, start, sampler)
    assert chance_of(counts_of(drawn, prior), expected) > 1e-3
    # The test can fail: these draws do not fit what another class would give.
    other = raster_distribution(prior, start + 1, sampler)
    if sampler.guidance_scale > 0 and (other > 0).equal(expected > 0):
        assert chance_of(counts_of(drawn, prior), other) < 1e-6


def test_counts_are_in_the_order_of_the_sequences(make_prior):
    prior = make_prior(*TWO)
    everything = all_sequences(prior)
    assert len(everything) == 3 * 4 * 4
    assert torch.equal(
        counts_of(everything[[5, 5, 47]], prior).nonzero(), torch.tensor([[5], [47]])
    )


def test_unconditional_rows_are_computed_only_where_guidance_changes_something(make_prior):
    prior = make_prior()
    null, classes = prefix(*[prior.null_token] * 3), prefix(11, 12, prior.null_token)
    guidance = Sampler(guidance_scale=2.0, guidance_schedule="linear")
    for start, sampler, rows in (
        (classes, Sampler(), 3),
        (null, guidance, 3),
        (classes, guidance, 6),
        (prefix(11), Sampler(), 2),
        (prefix(11), guidance, 2),
    ):
        with first_step(prior, start, sampler) as (decoder, x, guided):
            assert guided == (start is not null and sampler is guidance)
            second = prefix(*[prior.null_token] * len(start)) if guided else start
            assert decoder.rows == rows
            assert torch.equal(x, prior.embedding(start.joined(second).tokens[:rows, 0]))
