import errno
from types import SimpleNamespace

import pytest
import torch

from latent_prior.cli import run
from latent_prior.manifests import DamagedError
from latent_prior.models import Budget, ModelConfig, StrictModel
from latent_prior.training.checkpoint import (
    checkpoints,
    export_model,
    load_checkpoint,
    prune_checkpoints,
    save_checkpoint,
)
from latent_prior.training.ema import EMA


def names(folder) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


class Part:
    def __init__(self, value: float = 0.0):
        self.value = torch.full((3,), value)

    def state_dict(self):
        return {"value": self.value, "count": 3, "name": "x"}

    def load_state_dict(self, state):
        self.value = state["value"]


def test_a_checkpoint_restores_every_part(tmp_path):
    save_checkpoint(tmp_path, 7, {"a": Part(1.0), "b": Part(2.0)})
    parts = {"a": Part(), "b": Part()}
    load_checkpoint(checkpoints(tmp_path)[-1], parts)
    assert parts["a"].value.tolist() == [1.0] * 3
    assert parts["b"].value.tolist() == [2.0] * 3


def test_the_newest_checkpoints_are_kept(tmp_path):
    assert checkpoints(tmp_path) == []
    for step in (1, 20, 100, 3000):
        save_checkpoint(tmp_path, step, {"a": Part(step)})
        prune_checkpoints(tmp_path, keep=2, every=1)
    assert [path.name for path in checkpoints(tmp_path)] == ["step-000000100", "step-000003000"]


def test_a_half_written_checkpoint_is_not_seen(tmp_path):
    save_checkpoint(tmp_path, 1, {"a": Part(1.0)})
    partial = tmp_path / "checkpoints" / ".step-000000002.partial"
    partial.mkdir()
    (partial / "a.pt").write_bytes(b"half")
    assert [path.name for path in checkpoints(tmp_path)] == ["step-000000001"]
    save_checkpoint(tmp_path, 2, {"a": Part(2.0)})
    assert not partial.exists()


@pytest.mark.parametrize("damage", ["gone", "empty", "garbage", "half"])
def test_a_damaged_checkpoint_is_told(tmp_path, damage):
    save_checkpoint(tmp_path, 1, {"a": Part(1.0)})
    path = checkpoints(tmp_path)[0] / "a.pt"
    whole = path.read_bytes()
    path.unlink()
    if damage != "gone":
        path.write_bytes(
            {"empty": b"", "garbage": b"x" * 500, "half": whole[: len(whole) // 2]}[damage]
        )
    with pytest.raises(DamagedError, match=r"a\.pt is (missing|damaged)"):
        load_checkpoint(checkpoints(tmp_path)[0], {"a": Part()})


def test_a_checkpoint_of_another_model_is_told(tmp_path):
    save_checkpoint(tmp_path, 1, {"model": torch.nn.Linear(2, 2)})
    with pytest.raises(ValueError, match="does not fit this run") as refused:
        load_checkpoint(checkpoints(tmp_path)[0], {"model": torch.nn.Linear(3, 2)})
    assert not isinstance(refused.value, DamagedError)  # it must not be set aside


class Attack:
    def __reduce__(self):
        return print, ("executed",)


def test_a_checkpoint_cannot_run_code(tmp_path, capsys):
    folder = tmp_path / "checkpoints" / "step-000000001"
    folder.mkdir(parents=True)
    torch.save({"value": Attack()}, folder / "a.pt")
    with pytest.raises(ValueError, match="cannot be resumed from"):
        load_checkpoint(folder, {"a": Part()})
    assert "executed" not in capsys.readouterr().out


class FullDisk:
    """A file whose disk has room for 100 bytes."""

    def __init__(self, file):
        self.file, self.room = file, 100

    def write(self, data):
        self.room -= len(data)
        if self.room < 0:
            raise OSError(errno.ENOSPC, "No space left on device")
        return self.file.write(data)

    def __getattr__(self, name):
        return getattr(self.file, name)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.file.close()


def test_a_full_disk_is_one_sentence_and_leaves_nothing(tmp_path, monkeypatch, capsys):
    save_checkpoint(tmp_path, 1, {"a": Part(1.0)})
    opened = type(tmp_path).open

    def full(path, mode="r", *args, **kwargs):
        file = opened(path, mode, *args, **kwargs)
        return FullDisk(file) if mode == "wb" else file

    monkeypatch.setattr(type(tmp_path), "open", full)
    with pytest.raises(SystemExit) as stopped:
        run(lambda: save_checkpoint(tmp_path, 2, {"a": Part(2.0)}))
    assert stopped.value.code == 2
    said = capsys.readouterr().err
    assert "No space left on device" in said
    assert said.count("\n") == 1
    assert names(tmp_path) == [
        "checkpoints/step-000000001/a.pt", "checkpoints/step-000000001/manifest.json",
    ]  # fmt: skip


class TinyConfig(ModelConfig):
    model_type = "test_export"


class Tiny(StrictModel):
    config_class = TinyConfig

    def __init__(self, config):
        super().__init__(config)
        self.layer = torch.nn.Linear(2, 2)
        self.post_init()


@pytest.mark.parametrize("writes", [True, False])
def test_an_export_holds_the_averaged_weights_and_their_cost(tmp_path, writes):
    model = Tiny(TinyConfig())
    ema = EMA(model, 0.5)
    average = model.layer.weight.detach().clone()
    torch.nn.init.zeros_(model.layer.weight)
    budget = Budget(
        steps=3, images_seen=12, seconds=1.5, cpu_seconds=2.5, device="cpu", num_processes=2
    )
    export_model(tmp_path / "model", model, ema, budget, SimpleNamespace(is_main_process=writes))
    assert (tmp_path / "model").exists() == writes
    if writes:
        loaded = Tiny.from_pretrained(tmp_path / "model")
        assert torch.equal(loaded.layer.weight, average)
        assert loaded.config.training == budget
    assert not model.layer.weight.any()  # training goes on with its own weights
