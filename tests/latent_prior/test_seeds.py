import itertools

import torch

from latent_prior.seeds import derive_seed, generator


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
