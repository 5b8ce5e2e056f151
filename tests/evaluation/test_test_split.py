"""The test images are for the final scores: no script but `score.py` reads them.

An audit hook of the interpreter sees every file that is opened, by whatever library.
"""

import importlib
import os
import sys

import datasets
import pytest
import yaml

from latent_prior.__main__ import PACKAGE, SCRIPTS
from latent_prior.data.splits import split_named

opened: set[str] = set()
_watched: list[str] = []  # a hook cannot be removed: without an entry it does nothing


def _hook(event, arguments):
    if event == "open" and _watched and isinstance(arguments[0], str | bytes | os.PathLike):
        path = os.path.abspath(os.fsdecode(arguments[0]))
        if path.startswith(_watched[0]):
            opened.add(path)


sys.addaudithook(_hook)


@pytest.fixture
def data(parts, tmp_path):
    """60 training and 9 test images; every opened file of the latter is added to `opened`."""
    folder = tmp_path / "data"
    parts["images"](folder / "train", 60)
    parts["images"](folder / "test", 9, seed=1)
    _watched.append(f"{folder / 'test'}{os.sep}")
    opened.clear()
    yield folder
    _watched.clear()


# They read and write models of other projects alone; the page serves until it is stopped.
WITHOUT_IMAGES = {"import-tokenizer", "export-tokenizer", "app"}


def commands(data, parts, features):
    """(verb, flags) of every script, in a user's order, with the splits of defaults and presets."""
    sized = {"dataset": data, "image_size": 16, "channels": 3}
    short = {"max_steps": 2, "evaluate_every": 1, "batch_size": 8}
    vqvae = {**parts["vqvae_flags"], **sized, **short, "model.blocks": [1, 1]}
    scored = {"reference": data, "features": features, "batch_size": 8}
    latents = {"pipeline": "pipeline", "dataset": data}
    gan = {"model.type": "sngan", "model.width": 4, "model.multipliers": [1, 2], "model.blocks": 1}
    streaming = {"validation_split": None, "streaming": True}
    return [
        ("train-autoencoder", {"config": "mnist_vqvae", **vqvae, "output_dir": "vqvae"}),
        ("train-autoencoder", {**vqvae, **streaming, "output_dir": "streamed"}),
        ("encode", {"autoencoder": "vqvae/model", "dataset": data, "output_dir": "codes"}),
        ("train-prior", {"config": "mnist_vqvae", "codes": "codes", "autoencoder": "vqvae/model", **parts["prior_flags"], **short, "model.positions": "1d", "model.patch": 1, "output_dir": "prior"}),
        ("export", {"prior": "prior/model", "output_dir": "llama"}),
        ("assemble", {"autoencoder": "vqvae/model", "prior": "prior/model", "output_dir": "pipeline"}),
        ("sweep", {"pipeline": "pipeline", **scored, "temperature": [0.5, 1], "num_images": 4, "full_images": 4, "output_dir": "sweep"}),
        ("generate", {"pipeline": "pipeline", "num_images": 9, "output_dir": "samples"}),
        ("likelihood", {"pipeline": "pipeline", "dataset": data, "output_dir": "likelihood"}),
        ("latents", {**latents, "operation": "reconstruct", "output_dir": "reconstructed"}),
        ("latents", {**latents, "operation": "attribute", "attribute": "bee", "output_dir": "edited"}),
        ("describe", {"pipeline": "pipeline", "samples": "samples", "cpu_threads": None}),
        ("train-gan", {**sized, **short, **gan, "output_dir": "gan"}),
        ("generate-gan", {"gan": "gan/model", "num_images": 4, "output_dir": "drawn"}),
        ("score", {**scored, "candidates": "ours=samples", "num_images": 9, "output_dir": "scores"}),
    ]  # fmt: skip


def test_no_script_but_score_opens_a_test_image(
    data, parts, call, scripted_features, tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    listed = commands(data, parts, scripted_features)
    assert {verb for verb, _ in listed} == set(SCRIPTS) - WITHOUT_IMAGES
    for verb, flags in listed:
        name = SCRIPTS[verb].removesuffix(".py").replace("/", ".")
        call(importlib.import_module(f"latent_prior.{name}"), **flags)
        assert bool(opened) == (verb == "score"), f"{verb} opened {sorted(opened)[:3]}"
    assert len(opened) == 9
    assert list(datasets.load_from_disk("codes")) == ["train", "validation"]


def test_no_preset_names_the_test_split():
    presets = [path for room in PACKAGE.iterdir() for path in room.rglob("configs/*.yaml")]
    assert len(presets) > 20
    for path in presets:
        options = yaml.safe_load(path.read_text(encoding="utf-8"))
        named = [value for name, value in options.items() if "split" in name]
        assert "test" not in map(split_named, named), path
