import csv
import json
import os
import shutil
import subprocess
import sys
from collections import Counter

import numpy as np
import pytest
from PIL import Image

from latent_prior.pipelines import Pipeline, generate, image_folder

NUMBERS = [f"{number:06d}.png" for number in range(10)]


@pytest.fixture
def draw(call, pipeline_folder, tmp_path):
    """`draw(...)` generates ten images into a new folder and returns it."""

    def into(name="samples", **flags):
        folder = tmp_path / name
        settings = {"num_images": 10, "batch_size": 4, "seed": 3, **flags}
        call(generate, pipeline=pipeline_folder, output_dir=folder, **settings)
        return folder

    return into


def pngs(folder):
    return {path.name: path.read_bytes() for path in folder.glob("0*.png")}


def assert_same_images(one, two, names=NUMBERS):
    """Batches of different sizes round differently: a value may become the next of the 256."""
    for name in names:
        with Image.open(one / name) as first, Image.open(two / name) as second:
            assert abs(np.asarray(first, dtype=int) - np.asarray(second, dtype=int)).max() <= 1


def labels(folder):
    with (folder / "labels.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def test_what_lies_in_the_folder(draw, pipeline_folder):
    folder = draw()
    assert {path.name for path in folder.iterdir()} == {
        *NUMBERS, "labels.csv", "generation.json", "about.json", "grid.png",
        "manifest.json",
    }  # fmt: skip
    for name in NUMBERS:
        with Image.open(folder / name) as image:
            assert (image.size, image.mode) == ((16, 16), "RGB")
    settings = json.loads((folder / "generation.json").read_text())
    assert settings["seed"] == 3
    assert settings["temperature"] == 0.9  # the pipeline's own default
    assert len(settings["autoencoder_fingerprint"]) == len(settings["prior_fingerprint"]) == 64


def test_the_grid_shows_the_images_in_order(draw):
    folder = draw()
    with Image.open(folder / "grid.png") as picture, Image.open(folder / NUMBERS[3]) as image:
        cells = np.asarray(picture)
        assert np.array_equal(cells[1:17, 1 + 3 * 17 : 17 + 3 * 17], np.asarray(image))


def test_a_seed_gives_the_same_files_whatever_the_batch_size(draw):
    three, eight = draw("three", batch_size=3), draw("eight", batch_size=8)
    assert_same_images(three, eight)
    other = draw("other", seed=4)
    assert all(pngs(other)[name] != pngs(three)[name] for name in NUMBERS)


def test_more_images_begin_with_the_same_ones(draw):
    few, many = draw("few", num_images=5), draw("many", num_images=10)
    assert pngs(few).keys() == set(NUMBERS[:5])
    assert_same_images(few, many, NUMBERS[:5])


def test_repeating_the_command_fills_the_gaps_and_leaves_the_rest(draw):
    folder = draw()
    before = pngs(folder)
    for name in (NUMBERS[2], NUMBERS[9], "labels.csv", "grid.png"):
        (folder / name).unlink()
    kept = folder / NUMBERS[5]
    written = kept.stat().st_mtime_ns
    draw()
    assert pngs(folder) == before
    assert kept.stat().st_mtime_ns == written
    assert (folder / "grid.png").exists()
    assert len(labels(folder)) == 10


def test_a_stopped_run_goes_on(draw, monkeypatch):
    """At whatever image a run dies, and whatever the next batch size, the result is the same."""
    whole = draw("whole")

    def dies(image, path):
        if path.name == NUMBERS[6]:
            raise KeyboardInterrupt
        save(image, path)

    save = image_folder.save_png
    with monkeypatch.context() as patched:
        patched.setattr(image_folder, "save_png", dies)
        with pytest.raises(KeyboardInterrupt):
            draw("stopped")
    folder = draw("stopped", batch_size=3)
    assert pngs(folder).keys() == set(NUMBERS)
    assert_same_images(folder, whole)
    assert not list(folder.glob(".*"))


@pytest.mark.parametrize(
    "flags",
    [{"seed": 4}, {"temperature": 0.5}, {"top_k": 3}, {"labels": ["bee"]}, {"random_codes": True}],
)
def test_images_of_other_settings_are_not_mixed(draw, refused, pipeline_folder, flags):
    folder = draw()
    before = pngs(folder)
    said = refused(
        generate,
        pipeline=pipeline_folder,
        output_dir=folder,
        **{"num_images": 10, "seed": 3, **flags},
    )
    assert next(iter(flags)) in said
    assert str(folder) in said
    assert pngs(folder) == before


def test_images_of_another_model_are_not_mixed(draw, refused, parts, tmp_path):
    folder = draw()
    autoencoder = parts["vqvae"](seed=9)
    Pipeline(autoencoder, parts["prior"](autoencoder)).save_pretrained(tmp_path / "other")
    said = refused(generate, pipeline=tmp_path / "other", output_dir=folder, seed=3)
    assert "fingerprint" in said


def test_fewer_images_than_there_are_is_refused(draw, refused, pipeline_folder):
    said = refused(generate, pipeline=pipeline_folder, output_dir=draw(), num_images=9, seed=3)
    assert "--num_images 9" in said


def test_a_folder_of_something_else_is_left_alone(refused, pipeline_folder, tmp_path):
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis" / "chapter.txt").write_text("precious")
    said = refused(generate, pipeline=pipeline_folder, output_dir=tmp_path / "thesis")
    assert "thesis" in said


def test_classes_come_in_turn(draw):
    rows = labels(draw())
    assert [row["file"] for row in rows] == NUMBERS
    assert [row["label"] for row in rows] == [str(n % 3) for n in range(10)]
    counts = Counter(row["class"] for row in rows)
    assert set(counts) == {"apple", "bee", "car"}
    assert max(counts.values()) - min(counts.values()) <= 1


def test_labels_choose_the_classes(draw):
    rows = labels(draw(labels=["car", "0", "-1"], num_images=6))
    assert [row["class"] for row in rows] == ["car", "apple", ""] * 2
    assert [row["label"] for row in rows] == ["2", "0", ""] * 2


def test_an_image_depends_on_seed_number_and_label_only(draw, pipeline_folder):
    """Image 4 of the balanced run has class 1; so has image 4 of a run of bees only."""
    balanced, bees = draw("balanced"), draw("bees", labels=["bee"])
    assert pngs(balanced)[NUMBERS[4]] == pngs(bees)[NUMBERS[4]]
    assert pngs(balanced)[NUMBERS[5]] != pngs(bees)[NUMBERS[5]]


def test_random_codes_need_no_prior(call, draw, parts, tmp_path):
    with_prior = draw("with", random_codes=True)
    autoencoder = parts["vqvae"]()
    Pipeline(autoencoder).save_pretrained(tmp_path / "half")
    flags = {"num_images": 10, "seed": 3, "batch_size": 3, "random_codes": True}
    call(generate, pipeline=tmp_path / "half", output_dir=tmp_path / "without", **flags)
    assert_same_images(tmp_path / "without", with_prior)
    assert pngs(with_prior) != pngs(draw("samples"))
    assert {row["label"] for row in labels(with_prior)} == {""}


def test_a_pipeline_without_a_prior_is_refused(refused, parts, tmp_path):
    Pipeline(parts["vqvae"]()).save_pretrained(tmp_path / "half")
    said = refused(generate, pipeline=tmp_path / "half", output_dir=tmp_path / "new")
    assert "has no prior" in said
    assert "--random_codes" in said


@pytest.mark.parametrize(
    ("flags", "culprit"),
    [
        ({"labels": ["3"]}, "3"),
        ({"labels": ["bee", "dog"]}, "dog"),
        ({"labels": ["-2"]}, "-2"),
        ({"temperature": -1}, "temperature"),
        ({"top_p": 1.5}, "top_p"),
        ({"top_k": -3}, "top_k"),
        ({"guidance_scale": -0.5}, "guidance_scale"),
        ({"num_images": 0}, "--num_images"),
        ({"batch_size": 0}, "--batch_size"),
        ({"num_images": "many"}, "--num_images"),
        ({"tempratur": 1}, "did you mean temperature"),
        ({"cpu_threads": 0}, "--cpu_threads"),
        ({"pipeline": "./nowhere"}, "./nowhere"),
        ({"pipeline": "nobody/nothing"}, "nobody/nothing"),
    ],
)
def test_wrong_input_is_one_sentence(refused, pipeline_folder, tmp_path, flags, culprit):
    folder = tmp_path / "new"
    said = refused(generate, **{"pipeline": pipeline_folder, "output_dir": folder, **flags})
    assert culprit in said
    assert not folder.exists()


def test_a_damaged_pipeline_is_one_sentence(refused, pipeline_folder, tmp_path):
    broken = shutil.copytree(pipeline_folder, tmp_path / "broken")
    weights = broken / "prior" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:1000])
    said = refused(generate, pipeline=broken, output_dir=tmp_path / "new")
    assert str(weights) in said


def test_two_processes_draw_the_images_of_one(draw, pipeline_folder, tmp_path):
    """The real command, with another batch size; also into a folder that is filled in part."""
    one = draw("one", batch_size=8)
    two = shutil.copytree(one, tmp_path / "two")
    for name in NUMBERS[1:8]:
        (two / name).unlink()
    torchrun = [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--standalone",
        "--nproc_per_node",
        "2",
    ]
    flags = {
        "pipeline": pipeline_folder,
        "output_dir": two,
        "num_images": 10,
        "seed": 3,
        "batch_size": 3,
    }
    subprocess.run(
        [*torchrun, generate.__file__, *(f"--{name}={value}" for name, value in flags.items())],
        env=os.environ | {"ACCELERATE_USE_CPU": "true"},
        cwd="/",
        check=True,
        capture_output=True,
        timeout=900,
    )
    assert pngs(two).keys() == set(NUMBERS)
    assert_same_images(one, two)
    assert labels(two) == labels(one)


def test_without_a_prior_only_the_temperature_is_a_setting(call, refused, parts, tmp_path):
    folder, settings = tmp_path / "vae", {"temperature": 0.7, "num_images": 2}
    Pipeline(parts["autoencoder"]("vae")).save_pretrained(folder)
    for name in ("guidance_scale", "top_k", "top_p"):
        said = refused(generate, pipeline=folder, output_dir=tmp_path / "no", **{name: 1})
        assert f"--{name} is for a prior" in said
    assert not (tmp_path / "no").exists()
    call(generate, pipeline=folder, output_dir=tmp_path / "drawn", **settings)
    written = json.loads((tmp_path / "drawn" / "generation.json").read_text())
    assert written["temperature"] == 0.7
    nothing = ("prior_fingerprint", "guidance_scale", "top_k", "top_p")
    assert [written[name] for name in nothing] == [None] * 4


@pytest.fixture
def vae_folder(parts, tmp_path):
    Pipeline(parts["autoencoder"]("vae")).save_pretrained(tmp_path / "vae")
    return tmp_path / "vae"


def test_a_vae_draws_the_same_files_whatever_the_batch_size(call, vae_folder, tmp_path):
    flags = {"pipeline": vae_folder, "num_images": 5, "seed": 3}
    for name, others in (("one", {"batch_size": 5}), ("two", {"batch_size": 2}), ("other", {"seed": 4})):  # fmt: skip
        call(generate, output_dir=tmp_path / name, **{**flags, **others})
    assert_same_images(tmp_path / "one", tmp_path / "two", NUMBERS[:5])
    assert len(set(pngs(tmp_path / "one").values())) == 5
    assert not set(pngs(tmp_path / "one").values()) & set(pngs(tmp_path / "other").values())
    settings = json.loads((tmp_path / "one/generation.json").read_text())
    assert (settings["temperature"], settings["prior_fingerprint"]) == (1.0, None)
    assert {row["label"] for row in labels(tmp_path / "one")} == {""}


def test_a_vae_without_temperature_draws_one_image(call, vae_folder, tmp_path):
    call(generate, pipeline=vae_folder, num_images=3, temperature=0, output_dir=tmp_path / "cold")
    assert len(set(pngs(tmp_path / "cold").values())) == 1


@pytest.mark.parametrize(
    ("flags", "culprit"),
    [
        ({"random_codes": True}, "--random_codes"),
        ({"temperature": -1}, "temperature"),
        ({"labels": ["bee"]}, "no classes"),
    ],
)
def test_what_a_vae_cannot_do_is_one_sentence(refused, vae_folder, tmp_path, flags, culprit):
    said = refused(generate, pipeline=vae_folder, output_dir=tmp_path / "new", **flags)
    assert culprit in said
    assert not (tmp_path / "new").exists()


def test_a_stopped_vae_goes_on(call, vae_folder, tmp_path):
    flags = {"pipeline": vae_folder, "output_dir": tmp_path / "samples", "num_images": 5}
    call(generate, **flags)
    before = pngs(tmp_path / "samples")
    for name in (NUMBERS[1], NUMBERS[4]):
        (tmp_path / "samples" / name).unlink()
    call(generate, **flags)
    assert pngs(tmp_path / "samples") == before
