import subprocess
import sys

import pytest

from latent_prior.evaluation.options import Candidate, ScoreOptions


def options(**values):
    return ScoreOptions(**{"candidates": ["a=x"], "output_dir": "out", **values})


def test_candidates_are_folders_or_splits(tmp_path):
    bracketed = tmp_path / "samples[1]"
    bracketed.mkdir()
    found = options(
        candidates=[
            "a=runs/a",
            "real=mnist5k[train]",
            "hub=user/name[test]",
            f"b={bracketed}",
            "c=x=y",
        ]
    ).parsed_candidates()
    assert found == [
        Candidate("a", "runs/a", None),
        Candidate("real", "mnist5k", "train"),
        Candidate("hub", "user/name", "test"),
        Candidate("b", str(bracketed), None),
        Candidate("c", "x=y", None),
    ]


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"candidates": ["runs/samples"]}, "'runs/samples' is neither NAME=FOLDER nor"),
        ({"candidates": ["=runs/samples"]}, "neither NAME=FOLDER"),
        ({"candidates": ["a="]}, "neither NAME=FOLDER"),
        ({"candidates": ["a=x", "a=y"]}, "names 'a' twice"),
        ({"candidates": []}, "nothing to score: .* --candidates NAME=FOLDER, or give --pipeline"),
        ({"candidates": ["reconstructions=x"], "pipeline": "p"}, "is taken"),
        ({"features": "inceptoin"}, "'inceptoin' is neither inception, clip"),
        ({"num_images": 1}, "--num_images must be at least 2"),
        ({"batch_size": 0}, "--batch_size must be at least 1"),
        ({"image_size": 0}, "--image_size must be at least 1"),
        ({"kid_subset_size": 1}, "--kid_subset_size must be at least 2"),
        ({"seed": -1}, "--seed must be at least 0"),
    ],
)
def test_mistakes_are_named(values, message):
    with pytest.raises(ValueError, match=message):
        options(**values)


def test_a_pipeline_needs_no_candidates():
    assert ScoreOptions(output_dir="out", pipeline="p").parsed_candidates() == []


def test_options_do_not_import_torch():
    code = "import sys, latent_prior.evaluation.options; print('torch' in sys.modules or 'datasets' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"


def test_a_home_folder_may_stand_behind_a_candidates_name(monkeypatch):
    """A shell expands `~` at the beginning of a word only."""
    monkeypatch.setenv("HOME", "/home/me")
    found = ScoreOptions(output_dir="x", candidates=["a=~/one", "b=~/two[test]"])
    assert found.parsed_candidates() == [
        Candidate("a", "/home/me/one", None),
        Candidate("b", "/home/me/two", "test"),
    ]
