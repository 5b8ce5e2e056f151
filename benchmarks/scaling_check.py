"""The arithmetic of `scaling.py` against measurements on this machine.

Constants of the machine (operations and bytes per second) come from one small configuration of each
network, and predict others: another batch, width and depth, and two processes over gloo. Every
round measures everything once, so that a machine whose speed drifts affects both sides; a line is
the median over the rounds of predicted / measured. Time is processor time of a process with one
thread: it does not count waiting for others. Each turn runs in two processes at once, alone or as
a group.
"""

from __future__ import annotations

import io
import shlex
import statistics
import tempfile
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
from costs import Cost, autoencoder_cost, prior_cost
from measuring import write_json
from PIL import Image
from scaling_options import ScalingOptions
from scaling_processes import REDUCED, Training, ask, processes
from stages import (
    DRAWN,
    FLOAT,
    activation_bytes,
    code_bytes,
    drawing_seconds,
    pass_seconds,
    reading_seconds,
    sent_bytes,
    training_stage,
    update_seconds,
)

from latent_prior import encode, train_autoencoder
from latent_prior.data.codes_dataset import open_codes
from latent_prior.data.image_files import read_image

ROUNDS = 5
IMAGES = 400
THROUGHPUT, BYTES = 0.15, 0.05  # largest relative differences

_AUTOENCODER = {
    "image_size": 64,
    "channels": 3,
    "batch_size": 8,
    "model.width": 32,
    "model.multipliers": [1, 2, 4],
    "model.blocks": 1,
}
_PRIOR = {"batch_size": 16, "model.width": 256, "model.depth": 4, "model.heads": 4}
"""The configurations that constants come from; those below change some of their options."""
TRAININGS: dict[str, tuple[str, dict[str, Any]]] = {
    "autoencoder": ("autoencoder", {}),
    "autoencoder, batch 16": ("autoencoder", {"batch_size": 16}),
    "autoencoder, width 48": ("autoencoder", {"model.width": 48}),
    "prior": ("prior", {}),
    "prior, batch 32": ("prior", {"batch_size": 32}),
    "prior, width 384": ("prior", {"model.width": 384}),
    "prior, depth 8": ("prior", {"model.depth": 8}),
}


USES = {
    "encode": ("autoencoder", "autoencoder, batch 16", "autoencoder, width 48"),
    "decode": ("autoencoder", "autoencoder, batch 16", "autoencoder, width 48"),
    "draw": ("prior", "prior, width 384", "prior, depth 8"),
}
"""What is done with networks, constants again from the first, and by which processes are asked."""
PHOTOS = ((320, 280), (640, 480), (400, 350), (500, 375))
"""Widths and heights of JPEGs to read; constants come from the first two."""
READ = 256  # the size to which they are brought


@dataclass
class Line:
    """Predicted and measured, as medians over the rounds; `ratio` is predicted / measured."""

    what: str
    unit: str
    predicted: float
    measured: float
    ratio: float
    allowed: float

    @property
    def fits(self) -> bool:
        return abs(self.ratio - 1) <= self.allowed

    def __str__(self) -> str:
        miss = "" if self.fits else f"  MISS (allowed: {self.allowed:.0%})"
        return (
            f"{self.what:44} predicted {self.predicted:14,.1f} {self.unit:10} measured "
            f"{self.measured:14,.1f}  ratio {self.ratio:.3f}{miss}"
        )


def check(output: str | None) -> None:
    """Measure, print every line, and fail if one is further off than allowed.

    Raises:
        ValueError: naming the lines.
    """
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        prepare(folder)
        lines = []
        for line in chain(
            bytes_of_files(folder), bytes_in_memory(folder), reading(), throughput(folder)
        ):
            print(line, flush=True)
            lines.append(line)
    write_json(output, lines)
    if missed := [line.what for line in lines if not line.fits]:
        raise ValueError(f"predictions are too far off: {'; '.join(missed)}")


def prepare(folder: Path) -> None:
    """JPEGs in two classes, an autoencoder that has hardly learnt, and its codes."""
    random = np.random.default_rng(0)
    for number in range(IMAGES):
        path = folder / "images" / f"{number % 2}" / f"{number}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        coarse = Image.fromarray(random.integers(0, 256, (8, 8, 3), dtype=np.uint8))
        coarse.resize((64, 64), Image.Resampling.BICUBIC).save(path)
    flags = settings(folder, "autoencoder") | {"max_steps": 1}
    trained = train_autoencoder(**flags, output_dir=folder / "autoencoder")
    encode(
        autoencoder=trained.model,
        dataset=folder / "images",
        split="train",
        output_dir=folder / "codes",
        cpu_threads=1,
    )


def settings(folder: Path, name: str) -> dict[str, Any]:
    """Options of a training, as its function takes them."""
    kind, changes = TRAININGS[name]
    base, data = (
        (_AUTOENCODER, {"dataset": folder / "images"})
        if kind == "autoencoder"
        else (_PRIOR, {"codes": folder / "codes"})
    )
    return {**base, **changes, **data, "cpu_threads": 1}


def shape(folder: Path, name: str) -> dict[str, Any]:
    """Those options that say what a training costs."""
    given = {"dataset", "codes", "cpu_threads"}
    return {key: value for key, value in settings(folder, name).items() if key not in given}


def words_of(flags: Mapping[str, Any]) -> list[str]:
    """Options as a command line."""
    return [
        word
        for name, value in flags.items()
        for word in (f"--{name}", *map(str, value if isinstance(value, list) else [value]))
    ]


def trainings_of(folder: Path, names: tuple[str, ...]) -> list[Training]:
    """What processes need to know of trainings."""
    return [Training(name, TRAININGS[name][0], words_of(settings(folder, name))) for name in names]


def costs_of(folder: Path) -> dict[str, Cost]:
    """The costs of all trainings."""
    found = {}
    for name, (kind, _) in TRAININGS.items():
        words = shlex.join(words_of(shape(folder, name)))
        if kind == "autoencoder":
            options = ScalingOptions(autoencoder=words)
            found[name], _ = autoencoder_cost(options.autoencoder_options)
        else:
            options = ScalingOptions(prior=words)
            found[name] = prior_cost(options.prior_options.model, open_codes(folder / "codes")[1])
    return found


def bytes_of_files(folder: Path) -> Iterator[Line]:
    """Rows of codes on disk."""
    files = (folder / "codes").rglob("*.arrow")
    splits, spec = open_codes(folder / "codes")
    rows = sum(len(split) for split in splits.values())
    measured = sum(path.stat().st_size for path in files) / rows
    yield of_bytes("codes on disk, of an image", code_bytes(spec), measured)


def of_bytes(what: str, predicted: float, measured: float) -> Line:
    return Line(what, "bytes", predicted, measured, predicted / measured, BYTES)


def bytes_in_memory(folder: Path) -> Iterator[Line]:
    """The state of a training, its checkpoint, and what is kept for the backward pass."""
    costs = costs_of(folder)
    # Freed memory goes back at once, so that what is resident is what is held.
    plain = {"MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "0"}
    names = ("autoencoder, width 48", "prior, width 384")
    with processes(1, trainings_of(folder, names), plain) as alone:
        for name in names:
            cost = costs[name]
            held = ask(alone, "state", name)
            predicted: float = FLOAT * (cost.moments + 3 * cost.parameters)
            yield of_bytes(f"{name}: state", predicted, held)
            stored = ask(alone, "checkpoint", name)
            yield of_bytes(f"{name}: checkpoint", predicted - FLOAT * cost.parameters, stored)
            kept = ask(alone, "forward", name)
            predicted = activation_bytes(cost, settings(folder, name)["batch_size"])
            yield of_bytes(f"{name}: kept for the backward pass", predicted, kept)


def reading() -> Iterator[Line]:
    """Images per second that a core reads: decodes and resizes."""
    files = {size: [photo(size, number) for number in range(20)] for size in PHOTOS}
    seconds: dict[tuple[int, int], list[float]] = {size: [] for size in PHOTOS}
    bytearray(1 << 25)  # freed at once: from now on malloc keeps smaller pieces for the next image
    for _ in range(4 * ROUNDS):
        for size, images in files.items():
            started = time.process_time()
            for image in images:
                read_image(image, 3, READ)
            seconds[size].append((time.process_time() - started) / len(images))
    small, large = PHOTOS[:2]
    for size in PHOTOS[2:]:
        predicted = []
        for of_small, of_large in zip(seconds[small], seconds[large], strict=True):
            more = large[0] * large[1] - small[0] * small[1]
            hardware = ScalingOptions(decoded_pixels=more / (of_large - of_small))
            decoding = small[0] * small[1] / hardware.decoded_pixels
            hardware.resized_pixels = READ**2 / (of_small - decoding)
            hardware.stored_pixels = size[0] * size[1]
            predicted.append(1 / reading_seconds(hardware, READ))
        read = [1 / each for each in seconds[size]]
        yield of_rates(f"reading JPEGs of {size[0]} x {size[1]}", predicted, read)


def photo(size: tuple[int, int], seed: int) -> bytes:
    """A JPEG with about as many bytes to a pixel as photographs have."""
    random = np.random.default_rng(seed)
    width, height = size
    coarse = random.integers(0, 256, (height // 16, width // 16, 3), dtype=np.uint8)
    smooth = np.asarray(Image.fromarray(coarse).resize(size, Image.Resampling.BICUBIC))
    noisy = smooth + random.normal(0, 25, smooth.shape)
    Image.fromarray(noisy.clip(0, 255).astype(np.uint8)).save(
        file := io.BytesIO(), "JPEG", quality=85
    )
    return file.getvalue()


def throughput(folder: Path) -> Iterator[Line]:
    """Images per processor second of one process and of two, and what two send each other."""
    costs, names = costs_of(folder), tuple(TRAININGS)
    alone: dict[str, list[float]] = {name: [] for name in names}
    together: dict[str, list[float]] = {name: [] for name in names}
    uses: dict[tuple[str, str], list[float]] = {
        (what, name): [] for what, names in USES.items() for name in names
    }
    updates, reduced = [], []
    trainings = trainings_of(folder, names)
    with (
        processes(1, trainings) as first,
        processes(1, trainings) as second,
        processes(2, trainings) as both,
    ):
        for _ in range(ROUNDS):
            for name in names:
                alone[name].append(ask([*first, *second], "train", name))
                together[name].append(ask(both, "train", name))
            for (what, name), seconds in uses.items():
                seconds.append(ask([*first, *second], what, name))
            updates.append(ask([*first, *second], "update", "prior"))
            reduced.append(ask(both, "reduce", "prior"))
        sent = {name: ask(both, "send", name) for name in ("autoencoder", "prior, depth 8")}
    for name, bytes_ in sent.items():
        yield of_bytes(f"{name}: sent in a step", sent_bytes(costs[name], 2, False), bytes_)
    for number, measured in ((1, alone), (2, together)):
        for name, (kind, _) in TRAININGS.items():
            if number == 1 and name == kind:
                continue  # where the constants come from
            batch = settings(folder, name)["batch_size"]
            predicted = [
                predict(
                    costs, name, number, folder, alone[kind][turn], updates[turn], reduced[turn]
                )
                for turn in range(ROUNDS)
            ]
            rates = [batch / seconds for seconds in measured[name]]
            yield of_rates(
                f"{name}, {number} process{'es' if number > 1 else ''}", predicted, rates
            )
    for what, (base, *others) in USES.items():
        for name in others:
            predicted = [
                predict_use(costs, folder, what, (base, name), seconds, update)
                for seconds, update in zip(uses[what, base], updates, strict=True)
            ]
            drawn = [images_of(folder, what, name) / seconds for seconds in uses[what, name]]
            yield of_rates(f"{name}: {what}", predicted, drawn)


def of_rates(what: str, predicted: list[float], measured: list[float]) -> Line:
    """Images per second of all rounds."""
    ratio = statistics.median(p / m for p, m in zip(predicted, measured, strict=True))
    rates = statistics.median(predicted), statistics.median(measured)
    return Line(what, "images/s", *rates, ratio, THROUGHPUT)


def images_of(folder: Path, what: str, name: str) -> int:
    """Images that pass through a network at once."""
    return DRAWN if what == "draw" else int(settings(folder, name)["batch_size"])


def predict_use(
    costs: Mapping[str, Cost],
    folder: Path,
    what: str,
    names: tuple[str, str],
    base_seconds: float,
    updating: float,
) -> float:
    """Images per second of a network in use, with constants from another one in a round."""
    hardware = ScalingOptions(memory_bandwidth=bandwidth(costs, updating))
    works, reading = [], []
    for name in names:
        cost = costs[name]
        works.append(cost.decoding if what == "decode" else cost.using)
        reading.append(0.0)
        if what == "draw":
            words = shlex.join(words_of(shape(folder, name)))
            model = ScalingOptions(prior=words).prior_options.model
            spec = open_codes(folder / "codes")[1]
            reading[-1] = drawing_seconds(cost, model, spec, hardware, DRAWN)
    seconds = base_seconds / images_of(folder, what, names[0]) - reading[0]
    hardware.flops = works[0].operations / (seconds - works[0].traffic / hardware.memory_bandwidth)
    return 1 / (pass_seconds(works[1], hardware, 1.0) + reading[1])


def bandwidth(costs: Mapping[str, Cost], updating: float) -> float:
    """Bytes per second between processor and memory, from the time of an update."""
    return update_seconds(costs["prior"], ScalingOptions(memory_bandwidth=1), False) / updating


def predict(
    costs: Mapping[str, Cost],
    name: str,
    number: int,
    folder: Path,
    base_seconds: float,
    updating: float,
    reducing: float,
) -> float:
    """Images per second by `scaling.py`, with constants from a round."""
    kind = TRAININGS[name][0]
    hardware = ScalingOptions(
        memory_bandwidth=bandwidth(costs, updating),
        network=FLOAT * REDUCED / reducing,
        devices=number,
        overlap=False,
    )
    base, batch = costs[kind], settings(folder, kind)["batch_size"]
    others = (batch * base.traffic + base.traffic_once) / hardware.memory_bandwidth
    products = base_seconds - update_seconds(base, hardware, False) - others
    hardware.flops = (batch * base.training + base.update) / products
    stage = training_stage(
        kind,
        costs[name],
        hardware,
        batch=settings(folder, name)["batch_size"],
        steps=1,
        attained=1.0,
    )
    return stage.rate
