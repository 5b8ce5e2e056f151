import json
import math
import typing

import pytest

from latent_prior.stage2_prior.sampler import EFFECTIVE, Sampler, Settings


def test_settings_are_the_arguments_of_a_sampler():
    of_sampler = typing.get_type_hints(Sampler)
    assert typing.get_type_hints(Settings) == of_sampler
    assert set(EFFECTIVE["masked"]) == set(of_sampler)


def test_a_sampler_comes_back_from_json():
    sampler = Sampler(guidance_interval=(0.25, 0.5), top_k=3)
    assert Sampler(**json.loads(json.dumps(sampler.to_dict()))) == sampler


@pytest.mark.parametrize(
    "wrong",
    [
        {"guidance_scale": -0.1},
        {"guidance_scale": math.nan},
        {"temperature": -1.0},
        {"temperature": math.inf},
        {"top_k": -1},
        {"top_p": 0.0},
        {"top_p": 1.01},
        {"top_p": math.nan},
        {"guidance_schedule": "sine"},
        {"guidance_interval": (-0.1, 1.0)},
        {"guidance_interval": (0.5, 0.5)},
        {"guidance_interval": (0.0, 1.1)},
        {"guidance_interval": (0.0, math.nan)},
        {"guidance_interval": (0.0, 0.5, 1.0)},
        {"steps": 0},
        {"choice_temperature": -0.1},
        {"choice_temperature": math.inf},
    ],
)
def test_impossible_settings_are_named(wrong):
    with pytest.raises(ValueError, match=next(iter(wrong))):
        Sampler(**wrong)
