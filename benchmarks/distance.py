"""Time of the Frechet distance against clean-fid's, which takes a matrix square root.

    python benchmarks/distance.py --output distance.json

Ours and clean-fid's take turns; the ratio is the median of the ratios of neighbouring turns, so a
machine whose speed drifts affects both. Each number of threads has a process of its own. `prepared`
is the cost of every candidate after the first: the reference's covariance is factored already.
"""

from __future__ import annotations

import json
import statistics
import time
import warnings
from collections.abc import Callable
from dataclasses import asdict, dataclass, field, replace

import numpy as np
import torch
from measuring import MeasuringOptions, in_own_process, write_json
from numpy.typing import NDArray

from latent_prior.cli import parse_config, run
from latent_prior.evaluation.measures import fid


@dataclass(kw_only=True)
class DistanceOptions(MeasuringOptions):
    """Measure the Frechet distance."""

    dimension: int = 2048
    """Features of an image; Inception has 2,048."""
    images: list[int] = field(default_factory=lambda: [5000, 1000])
    """Images of a set; fewer than features leave the covariance without full rank."""
    threads: list[int] = field(default_factory=lambda: [1, 2])
    """Threads."""
    turns: int = 3
    """Turns of each."""
    inside: bool = False
    """Measure in this process; what the other processes are started with."""


@dataclass
class Line:
    """One measurement in seconds, medians over the turns; `difference` is relative."""

    images: int
    dimension: int
    threads: int
    ours: float
    prepared: float
    cleanfid: float
    ratio: float
    prepared_ratio: float
    difference: float
    prepared_difference: float


def main() -> None:
    """Entry point."""
    options = parse_config(DistanceOptions)
    if options.inside:
        for images in options.images:
            line = measure(images, options.dimension, options.threads[0], options.turns)
            print(json.dumps(asdict(line)), flush=True)
        return
    lines = []
    for threads in options.threads:
        inside = replace(options, inside=True, threads=[threads])
        for measured in in_own_process(inside, OMP_NUM_THREADS=str(threads)):
            lines.append(Line(**measured))
            print(described(lines[-1]), flush=True)
    write_json(options.output, lines)


def described(line: Line) -> str:
    """A line to print."""
    return (
        f"{line.images:6,} images, {line.threads} threads: ours {line.ours:.2f} s, prepared {line.prepared:.2f} s, clean-fid "
        f"{line.cleanfid:.2f} s: {line.ratio:.1f} and {line.prepared_ratio:.1f} times as fast; "
        f"values differ by {line.difference:.1e} and {line.prepared_difference:.1e}"
    )


def measure(images: int, dimension: int, threads: int, turns: int) -> Line:
    """Two sets of one size, as statistics; features only for `prepared`."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it imports deprecated names
        from cleanfid.fid import frechet_distance
    torch.set_num_threads(threads)
    first, second = features(images, dimension, 0), features(images, dimension, 1)
    gaussians = fid.statistics(first), fid.statistics(second)
    reference = fid.Reference(gaussians[0])
    fid.frechet_distance(reference, second)  # libraries' own buffers
    ways = (
        lambda: float(frechet_distance(*gaussians[0], *gaussians[1])),
        lambda: fid.frechet_distance(fid.Reference(gaussians[0]), gaussians[1]),
        lambda: fid.frechet_distance(reference, second),
    )
    results = [[timed(way) for way in ways] for _ in range(turns)]
    theirs_value, ours_value, prepared_value = (value for _, value in results[0])
    theirs_s, ours_s, prepared_s = ([turn[way][0] for turn in results] for way in range(3))
    return Line(
        images=images,
        dimension=dimension,
        threads=threads,
        ours=statistics.median(ours_s),
        prepared=statistics.median(prepared_s),
        cleanfid=statistics.median(theirs_s),
        ratio=statistics.median(a / b for a, b in zip(theirs_s, ours_s, strict=True)),
        prepared_ratio=statistics.median(a / b for a, b in zip(theirs_s, prepared_s, strict=True)),
        difference=abs(ours_value / theirs_value - 1),
        prepared_difference=abs(prepared_value / theirs_value - 1),
    )


def features(images: int, dimension: int, seed: int) -> NDArray[np.float32]:
    """Non-negative, with variances that fall off, as pooled activations have them."""
    scale = np.arange(1, dimension + 1) ** -0.35
    mixing = np.random.default_rng(99).normal(size=(dimension, dimension)) / dimension**0.5
    values = np.random.default_rng(seed).normal(size=(images, dimension)) * scale @ mixing
    return np.maximum(values + 0.1 * seed, 0).astype(np.float32)


def timed(call: Callable[[], float]) -> tuple[float, float]:
    """Seconds and value."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # clean-fid's sqrtm(disp=...) is deprecated in SciPy 1.17
        start = time.perf_counter()
        value = call()
        return time.perf_counter() - start, value


if __name__ == "__main__":
    run(main)
