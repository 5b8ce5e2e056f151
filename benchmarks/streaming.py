"""Streams of shards: how fast they begin anywhere, read, and keep a step waiting.

    python benchmarks/streaming.py --images 1000000

Makes synthetic shards, which stay in the folder: tiny PNGs in tar and parquet files, and JPEGs of
256 x 256. A line is the median of all rounds; both sides of a ratio take turns. Threads are those
of the process, so limit it with `taskset` to measure others.
"""

from __future__ import annotations

import contextlib
import functools
import io
import itertools
import os
import statistics
import tarfile
import time
from collections.abc import Generator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from measuring import MeasuringOptions, write_json

from latent_prior.cli import answer_early, parse_config, run
from latent_prior.options import option


@dataclass(kw_only=True)
class StreamingOptions(MeasuringOptions):
    """Measure streams of images."""

    folder: str = option("runs/streaming", path=True)
    """Where the synthetic shards are made and kept."""
    images: int = option(1_000_000, at_least=1000)
    """Tiny images in each kind of shard."""
    photos: int = option(4000, at_least=500)
    """JPEGs of 256 x 256."""
    rounds: int = option(7, at_least=3)
    """Repetitions of every measurement."""
    pause: float = option(1.25, above=0)
    """Length of a step in units of the time in which its images are read: a device's, which takes
    no processor time."""


answer_early(__name__, StreamingOptions)

import numpy as np
import pyarrow
import pyarrow.parquet
from PIL import Image

from latent_prior.data.batch_order import prefetch
from latent_prior.data.images import open_stream
from latent_prior.data.shards import stream as streams
from latent_prior.data.shards.stream import ImageStream
from latent_prior.machine import Threads, thread_pool
from latent_prior.stage1_autoencoders.options import TrainOptions

BATCH = 256
SHARD = 10_000


@dataclass
class Line:
    """A figure and what it has to be."""

    name: str
    value: float
    unit: str


def encoded(array: np.ndarray, kind: str) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(array).save(buffer, kind, quality=90)
    return buffer.getvalue()


def tiny(number: int) -> bytes:
    return encoded(np.frombuffer(number.to_bytes(48, "little"), np.uint8).reshape(4, 4, 3), "png")


def photo(number: int) -> bytes:
    """Smooth shapes with noise: about 25 kB."""
    random = np.random.default_rng(number)
    coarse = Image.fromarray(random.integers(0, 256, (16, 16, 3), dtype=np.uint8))
    smooth = np.asarray(coarse.resize((256, 256), Image.Resampling.BICUBIC)).astype(np.int16)
    noisy = smooth + random.integers(-12, 13, smooth.shape)
    return encoded(noisy.clip(0, 255).astype(np.uint8), "jpeg")


def make(folder: Path, count: int, size: int) -> None:
    """Tar and parquet shards of `count` images; `size` 4 or 256."""
    content, ending = (tiny, "png") if size == 4 else (photo, "jpg")
    for first in range(0, count, SHARD):
        name = f"train-{first // SHARD:05d}-of-{-(-count // SHARD):05d}"
        paths = [folder / kind / f"{name}.{kind}" for kind in ("tar", "parquet")]
        if all(path.exists() for path in paths):
            continue
        rows = [content(number) for number in range(first, min(count, first + SHARD))]
        for path in paths:
            path.parent.mkdir(parents=True, exist_ok=True)
        with tarfile.open(paths[0], "w") as tar:
            for number, row in enumerate(rows, first):
                info = tarfile.TarInfo(f"{number:09d}.{ending}")
                info.size = len(row)
                tar.addfile(info, io.BytesIO(row))
        column = pyarrow.array([{"bytes": row, "path": None} for row in rows])
        pyarrow.parquet.write_table(
            pyarrow.table({"image": column}), paths[1], row_group_size=100, compression="none"
        )


def opened(folder: Path, size: int) -> ImageStream:
    options = TrainOptions(
        output_dir="", dataset=str(folder), image_size=size, channels=3, streaming=True
    )
    return open_stream(options, "train")


def resident() -> int:
    """MiB that the process has in memory now, of its own and of mapped files."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") // 2**20


def batches(stream: ImageStream, step: int, ahead: int = 1) -> Generator[np.ndarray, None, None]:
    """Decoded batches, of which the next is decoded meanwhile."""
    tasks = stream.batches(step, [slice(0, BATCH)], BATCH, 0)
    with contextlib.closing(tasks):
        waiting = list(itertools.islice(tasks, ahead))
        for each in tasks:
            waiting.append(each)
            yield np.stack([array for task in waiting.pop(0) for array, _ in task.result()])


def beginnings(folder: Path, options: StreamingOptions, lines: list[Line]) -> None:
    """The time to the first batch at 0, at nine tenths of an epoch, and after a hundred epochs."""
    for kind in ("tar", "parquet"):
        size = len(opened(folder / kind, 4))
        late, last = size * 9 // 10 // BATCH, size * 100 // BATCH
        seconds: dict[int, list[float]] = {0: [], late: [], last: []}
        for _ in range(options.rounds):
            for step, each in seconds.items():
                begun = time.monotonic()
                with contextlib.closing(batches(opened(folder / kind, 4), step, 0)) as found:
                    next(found)
                each.append(time.monotonic() - begun)
        lines.append(Line(f"{kind}: first batch", statistics.median(seconds[0]), "s"))
        for name, step in (("at nine tenths", late), ("after 100 epochs", last)):
            ratios = [b / a for a, b in zip(seconds[0], seconds[step], strict=True)]
            lines.append(Line(f"{kind}: the same {name}, ratio", statistics.median(ratios), ""))


def memory(folder: Path, lines: list[Line]) -> None:
    """Seconds of the first opening, if it is the first; resident memory while images are read."""
    for kind in ("tar", "parquet"):
        lines.append(Line(f"{kind}: memory before", resident(), "MiB"))
        begun = time.monotonic()
        stream = opened(folder / kind, 4)
        lines.append(Line(f"{kind}: opening", time.monotonic() - begun, "s"))
        with contextlib.closing(batches(stream, 0)) as found:
            for number, _ in enumerate(itertools.islice(found, 400), start=1):
                if number in (20, 400):
                    lines.append(
                        Line(f"{kind}: memory after {number * BATCH:,} images", resident(), "MiB")
                    )


def rates(folder: Path, options: StreamingOptions, lines: list[Line]) -> None:
    """Images per second of the reader and of PIL alone."""
    contents = [photo(number) for number in range(8 * BATCH)]
    count = thread_pool()._max_workers

    def decoded(content: bytes) -> np.ndarray:
        return np.asarray(Image.open(io.BytesIO(content)).convert("RGB"))

    for kind in ("tar", "parquet"):
        stream = opened(folder / kind, 256)
        with (
            ThreadPoolExecutor(count) as pool,
            contextlib.closing(batches(stream, 0)) as found,
        ):
            next(found)
            ours, pil = [], []
            for _ in range(options.rounds):
                begun = time.monotonic()
                for _ in range(8):
                    next(found)
                ours.append(8 * BATCH / (time.monotonic() - begun))
                begun = time.monotonic()
                list(pool.map(decoded, contents, chunksize=8))
                pil.append(8 * BATCH / (time.monotonic() - begun))
        ratio = statistics.median(a / b for a, b in zip(ours, pil, strict=True))
        lines.append(Line(f"{kind}: reader, {count} threads", statistics.median(ours), "images/s"))
        lines.append(Line(f"PIL, {count} threads", statistics.median(pil), "images/s"))
        lines.append(Line(f"{kind}: reader / PIL", ratio, ""))


def share_waited(stream: ImageStream, pause: float) -> float:
    """Share of 60 steps' time in which the steps, each a pause, waited; the first came before."""
    waited = 0.0
    with contextlib.closing(prefetch(batches(stream, 0))) as ahead:
        next(ahead)
        begun = time.monotonic()
        for _ in range(60):
            time.sleep(pause)
            asked = time.monotonic()
            next(ahead)
            waited += time.monotonic() - asked
        return waited / (time.monotonic() - begun)


def waits(folder: Path, options: StreamingOptions, lines: list[Line]) -> None:
    """The wait of a fast step, whose length follows from the reader's rate just before."""
    for kind in ("tar", "parquet"):
        stream, shares = opened(folder / kind, 256), []
        for _ in range(options.rounds):
            pause = options.pause * BATCH / rate(stream)
            shares.append(share_waited(stream, pause))
        name = f"{kind}: waiting, a step takes {options.pause:g} readings"
        lines.append(Line(f"{name}, median", statistics.median(shares), ""))
        lines.append(Line(f"{name}, most", max(shares), ""))


def rate(stream: ImageStream) -> float:
    """Images per second of the reader."""
    with contextlib.closing(batches(stream, 0)) as found:
        next(found)
        begun = time.monotonic()
        for _ in range(12):
            next(found)
        return 12 * BATCH / (time.monotonic() - begun)


def threads(folder: Path, options: StreamingOptions, lines: list[Line]) -> None:
    """Other numbers of threads: the reader alone, and what a step of two readings notices of it."""
    stream, pool = opened(folder / "tar", 256), streams.thread_pool
    pause = 2 * BATCH / rate(stream)
    counts = (1, 2, 4, 16)
    found: dict[int, list[tuple[float, float, float]]] = {count: [] for count in counts}
    for _, count in itertools.product(range(options.rounds), counts):
        streams.thread_pool = functools.cache(lambda count=count: Threads(count))
        alone, begun = rate(stream), time.process_time()
        share = share_waited(stream, pause)
        spent = (time.process_time() - begun) / (61 * BATCH)
        found[count].append((alone, share, spent * 1000))
        streams.thread_pool().shutdown()
    streams.thread_pool = pool
    for count, rounds in found.items():
        alone, share, spent = map(statistics.median, zip(*rounds, strict=True))
        lines.append(Line(f"{count} threads: reader", alone, "images/s"))
        lines.append(Line(f"{count} threads: waiting, a step takes 2 readings", share, ""))
        lines.append(Line(f"{count} threads: processor time of a photo", spent, "ms"))


def measure(options: StreamingOptions) -> list[Line]:
    folder, lines = Path(options.folder), list[Line]()
    make(folder / "tiny", options.images, 4)
    make(folder / "photos", options.photos, 256)
    memory(folder / "tiny", lines)
    rates(folder / "photos", options, lines)
    waits(folder / "photos", options, lines)
    threads(folder / "photos", options, lines)
    beginnings(folder / "tiny", options, lines)
    return lines


def main(argv: list[str] | None = None) -> None:
    options = parse_config(StreamingOptions, argv)
    lines = measure(options)
    for line in lines:
        print(f"{line.name:<50} {line.value:12.3f} {line.unit}")
    write_json(options.output, lines)


if __name__ == "__main__":
    run(main)
