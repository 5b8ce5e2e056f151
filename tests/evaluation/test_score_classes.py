"""Class accuracy as a column of scores: what score.py makes of class_accuracy.py."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from latent_prior.data.embedded.shapes import CLASS_NAMES, drawing
from latent_prior.data.labels import write_labels, write_prompts
from latent_prior.evaluation import class_accuracy, score
from latent_prior.records import read_record


def save(folder, count, seed, lightest):
    """Noisy pictures, 16 x 16, with grey levels from `lightest` on."""
    folder.mkdir(parents=True)
    random = np.random.default_rng(seed)
    for number in range(count):
        image = random.integers(lightest, lightest + 100, (16, 16), dtype=np.uint8)
        Image.fromarray(image).save(folder / f"{number:03d}.png")


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """A data set with two classes, dark and bright; a folder whose table is right for 6 of 8."""
    root = tmp_path_factory.mktemp("labelled")
    for seed, split in enumerate(("train", "test")):
        save(root / "data" / split / "bright", 16, seed, 120)
        save(root / "data" / split / "dark", 16, seed + 2, 0)
    save(root / "plain", 8, 4, 0)
    save(root / "samples", 8, 5, 120)
    asked = ["bright"] * 6 + ["dark"] * 2
    rows = [f"{number:03d}.png,{name}" for number, name in enumerate(asked)]
    (root / "samples" / "labels.csv").write_text("\n".join(["file,class", *rows]) + "\n")
    return root


def arguments(folders, features, output, *candidates, **flags):
    words = {"reference": folders / "data", "features": features, "output_dir": output, **flags}
    return ["--candidates", *candidates, *(f"--{key}={value}" for key, value in words.items())]


def test_candidates_with_classes_get_the_column(folders, scripted_features, tmp_path, monkeypatch):
    monkeypatch.setattr(class_accuracy, "IMAGES_SEEN", 1280)
    candidates = [f"samples={folders / 'samples'}", f"real={folders / 'data'}[train]", f"no={folders / 'plain'}"]  # fmt: skip
    scores = {}
    for judged in (True, False):
        output = tmp_path / str(judged)
        score.main(
            arguments(
                folders, scripted_features, output, *candidates, class_accuracy=judged, num_images=8
            )
        )
        scores[judged] = read_record(output / "scores.json", dict[str, Any], "")
    rows = scores[True]["rows"]
    assert [row.pop("class_accuracy", None) for row in rows] == [0.75, 1, None]
    # Two of the eight samples stand in the other class, which looks no different.
    assert ["diversity" in row for row in rows] == [True, True, False]
    found = scores[True]["protocol"].pop("classifier")
    assert (found["split"], found["num_images"], found["reference_accuracy"]) == ("train", 32, 1)
    assert scores[False]["protocol"].pop("classifier") is None
    fingerprints = {scores[judged]["protocol"].pop("fingerprint") for judged in (True, False)}
    assert len(fingerprints) == 2  # who judges is part of the protocol
    assert scores[True] == scores[False]  # the other numbers do not move


def test_classes_are_checked_before_anything_is_written(folders, scripted_features, tmp_path):
    words = arguments(
        folders,
        scripted_features,
        tmp_path / "scores",
        f"samples={folders / 'samples'}",
        class_accuracy=True,
    )
    with pytest.raises(ValueError, match=r"--train_split: .* has no split 'valid'"):
        score.main([*words, "--train_split", "valid"])
    table = folders / "samples" / "labels.csv"
    before = table.read_text()
    table.write_text(before.replace("dark", "grey"))
    with pytest.raises(
        ValueError, match=r"--candidates samples: .* has images of the class 'grey'"
    ):
        score.main(words)
    table.write_text(before)
    assert not (tmp_path / "scores").exists()


@pytest.mark.slow
def test_two_processes_agree_on_the_classes(folders, scripted_features, tmp_path):
    script = tmp_path / "short_score.py"
    script.write_text(
        "from latent_prior.evaluation import class_accuracy, score\n"
        "class_accuracy.IMAGES_SEEN = 1280\nscore.main()\n"
    )
    environment = os.environ | {"ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1"}
    found = []
    for processes in (1, 2):
        output = tmp_path / str(processes)
        words = arguments(
            folders,
            scripted_features,
            output,
            f"samples={folders / 'samples'}",
            class_accuracy=True,
            batch_size=3,
        )
        launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={processes}"]  # fmt: skip
        done = subprocess.run(
            [*launcher, str(script), *words],
            capture_output=True,
            text=True,
            env=environment,
            check=False,
            cwd=Path(__file__).parents[2],
        )
        assert done.returncode == 0, done.stderr
        found.append(json.loads((output / "scores.json").read_text()))
    assert found[0]["protocol"] == found[1]["protocol"]
    assert [scores["rows"][0]["class_accuracy"] for scores in found] == [0.75, 0.75]


@pytest.mark.parametrize("table", ["labels.csv", "prompts.csv"])
def test_classes_of_shapes_get_their_columns(folders, scripted_features, tmp_path, table):
    """No flag asks for them: classes, or prompts, say that the images can be checked."""
    drawings = [drawing("test", number) for number in range(8)]
    for number, each in enumerate(drawings):
        each.picture().save(tmp_path / f"{number}.png")
    labels = [each.label for each in drawings]
    labels[0] += 1  # a circle that should be a square
    labels[4] += 24  # at the top left instead of the top right
    files = [f"{number}.png" for number in range(8)]
    if table == "prompts.csv":
        words = [f"a small {colour} {shape} at the {place} on a black background" for colour, shape, place in (CLASS_NAMES[label].replace(",", "").split(" ", 2) for label in labels)]  # fmt: skip
        write_prompts(tmp_path / table, files, words)
        labels = [-1] * 8
    write_labels(tmp_path / "labels.csv", files, labels, CLASS_NAMES)
    candidates = [f"drawn={tmp_path}", "real=shapes[train]", f"samples={folders / 'samples'}"]
    output = tmp_path / "scores"
    words = ["--reference=shapes", f"--features={scripted_features}", f"--output_dir={output}"]
    score.main(["--candidates", *candidates, *words, "--num_images=8", "--image_size=32"])
    rows = read_record(output / "scores.json", dict[str, Any], "")["rows"]
    keys = ("shape_as_asked", "colour_as_asked", "place_as_asked", "all_as_asked")
    found = [[row.get(key) for key in keys] for row in rows]
    assert found == [[0.875, 1, 0.875, 0.75], [1, 1, 1, 1], [None] * 4]
    assert "All as asked" in (output / "scores.md").read_text()
