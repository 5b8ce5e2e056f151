"""The search for sampler settings: what is measured, what is chosen, what is refused."""

import csv
import dataclasses
import json
import shlex
import shutil
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

from latent_prior.cli import parse_config
from latent_prior.evaluation import score, sweep
from latent_prior.evaluation.measures import fid
from latent_prior.evaluation.measures.inputs import ReferenceStatistics
from latent_prior.evaluation.options import ScoreOptions
from latent_prior.pipelines import Pipeline, describe, generate

GRID = {"guidance_scale": [1, 2], "temperature": [0.5, 1], "top_k": [0, 3]}


@pytest.fixture
def folder(pipeline_folder, tmp_path):
    return shutil.copytree(pipeline_folder, tmp_path / "pipeline")


@pytest.fixture
def flags(folder, images, scripted_features, tmp_path):
    return {
        "pipeline": folder, "reference": images, "features": scripted_features, "num_images": 8, "full_images": 12,
        "batch_size": 5, "reference_split": "train", "output_dir": tmp_path / "sweep",
    }  # fmt: skip


def read(flags):
    return json.loads((flags["output_dir"] / "sweep.json").read_text())


def test_the_best_settings_of_all_combinations_become_the_default(call, flags, folder):
    before = json.loads((folder / "pipeline.json").read_text())
    call(sweep, **flags, **GRID)
    found = read(flags)
    tried = [tuple(row["settings"][name] for name in GRID) for row in found["rows"]]
    assert sorted(tried) == sorted((g, t, k) for g in (1, 2) for t in (0.5, 1) for k in (0, 3))
    lowest = min(found["rows"], key=lambda row: row["sliced_wasserstein"])
    assert found["best"]["settings"] == lowest["settings"]
    after = json.loads((folder / "pipeline.json").read_text())
    assert after["sampler"] == {**before["sampler"], **lowest["settings"]}
    assert {**after, "sampler": None} == {**before, "sampler": None}
    sampler = Pipeline.from_pretrained(folder).sampler.to_dict()
    assert {name: sampler[name] for name in lowest["settings"]} == lowest["settings"]
    assert (
        f"guidance_scale {lowest['settings']['guidance_scale']}"
        in (flags["output_dir"] / "sweep.md").read_text()
    )
    with Image.open(flags["output_dir"] / "heatmap.png") as picture:
        assert min(picture.size) > 100


def test_the_split_it_is_chosen_on_is_the_training_split(call, flags):
    call(sweep, **flags, temperature=[1])
    assert read(flags)["protocol"]["reference"].endswith("[train]")


def test_images_and_scores_are_those_of_generate_and_score(call, flags, folder, tmp_path):
    call(sweep, **flags, temperature=[0.5, 1], minimise="distance")
    best = read(flags)["best"]
    call(
        generate, pipeline=folder, num_images=12, output_dir=tmp_path / "again",
        temperature=best["settings"]["temperature"],
    )  # fmt: skip
    for name in ("generation.json", "labels.csv", *(f"{number:06d}.png" for number in range(12))):
        assert (tmp_path / "again" / name).read_bytes() == (
            tmp_path / best["images"] / name
        ).read_bytes()
    measured = {name: flags[name] for name in ("reference", "features", "batch_size")}
    for row in [*read(flags)["rows"], best]:
        # Eight images are the first eight of the twelve that generate.py draws.
        count = row.get("num_images", 8)
        drawn = tmp_path / f"drawn-{row['settings']['temperature']}-{count}"
        call(
            generate,
            pipeline=folder,
            num_images=count,
            output_dir=drawn,
            temperature=row["settings"]["temperature"],
        )
        call(
            score,
            **measured,
            reference_split="train",
            candidates=f"a={drawn}",
            output_dir=tmp_path / "scores",
        )
        (scored,) = json.loads((tmp_path / "scores" / "scores.json").read_text())["rows"]
        assert row["fd_custom"] == pytest.approx(scored["fd_custom"], rel=1e-4)


def test_the_card_shows_the_new_default_and_takes_the_scores_of_its_images(
    call, flags, folder, tmp_path, monkeypatch
):
    call(sweep, **flags, temperature=[0.5], top_k=[3])
    assert "samples with temperature 0.5, top_k 3." in (folder / "README.md").read_text()
    images = read(flags)["best"]["images"]
    words = f"--num_images 12 --reference_split train --candidates ours={images}".split()
    words += ["--pipeline", str(folder), "--output_dir", str(tmp_path / "scores")]
    for name in ("reference", "features", "batch_size"):
        words += [f"--{name}", str(flags[name])]
    monkeypatch.setattr("sys.argv", [score.__file__, *words])
    score.main()
    describe.main(
        ["--pipeline", str(folder), "--samples", images, "--scores", str(tmp_path / "scores")]
    )
    card = (folder / "README.md").read_text()
    table = (tmp_path / "scores" / "scores.md").read_text().strip()
    reference = flags["reference"]
    assert table.replace(str(reference), reference.name) in card
    assert "not cherry-picked" in card
    (line,) = (line for line in card.splitlines() if line.startswith("python evaluation/score.py "))
    assert f"--pipeline {folder.name}" in line
    assert f"ours={Path(images).name}" in line
    words = shlex.split(line)[2:]
    words[words.index("--features") + 1] = str(flags["features"])  # recorded by its name alone
    assert parse_config(ScoreOptions, words).num_images == 12


def test_a_second_call_measures_only_what_is_new(call, flags, monkeypatch):
    call(sweep, **flags, temperature=[0.5, 1])
    first = read(flags)
    measured = []
    features_of = sweep.features_of
    monkeypatch.setattr(
        sweep, "features_of", lambda *args: measured.append(args[1]) or features_of(*args)
    )
    call(sweep, **flags, temperature=[0.5, 1])
    assert not measured
    assert read(flags) == first
    call(sweep, **flags, temperature=[1, 2], top_p=[1])
    assert [settings["temperature"] for settings in measured] == [2]
    assert read(flags)["rows"][:2] == first["rows"]


def test_a_stopped_sweep_comes_to_the_same_end(call, flags, folder, tmp_path, monkeypatch):
    shutil.copytree(folder, tmp_path / "other")
    stopped = {**flags, "pipeline": tmp_path / "other", "output_dir": tmp_path / "stopped", **GRID}
    features_of, measured = sweep.features_of, []

    def stop_at_third(*args):
        measured.append(args)
        if len(measured) == 3:
            raise KeyboardInterrupt
        return features_of(*args)

    with monkeypatch.context() as patch:
        patch.setattr(sweep, "features_of", stop_at_third)
        with pytest.raises(KeyboardInterrupt):
            call(sweep, **stopped)
        call(sweep, **stopped)
    assert len(measured) == 3 + 8 - 2
    call(sweep, **flags, **GRID)
    one, two = read(flags), read(stopped)
    assert one["rows"] == two["rows"]
    assert one["best"]["settings"] == two["best"]["settings"]
    assert (folder / "pipeline.json").read_bytes() == (
        tmp_path / "other" / "pipeline.json"
    ).read_bytes()


@pytest.mark.slow
def test_two_processes_find_what_one_finds(two_processes, call, flags, folder, tmp_path):
    """Also when another call came before in the same group."""
    shutil.copytree(folder, tmp_path / "other")
    two = {**flags, "pipeline": tmp_path / "other", "output_dir": tmp_path / "two", **GRID}
    before = {**two, "output_dir": tmp_path / "before", "temperature": [1.0]}
    two_processes([("latent_prior.evaluation.sweep", each) for each in (before, two)])
    call(sweep, **flags, **GRID)
    for one, other in zip(read(flags)["rows"], read(two)["rows"], strict=True):
        assert one["settings"] == other["settings"]
        assert one["sliced_wasserstein"] == pytest.approx(other["sliced_wasserstein"], rel=1e-5)


@pytest.mark.parametrize("minimise", [None, "distance"])
def test_few_images_do_not_favour_samplers_without_variety(minimise, tmp_path):
    """Samplers of Gaussian features with the right mean; only a deviation of 1 is right."""
    given = {} if minimise is None else {"minimise": minimise}
    options = sweep.SweepOptions(pipeline="x", output_dir=str(tmp_path), top_k=[0], **given)
    network = SimpleNamespace(column="fd_custom", title="FD-custom")
    deviations, chosen = np.arange(5, 15) / 10, []
    for seed in range(12):
        random = np.random.default_rng(seed)
        scales = np.arange(1, 257) ** -0.25
        reference = 0.3 + random.standard_normal((1000, 256)) * scales
        samples = random.standard_normal((41, 256)) * scales  # 0.16 images for each feature
        statistics = ReferenceStatistics(fid.statistics(reference), reference, 1000, "x", "x")
        objective = sweep.Objective(network, statistics, options, None)
        scores = [objective(0.3 + each * samples)[objective.column] for each in deviations]
        chosen.append(deviations[np.argmin(scores)])
    if minimise == "distance":
        assert max(chosen) < 0.7
    else:
        assert 0.9 < np.mean(chosen) < 1.1
        assert 0.8 < min(chosen) <= max(chosen) < 1.2


def test_the_table_and_the_protocol_say_what_chose(call, flags):
    call(sweep, **flags, temperature=[0.5, 1])
    assert read(flags)["protocol"]["minimise"] == "sliced_wasserstein"
    table = (flags["output_dir"] / "sweep.md").read_text()
    assert "| temperature | top_k | top_p | SWD ↓ |" in table
    assert "Chosen by the sliced Wasserstein distance (SWD): " in table


def test_kid_can_be_what_is_minimised(call, flags):
    call(sweep, **flags, temperature=[0.5, 1], minimise="kid")
    found = read(flags)
    assert found["best"]["settings"] == min(found["rows"], key=lambda row: row["kid"])["settings"]
    assert all(row["kid_stderr"] > 0 for row in found["rows"])


def test_a_vae_without_a_prior_has_a_temperature(call, parts, flags, folder):
    Pipeline(parts["autoencoder"]("vae")).save_pretrained(folder)
    call(sweep, **flags, temperature=[0.5, 1])
    assert [row["settings"] for row in read(flags)["rows"]] == [
        {"temperature": 0.5},
        {"temperature": 1},
    ]
    with (flags["output_dir"].parent / read(flags)["best"]["images"] / "labels.csv").open() as file:
        assert len(list(csv.DictReader(file))) == 12


@pytest.mark.parametrize(
    ("wrong", "culprit"),
    [
        ({}, "nothing to try"),
        ({"temperature": [1, 1]}, "--temperature names 1 twice"),
        ({"temperature": [-1]}, "temperature"),
        ({"top_k": [1.5]}, "--top_k"),
        ({"temperature": [1], "num_images": 1}, "--num_images must be at least 2"),
        ({"temperature": [1], "features": "nothing.pt"}, "--features"),
        ({"temperature": [1], "pipeline": "user/name"}, "is no pipeline folder"),
        ({"temperature": [1], "reference": "./nowhere"}, "--reference"),
    ],
)
def test_wrong_input_is_one_sentence(refused, flags, wrong, culprit):
    assert culprit in refused(sweep, **{**flags, **wrong})


def test_statistics_alone_need_the_frechet_distance(call, flags, monkeypatch):
    def published(*args):
        return dataclasses.replace(load_reference(*args), features=None)

    load_reference = sweep.load_reference
    monkeypatch.setattr(sweep, "load_reference", published)
    with pytest.raises(ValueError, match="choose --minimise distance"):
        call(sweep, **flags, temperature=[1])
    call(sweep, **flags, temperature=[1], minimise="distance")


def test_settings_without_effect_are_refused(refused, parts, flags, folder):
    autoencoder = parts["vqvae"]()
    Pipeline(autoencoder, parts["prior"](autoencoder, ())).save_pretrained(folder)
    assert "prior without classes" in refused(sweep, **flags, guidance_scale=[1, 2])
    Pipeline(autoencoder).save_pretrained(folder)
    assert "no prior to sample from" in refused(sweep, **flags, temperature=[1])
    Pipeline(parts["autoencoder"]("vae")).save_pretrained(folder)
    assert "--top_k is for a prior" in refused(sweep, **flags, top_k=[1, 2])


def test_figures_of_two_protocols_are_not_mixed(call, refused, flags):
    call(sweep, **flags, temperature=[1])
    assert "num_images = 8" in refused(sweep, **{**flags, "num_images": 9}, temperature=[1])
    (flags["output_dir"] / "sweep.json").unlink()
    assert "holds no sweep results (no sweep.json)" in refused(sweep, **flags, temperature=[1])
