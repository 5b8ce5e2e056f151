"""The training loop on a small model with dropout, random shifts and an average, on one CPU."""

import itertools
import json
import math
import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import yaml
from torch import nn

from latent_prior import cli
from latent_prior.data import batch_order
from latent_prior.data.batch_order import RATES, Reader, index_batches, prefetch, scattered
from latent_prior.options import RunOptions, TrainingImageOptions, changeable
from latent_prior.processes import start_training_processes
from latent_prior.seeds import generator
from latent_prior.training import loop
from latent_prior.training.checkpoint import checkpoints
from latent_prior.training.ema import EMA
from latent_prior.training.loop import TrainState, resume, save, train
from latent_prior.training.optim import make_optimizer, update

SIZE = 21


class Meter(nn.Module):
    """Counts over a run, as stage 1's epoch meter does."""

    def __init__(self):
        super().__init__()
        self.register_buffer("seen", torch.zeros(()))


class Run:
    """One training script in small: its step, its batches and what it wrote."""

    def __init__(self, folder, *, poison=None, dropout=0.5, **settings):
        defaults = {
            "output_dir": str(folder), "batch_size": 8, "max_steps": 6, "learning_rate": 0.05, "warmup_steps": 2,
            "schedule": "cosine", "log_every": 2, "checkpoint_every": 3, "evaluate_every": 4, "seed": 5, "cpu_threads": 1,
            "ema_decay": 0.9, "weight_decay": 0.1,
        }  # fmt: skip
        self.options = RunOptions(**{**defaults, **settings})
        self.folder, self.poison = folder, poison
        self.evaluated, self.exported, self.seen = [], [], []
        self.accelerator = start_training_processes(self.options)
        self.model = nn.Sequential(
            nn.Conv2d(1, 4, 3), nn.Dropout(dropout), nn.Flatten(), nn.Linear(36, 1)
        )
        optimizer = make_optimizer(self.model, self.options)
        self.wrapped, self.optimizer = self.accelerator.prepare(self.model, optimizer)
        self.ema, self.meter = EMA(self.model, self.options.ema_decay), Meter()
        parts = {
            "model": self.model,
            "optimizer": self.optimizer,
            "ema": self.ema,
            "meter": self.meter,
        }
        self.state = TrainState(parts)
        self.images = torch.randn(SIZE, 1, 5, 5, generator=torch.Generator().manual_seed(0))

    def step(self, batch):
        with self.accelerator.accumulate(self.wrapped):
            loss = self.wrapped(batch["images"]).square().mean()
            if self.poison == self.state.step:
                loss = loss * math.nan
            self.accelerator.backward(loss)
            updated = update(
                self.accelerator, self.optimizer, self.wrapped, loss=loss, step=self.state.step, options=self.options
            )  # fmt: skip
        if self.accelerator.sync_gradients:
            self.ema.update(self.model)
        self.meter.seen += len(batch["images"])
        return {"loss": loss, **updated}

    def batches(self, start):
        places = index_batches(start, size=SIZE, options=self.options, accelerator=self.accelerator)
        for step, indices, place in places:
            self.seen.append((step, indices.tolist()))
            noise = torch.randn(
                self.options.batch_size, 1, 5, 5, generator=generator(5, "noise", step)
            )
            yield {"images": self.images[indices] + 0.1 * noise[place]}

    def evaluate(self):
        self.evaluated.append(self.state.step)
        return {"held_out": float(self.state.step)}

    def export(self):
        self.exported.append(self.state.step)

    def train(self):
        train(
            self.accelerator, self.step, self.batches, self.state, self.options, what="model", loss="loss",
            evaluate=self.evaluate, export=self.export,
        )  # fmt: skip
        return self

    def everything(self):
        """All that a checkpoint holds, flat."""
        parts = {
            **{f"model.{k}": v for k, v in self.model.state_dict().items()},
            **{f"ema.{k}": v for k, v in self.ema.weights.items()},
            "seen": self.meter.seen,
        }
        for number, moments in self.optimizer.state_dict()["state"].items():
            parts |= {f"optimizer.{number}.{k}": v for k, v in moments.items()}
        return {name: value.clone() for name, value in parts.items()}


@pytest.fixture
def start(tmp_path, fresh_processes):
    def make(name: str = "run", **settings) -> Run:
        fresh_processes()
        return Run(tmp_path / name, **settings)

    return make


def equal(first: dict, second: dict) -> bool:
    assert first.keys() == second.keys()
    return all(torch.equal(first[name], second[name]) for name in first)


def lines(run: Run) -> list[dict]:
    return [json.loads(line) for line in (run.folder / "metrics.jsonl").read_text().splitlines()]


@pytest.mark.parametrize("accumulation_steps", [1, 2])
def test_three_and_three_steps_give_the_bits_of_six(start, accumulation_steps):
    settings = {"accumulation_steps": accumulation_steps}
    straight = start("straight", **settings).train()
    start("resumed", max_steps=3, schedule="constant", **settings).train()
    with pytest.raises(ValueError, match="schedule"):
        start("resumed", **settings).train()
    whole = start("whole", schedule="constant", **settings).train()
    resumed = start("resumed", schedule="constant", **settings).train()
    assert equal(whole.everything(), resumed.everything())
    assert not equal(whole.everything(), straight.everything())
    assert resumed.seen[0][0] == 3
    assert whole.state.step == resumed.state.step == 6


def test_a_kill_between_checkpoints_costs_nothing_but_time(start):
    """Cosine schedule, dropout and noise resume in mid-epoch (21 images, batches of 8)."""

    class Killed(BaseException):
        pass

    whole = start("whole", max_steps=9).train()
    for stop in (4, 5, 8):
        run = start("killed", max_steps=9)
        original = run.step

        def step(batch, run=run, original=original, stop=stop):
            if run.state.step == stop:
                raise Killed
            return original(batch)

        run.step = step
        with pytest.raises(Killed):
            run.train()
    partial = run.folder / "checkpoints" / ".step-000000009.partial"
    partial.mkdir()
    with (run.folder / "metrics.jsonl").open("a") as file:
        file.write('{"step": 7, "los')
    resumed = start("killed", max_steps=9).train()
    assert equal(whole.everything(), resumed.everything())
    assert [line["step"] for line in lines(resumed)] == [line["step"] for line in lines(whole)]
    strip = [
        {k: v for k, v in line.items() if k != "seconds"}
        for line in lines(whole)
        if "held_out" in line
    ]
    assert strip == [
        {k: v for k, v in line.items() if k != "seconds"}
        for line in lines(resumed)
        if "held_out" in line
    ]


def test_restarting_the_epoch_or_the_seed_on_resume_would_be_another_run(start):
    """Several peers begin the epoch anew, or reseed from the start, when they resume."""
    whole = start("whole").train()
    start("peer", max_steps=3).train()
    peer = start("peer")
    batches = peer.batches
    peer.batches = lambda begin: batches(0)
    assert not equal(whole.everything(), peer.train().everything())


def test_one_batch_of_8_equals_two_of_4(start):
    whole = start("whole", dropout=0.0).train()
    halves = start("halves", dropout=0.0, accumulation_steps=2).train()
    assert [len(indices) for _, indices in halves.seen[:4]] == [4] * 4
    for name, value in whole.everything().items():
        torch.testing.assert_close(halves.everything()[name], value, rtol=1e-4, atol=1e-6)
    # 12 micro-batches are 6 optimizer steps: counting micro-batches (diffusers' vqgan) stops at 3.
    assert halves.state.step == 6
    assert halves.ema.updates == 6


def test_what_happens_when(start):
    run = start(max_steps=7, checkpoints_to_keep=2).train()
    assert run.evaluated == [4, 7]
    assert run.exported == [3, 6, 7]
    assert [path.name for path in checkpoints(run.folder)] == ["step-000000006", "step-000000007"]
    assert [line["step"] for line in lines(run)] == [2, 4, 4, 6, 7, 7]
    first = lines(run)[0]
    figures = {"loss", "gradient_norm", "learning_rate", *RATES}
    assert set(first) == {"step", "images_seen", "seconds"} | figures
    assert first["images_seen"] == 16
    assert yaml.safe_load((run.folder / "config.yaml").read_text())["max_steps"] == 7


def test_a_finished_run_does_nothing_but_export(start):
    """A run killed between its last checkpoint and the export still gets its model folder."""
    done = start().train()
    again = start().train()
    assert again.seen == again.evaluated == []
    assert again.exported == [6]
    assert equal(done.everything(), again.everything())
    assert lines(again) == lines(done)


def test_no_steps_at_all(start):
    assert start(max_steps=0).train().exported == [0]


def test_a_run_can_be_prolonged_but_not_changed(start):
    start(max_steps=3).train()
    with pytest.raises(
        ValueError, match=r"holds a run with weight_decay = 0\.1, this command sets 0\.2"
    ):
        start(max_steps=6, weight_decay=0.2).train()
    changed = start(max_steps=4, log_every=1, checkpoint_every=1, accumulation_steps=2).train()
    assert changed.state.step == 4


@pytest.mark.parametrize(
    ("harm", "culprit"),
    [
        (lambda path: path.unlink(), "is missing"),
        (lambda path: path.write_text("a: [1"), "is not YAML"),
        (lambda path: path.write_text("[1, 2]"), "is not a mapping"),
        (lambda path: path.write_text("model: 5"), "holds a run with"),
        (lambda path: (path.unlink(), path.mkdir()), "is no regular file"),
        (lambda path: (path.unlink(), os.mkfifo(path)), "is no regular file"),
    ],
)
def test_a_checkpoint_whose_config_is_gone_is_refused(start, harm, culprit):
    run = start(max_steps=3).train()
    harm(run.folder / "config.yaml")
    with pytest.raises(ValueError, match=culprit) as refused:
        start().train()
    assert "config.yaml" in str(refused.value)


def flip(path):
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def harmed(run, harm, part):
    """The newest checkpoint of a run, after something has happened to it."""
    older, newest = checkpoints(run.folder)
    path = newest / f"{part}.pt"
    if harm == "flipped":
        flip(path)
    elif harm == "older":
        shutil.copy(older / path.name, path)
    elif harm == "other run":
        shutil.copy(run.folder.with_name("other") / "checkpoints" / newest.name / path.name, path)
    elif harm == "missing":
        path.unlink()
    elif harm == "fifo":
        path.unlink()
        os.mkfifo(path)
    elif harm == "half":
        path.write_bytes(path.read_bytes()[:-9])
    elif harm == "no manifest":
        (newest / "manifest.json").unlink()
        path.write_bytes(b"half")
    elif harm == "manifest":
        (newest / "manifest.json").write_text("{}")
    else:
        shutil.rmtree(newest)
        if harm == "file":
            newest.write_text("x")
        elif harm == "link to the older":
            newest.symlink_to(older.name)
        elif harm == "copy of the older":
            shutil.copytree(older, newest)
        else:
            newest.mkdir()
    return newest


PARTS = ("model", "optimizer", "ema", "state")
LONGER = {"max_steps": 9, "schedule": "constant"}
HARMS = [
    *((harm, part) for part in PARTS for harm in ("older", "other run")),
    *((harm, "ema") for harm in ("flipped", "missing", "fifo", "half", "no manifest", "manifest")),
    *((harm, "") for harm in ("file", "link to the older", "copy of the older", "empty folder")),
]


def test_a_damaged_or_mixed_checkpoint_is_set_aside_and_the_one_before_it_used(start, caplog):
    """A part of an older step or of another run would silently lead to other weights."""
    whole = start("whole", **LONGER).train()
    start("other", seed=6, schedule="constant").train()
    start("begun", schedule="constant").train()
    for harm, part in HARMS:
        shutil.rmtree(whole.folder.with_name("run"), ignore_errors=True)
        shutil.copytree(whole.folder.with_name("begun"), whole.folder.with_name("run"))
        run = start(schedule="constant")
        newest = harmed(run, harm, part)
        caplog.clear()
        resumed = start(**LONGER).train()
        assert resumed.seen[0][0] == 3, (harm, part)
        assert equal(whole.everything(), resumed.everything())
        said = [r.getMessage() for r in caplog.records if "set aside" in r.getMessage()]
        assert len(said) == 1
        assert str(newest) in said[0]
        assert os.path.lexists(newest.with_name(f"{newest.name}.damaged"))
        assert [path.name for path in checkpoints(run.folder)] == [newest.name, "step-000000009"]


def test_without_an_intact_checkpoint_nothing_starts_anew_and_nothing_is_renamed(start):
    run = start(schedule="constant").train()
    for folder in checkpoints(run.folder):
        flip(folder / "ema.pt")
    for _ in range(2):
        with pytest.raises(ValueError, match=r"no checkpoint in .* is intact .*ema\.pt.*; restore"):
            start(schedule="constant").train()
    assert len(checkpoints(run.folder)) == 2


def test_a_damaged_name_is_free_again_and_again(start):
    run = start(schedule="constant").train()
    for _ in range(2):
        flip(checkpoints(run.folder)[-1] / "ema.pt")
        start(schedule="constant").train()
    names = {path.name for path in (run.folder / "checkpoints").iterdir()}
    assert names == {
        "step-000000003", "step-000000006", "step-000000006.damaged", "step-000000006.damaged2",
    }  # fmt: skip


def test_a_checkpoint_from_before_manifests_is_used(start, caplog):
    whole = start("whole", **LONGER).train()
    run = start(schedule="constant").train()
    newest = checkpoints(run.folder)[-1]
    (newest / "manifest.json").unlink()
    state = torch.load(newest / "state.pt", weights_only=True)
    older = {name: state[name] for name in ("step", "seconds", "cpu_seconds")}
    torch.save(older, newest / "state.pt")
    again = start(**LONGER)
    again.state.inputs["codes"] = "a"
    assert equal(whole.everything(), again.train().everything())
    assert again.seen[0][0] == 6
    assert "has no manifest.json" in caplog.text


def test_other_names_are_left_alone_and_leftovers_are_cleared(start):
    whole = start("whole", **LONGER).train()
    run = start(schedule="constant").train()
    folder = run.folder / "checkpoints"
    theirs = ["step-notes.txt", ".step-1.partial", ".step-notes.partial"]
    for name in theirs:
        (folder / name).write_text("mine")
    copies = ["step-000000012.bak", "step-000000003 (1)", "step-old", "step-0000000099"]
    for name in copies:
        shutil.copytree(folder / "step-000000003", folder / name)
    (folder / ".step-000000009.partial").write_text("x")
    (folder / ".step-000000007.replaced").symlink_to(run.folder)
    (folder / ".step-000000003.partial").mkdir()
    (folder / ".step-000000003.partial" / "model.pt").write_text("x")
    (folder / ".step-000000003.partial").chmod(0o500)
    resumed = start(**LONGER).train()
    assert equal(whole.everything(), resumed.everything())
    kept = ["step-000000006", "step-000000009"]
    assert {path.name for path in folder.iterdir()} == {*theirs, *copies, *kept}


@pytest.mark.parametrize("kind", ["file", "fifo", "dangling link", "link to itself"])
def test_a_folder_of_checkpoints_that_is_none_is_told_before_training(start, kind):
    run = start(max_steps=3).train()
    folder = run.folder / "checkpoints"
    shutil.rmtree(folder)
    if kind == "file":
        folder.write_text("x")
    elif kind == "fifo":
        os.mkfifo(folder)
    else:
        folder.symlink_to("nowhere" if kind == "dangling link" else folder.name)
    again = start()
    with pytest.raises(ValueError, match=r"/checkpoints cannot be read as the folder"):
        again.train()
    assert not again.seen


def test_a_checkpoint_in_place_of_a_deleted_one_goes_on(start):
    """A kill between two operations while old checkpoints are deleted leaves only whole ones."""
    whole = start("whole", checkpoint_every=1).train()
    run = start(checkpoint_every=1)

    class Killed(BaseException):
        pass

    rmtree, unlink = shutil.rmtree, os.unlink
    for at in range(1, 8):
        shutil.rmtree(run.folder, ignore_errors=True)
        count = itertools.count(1)

        def die(*arguments, count=count, at=at, **options):
            if next(count) == at:
                raise Killed
            return unlink(*arguments, **options)

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(os, "unlink", die)
            with pytest.raises(Killed):
                start(checkpoint_every=1).train()
        assert shutil.rmtree is rmtree
        resumed = start(checkpoint_every=1).train()
        assert equal(whole.everything(), resumed.everything())
        assert names(resumed) == names(whole)


def names(run):
    return sorted(str(path.relative_to(run.folder)) for path in run.folder.rglob("*"))


def test_what_a_run_learns_from_may_not_change(start):
    def with_inputs(**inputs):
        run = start(max_steps=6)
        run.state.inputs.update(inputs)
        return run

    with_inputs(codes="a", images="b").train()
    with_inputs(codes="a", images="b").train()  # complete
    before = names(with_inputs())
    with pytest.raises(ValueError, match=r"the codes are not those that the run in .* learnt from"):
        with_inputs(codes="c", images="b").train()
    assert names(with_inputs()) == before


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
@pytest.mark.parametrize("place", ["step", "batches", "evaluate", "export", "resume"])
def test_a_signal_ends_a_run_that_then_goes_on_to_the_same_files(start, number, place, monkeypatch):
    whole = start("whole", max_steps=9).train()
    run = start(max_steps=9)
    if place == "resume":
        monkeypatch.setattr(loop, "resume", signalled(loop.resume, number))
    elif place == "batches":
        run.batches = signalled(run.batches, number)
    else:
        setattr(run, place, signalled(getattr(run, place), number, 5 if place == "step" else 1))
    with pytest.raises(SystemExit) as stopped:
        cli.run(run.train)
    monkeypatch.undo()
    assert stopped.value.code == 128 + number
    at = {"step": 5, "batches": None, "evaluate": 4, "export": 3, "resume": None}[place]
    if at is None:
        assert not run.seen
    else:
        assert checkpoints(run.folder)[-1].name == f"step-{at:09d}"
        assert run.exported[-1] == at
    resumed = start(max_steps=9).train()
    assert equal(whole.everything(), resumed.everything())
    assert timeless(whole) == timeless(resumed)
    assert names(whole) == names(resumed)


def signalled(function, number, call=1):
    """The function, during whose n-th call this process gets a signal."""
    calls = itertools.count(1)

    def wrapped(*arguments, **options):
        if next(calls) == call:
            os.kill(os.getpid(), number)
        return function(*arguments, **options)

    return wrapped


def test_a_run_stopped_after_every_step_ends_with_the_files_of_one_that_was_not(start, monkeypatch):
    """Neither a mean in the log nor the checkpoints tell where it was stopped."""
    whole = start("whole", max_steps=9, log_every=4).train()
    for _ in range(8):
        time_is_up_after_a_step = itertools.chain([0], itertools.repeat(1))
        monkeypatch.setattr(loop, "_stop", lambda *_, up=time_is_up_after_a_step: next(up))
        run = start(max_steps=9, log_every=4).train()
        assert checkpoints(run.folder)[-1].name == f"step-{run.state.step:09d}"
    monkeypatch.undo()
    resumed = start(max_steps=9, log_every=4).train()
    assert resumed.seen[0][0] == 8
    assert equal(whole.everything(), resumed.everything())
    assert timeless(whole) == timeless(resumed)
    assert names(whole) == names(resumed)


TWO = """
import os, signal, sys
from pathlib import Path
from latent_prior import cli
from tests.latent_prior.training.test_loop import Run

def main():
    run = Run(Path(sys.argv[1]), max_steps=200, schedule="constant")
    own = run.step
    def step(batch):
        if run.state.step == 5 and run.accelerator.process_index == 1:
            os.kill(os.getpid(), signal.SIGTERM)
        return own(batch)
    run.step = step
    try:
        run.train()
    finally:
        print(run.seen[0][0], run.state.step, run.exported)

cli.run(main)
"""


def test_two_processes_agree_on_a_damaged_checkpoint_and_on_a_signal_to_one_of_them(
    start, tmp_path
):
    run = start(schedule="constant").train()
    flip(checkpoints(run.folder)[-1] / "ema.pt")
    (tmp_path / "two.py").write_text(TWO)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    group = {
        "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port),
        "ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1", "PYTHONPATH": str(Path(__file__).parents[3]),
    }  # fmt: skip
    processes = [
        subprocess.Popen(
            [sys.executable, tmp_path / "two.py", run.folder],
            env={**os.environ, **group, "RANK": str(rank), "LOCAL_RANK": str(rank)},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(2)
    ]
    said = [process.communicate(timeout=120) for process in processes]
    for process, (out, err) in zip(processes, said, strict=True):
        assert process.returncode == 128 + signal.SIGTERM, err
        assert out.splitlines()[-1] == "3 6 [6]"
        assert "Traceback" not in err
    assert "step-000000006.damaged, going on from step-000000003" in said[0][1]
    assert "stopped by SIGTERM after step 6 of 200; repeat the command to go on" in said[0][1]
    assert "stopped by" not in said[1][1]
    assert checkpoints(run.folder)[-1].name == "step-000000006"


@pytest.mark.parametrize("kind", ["file", "below a file", "fifo", "link to nothing", "read-only"])
def test_a_folder_that_cannot_hold_a_run_is_told_at_once(tmp_path, kind, monkeypatch):
    place = tmp_path / "run"
    if kind == "fifo":
        os.mkfifo(place)
    elif kind == "link to nothing":
        place.symlink_to("nowhere")
    elif kind == "read-only":
        place.mkdir()
        monkeypatch.setattr(os, "access", lambda path, mode: path != place)  # also for root
    else:
        place.write_text("mine")
    folder = place / "run" if kind == "below a file" else place
    before = sorted(tmp_path.iterdir())
    with pytest.raises(ValueError, match=f"--output_dir {folder}"):
        start_training_processes(RunOptions(output_dir=str(folder)))
    assert sorted(tmp_path.iterdir()) == before


def timeless(run):
    return [
        {name: v for name, v in line.items() if name not in {"seconds", *RATES}}
        for line in lines(run)
    ]


def test_a_loss_that_is_not_finite_stops_before_the_weights_change(start):
    good = start("good", max_steps=4, schedule="constant").train()
    bad = start("bad", poison=4, schedule="constant")
    with pytest.raises(
        ValueError, match=r"step 5: (loss|gradient_norm) is nan; stopped before the weights"
    ):
        bad.train()
    for name, value in good.model.state_dict().items():
        assert torch.equal(bad.model.state_dict()[name], value)
    assert [path.name for path in checkpoints(bad.folder)] == ["step-000000003"]


def test_a_diverged_run_goes_on_with_the_lower_learning_rate_that_its_message_asks_for(start):
    outcomes = []
    for name in ("one", "two"):
        with pytest.raises(
            ValueError, match="resume from the last checkpoint with a lower --learn"
        ):
            start(name, poison=4, schedule="constant", log_every=1).train()
        run = start(name, learning_rate=0.005, schedule="constant", log_every=1).train()
        outcomes.append(run.everything())
        rates = [line["learning_rate"] for line in lines(run) if "learning_rate" in line]
        assert rates == pytest.approx([0.025, 0.05, 0.05, 0.005, 0.005, 0.005])
        assert yaml.safe_load((run.folder / "config.yaml").read_text())["learning_rate"] == 0.005
    assert equal(*outcomes)


@pytest.mark.parametrize("limit", ["max_seconds", "max_cpu_seconds"])
def test_time_can_end_a_run_and_counts_over_its_parts(start, limit):
    run = start(max_steps=1000, **{limit: 1e-9}).train()
    assert run.state.step == 1
    assert run.exported == [1]
    again = start(max_steps=1000, **{limit: 1e-9}).train()
    assert again.state.step == 1
    assert again.exported == [1]
    seconds, cpu_seconds = again.state.seconds, again.state.cpu_seconds
    prolonged = start(max_steps=2).train()
    assert prolonged.state.seconds > seconds > 0
    assert prolonged.state.cpu_seconds > cpu_seconds > 0


def test_waiting_costs_no_processor_time(start):
    """Otherwise a machine's other programs would eat into the budget, as with a wall clock."""
    run = start(max_steps=3)
    step = run.step
    run.step = lambda batch: (time.sleep(0.2), step(batch))[1]
    run.train()
    assert run.state.seconds > 0.6 > run.state.cpu_seconds


def test_the_budget_says_what_a_training_has_cost(start, monkeypatch):
    run = start(max_steps=3).train()
    monkeypatch.setattr(loop, "command_line", lambda: "python train.py")
    budget = run.state.budget(run.options, run.accelerator)
    assert (budget["steps"], budget["images_seen"]) == (3, 3 * run.options.batch_size)
    assert (budget["device"], budget["num_processes"]) == ("cpu", 1)
    assert budget["command"] == "python train.py"
    # Milliseconds: whoever divides the cost of a step or two must not find zero.
    assert budget["seconds"] == pytest.approx(run.state.seconds, abs=0.0006)
    assert budget["cpu_seconds"] == pytest.approx(run.state.cpu_seconds, abs=0.0006)


def test_save_and_resume_restore_the_counters(start):
    run = start()
    run.state.step, run.state.seconds, run.state.cpu_seconds = 3, 12.5, 20.5
    resume(run.accelerator, run.folder, run.state, run.options)
    save(run.accelerator, run.folder, run.state, run.options, None)
    other = start()
    resume(other.accelerator, other.folder, other.state, other.options)
    assert (other.state.step, other.state.seconds, other.state.cpu_seconds) == (3, 12.5, 20.5)


def process(index: int, count: int) -> SimpleNamespace:
    """As much of an Accelerator as the order of the images needs."""
    return SimpleNamespace(process_index=index, num_processes=count)


def whole_batches(steps: int, *, start=0, size=SIZE, processes=1, **settings):
    """{step: indices of the whole batch}, put together from every process' places."""
    options = RunOptions(output_dir="x", **{"batch_size": 8, **settings})
    found: dict[int, torch.Tensor] = {}
    for index in range(processes):
        stream = index_batches(
            start, size=size, options=options, accelerator=process(index, processes)
        )
        for step, indices, place in stream:
            if step >= start + steps:
                break
            batch = found.setdefault(step, torch.full((options.batch_size,), -1))
            assert (batch[place] == -1).all()
            batch[place] = indices
    return found


@pytest.fixture(params=["listed", "computed"])
def either_order(request, monkeypatch):
    """An order that is drawn at once, and one of which each place is computed."""
    if request.param == "computed":
        monkeypatch.setattr(batch_order, "_LISTED", 0)


@pytest.mark.parametrize("size", [21, 8, 5, 64])
def test_every_image_is_seen_once_an_epoch(size, either_order):
    order = torch.cat(list(whole_batches(size, size=size).values()))  # 8 epochs
    assert len(order) == 8 * size
    epochs = order.split(size)
    for epoch in epochs:
        assert sorted(epoch.tolist()) == list(range(size))
    if size > 8:  # of fewer numbers two orders are the same now and then
        assert len({tuple(epoch.tolist()) for epoch in epochs}) == 8


@pytest.mark.parametrize("processes", [1, 2, 4])
@pytest.mark.parametrize("accumulation_steps", [1, 2])
def test_the_batch_of_a_step_depends_on_neither_processes_nor_micro_batches(
    processes, accumulation_steps, either_order
):
    """An unsharded loader (diffusers' vqgan example) would give every process the same images."""
    expected = whole_batches(9)
    found = whole_batches(9, processes=processes, accumulation_steps=accumulation_steps)
    assert expected.keys() == found.keys()
    assert all(torch.equal(expected[step], found[step]) for step in expected)


@pytest.mark.parametrize("size", [1, 2, 3, 1000, 4097])
def test_a_computed_order_has_every_number_once(size):
    for seed in range(3):
        order = scattered(torch.arange(size), size, generator(seed))
        assert sorted(order.tolist()) == list(range(size))


def test_a_computed_order_is_no_pattern():
    """Neighbours are no nearer to each other than any two numbers, and places move evenly."""
    size = 10_000
    order = scattered(torch.arange(size), size, generator(0)).double()
    # Of a random order the mean distance is size / 3, with a deviation of size / (4 sqrt(size)).
    assert order.diff().abs().mean().item() == pytest.approx(size / 3, rel=0.05)
    for part in order.split(1000):  # the mean of 1,000 has a deviation of 0.9 % of size
        assert part.mean().item() == pytest.approx(size / 2, abs=0.06 * size)


def test_an_order_of_more_rows_than_fit_into_memory_takes_none():
    whole_batches(2, start=10**9, size=10**12)


def test_the_order_is_a_pure_function_of_step_and_seed(either_order):
    whole = whole_batches(20)
    for begin in (1, 2, 13):
        later = whole_batches(3, start=begin)
        assert all(torch.equal(whole[step], later[step]) for step in later)
    assert not torch.equal(whole_batches(1, seed=1)[0], whole[0])


def test_a_batch_that_cannot_be_shared_out_is_refused():
    with pytest.raises(
        ValueError, match="--batch_size 8 cannot be divided evenly over 3 processes"
    ):
        whole_batches(1, processes=3)


def test_prefetching_keeps_the_order_and_ends():
    assert list(prefetch(iter(range(100)))) == list(range(100))
    assert list(prefetch(iter([]))) == []
    assert list(prefetch(iter([None, 0]))) == [None, 0]


def test_prefetching_passes_errors_on_after_the_items_before_them():
    def items():
        yield 1
        raise ValueError("broken image")

    stream = prefetch(items())
    assert next(stream) == 1
    with pytest.raises(ValueError, match="broken image"):
        next(stream)


def test_prefetching_runs_ahead_by_its_depth_only():
    made = []

    def items():
        for number in itertools.count():
            made.append(number)
            yield number

    stream = prefetch(items(), depth=2)
    assert next(stream) == 0
    deadline = time.monotonic() + 5
    while len(made) < 3 and time.monotonic() < deadline:
        time.sleep(0.01)
    time.sleep(0.05)
    assert len(made) == 3  # one taken, two ahead
    stream.close()


def test_closing_early_ends_the_thread():
    before = set(threading.enumerate())
    stream = prefetch(itertools.count())
    next(stream)
    assert set(threading.enumerate()) - before
    stream.close()
    assert not set(threading.enumerate()) - before


def test_a_training_that_fails_ends_its_thread(start):
    before = set(threading.enumerate())
    run = start(poison=1)
    with pytest.raises(ValueError, match="step 2"):
        run.train()
    assert not set(threading.enumerate()) - before


def test_states_hold_nothing_that_needs_unpickling(start):
    run = start(max_steps=3).train()
    for path in checkpoints(run.folder)[-1].glob("*.pt"):
        torch.load(path, weights_only=True)


def test_only_the_learning_rates_and_what_leaves_the_weights_alone_may_change_in_a_run():
    assert changeable(TrainingImageOptions) == {
        "output_dir", "max_steps", "max_seconds", "max_cpu_seconds", "log_every", "evaluate_every", "checkpoint_every",
        "checkpoints_to_keep", "report_to", "cpu_threads", "cache_mb", "accumulation_steps", "learning_rate", "final_learning_rate", "max_pixels",
    }  # fmt: skip


def test_the_rates_of_reading_and_of_steps_are_told_apart(monkeypatch):
    """By a clock that goes on by two seconds when a batch is read, and by three in a step."""
    clock, pool = SimpleNamespace(now=0.0), SimpleNamespace(seconds_ahead=7.0)
    monkeypatch.setattr(batch_order.time, "monotonic", lambda: clock.now)
    monkeypatch.setattr(batch_order, "thread_pool", lambda: pool)

    def read():
        for number in itertools.count():
            clock.now += 2
            yield number

    def steps(count):
        for _ in range(count):
            next(reader)
            clock.now += 3
        return reader.rates(10 * count, 100 + clock.now)

    reader = Reader(read(), 0, seconds=100.0)
    for count in (1, 4):
        rates = steps(count)
        assert rates == pytest.approx(dict(zip(RATES, (10 / 5, 10 / 2, 10 / 3), strict=True)))
    pool.seconds_ahead += 4 * 2.5  # what is decoded ahead by other threads
    assert steps(4) == pytest.approx(dict(zip(RATES, (10 / 5, 10 / 2.5, 10 / 3), strict=True)))


def test_a_reader_passes_everything_on_and_ends():
    reader = Reader(iter(range(5)), 2)
    assert list(reader) == list(range(5))
    endless = Reader(itertools.count(), 2)
    next(endless)
    endless.close()
    assert not [thread for thread in threading.enumerate() if "prefetch" in thread.name]
