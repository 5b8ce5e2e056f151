"""Launchers of two machines, both of them this one, and the files that configure them."""

import json
import os
import re
import shutil
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from accelerate.commands.config.config_args import load_config_from_file
from accelerate.commands.launch import _validate_launch_command, launch_command_parser
from accelerate.utils import DistributedType, FullyShardedDataParallelPlugin
from accelerate.utils.launch import prepare_multi_gpu_env
from safetensors.torch import load_file

from latent_prior.data.batch_order import RATES
from latent_prior.stage1_autoencoders import encode
from latent_prior.stage2_prior import train
from tests.conftest import ROOT, words
from tests.latent_prior import lost_machine

CONFIG = ROOT / "docs" / "accelerate" / "fsdp.yaml"
SLURM = ROOT / "docs" / "accelerate" / "slurm.sh"
CONTAINER = ROOT / "Containerfile"
ON_CPU = {"ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
ADDRESS = "127.0.0.1"


@pytest.fixture(scope="module")
def flags(call, parts, images, autoencoder_folder, tmp_path_factory):
    """A training that every number of processes can repeat."""
    codes = tmp_path_factory.mktemp("codes") / "codes"
    call(encode, output_dir=codes, autoencoder=autoencoder_folder, dataset=images)
    return {
        **parts["prior_flags"],
        "codes": codes,
        "batch_size": 8,
        "learning_rate": 3e-3,
        "warmup_steps": 2,
        "max_steps": 12,
        "log_every": 1,
        "evaluate_every": 6,
        "checkpoint_every": 3,
        "cpu_threads": 1,
    }


@pytest.fixture(scope="module")
def alone(call, flags, tmp_path_factory):
    """The run of one process."""
    run = tmp_path_factory.mktemp("alone") / "run"
    call(train, output_dir=run, **flags)
    return run


# Both nodes are this machine, where the second one must not take the port of the first. If one
# fails, the other is ended, as by --kill-on-bad-exit.
SRUN = f"""shift
SLURM_NODEID=0 "$@" &
until (exec 3<> /dev/tcp/{ADDRESS}/$((10000 + SLURM_JOB_ID))) 2> /dev/null; do
    kill -0 $! || exit 1
    sleep 0.1
done
SLURM_NODEID=1 "$@" &
for node in 0 1; do
    wait -n || {{ kill $(jobs -p); exit 1; }}
done"""


def check_same(run, expected):
    """The losses of every step, once each, and the weights."""
    lines = [
        [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
        for folder in (run, expected)
    ]
    assert [line.keys() for line in lines[0]] == [line.keys() for line in lines[1]]
    for found, line in zip(*lines, strict=True):
        for name, value in line.items():
            assert name in {"seconds", *RATES} or found[name] == pytest.approx(value, rel=1e-4), (
                name
            )
    weights = [load_file(folder / "model" / "model.safetensors") for folder in (run, expected)]
    for name, value in weights[1].items():
        torch.testing.assert_close(weights[0][name], value, rtol=0, atol=1e-5)


def free_port():
    """A port that the SLURM script can choose too."""
    port = 0
    while not 10000 <= port < 60000:
        with socket.socket() as probe:
            probe.bind((ADDRESS, 0))
            port = probe.getsockname()[1]
    return port


def test_a_machine_that_is_lost_and_started_again_goes_on_from_the_checkpoint(
    flags, alone, tmp_path
):
    """The second machine dies in step 8 with its launcher; the first one waits for it."""
    port, run = free_port(), tmp_path / "run"
    work = json.dumps([train.__name__, words({**flags, "output_dir": run})])
    started = []

    def start(*, host, **environment):
        settings = f"is_host={host},keep_alive_interval=2,last_call_timeout=1"
        launcher = [sys.executable, "-m", "torch.distributed.run", "--nnodes=2", "--max_restarts=3"]
        launcher += ["--nproc_per_node=1", "--rdzv_backend=c10d", f"--rdzv_conf={settings}"]
        launcher += [f"--rdzv_endpoint={ADDRESS}:{port}", str(lost_machine.__file__), work]
        with (tmp_path / f"{len(started)}.log").open("w") as log:
            started.append(
                subprocess.Popen(
                    launcher,
                    env=os.environ
                    | ON_CPU
                    | {"TORCH_DISABLE_SHARE_RDZV_TCP_STORE": "1", **environment},
                    cwd=tmp_path,
                    stdout=log,
                    stderr=log,
                )
            )

    def said():
        return "\n".join(log.read_text()[-3000:] for log in sorted(tmp_path.glob("*.log")))

    try:
        start(host=1)
        start(host=0, LOST_AFTER="7")
        assert started[1].wait(300) == -9, said()
        start(host=0)
        assert [started[number].wait(300) for number in (0, 2)] == [0, 0], said()
    finally:
        for launcher in started:
            launcher.terminate()
    check_same(run, alone)


def test_the_slurm_script_starts_every_machine(flags, alone, tmp_path):
    """With stand-ins for SLURM's two commands; `accelerate launch` starts both machines."""
    commands = {
        "scontrol": f"[ $1 = show ] && printf '%s\\n' {ADDRESS} other",
        "srun": SRUN,
        "accelerate": f'exec {sys.executable} -m accelerate.commands.accelerate_cli "$@"',
    }
    for name, command in commands.items():
        (tmp_path / name).write_text(f"#!/bin/bash\n{command}\n")
        (tmp_path / name).chmod(0o755)
    port = free_port()
    job = {"SLURM_JOB_ID": str(port - 10000), "SLURM_JOB_NODELIST": "two", "SLURM_NNODES": "2"}
    run = tmp_path / "run"
    done = subprocess.run(
        ["bash", str(SLURM), train.__file__, *words({**flags, "output_dir": run})],
        env=os.environ | ON_CPU | job | {"PATH": f"{tmp_path}:{os.environ['PATH']}"},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-4000:]
    budget = json.loads((run / "model" / "config.json").read_text())["training"]
    assert budget["num_processes"] == 2
    check_same(run, alone)


def test_the_slurm_script_without_a_command_says_how_to_call_it():
    done = subprocess.run(["bash", str(SLURM)], capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert done.stderr.startswith("usage: sbatch")


@pytest.mark.parametrize(("linter", "file"), [("shellcheck", SLURM), ("hadolint", CONTAINER)])
def test_scripts_for_clusters_are_clean(linter, file):
    program = shutil.which(linter, path=f"{Path(sys.executable).parent}:{os.environ['PATH']}")
    if program is None:
        pytest.skip(f"{linter} is not installed")
    done = subprocess.run([program, str(file)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def test_the_container_installs_as_make_setup_does():
    """Without the tools of development."""
    installed = re.findall(r"pip install (.*)", (ROOT / "Makefile").read_text())
    setup = [line.removeprefix("-qq ").removesuffix(" --group dev") for line in installed[:2]]
    assert all(f"pip install --no-cache-dir {line}" in CONTAINER.read_text() for line in setup)


def test_accelerate_knows_every_setting_of_the_fsdp_config(monkeypatch):
    config = load_config_from_file(str(CONFIG))
    assert config.distributed_type == DistributedType.FSDP
    parser = launch_command_parser()
    known = {action.dest for action in parser._actions}
    assert set(config.fsdp_config) <= known
    arguments = parser.parse_args(["--config_file", str(CONFIG), "train.py"])
    launched, *_ = _validate_launch_command(arguments)
    for name, value in prepare_multi_gpu_env(launched).items():
        if name.startswith(("FSDP_", "ACCELERATE_")):
            monkeypatch.setenv(name, value)
    plugin = FullyShardedDataParallelPlugin()
    assert (plugin.fsdp_version, plugin.reshard_after_forward) == (2, True)
    assert not plugin.activation_checkpointing
    assert not plugin.cpu_ram_efficient_loading
    assert os.environ["ACCELERATE_MIXED_PRECISION"] == "no"
