import dataclasses
import json

import datasets
import numpy as np
import pytest

from latent_prior.data.code_shards import codes_features, measure_latents, write_shard
from latent_prior.data.codes import SPEC_FILE, CodeSpec
from tests.latent_prior.code_samples import LATENTS, SPEC, columns, write_codes


def test_others_can_read_the_codes(tmp_path):
    folder = write_codes(tmp_path / "codes", columns(5))
    rows = datasets.load_from_disk(str(folder))["train"]
    assert rows.features["label"].names == ["ant", "bee"]
    assert rows.features == codes_features(SPEC)
    np.testing.assert_array_equal(np.asarray(rows[2]["bottom"]), columns(5)["bottom"][2])
    description = json.loads(rows.info.description)
    assert CodeSpec.from_dict(description["code_spec"]) == SPEC
    assert description["encode"] == {"flip": True}
    assert CodeSpec.from_dict(json.loads((folder / SPEC_FILE).read_text())) == SPEC


@pytest.mark.parametrize("value", [-1, 4])
def test_a_code_outside_its_vocabulary_is_not_written(tmp_path, value):
    rows = columns(3)
    rows["top"][1, 1, 1] = value
    with pytest.raises(AssertionError, match=r"top holds values outside \[0, 4\)"):
        write_shard(tmp_path / "a.arrow", SPEC, rows)


def latent_columns(count: int, seed: int) -> dict[str, np.ndarray]:
    """Two channels far apart, in half precision."""
    noise = np.random.default_rng(seed).normal(size=(count, 2, 4, 4))
    latents = np.array([5.0, -0.25])[:, None, None] + np.array([0.5, 30.0])[:, None, None] * noise
    return {
        "latents": latents.astype(np.float16),
        "view": np.zeros(count, np.uint16),
        "source_index": np.arange(count),
    }


def test_latents_are_measured_over_all_shards(tmp_path):
    """Mean and deviation of each channel in float64, of shards of different sizes and an empty one."""
    parts = [latent_columns(count, seed) for seed, count in enumerate((5, 1, 0, 17))]
    paths = [tmp_path / f"{number}.arrow" for number in range(4)]
    for path, part in zip(paths, parts, strict=True):
        write_shard(path, LATENTS, part)
    found = measure_latents(
        paths, dataclasses.replace(LATENTS, latent_shift=None, latent_scale=None)
    )
    latents = np.concatenate([part["latents"] for part in parts]).astype(np.float64)
    np.testing.assert_allclose(found.latent_shift, latents.mean((0, 2, 3)), rtol=1e-12)
    np.testing.assert_allclose(found.latent_scale, latents.std((0, 2, 3)), rtol=1e-9)
    assert dataclasses.replace(found, latent_shift=None, latent_scale=None) == dataclasses.replace(
        LATENTS, latent_shift=None, latent_scale=None
    )


def test_a_channel_that_never_moves_has_no_scale(tmp_path):
    rows = latent_columns(6, 0)
    rows["latents"][:, 0] = 0.1
    write_shard(tmp_path / "a.arrow", LATENTS, rows)
    found = measure_latents([tmp_path / "a.arrow"], LATENTS)
    assert found.latent_scale[0] == pytest.approx(0, abs=1e-7)
