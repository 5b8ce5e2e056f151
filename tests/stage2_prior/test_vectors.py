import dataclasses

import pytest
import torch

from latent_prior.data.codes import Level
from latent_prior.stage2_prior.vectors import (
    SMALLEST_SCALE,
    chunk_width,
    latent_level,
    latents_of,
    latents_to_sequence,
    sequence_to_latents,
)


@pytest.mark.parametrize("shape", [(8, 1, 1), (6, 2, 3), (1, 4, 4)])
def test_both_ways_are_inverse_for_all_chunks(make_latent_spec, shape):
    spec = make_latent_spec(*shape)
    (level,) = spec.levels
    shift, scale = torch.tensor(spec.latent_shift), torch.tensor(spec.latent_scale)
    latents = 3 * torch.randn(5, *shape)
    for chunk in (chunk for chunk in range(1, shape[0] + 1) if shape[0] % chunk == 0):
        sequence = latents_to_sequence(latents, shift, scale, chunk)
        assert sequence.shape == (5, latents[0].numel() // chunk, chunk)
        restored = sequence_to_latents(sequence, shift, scale, level)
        assert list(restored) == [level.name]
        torch.testing.assert_close(restored[level.name], latents, rtol=0, atol=1e-5)
        again = latents_to_sequence(restored[level.name], shift, scale, chunk)
        torch.testing.assert_close(again, sequence, rtol=0, atol=1e-5)


def test_the_sequence_runs_place_after_place_and_chunk_after_chunk_at_each():
    latents = torch.tensor([[[[0.0, 10], [20, 30]], [[1, 11], [21, 31]], [[2, 12], [22, 32]], [[3, 13], [23, 33]]]])  # fmt: skip
    sequence = latents_to_sequence(latents, torch.zeros(4), torch.ones(4), 2)
    assert sequence[0].tolist() == [[0, 1], [2, 3], [10, 11], [12, 13], [20, 21], [22, 23], [30, 31], [32, 33]]  # fmt: skip


def test_channels_are_normalised_by_what_was_measured():
    shift, scale = torch.tensor([1.0, -50.0]), torch.tensor([0.1, 30.0])
    latents = torch.randn(20_000, 2, 1, 1) * scale.view(-1, 1, 1) + shift.view(-1, 1, 1)
    sequence = latents_to_sequence(latents.half(), shift, scale, 1).squeeze(2)
    assert sequence.dtype == torch.float32
    assert (sequence.mean(0).abs() < 0.03).all()
    assert ((sequence.std(0) - 1).abs() < 0.03).all()


def test_chunks_are_whole_places_of_a_grid_and_four_channels_of_a_flat_latent():
    grid, flat = Level("z", 2, 2, channels=6), Level("z", 1, 1, channels=64)
    assert chunk_width(grid, None) == 6
    assert chunk_width(flat, None) == 4
    assert chunk_width(Level("z", 1, 1, channels=6), None) == 2
    assert chunk_width(Level("z", 1, 1, channels=7), None) == 1
    assert chunk_width(grid, 3) == 3
    with pytest.raises(ValueError, match=r"--model.chunk 4 does not divide the 6 channels"):
        chunk_width(grid, 4)


def test_specs_that_cannot_be_modelled_are_refused(make_latent_spec):
    spec = make_latent_spec(4, 2, 2)
    assert latent_level(spec) == spec.levels[0]
    several = dataclasses.replace(spec, levels=(*spec.levels, Level("more", 1, 1, channels=2)))
    with pytest.raises(ValueError, match="needs one level, not latents, more"):
        latent_level(several)
    for missing in ("latent_shift", "latent_scale"):
        with pytest.raises(ValueError, match=r"encode with encode\.py"):
            latent_level(dataclasses.replace(spec, **{missing: None}))


@pytest.mark.parametrize(
    ("maps", "message"),
    [
        ({}, "code spec has latents"),
        ({"codes": torch.zeros(1, 4, 2, 2)}, "the latents are codes"),
        ({"latents": torch.zeros(1, 4, 2, 3)}, r"expected floats \(batch, 4, 2, 2\)"),
        ({"latents": torch.zeros(1, 4, 2, 2).long()}, "torch.int64"),
    ],
)
def test_other_maps_are_refused(make_latent_spec, maps, message):
    with pytest.raises(ValueError, match=message):
        latents_of(maps, make_latent_spec(4, 2, 2).levels[0])


def test_a_channel_that_never_changes_is_not_divided_by_zero(make_latent_spec, make_prior):
    spec = dataclasses.replace(make_latent_spec(2, 1, 1), latent_scale=(0.0, 1.0))
    prior = make_prior(latents=(2, 1, 1))
    again = type(prior)(type(prior.config)(code_spec=spec.to_dict(), width=32, depth=1, heads=2))
    assert again.latent_scale.tolist() == pytest.approx([SMALLEST_SCALE, 1.0])
    maps = {"latents": torch.tensor(spec.latent_shift).view(1, 2, 1, 1)}
    assert again(maps).loss.isfinite()
