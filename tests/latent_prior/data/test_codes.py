import dataclasses
import json
import math

import numpy as np
import pytest

from latent_prior.data.codes import (
    SPEC_FILE,
    CodeSpec,
    Level,
    check_same_codes,
    fit_images,
    write_spec,
)
from latent_prior.options import ImageOptions
from tests.latent_prior.code_samples import LATENTS, SPEC


@pytest.mark.parametrize("spec", [SPEC, LATENTS])
def test_a_spec_survives_json(spec, tmp_path):
    assert CodeSpec.from_dict(spec.to_dict()) == spec
    assert CodeSpec.from_dict(json.loads(json.dumps(spec.to_dict()))) == spec
    write_spec(spec, tmp_path)
    assert CodeSpec.from_dict(json.loads((tmp_path / SPEC_FILE).read_text())) == spec
    assert hash(CodeSpec.from_dict(spec.to_dict())) == hash(spec)


def test_lengths_count_all_levels():
    assert SPEC.length == 6 + 24
    assert [level.length for level in SPEC.levels] == [6, 24]


LEVEL = SPEC.to_dict()["levels"][0]


@pytest.mark.parametrize(
    "change",
    [
        {"levels": None},
        {"levels": []},
        {"levels": [{"name": "a"}]},
        {"levels": [3]},
        {"unknown": 1},
        {"levels": [{**LEVEL, "height": 0}]},
        {"levels": [{**LEVEL, "vocabulary": 10**9}]},
        {"levels": [{**LEVEL, "vocabulary": 10**30}]},
        {"levels": [{**LEVEL, "width": True}]},
        {"levels": [{**LEVEL, "name": "../x"}]},
        {"levels": [{**LEVEL, "name": "label"}]},
        {"levels": [{**LEVEL, "unknown": 1}]},
        {"levels": [LEVEL, LEVEL]},
        {"levels": [{**LEVEL, "channels": 2}]},
        {"kind": "latents"},
        {"kind": "x"},
        {"image_size": -1},
        {"image_size": 10**9},
        {"image_channels": 7},
        {"class_names": ["a", "a"]},
        {"class_names": "abc"},
        {"class_names": [None]},
        {"class_names": ["a\ud800"]},
        {"autoencoder_fingerprint": 5},
        {"latent_scale": [1.0]},
        {"latent_shift": "x"},
    ],
)
def test_a_spec_with_other_fields_is_refused(change):
    with pytest.raises(ValueError, match=r"^here: .*; go there$"):
        CodeSpec.from_dict({**SPEC.to_dict(), **change}, "here", "go there")


@pytest.mark.parametrize(
    ("vocabulary", "kind"),
    [(1, "uint8"), (256, "uint8"), (257, "uint16"), (65536, "uint16"), (65537, "uint32")],
)
def test_the_smallest_integer_type(vocabulary, kind):
    level = Level("codes", 2, 3, vocabulary=vocabulary)
    assert level.dtype == np.dtype((kind, (2, 3)))
    assert np.iinfo(kind).max >= vocabulary - 1


@pytest.mark.parametrize("name", ["latent_shift", "latent_scale"])
@pytest.mark.parametrize("value", [math.nan, math.inf, 1e30, -1e30])
def test_statistics_that_no_latents_have_are_refused(name, value):
    values = [value, *LATENTS.to_dict()[name][1:]]
    with pytest.raises(ValueError, match=name):
        CodeSpec.from_dict({**LATENTS.to_dict(), name: values})


def test_the_same_codes_pass_whatever_the_class_names():
    check_same_codes(SPEC, dataclasses.replace(SPEC, class_names=()), "a", "b")


@pytest.mark.parametrize(
    "change",
    [
        {"autoencoder_fingerprint": "b" * 64}, {"image_size": 48}, {"image_channels": 1},
        {"levels": SPEC.levels[:1]}, {"autoencoder_type": "other"},
    ],
)  # fmt: skip
def test_other_codes_are_told_with_both_fingerprints(change):
    other = dataclasses.replace(SPEC, **change)
    with pytest.raises(ValueError, match=next(iter(change))) as refused:
        check_same_codes(SPEC, other, "the prior", "the pipeline")
    for part in ("the prior", "the pipeline", "a" * 12, other.autoencoder_fingerprint[:12]):
        assert part in str(refused.value)


def test_measures_of_latents_are_no_part_of_the_hand_over():
    """An autoencoder's own spec has none; the data set's has."""
    bare = dataclasses.replace(LATENTS, latent_shift=None, latent_scale=None)
    check_same_codes(bare, LATENTS, "the autoencoder", "the prior")


def test_the_shape_of_one_image():
    assert [level.shape for level in SPEC.levels] == [(2, 3), (4, 6)]
    assert LATENTS.levels[0].shape == (2, 4, 4)
    assert LATENTS.levels[0].length == 16


def test_images_take_the_size_and_channels_of_the_autoencoder():
    options = fit_images(ImageOptions(), SPEC)
    assert (options.image_size, options.channels) == (SPEC.image_size, SPEC.image_channels)
    assert fit_images(options, SPEC) == options
    for flag, value in (("image_size", 3), ("channels", 1)):
        with pytest.raises(ValueError, match=f"--{flag} {value}: .* leave the flag out"):
            fit_images(ImageOptions(**{flag: value}), SPEC)
