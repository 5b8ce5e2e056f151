import itertools

import pytest
import torch

from latent_prior.seeds import (
    derive_seed,
    draw_kept,
    draws_of_step,
    generator,
    mixed,
    one_per_image,
    own_rows,
    step_rows,
)

CPU = torch.device("cpu")


def test_seeds_are_pure_functions_that_depend_on_every_part_and_on_the_order():
    parts = [
        *itertools.product(range(20), repeat=2),
        (0,),
        (0, 0, 0),
        (0, "crop"),
        ("crop", 0),
        (-1, 0),
    ]
    seeds = [derive_seed(*each) for each in parts]
    assert len(set(seeds)) == len(parts)
    assert seeds == [derive_seed(*each) for each in parts]
    assert all(0 <= seed < 2**63 for seed in seeds)


def test_seeds_never_change():
    assert derive_seed(0, "augmentation", 3) == 5365098916303352135


def test_a_generator_touches_no_global_state():
    before = torch.get_rng_state()
    first, second = (torch.rand(5, generator=generator(1, 2)) for _ in range(2))
    assert torch.equal(first, second)
    assert not torch.equal(first, torch.rand(5, generator=generator(2, 1)))
    assert torch.equal(before, torch.get_rng_state())


def test_one_generator_serves_all_images_and_a_list_one_each():
    first, second = generator(1), generator(2)
    assert one_per_image(None, 3) == [None] * 3
    assert one_per_image(first, 2) == [first, first]
    assert one_per_image((second, None), 2) == [second, None]
    with pytest.raises(ValueError, match="3 images need one generator, or one each, not 2"):
        one_per_image([first, second], 3)


def drawn(parts, *, rows=8, seed=3, step=5, padding=0):
    """What a step draws in so many parts: three times, along two dimensions and by dropout."""
    found = []
    for part in range(parts):
        with draws_of_step(seed, step, part, parts):
            count = rows // parts
            first, second = torch.randn(step_rows(count), 3), torch.rand(2, step_rows(count))
            kept = draw_kept(torch.Size((count, padding + 5, 7)), 0.3, CPU)
            again = draw_kept(torch.Size((count, 3)), 0.3, CPU)
            found.append((own_rows(first), own_rows(second, 1).T, kept[:, padding:], again))
    return [torch.cat(each) for each in zip(*found, strict=True)]


@pytest.mark.parametrize("parts", [2, 4, 8])
def test_the_parts_of_a_step_draw_what_the_whole_draws(parts):
    whole, other = drawn(1), [drawn(1, step=6), drawn(1, seed=4)]
    # Padding in front of a part's rows changes no draw behind it.
    for padding in (0, parts):
        assert all(map(torch.equal, whole, drawn(parts, padding=padding)))
    assert not any(torch.equal(a, b) for each in other for a, b in zip(whole, each, strict=True))
    assert step_rows(3) == 3  # outside a step


def test_bits_are_those_of_splitmix64():
    """The first numbers of the generator's reference program for seed 0."""
    states = torch.arange(1, 4) * (0x9E3779B97F4A7C15 - 2**64)
    found = [number % 2**64 for number in mixed(states).tolist()]
    assert found == [0xE220A8397B1DCDAF, 0x6E789E6AA1B965F4, 0x06C45D188009454F]


@pytest.mark.parametrize("dropped", [0.001, 0.1, 0.5, 1.0])
def test_dropout_keeps_its_share_of_every_place_and_no_pattern(dropped):
    torch.manual_seed(0)
    kept = torch.stack([draw_kept(torch.Size((64, 8, 6)), dropped, CPU) for _ in range(64)])
    found = kept.double() - (1 - dropped)
    deviation = (dropped * (1 - dropped)) ** 0.5
    for dim in (0, 1, 2, 3):  # draws, rows, and the two dimensions of a row
        others = [each for each in range(4) if each != dim]
        count = found.numel() / found.shape[dim]
        assert found.mean(others).abs().max() <= 5 * deviation / count**0.5
        neighbours = found.narrow(dim, 0, found.shape[dim] - 1) * found.narrow(
            dim, 1, found.shape[dim] - 1
        )
        assert neighbours.mean().abs() <= 5 * deviation**2 / neighbours.numel() ** 0.5
