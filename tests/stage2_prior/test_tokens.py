import pytest
import torch

from latent_prior.data.codes import CodeSpec, Level
from latent_prior.stage2_prior.tokens import (
    Span,
    level_spans,
    maps_to_sequence,
    places,
    sequence_to_maps,
)

SHAPES = [((3, 4, 11),), ((2, 2, 5), (4, 3, 7)), ((1, 1, 300), (2, 2, 2), (4, 4, 9))]


def random_maps(spec, batch=5, dtype=torch.int64):
    return {
        level.name: torch.randint(level.vocabulary, (batch, level.height, level.width)).to(dtype)
        for level in spec.levels
    }


@pytest.mark.parametrize("levels", SHAPES)
def test_both_ways_are_inverse(make_spec, levels):
    spec = make_spec(*levels)
    maps = random_maps(spec)
    sequence = maps_to_sequence(maps, spec)
    assert sequence.shape == (5, spec.length)
    assert sequence.dtype == torch.int64
    restored = sequence_to_maps(sequence, spec)
    assert list(restored) == [level.name for level in spec.levels]
    for name, codes in maps.items():
        assert torch.equal(restored[name], codes)
    assert torch.equal(maps_to_sequence(restored, spec), sequence)


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


CPU = torch.device("cpu")


def test_places_of_one_map_are_its_rows_and_columns(make_spec):
    found = places(level_spans(make_spec((2, 3, 6))), CPU)
    assert found.tolist() == [[0, 0], [0, 1], [0, 2], [1, 0], [1, 1], [1, 2]]


def test_a_coarse_code_stands_at_the_middle_of_the_fine_ones_of_its_patch(make_spec):
    coarse, fine = level_spans(make_spec((2, 3, 5), (4, 9, 7)))
    found = places((coarse, fine), CPU)
    assert found.shape == (6 + 36, 2)
    of_fine = found[fine.start :].view(4, 9, 2)
    assert of_fine[3, 8].tolist() == [3, 8]
    patches = of_fine.view(2, 2, 3, 3, 2).mean((1, 3))  # of 2 x 3 fine codes
    torch.testing.assert_close(found[: coarse.stop].view(2, 3, 2), patches)


def test_a_single_code_stands_at_the_middle_of_the_image(make_spec):
    found = places(level_spans(make_spec((1, 1, 5), (4, 4, 7))), CPU)
    assert found[0].tolist() == [1.5, 1.5]
    assert torch.equal(found[0], found[1:].mean(0))


def test_chunks_of_one_place_stand_together():
    found = places([Span("z", 1, 2, 0, 6, 0, 9)], CPU)
    assert found.tolist() == [[0, 0]] * 3 + [[0, 1]] * 3
