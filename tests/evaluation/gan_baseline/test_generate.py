"""A GAN's folder has the form of a pipeline's: what both share is tested in tests/pipelines."""

import csv
from typing import Any

import numpy as np
import pytest
from PIL import Image

from latent_prior.evaluation.gan_baseline import generate
from latent_prior.records import read_record


@pytest.fixture
def gan(make_gan, tmp_path):
    generator = make_gan()
    generator.config.training = {
        "steps": 3, "images_seen": 24, "seconds": 1.5, "cpu_seconds": 1.2, "device": "cpu", "num_processes": 1
    }  # fmt: skip
    generator.save_pretrained(tmp_path / "gan")
    return tmp_path / "gan"


@pytest.fixture
def draw(call, gan, tmp_path):
    """`draw(...)` generates ten images into a new folder and returns it."""

    def into(name="samples", **flags):
        settings = {"num_images": 10, "batch_size": 4, "seed": 3, **flags}
        call(generate, gan=gan, output_dir=tmp_path / name, **settings)
        return tmp_path / name

    return into


def pngs(folder):
    return {path.name: path.read_bytes() for path in folder.glob("0*.png")}


def pixels(folder):
    return [np.asarray(Image.open(path), dtype=int) for path in sorted(folder.glob("0*.png"))]


def classes(folder):
    with (folder / "labels.csv").open(newline="") as file:
        return [row["class"] for row in csv.DictReader(file)]


def test_what_lies_in_the_folder(draw, make_gan):
    folder = draw()
    assert {path.name for path in folder.iterdir()} == {
        *(f"{n:06d}.png" for n in range(10)), "labels.csv", "generation.json", "about.json", "grid.png",
        "manifest.json",
    }  # fmt: skip
    assert classes(folder) == ["apple", "bee", "car"] * 3 + ["apple"]
    settings = read_record(folder / "generation.json", dict[str, Any], "")
    assert settings | {"gan_fingerprint": 64} == {
        "gan_fingerprint": 64, "truncation": 1.0, "labels": [], "seed": 3
    }  # fmt: skip
    about = read_record(folder / "about.json", dict[str, Any], "")
    assert about["parameters"] == sum(p.numel() for p in make_gan().parameters())
    assert about["seconds_per_image"] > 0
    assert about["training"] == {
        "images_seen": 24, "seconds": 1.5, "cpu_seconds": 1.2, "device": "cpu"
    }  # fmt: skip


def test_images_depend_on_seed_number_and_label_only(draw):
    whole = pngs(draw())
    assert pngs(draw("few", num_images=4)).items() <= whole.items()
    bees = pngs(draw("bees", labels=["bee"]))
    assert [name for name in sorted(whole) if whole[name] == bees[name]] == [
        "000001.png", "000004.png", "000007.png"
    ]  # fmt: skip
    assert not set(pngs(draw("other", seed=4)).values()) & set(whole.values())
    assert not set(pngs(draw("truncated", truncation=0.5)).values()) & set(whole.values())


def test_the_batch_size_changes_at_most_a_rounding(draw):
    """A batch of one multiplies a vector where others multiply a matrix."""
    for one, two in zip(pixels(draw()), pixels(draw("three", batch_size=3)), strict=True):
        assert abs(one - two).max() <= 1


def test_without_classes(draw, gan, make_gan, refused, tmp_path):
    make_gan(class_names=[]).save_pretrained(gan)
    assert classes(draw()) == [""] * 10
    said = refused(generate, gan=gan, output_dir=tmp_path / "new", labels=["bee"])
    assert "has no classes" in said


@pytest.mark.parametrize(
    ("flags", "culprit"),
    [
        ({"labels": ["dog"]}, "dog"),
        ({"labels": ["3"]}, "3"),
        ({"truncation": -1}, "--truncation"),
        ({"num_images": 0}, "--num_images"),
        ({"gan": "./nowhere"}, "./nowhere"),
    ],
)
def test_wrong_input_is_one_sentence(refused, gan, tmp_path, flags, culprit):
    assert culprit in refused(generate, **{"gan": gan, "output_dir": tmp_path / "new", **flags})


def test_a_folder_that_is_no_gan(refused, autoencoder_folder, tmp_path):
    said = refused(generate, gan=autoencoder_folder, output_dir=tmp_path / "new")
    assert "latent_prior_gan" in said


def test_images_of_another_gan_are_not_mixed(draw, gan, make_gan, refused):
    folder = draw()
    make_gan(seed=9).save_pretrained(gan)
    said = refused(generate, gan=gan, output_dir=folder, num_images=10, seed=3)
    assert "gan_fingerprint" in said
