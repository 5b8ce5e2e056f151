"""Trackers: pictures arrive as they are, and a failure costs a warning only."""

import io
import logging
import sys
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from accelerate.tracking import TensorBoardTracker
from PIL import Image
from torch import nn

from latent_prior.options import RunOptions
from latent_prior.processes import start_processes, start_training_processes
from latent_prior.training.loop import TrainState, train
from latent_prior.training.metrics import MetricsLog
from latent_prior.training.optim import make_optimizer, update


@pytest.fixture
def accelerator(fresh_processes):
    return start_processes(cpu_threads=1)


def picture(path, mode: str) -> np.ndarray:
    """Writes a PNG of 20 x 30 pixels; returns its pixels in colour."""
    pixels = np.random.default_rng(0).integers(0, 256, (20, 30, 3), dtype=np.uint8)
    image = Image.fromarray(pixels).convert(mode)
    image.save(path)
    return np.asarray(image.convert("RGB"))


@pytest.mark.parametrize("mode", ["L", "RGB"])
def test_tensorboard_shows_the_picture_at_its_step(accelerator, tmp_path, mode):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    pixels = picture(tmp_path / "step.png", mode)
    options = RunOptions(output_dir=str(tmp_path), report_to="tensorboard")
    log = MetricsLog(accelerator, tmp_path, options, start=0)
    log.write(7, 1.0, {"kl": 0.5, "samples": tmp_path / "step.png"})
    log.close()
    events = EventAccumulator(str(tmp_path / "latent-prior"))
    events.Reload()
    (shown,) = events.Images("samples")
    assert (shown.step, shown.width, shown.height) == (7, 30, 20)
    stored = np.asarray(Image.open(io.BytesIO(shown.encoded_image_string)).convert("RGB"))
    assert np.array_equal(stored, pixels)
    assert events.Tags()["scalars"] == ["kl"]
    assert "samples" not in (tmp_path / "metrics.jsonl").read_text()


def test_wandb_and_trackio_are_given_the_pixels(accelerator, tmp_path, monkeypatch):
    pixels = picture(tmp_path / "step.png", "RGB")
    told: list[tuple] = []
    wandb = SimpleNamespace(
        name="wandb", log_images=lambda *args, **named: told.append((args, named))
    )
    trackio = SimpleNamespace(name="trackio", log=lambda *args, **named: told.append((args, named)))
    monkeypatch.setitem(
        sys.modules, "trackio", SimpleNamespace(Image=lambda value: ("image", value))
    )
    log = MetricsLog(accelerator, tmp_path, RunOptions(output_dir=str(tmp_path)), start=0)
    for tracker in (wandb, trackio):
        accelerator.trackers = [tracker]
        log._tracker.show(3, {"samples": tmp_path / "step.png"})
    (((to_wandb,), step), ((to_trackio,), other_step)) = told
    assert step == other_step == {"step": 3}
    assert np.array_equal(to_wandb["samples"][0], pixels)
    assert to_trackio["samples"][0] == "image"
    assert np.array_equal(to_trackio["samples"][1], pixels)


def run(folder, **settings) -> nn.Module:
    """Trains a layer for six steps with an evaluation that shows a picture; returns it."""
    options = RunOptions(
        output_dir=str(folder), batch_size=4, max_steps=6, log_every=2, evaluate_every=3, cpu_threads=1, **settings
    )  # fmt: skip
    accelerator = start_training_processes(options)
    model = nn.Sequential(nn.Linear(5, 5), nn.Dropout(0.5), nn.Linear(5, 1))
    wrapped, optimizer = accelerator.prepare(model, make_optimizer(model, options))
    state = TrainState({"model": model, "optimizer": optimizer})

    def step(batch):
        loss = wrapped(batch["images"]).square().mean()
        accelerator.backward(loss)
        return {
            "loss": loss,
            **update(accelerator, optimizer, wrapped, loss=loss, step=state.step, options=options),
        }

    def batches(start):
        source = torch.Generator().manual_seed(0)
        while True:
            yield {"images": torch.randn(4, 5, generator=source)}

    def evaluate():
        picture(folder / "grid.png", "L")
        return {"held_out": 1.0, "samples": folder / "grid.png"}

    train(accelerator, step, batches, state, options, what="model", loss="loss", evaluate=evaluate)
    return model


@pytest.mark.parametrize(
    "method", ["start", "store_init_configuration", "log", "log_images", "finish"]
)
def test_a_tracker_that_fails_is_one_warning_and_the_run_goes_on(
    tmp_path, fresh_processes, monkeypatch, caplog, method
):
    (tmp_path / "plain").mkdir()
    plain = run(tmp_path / "plain").state_dict()
    fresh_processes()

    def fail(*_, **__):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(TensorBoardTracker, method, fail)
    (tmp_path / "failing").mkdir()
    with caplog.at_level(logging.WARNING, "latent_prior"):
        failing = run(tmp_path / "failing", report_to="tensorboard").state_dict()
    assert all(torch.equal(plain[name], failing[name]) for name in plain)
    (warning,) = [record.getMessage() for record in caplog.records if "report_to" in record.msg]
    assert warning.startswith("--report_to tensorboard failed ([Errno 28] No space left on device)")
    assert (tmp_path / "failing" / "metrics.jsonl").read_text().count("\n") == 5
