"""Everything that is trained: stopped by signals and time limits, resumed, the same files."""

import itertools
import json
import os
import random
import signal

import pytest
import torch
import yaml

from latent_prior import cli
from latent_prior.data.batch_order import RATES
from latent_prior.evaluation.gan_baseline import train as train_gan
from latent_prior.stage1_autoencoders import encode
from latent_prior.stage1_autoencoders import train as train_autoencoder
from latent_prior.stage2_prior import train as train_prior
from latent_prior.training import loop

OFTEN = {
    "batch_size": 8, "max_steps": 10, "warmup_steps": 2, "learning_rate": 1e-3, "log_every": 3,
    "evaluate_every": 4, "checkpoint_every": 5,
}  # fmt: skip
GAN = {"model.width": 8, "model.multipliers": [1, 2], "model.latent_dim": 8, "augment": ["color"]}
CLOCKS = {*RATES, "seconds", "cpu_seconds", "command", "output_dir"}


@pytest.fixture(scope="module")
def trainings(call, images, parts, tmp_path_factory):
    """`trainings(name)`: the script and its flags."""
    root = tmp_path_factory.mktemp("parts")
    picture = {"dataset": images, "image_size": 16, "random_flip": True}

    def codes(kind):
        folder = root / f"{kind}_codes"
        if not folder.exists():
            parts["autoencoder"](kind).save_pretrained(root / kind)
            call(encode, output_dir=folder, autoencoder=root / kind, dataset=images)
        return {"codes": folder, **parts["prior_flags"]}

    def find(name):
        if name in parts["family_flags"]:
            critic = {"critic.lecam": 0.1, "critic.start_step": 2} if "gan" in name else {}
            return train_autoencoder, {**parts["family_flags"][name], **picture, **critic}
        if name in ("sngan", "r3gan"):
            return train_gan, {**GAN, **picture, "model.type": name, "model.blocks": 1}
        order = {"model.order": "masked"} if name == "masked" else {}
        return train_prior, {**codes("vae" if name == "latents" else "vqvae"), **order}

    return find


@pytest.mark.parametrize(
    "name",
    ["vae", "vqvae", "vqvae2", "vaegan", "vqgan", "raster", "masked", "latents", "sngan", "r3gan"],
)
def test_a_training_stopped_anywhere_ends_with_the_same_files(
    name, trainings, call, tmp_path, monkeypatch
):
    module, flags = trainings(name)
    flags = {**flags, **OFTEN}
    call(module, output_dir=tmp_path / "whole", **flags)
    chance = random.Random(name)
    stops = [signal.SIGTERM, signal.SIGINT, None]  # None: a time limit
    chance.shuffle(stops)
    for reason in stops:
        steps = chance.randint(1, 3)
        if reason is None:
            time_is_up = itertools.chain([0] * steps, itertools.repeat(1))
            monkeypatch.setattr(loop, "_stop", lambda *_, up=time_is_up: next(up))
            call(module, output_dir=tmp_path / "parts", **flags)
        else:
            monkeypatch.setattr(loop.Window, "add", after(steps, reason, loop.Window.add))
            with pytest.raises(SystemExit) as stopped:
                cli.run(lambda: call(module, output_dir=tmp_path / "parts", **flags))
            assert stopped.value.code == 128 + reason
        monkeypatch.undo()
    call(module, output_dir=tmp_path / "parts", **flags)
    whole, parts = contents(tmp_path / "whole"), contents(tmp_path / "parts")
    assert whole.keys() == parts.keys()
    for path, content in whole.items():
        assert parts[path] == content, path


def after(steps, number, add):
    """`Window.add`, during whose call after so many steps a signal comes."""
    calls = itertools.count(1)

    def counted(window, metrics):
        add(window, metrics)
        if next(calls) == steps:
            os.kill(os.getpid(), number)

    return counted


def contents(run):
    """Every file of a run by its path, without clocks and the names of the folder."""
    found = {}
    for path in sorted(run.rglob("*")):
        if path.is_dir():
            continue
        if path.suffix == ".pt":
            content = torch.load(path, weights_only=True)
        elif path.suffix == ".jsonl":
            content = [json.loads(line) for line in path.read_text().splitlines()]
        elif path.suffix == ".yaml":
            content = yaml.safe_load(path.read_text())
        elif path.name == "manifest.json":
            content = sorted(json.loads(path.read_text())["files"])
        elif path.suffix == ".json":
            content = json.loads(path.read_text())
        else:
            content = path.read_bytes()
        found[str(path.relative_to(run))] = without_clocks(content)
    return found


def without_clocks(content):
    """Plain values that compare bit by bit."""
    if isinstance(content, dict):
        return {str(n): without_clocks(v) for n, v in content.items() if n not in CLOCKS}
    if isinstance(content, list | tuple):
        return [without_clocks(value) for value in content]
    return content.contiguous().numpy().tobytes() if torch.is_tensor(content) else content
