"""From features to a row of the table."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

from latent_prior.evaluation.features.networks import FeatureNetwork
from latent_prior.evaluation.features.resizing import resize_clean
from latent_prior.evaluation.judge import Judge
from latent_prior.evaluation.measures import fid, table
from latent_prior.evaluation.measures.inputs import ReferenceStatistics
from latent_prior.evaluation.options import Candidate, ScoreOptions
from latent_prior.evaluation.sets import open_candidate

DIMENSION = 12
OPTIONS = ScoreOptions(candidates=["a=x"], output_dir="x")


def features(count, seed, shift=0.0):
    values = np.random.default_rng(seed).normal(shift, size=(count, DIMENSION))
    return values.astype(np.float32)


@pytest.fixture
def judge():
    network = FeatureNetwork(
        "tiny", "fd_custom", "FD-custom", 8, DIMENSION, "", "", lambda images: images,
        torch.device("cpu"), "clean 8", resize_clean,
    )  # fmt: skip
    expected = features(50, 0)
    statistics = ReferenceStatistics(fid.statistics(expected), expected, 50, "random", "")
    return Judge(network, statistics, None, OPTIONS)


@pytest.fixture
def scored(tmp_path):
    """An opened folder whose generator says that it drew random codes, or not."""

    def make(**generation):
        folder = tmp_path / f"images{len(list(tmp_path.iterdir()))}"
        folder.mkdir()
        for number in range(2):
            Image.new("L", (8, 8), number).save(folder / f"{number}.png")
        (folder / "generation.json").write_text(json.dumps(generation))
        return open_candidate(Candidate("a", str(folder), None), OPTIONS)

    return make


@pytest.mark.parametrize("count", [60, 9])  # more and fewer images than features
def test_the_distance_is_that_of_all_images_and_ends_the_curve(judge, count):
    found = features(count, 1, 0.5)
    row = judge.row("a", judge.inputs(found), contestant=True)
    expected = fid.frechet_distance(fid.Reference(fid.statistics(features(50, 0))), found)
    assert row.values["fd_custom"] == pytest.approx(expected, rel=1e-9)
    assert row.curve[-1] == (count, row.values["fd_custom"])
    assert [size for size, _ in row.curve] == sorted(size for size, _ in row.curve)


def test_a_reference_of_statistics_alone_has_a_distance_only(judge):
    judge = replace(judge, reference=replace(judge.reference, features=None))
    row = judge.row("a", judge.inputs(features(60, 1)), contestant=True)
    assert set(row.values) == {"fd_custom", "fd_custom_infinity"}


def test_random_codes_are_no_contestant(judge, scored):
    """They are the floor that a prior must beat, and would win at speed and size."""
    found = features(2, 1)
    for generation, contestant in (
        ({"random_codes": True}, False),
        ({"random_codes": False}, True),
        ({}, True),
    ):
        assert judge.candidate(scored(**generation), found, None).contestant is contestant


def test_a_measure_is_a_function_and_a_row_of_the_table(judge, monkeypatch):
    def spread(inputs):
        return {"spread": (float(inputs.features.std()), 0.5)}

    new = table.Measure("spread", "Spread", None, "Standard deviation.", compute=spread)
    monkeypatch.setitem(table.MEASURES, "spread", new)
    found = features(60, 1)
    row = judge.row("a", judge.inputs(found), contestant=True)
    assert row.values["spread"] == float(found.std())
    assert row.to_json()["spread_stderr"] == 0.5
    shown = table.table([row], "fd_custom", "FD-custom")
    assert shown.headings[-1] == "Spread"
    assert shown.cells[0][-1].endswith("± 0.500")
