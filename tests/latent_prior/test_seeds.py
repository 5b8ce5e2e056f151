import itertools

import pytest
import torch

from latent_prior.seeds import derive_seed, generator, one_per_image


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
