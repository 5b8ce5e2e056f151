import dataclasses
import typing

import pytest

from latent_prior.pipelines.options import GenerateOptions, LatentOptions, SamplerOptions
from latent_prior.stage2_prior.sampler import Settings


def test_every_sampler_setting_is_a_flag():
    assert {each.name for each in dataclasses.fields(SamplerOptions)} == set(
        Settings.__annotations__
    )
    flags, settings = (typing.get_type_hints(of) for of in (SamplerOptions, Settings))
    for name, kind in settings.items():
        listed = (
            list[float] if name == "guidance_interval" else kind
        )  # a command line has no tuples
        assert flags[name] == (listed | None)


def test_settings_are_those_that_are_given():
    assert SamplerOptions().settings() == {}
    assert SamplerOptions(top_k=0, temperature=0.5).settings() == {"top_k": 0, "temperature": 0.5}


def test_a_setting_out_of_its_range_is_named_as_a_flag():
    with pytest.raises(ValueError, match=r"^--top_p must lie in"):
        GenerateOptions(pipeline="x", output_dir="x", top_p=2)


@pytest.mark.parametrize("name", sorted(Settings.__annotations__))
def test_sampler_settings_are_for_completion_alone(name):
    """Except for `steps`, which several operations read."""
    values = {
        "guidance_schedule": "linear",
        "guidance_interval": [0.0, 0.5],
        "steps": 3,
        "top_k": 3,
    }
    flags = {"autoencoder": "x", "output_dir": "x", name: values.get(name, 0.5)}
    LatentOptions(operation="complete", **flags)
    with pytest.raises(ValueError, match=f"^--{name} is for --operation .*complete, not for"):
        LatentOptions(operation="reconstruct", **flags)
