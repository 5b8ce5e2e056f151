"""Memory of every command over a synthetic data set of many rows, and over many steps.

    python benchmarks/rehearsal.py --output rehearsal.json

The commands run as a user starts them, on tiny models and images of 8 x 8 (Linux). `encode`,
`prior`, `generate` and `score`: the peak of resident memory for a million rows beside that for ten
thousand. `steps_...`: resident memory and open descriptors over 10,000 steps of each training.
"""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from measuring import MeasuringOptions, write_json

from latent_prior.cli import answer_early, parse_config, run
from latent_prior.options import option


@dataclass(kw_only=True)
class RehearsalOptions(MeasuringOptions):
    """Measure the memory of commands over many rows and many steps."""

    folder: str | None = option(None, path=True)
    """Keeps data, models and codes, which a second call finds; null: a temporary one."""
    only: str = ""
    """Measure the lines whose name contains this text."""
    few: int = option(10_000, at_least=1)
    """Rows of the smaller data set."""
    many: int = option(1_000_000, at_least=1)
    """Rows of the larger one."""
    images: int = option(10_000, at_least=1)
    """Images that are generated and scored."""
    steps: int = option(10_000, at_least=10)
    """Steps of the trainings."""


answer_early(__name__, RehearsalOptions)

import io

import datasets
import numpy as np
import torch
from PIL import Image

MIB = 2**20
SIZE, CLASSES, DISTINCT = 8, 10, 4096
STAGES = ("autoencoder", "encode", "prior", "generate", "score")
POLL = 0.05  # seconds
"""A tiny VQ-VAE of 4 x 4 codes, a tiny prior and a tiny GAN: milliseconds a step."""
SHAPE = {"image_size": SIZE, "channels": 1, "model.width": 8, "model.multipliers": [1, 2]}
VQVAE = {**SHAPE, "model.blocks": 0, "model.codebook_size": 16, "model.code_dim": 4}
PRIOR = {"model.width": 16, "model.depth": 1, "model.heads": 2}
GAN = {**SHAPE, "model.blocks": 1}


@dataclass
class Peak:
    """Peaks of one command in MiB, for few rows and for many."""

    name: str
    few: float
    many: float
    seconds: float


@dataclass
class Growth:
    """Resident memory in MiB and open descriptors early in a training and at its end."""

    name: str
    steps: int
    early: float
    late: float
    descriptors_early: int
    descriptors_late: int


@dataclass
class Watched:
    """A command that has ended: its peak in bytes, and (bytes, descriptors) over time."""

    peak: int
    samples: list[tuple[int, int]]
    seconds: float


def main() -> None:
    """Entry point."""
    options = parse_config(RehearsalOptions)
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(options.folder or temporary)
        lines: list[Peak | Growth] = []

        def tell(line: Peak | Growth) -> None:
            lines.append(line)
            print(line, flush=True)
            write_json(options.output, lines)

        for peak in peaks(folder, options):
            tell(peak)
        for growth in growths(folder, options):
            tell(growth)


def peaks(folder: Path, options: RehearsalOptions) -> Iterator[Peak]:
    """The memory of each command, one after the other."""
    if not any(options.only in name for name in STAGES):
        return
    found: dict[str, list[Watched]] = {}
    for rows in (options.few, options.many):
        for name, watched in stages(folder / str(rows), rows, options):
            found.setdefault(name, []).append(watched)
    for name, (few, many) in found.items():
        if options.only in name:
            yield Peak(name, few.peak / MIB, many.peak / MIB, many.seconds)


def stages(folder: Path, rows: int, options: RehearsalOptions) -> Iterator[tuple[str, Watched]]:
    """From images to scores."""
    make_images(folder / "images", rows)
    data = {"dataset": folder / "images"}
    training = {"max_steps": 300, "batch_size": 64, "log_every": 100, "evaluate_every": 300}
    yield (
        "autoencoder",
        watch(
            "stage1_autoencoders.train",
            folder / "vqvae",
            {**VQVAE, **data, **training, "cache_mb": 0},
        ),
    )
    autoencoder = folder / "vqvae" / "model"
    yield (
        "encode",
        watch("stage1_autoencoders.encode", folder / "codes", {**data, "autoencoder": autoencoder}),
    )
    yield (
        "prior",
        watch(
            "stage2_prior.train", folder / "prior", {**PRIOR, **training, "codes": folder / "codes"}
        ),
    )
    parts = {"autoencoder": autoencoder, "prior": folder / "prior" / "model"}
    watch("pipelines.assemble", folder / "pipeline", parts)
    yield (
        "generate",
        watch(
            "pipelines.generate",
            folder / "samples",
            {"pipeline": folder / "pipeline", "num_images": options.images, "batch_size": 256},
        ),
    )
    yield (
        "score",
        watch(
            "evaluation.score",
            folder / "scores",
            {
                "candidates": f"samples={folder / 'samples'}",
                "reference": folder / "images",
                "reference_split": "train",
                "num_images": options.images,
                "features": make_features(folder / "features.pt"),
            },
        ),
    )


def growths(folder: Path, options: RehearsalOptions) -> Iterator[Growth]:
    """The memory of each training over its steps."""
    few = folder / str(options.few)
    data = {"dataset": few / "images"}
    often = {
        "max_steps": options.steps,
        "batch_size": 8,
        "log_every": 50,
        "evaluate_every": max(1, options.steps // 10),
        "checkpoint_every": max(1, options.steps // 20),
        "report_to": "tensorboard",
    }
    trainings = {
        "stage1": ("stage1_autoencoders.train", {**VQVAE, **data}),
        "prior": ("stage2_prior.train", {**PRIOR, "codes": few / "codes"}),
        "gan": ("evaluation.gan_baseline.train", {**GAN, **data}),
    }
    for name, (module, flags) in trainings.items():
        if options.only not in (line := f"steps_{name}"):
            continue
        samples = watch(module, folder / line, {**flags, **often}).samples
        part = max(1, len(samples) // 10)
        early, late = samples[part : 2 * part], samples[-part:]
        memory = [statistics.median(size for size, _ in each) / MIB for each in (early, late)]
        opened = [statistics.median_low(count for _, count in each) for each in (early, late)]
        yield Growth(line, options.steps, memory[0], memory[1], opened[0], opened[1])


def watch(module: str, output: Path, flags: dict[str, Any]) -> Watched:
    """Run a command; samples begin with the first line of the run's `metrics.jsonl`."""
    words = [sys.executable, "-m", f"latent_prior.{module}", "--output_dir", str(output)]
    if module != "pipelines.assemble":  # it computes nothing
        flags = {**flags, "cpu_threads": 1}
    for name, value in flags.items():
        values = value if isinstance(value, list) else [value]
        words += [f"--{name}", *map(str, values)]
    environment = os.environ | {"HF_HUB_OFFLINE": "1"}
    started, samples = time.monotonic(), []
    process = subprocess.Popen(words, stdout=subprocess.DEVNULL, env=environment)
    status, descriptors = Path(f"/proc/{process.pid}/statm"), Path(f"/proc/{process.pid}/fd")
    page, log = os.sysconf("SC_PAGE_SIZE"), output / "metrics.jsonl"
    while True:
        ended, code, usage = os.wait4(process.pid, os.WNOHANG)
        if ended:
            break
        if log.exists():
            samples.append(
                (int(status.read_text().split()[1]) * page, len(os.listdir(descriptors)))
            )
        time.sleep(POLL)
    process.returncode = os.waitstatus_to_exitcode(code)
    if process.returncode:
        raise SystemExit(f"{' '.join(words)} failed")
    return Watched(usage.ru_maxrss * 1024, samples[:-1], time.monotonic() - started)


def make_images(folder: Path, rows: int) -> None:
    """Write grey PNG images with labels as a data set on disk; 4,096 of them are distinct."""
    if folder.exists():
        return
    datasets.disable_progress_bars()
    random, images = np.random.default_rng(0), []
    for _ in range(DISTINCT):
        coarse = Image.fromarray(random.integers(0, 256, (2, 2), dtype=np.uint8))
        file = io.BytesIO()
        coarse.resize((SIZE, SIZE), Image.Resampling.BICUBIC).save(file, "png")
        images.append({"bytes": file.getvalue(), "path": None})
    names = [str(number) for number in range(CLASSES)]
    features = datasets.Features(
        {"image": datasets.Image(), "label": datasets.ClassLabel(names=names)}
    )

    def written(count: int) -> datasets.Dataset:
        return datasets.Dataset.from_dict(
            {
                "image": [images[row % DISTINCT] for row in range(count)],
                "label": [row % CLASSES for row in range(count)],
            },
            features=features,
        )

    splits = {"train": written(rows), "validation": written(1000), "test": written(1000)}
    datasets.DatasetDict(splits).save_to_disk(str(folder))


def make_features(path: Path) -> Path:
    """A small random network as the features that are compared."""
    torch.manual_seed(0)
    if not path.exists():
        network = torch.nn.Sequential(
            torch.nn.AdaptiveAvgPool2d(8),
            torch.nn.Flatten(),
            torch.nn.Linear(3 * 64, 64),
        )
        torch.jit.script(network.eval()).save(str(path))
    return path


if __name__ == "__main__":
    run(main)
