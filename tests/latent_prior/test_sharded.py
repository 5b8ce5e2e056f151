"""The prior's training with its weights sharded over two processes, on the CPU."""

import itertools
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from accelerate.state import AcceleratorState
from torch.distributed.fsdp import MixedPrecisionPolicy

from latent_prior.data.batch_order import RATES
from latent_prior.options import RunOptions
from latent_prior.processes import start_training_processes
from latent_prior.stage1_autoencoders import encode
from latent_prior.stage1_autoencoders import train as train_autoencoder
from latent_prior.stage2_prior import TransformerPrior, train
from tests.latent_prior import sharded_mains

CONFIG = Path(__file__).parents[2] / "docs" / "accelerate" / "fsdp.yaml"


@pytest.fixture(scope="module")
def runs(call, parts, images, autoencoder_folder, tmp_path_factory):
    """Runs of one process and of two sharded ones, whole or resumed halfway by the other kind."""
    root = tmp_path_factory.mktemp("sharded")
    written = {"autoencoder": autoencoder_folder, "dataset": images}
    call(encode, output_dir=root / "codes", **written)
    flags = {
        **parts["prior_flags"],
        "model.condition": "none",  # 17 tokens, which two processes share unevenly
        "codes": root / "codes",
        "autoencoder": autoencoder_folder,
        "batch_size": 8,
        "learning_rate": 3e-3,
        "warmup_steps": 2,
        "gradient_clip": 0.5,
        "max_steps": 12,
        "log_every": 4,
        "evaluate_every": 6,
        "checkpoint_every": 6,
    }
    call(train, output_dir=root / "one", **flags)
    call(train, output_dir=root / "one_sharded", **{**flags, "max_steps": 6})
    sharded(
        root,
        [
            {**flags, "output_dir": root / "sharded"},
            {**flags, "output_dir": root / "sharded_sharded", "max_steps": 6},
            {**flags, "output_dir": root / "sharded_sharded"},
            {**flags, "output_dir": root / "one_sharded", "accumulation_steps": 2},
        ],
    )
    shutil.copytree(root / "sharded", root / "sharded_one")
    shutil.rmtree(root / "sharded_one" / "checkpoints" / "step-000000012")
    call(train, output_dir=root / "sharded_one", **flags)
    return root


def sharded(folder, several_flags):
    """Train in two processes that `accelerate launch` starts as the config says."""
    work = []
    for flags in several_flags:
        words = [(f"--{name}", str(value)) for name, value in {**flags, "cpu_threads": 1}.items()]
        work.append(("latent_prior.stage2_prior.train", list(itertools.chain(*words))))
    launcher = [sys.executable, "-m", "accelerate.commands.launch", "--config_file", str(CONFIG)]
    launcher += ["--num_processes", "2", "--main_process_port", "0"]
    done = subprocess.run(
        [*launcher, str(sharded_mains.__file__), json.dumps(work)],
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=900,
    )
    assert done.returncode == 0, done.stderr[-4000:]


def figures(run):
    """Every number of the last checkpoint by its place, and every tensor."""
    found = {}

    def add(place, value):
        if isinstance(value, dict | list):
            for name, inner in value.items() if isinstance(value, dict) else enumerate(value):
                add(f"{place}/{name}", inner)
        else:
            found[place] = value

    for name in ("model", "optimizer", "ema"):
        add(name, torch.load(run / f"checkpoints/step-000000012/{name}.pt", weights_only=True))
    return found


def metrics(run):
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


@pytest.mark.slow
@pytest.mark.parametrize("name", ["sharded", "sharded_sharded", "one_sharded", "sharded_one"])
def test_sharded_or_not_a_run_learns_the_same_and_writes_the_same_checkpoint(runs, name):
    expected, found = figures(runs / "one"), figures(runs / name)
    assert list(found) == list(expected)
    for place, value in found.items():
        if torch.is_tensor(value):
            assert type(value) is torch.Tensor
            torch.testing.assert_close(value, expected[place], rtol=0, atol=1e-5)
        else:
            assert value == expected[place]


@pytest.mark.slow
def test_a_sharded_run_resumes_bit_by_bit(runs):
    straight, resumed = figures(runs / "sharded"), figures(runs / "sharded_sharded")
    for place, value in straight.items():
        assert (
            torch.equal(value, resumed[place])
            if torch.is_tensor(value)
            else value == resumed[place]
        )


@pytest.mark.slow
def test_the_figures_of_a_sharded_run_are_those_of_one_process(runs):
    expected, found = metrics(runs / "one"), metrics(runs / "sharded")
    assert [set(line) for line in found] == [set(line) for line in expected]
    for line, other in zip(found, expected, strict=True):
        for name, value in line.items():
            assert name in {"seconds", *RATES} or value == pytest.approx(other[name], rel=1e-5)
    for run in ("one", "sharded"):
        assert (runs / run / "samples" / "step-000000012.png").is_file()


@pytest.mark.slow
@pytest.mark.parametrize("name", ["model", "best"])
def test_a_sharded_run_exports_whole_averaged_weights(runs, name):
    expected = TransformerPrior.from_pretrained(runs / "one" / name)
    prior = TransformerPrior.from_pretrained(runs / "sharded" / name)
    assert type(prior) is TransformerPrior
    for found, weight in zip(prior.parameters(), expected.parameters(), strict=True):
        torch.testing.assert_close(found, weight, rtol=0, atol=1e-5)


@pytest.fixture
def as_on_gpus(monkeypatch, fresh_processes):
    """Accelerate heeds FSDP settings, `as_on_gpus(version=2, ...)`."""
    monkeypatch.setattr(AcceleratorState, "__init__", sharded_mains.initialise_sharded)

    def settings(**chosen):
        for name, value in {"version": 2, **chosen}.items():
            monkeypatch.setenv(f"FSDP_{name.upper()}", str(value))
        monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")

    return settings


@pytest.mark.parametrize(
    ("settings", "culprit"),
    [
        ({"version": 1}, "fsdp_version 1"),
        ({"activation_checkpointing": "true"}, "fsdp_activation_checkpointing"),
        ({"cpu_ram_efficient_loading": "true"}, "fsdp_cpu_ram_efficient_loading"),
    ],
)
def test_sharding_that_would_go_wrong_is_refused(as_on_gpus, settings, culprit):
    as_on_gpus(**settings)
    with pytest.raises(ValueError, match=culprit):
        start_training_processes(RunOptions(output_dir="x", cpu_threads=1), sharding=True)


def test_shards_stay_float32_under_bf16(as_on_gpus, caplog):
    """`--mixed_precision bf16` is autocast: neither weights nor what is sent are cast."""
    as_on_gpus()
    options = RunOptions(output_dir="x", cpu_threads=1, mixed_precision="bf16")
    accelerator = start_training_processes(options, sharding=True)
    assert accelerator.mixed_precision == "bf16"
    assert accelerator.state.fsdp_plugin.mixed_precision_policy == MixedPrecisionPolicy()
    with accelerator.autocast():
        assert torch.is_autocast_enabled("cpu")
        assert torch.get_autocast_dtype("cpu") == torch.bfloat16


def test_stage_one_is_not_sharded(as_on_gpus, refused, images, tmp_path):
    as_on_gpus()
    flags = {"dataset": images, "image_size": 16, "output_dir": tmp_path / "run"}
    assert "leave FSDP out" in refused(train_autoencoder, **flags)


def test_deepspeed_is_refused_with_the_way_out(refused, tmp_path, monkeypatch):
    monkeypatch.setenv("ACCELERATE_USE_DEEPSPEED", "true")
    said = refused(train, codes="nowhere", output_dir=tmp_path / "run")
    assert "docs/accelerate/fsdp.yaml" in said
    assert CONFIG.is_file()
