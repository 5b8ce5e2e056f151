"""The cost of integrity: saving and loading with digests beside the same without them.

    python benchmarks/integrity.py --megabytes 200

Three ways are timed in turn: as torch saves and loads by default, unchecked; ours without digests;
and ours. Ours saves time elsewhere: it leaves torch's CRC32 out, which the digests replace, maps
files instead of copying them, and takes a model's sha256 while its weights are written. A line
gives the medians of all rounds. On a busy machine two threads share a core, so run it on an idle
one.
"""

from __future__ import annotations

import statistics
import tempfile
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Self
from unittest.mock import patch

from measuring import MeasuringOptions, clock, write_json

from latent_prior.cli import answer_early, parse_config, run
from latent_prior.options import option


@dataclass(kw_only=True)
class IntegrityOptions(MeasuringOptions):
    """Measure the cost of digests."""

    megabytes: int = option(200, at_least=4)
    """Size of a checkpoint: weights, two moments and averages; the model has a quarter of it."""
    rounds: int = option(11, at_least=3)
    """Repetitions of every measurement."""


answer_early(__name__, IntegrityOptions)

import torch

from latent_prior import folders, manifests, models
from latent_prior.training import checkpoint
from latent_prior.training.ema import EMA

LIMITS = {"save": 0.03, "load": 0.1}
"""Largest share of its time that checking may add."""
MODEL_FILES = ("config.json", "model.safetensors")


@dataclass
class Line:
    """Seconds of one operation."""

    name: str
    default: float
    unchecked: float
    checked: float
    added: float
    """checked / default - 1."""
    limit: float


class Network(models.StrictModel):
    """Weights of a given size."""

    class config_class(models.ModelConfig):
        """Number of layers."""

        model_type = "benchmark_integrity"
        layers: int = 1

    def __init__(self, config: config_class) -> None:
        super().__init__(config)
        self.layers = torch.nn.ModuleList(
            torch.nn.Linear(512, 512, bias=False) for _ in range(config.layers)
        )
        self.post_init()

    def forward(self, values: torch.Tensor) -> torch.Tensor:
        """All layers in turn."""
        for layer in self.layers:
            values = layer(values)
        return values


class PlainFile:
    """A file without a digest, in the place of `DigestedFile`."""

    record = manifests.FileRecord(0, "")

    def __init__(self, path: Path) -> None:
        self.file = path.open("wb")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.file.close()

    def write(self, data: bytes | memoryview) -> int:
        """As that of the file."""
        return self.file.write(data)

    def flush(self) -> None:
        """As that of the file."""
        self.file.flush()


@contextmanager
def without_digests() -> Iterator[None]:
    """The same functions, which neither compute nor compare digests."""
    unchecked = manifests.Manifest("model", dict.fromkeys(MODEL_FILES, PlainFile.record))
    with (
        patch.object(manifests, "digest", lambda _: ""),
        patch.object(checkpoint, "DigestedFile", PlainFile),
        patch.object(checkpoint, "checked_meanwhile", lambda *_: nullcontext(None)),
        patch.object(models, "checked_meanwhile", lambda *_: nullcontext(unchecked)),
    ):
        yield


class AtOnce:
    """A pool without a thread, in the place of `ThreadPoolExecutor`."""

    def __init__(self, _: int) -> None:
        pass

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def submit(self, function: Callable[..., object], *arguments: object) -> Future[object]:
        """Call the function now."""
        done: Future[object] = Future()
        done.set_result(function(*arguments))
        return done


@contextmanager
def by_default() -> Iterator[None]:
    """As torch and transformers save and load, and a model's sha256 after it."""

    def read(path: Path, _: object) -> object:
        return torch.load(path, map_location="cpu", weights_only=True)

    with (
        without_digests(),
        patch.object(checkpoint, "without_crc32", nullcontext),
        patch.object(checkpoint, "_read", read),
        patch.object(models, "ThreadPoolExecutor", AtOnce),
    ):
        yield


def compare(name: str, call: Callable[[], object], limit: float, rounds: int) -> Line:
    """Time a call in the three ways in turn, after one of each to warm up."""
    times = []
    for _ in range(rounds + 1):
        row = []
        for way in (by_default, without_digests, nullcontext):
            with way():
                row.append(clock(call))
        times.append(row)
    default, unchecked, checked = map(statistics.median, zip(*times[1:], strict=True))
    return Line(name, default, unchecked, checked, checked / default - 1, limit)


def main() -> None:
    """Measure and print."""
    options = parse_config(IntegrityOptions)
    torch.manual_seed(0)
    layers = max(1, options.megabytes // 4)
    model = Network(Network.config_class(layers=layers))
    optimizer = torch.optim.AdamW(model.parameters())
    model(torch.ones(1, 512)).sum().backward()
    optimizer.step()
    parts: dict[str, checkpoint.Stateful] = {
        "model": model,
        "optimizer": optimizer,
        "ema": EMA(model, 0.9),
    }
    with tempfile.TemporaryDirectory() as folder:
        run_folder = Path(folder)
        saved, exported = run_folder / "checkpoints" / "step-000000001", run_folder / "model"

        def export() -> None:
            with folders.whole_folder(exported, "model") as unfinished:
                model.save_pretrained(unfinished)

        calls = {
            "save a checkpoint": lambda: checkpoint.save_checkpoint(run_folder, 1, parts),
            "load a checkpoint": lambda: checkpoint.load_checkpoint(saved, parts),
            "save a model": export,
            "load a model": lambda: Network.from_pretrained(exported),
        }
        lines = []
        for name, call in calls.items():
            limit = LIMITS[name.split()[0]]
            lines.append(compare(name, call, limit, options.rounds))
    columns = ("by default", "unchecked", "checked")
    print(" " * 18, *(f"{column:>13}" for column in (*columns, "added", "at most")))
    for line in lines:
        seconds = (line.default, line.unchecked, line.checked)
        times = [f"{value * 1e3:10.1f} ms" for value in seconds]
        print(f"{line.name:18}", *times, f"{line.added:13.1%} {line.limit:13.0%}")
    write_json(options.output, lines)


if __name__ == "__main__":
    run(main)
