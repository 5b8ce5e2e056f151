import dataclasses

import pytest
import torch

from latent_prior.data.codes import CodeSpec, Level
from latent_prior.stage2_prior.sequences import (
    SMALLEST_SCALE,
    Span,
    chunk_width,
    grid_positions,
    latent_level,
    latents_of,
    latents_to_sequence,
    level_spans,
    maps_to_sequence,
    sequence_to_latents,
    sequence_to_maps,
)

CPU = torch.device("cpu")
SHAPES = [((3, 4, 11),), ((2, 2, 5), (4, 3, 7)), ((1, 1, 300), (2, 2, 2), (4, 4, 9))]


def random_maps(spec, batch=5, dtype=torch.int64):
    return {
        level.name: torch.randint(level.vocabulary, (batch, level.height, level.width)).to(dtype)
        for level in spec.levels
    }


@pytest.mark.parametrize(
    ("levels", "patch"),
    [*((levels, 1) for levels in SHAPES), (((4, 6, 11),), 2), (((3, 3, 5), (6, 3, 7)), 3)],
)
def test_both_ways_are_inverse(make_spec, levels, patch):
    spec = make_spec(*levels)
    maps = random_maps(spec)
    sequence = maps_to_sequence(maps, spec, patch)
    assert sequence.shape == (5, spec.length)
    assert sequence.dtype == torch.int64
    restored = sequence_to_maps(sequence, spec, patch)
    assert list(restored) == [level.name for level in spec.levels]
    for name, codes in maps.items():
        assert torch.equal(restored[name], codes)
    assert torch.equal(maps_to_sequence(restored, spec, patch), sequence)


def test_codes_of_a_patch_follow_each_other_row_by_row(make_spec):
    codes = torch.arange(8).view(1, 2, 4)
    sequence = maps_to_sequence({"codes": codes}, make_spec((2, 4, 8)), 2)
    assert sequence.tolist() == [[0, 1, 4, 5, 2, 3, 6, 7]]


def test_a_map_that_patches_do_not_cover_is_named(make_spec):
    with pytest.raises(ValueError, match="does not divide the sides of the map level0 of 2 x 3"):
        level_spans(make_spec((2, 3, 5), (4, 6, 5)), 2)


def test_a_patch_stands_at_the_middle_of_its_codes(make_spec):
    spec = make_spec((2, 2, 5), (4, 6, 7))
    codes, patches = (grid_positions(level_spans(spec, patch), CPU) for patch in (1, 2))
    middles = codes[4:].view(2, 2, 3, 2, 2).mean((1, 3)).flatten(0, 1)
    torch.testing.assert_close(patches, torch.cat((codes[:4].mean(0, keepdim=True), middles)))


def test_one_level_is_read_in_raster_order(make_spec):
    codes = torch.arange(6).view(1, 2, 3)
    assert maps_to_sequence({"codes": codes}, make_spec((2, 3, 6))).tolist() == [[0, 1, 2, 3, 4, 5]]


def test_levels_follow_from_coarse_to_fine_with_ranges_of_their_own(make_spec):
    spec = make_spec((1, 2, 5), (2, 2, 7))
    maps = {"level1": torch.tensor([[[0, 1], [2, 6]]]), "level0": torch.tensor([[[4, 0]]])}
    assert maps_to_sequence(maps, spec).tolist() == [[4, 0, 5, 6, 7, 11]]
    coarse, fine = level_spans(spec)
    assert (coarse.start, coarse.stop, fine.start, fine.stop) == (0, 2, 2, 6)
    assert (coarse.first, coarse.last, fine.first, fine.last) == (0, 5, 5, 12)


def test_any_integer_type_is_taken(make_spec):
    spec = make_spec((2, 2, 5), (4, 3, 7))
    small = random_maps(spec, dtype=torch.uint8)
    assert torch.equal(
        maps_to_sequence(small, spec),
        maps_to_sequence({name: codes.long() for name, codes in small.items()}, spec),
    )


@pytest.mark.parametrize(
    ("maps", "message"),
    [
        ({}, "code spec has codes"),
        ({"top": torch.zeros(1, 2, 3, dtype=torch.long)}, "code maps are top"),
        ({"codes": torch.zeros(1, 3, 2, dtype=torch.long)}, r"expected \(batch, 2, 3\)"),
        ({"codes": torch.zeros(1, 2, 3)}, "codes are integers"),
    ],
)
def test_other_maps_are_refused(make_spec, maps, message):
    with pytest.raises(ValueError, match=message):
        maps_to_sequence(maps, make_spec((2, 3, 6)))


def test_latents_are_refused():
    spec = CodeSpec("latents", (Level("z", 2, 2, channels=4),), 16, 1, "vae", "0" * 64)
    with pytest.raises(ValueError, match="cannot model latents"):
        level_spans(spec)


def test_grid_positions_of_one_map_are_its_rows_and_columns(make_spec):
    found = grid_positions(level_spans(make_spec((2, 3, 6))), CPU)
    assert found.tolist() == [[0, 0], [0, 1], [0, 2], [1, 0], [1, 1], [1, 2]]


def test_a_coarse_code_stands_at_the_middle_of_the_fine_ones_of_its_patch(make_spec):
    coarse, fine = level_spans(make_spec((2, 3, 5), (4, 9, 7)))
    found = grid_positions((coarse, fine), CPU)
    assert found.shape == (6 + 36, 2)
    of_fine = found[fine.start :].view(4, 9, 2)
    assert of_fine[3, 8].tolist() == [3, 8]
    patches = of_fine.view(2, 2, 3, 3, 2).mean((1, 3))  # of 2 x 3 fine codes
    torch.testing.assert_close(found[: coarse.stop].view(2, 3, 2), patches)


def test_a_single_code_stands_at_the_middle_of_the_image(make_spec):
    found = grid_positions(level_spans(make_spec((1, 1, 5), (4, 4, 7))), CPU)
    assert found[0].tolist() == [1.5, 1.5]
    assert torch.equal(found[0], found[1:].mean(0))


def test_chunks_of_one_place_stand_together():
    found = grid_positions([Span("z", 1, 2, 0, 6, 0, 9)], CPU)
    assert found.tolist() == [[0, 0]] * 3 + [[0, 1]] * 3


@pytest.mark.parametrize("shape", [(8, 1, 1), (6, 2, 3), (1, 4, 4)])
def test_latents_both_ways_are_inverse_for_all_chunks(make_latent_spec, shape):
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


def test_latents_run_position_after_position_and_chunk_after_chunk_at_each():
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
    several = dataclasses.replace(
        spec,
        levels=(*spec.levels, Level("more", 1, 1, channels=2)),
        latent_shift=(0.0,) * 6,
        latent_scale=(1.0,) * 6,
    )
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
def test_other_latents_are_refused(make_latent_spec, maps, message):
    with pytest.raises(ValueError, match=message):
        latents_of(maps, make_latent_spec(4, 2, 2).levels[0])


def test_a_channel_that_never_changes_is_not_divided_by_zero(make_latent_spec, make_prior):
    spec = dataclasses.replace(make_latent_spec(2, 1, 1), latent_scale=(0.0, 1.0))
    prior = make_prior(latents=(2, 1, 1))
    again = type(prior)(type(prior.config)(code_spec=spec.to_dict(), width=32, depth=1, heads=2))
    assert again.latent_scale.tolist() == pytest.approx([SMALLEST_SCALE, 1.0])
    maps = {"latents": torch.tensor(spec.latent_shift).view(1, 2, 1, 1)}
    assert again(maps).loss.isfinite()
