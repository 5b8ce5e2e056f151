"""Throughput of the hot paths against the library a user would otherwise pick.

    pip install -e ".[bench]" && python benchmarks/throughput.py --output throughput.json

Ours and the peer's take turns; the ratio is the median of the ratios of neighbouring turns, so a
machine whose speed drifts affects both. Each line prints the share of the machine's matrix-multiply
peak, measured in the same run. Ratios above 1 mean that ours is faster; memory is a share of the
peer's.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

from measuring import MeasuringOptions, clock, extra_memory, write_json

from latent_prior.cli import answer_early, parse_config, run


@dataclass(kw_only=True)
class ThroughputOptions(MeasuringOptions):
    """Measure throughput against peers."""

    only: str = ""
    """Measure the lines whose name contains this text."""
    seconds: float = 20.0
    """Measuring time per line, after one warm-up turn each; at least five pairs are timed."""
    threads: int | None = None
    """Threads; null takes all cores."""


answer_early(__name__, ThroughputOptions)

import prior
import stage1
import torch

from latent_prior.machine import available_cores

PAIRS = 5


@dataclass
class Line:
    """One measurement; `ours` and `peer` in units per second."""

    name: str
    ours: float
    peer: float
    peer_name: str
    unit: str
    ratio: float
    share_of_peak: float | None = None
    memory_ratio: float | None = None


@dataclass(frozen=True)
class Case:
    """What a line measures: how to build both sides, and what one call of them amounts to."""

    build: Callable[[], stage1.Pair]
    peer_name: str
    unit: str
    units: float
    flops: Callable[[str], float]
    memory: bool = False


def main() -> None:
    """Entry point."""
    options = parse_config(ThroughputOptions)
    torch.set_num_threads(options.threads or available_cores())
    chosen = {name: case for name, case in cases().items() if options.only in name}
    if not chosen:
        raise ValueError(f"--only {options.only!r} matches none of: {', '.join(cases())}")
    print(
        f"torch {torch.__version__}, {torch.get_num_threads()} threads, matrix product peak {peak_flops() / 1e9:.0f} GFLOP/s"
    )
    lines = []
    for name, case in chosen.items():
        line = measure(name, case, options.seconds)
        lines.append(line)
        memory = "" if line.memory_ratio is None else f", {line.memory_ratio:.1%} of its memory"
        share = "" if line.share_of_peak is None else f", {line.share_of_peak:.0%} of peak"
        print(
            f"{name:24} {line.ours:12,.1f} {line.unit}, {line.peer_name} {line.peer:12,.1f}: "
            f"{line.ratio:.2f}x{memory}{share}",
            flush=True,
        )
    write_json(options.output, lines)


def cases() -> dict[str, Case]:
    """Every line by name."""
    step, vectors = stage1.TRAIN_BATCH, stage1.NUM_VECTORS
    found = {"stage1_train_step": Case(stage1.train_step, "diffusers.VQModel", "images/s", step, stage1.matmul_flops)}  # fmt: skip
    for dim in (8, 64):
        build = partial(stage1.lookup, dim)
        peer = "vector_quantize_pytorch.VectorQuantize"
        found[f"codebook_lookup_d{dim}"] = Case(build, peer, "vectors/s", vectors, stage1.matmul_flops, memory=True)  # fmt: skip

    def prior_case(name: str, build: Callable[[], stage1.Pair], peer: str, batch: int) -> None:
        found[name] = Case(build, peer, "codes/s", batch * prior.LENGTH, prior.matmul_flops)

    prior_case(
        "prior_train_step", prior.train_step, "transformers.LlamaForCausalLM", prior.TRAIN_BATCH
    )
    for kind, scale in {"sample": 1.0, "sample_guided": prior.GUIDANCE_SCALE}.items():
        for batch in (1, 16, 64):
            sampling = partial(prior.sampling, batch, scale)
            prior_case(f"{kind}_b{batch}", sampling, "LlamaForCausalLM.generate", batch)
    for batch in (1, 16):
        masked = partial(prior.masked_against_raster, batch)
        prior_case(f"sample_masked_b{batch}", masked, "our raster order", batch)
    return found


def measure(name: str, case: Case, seconds: float) -> Line:
    """Time both sides in turns, then, where asked for, their memory."""
    ours, peer = case.build()
    ours(), peer()  # warm-up
    peak = peak_flops()
    times: list[tuple[float, float]] = []
    started = time.perf_counter()
    while len(times) < PAIRS or time.perf_counter() - started < seconds:
        # The order alternates, so that neither side always runs on the other's warm caches.
        pair = (clock(ours), clock(peer)) if len(times) % 2 else (clock(peer), clock(ours))[::-1]
        times.append(pair)
    ours_s, peer_s = (statistics.median(column) for column in zip(*times, strict=True))
    return Line(
        name=name,
        ours=case.units / ours_s,
        peer=case.units / peer_s,
        peer_name=case.peer_name,
        unit=case.unit,
        ratio=statistics.median(theirs / own for own, theirs in times),
        share_of_peak=case.flops(name) / ours_s / peak,
        memory_ratio=extra_memory(ours) / extra_memory(peer) if case.memory else None,
    )


def peak_flops(size: int = 2048, repeats: int = 5) -> float:
    """The best rate of a square float32 matrix product, in operations per second."""
    a, b, out = torch.randn(size, size), torch.randn(size, size), torch.empty(size, size)
    torch.mm(a, b, out=out)
    return 2 * size**3 / min(clock(lambda: torch.mm(a, b, out=out)) for _ in range(repeats))


if __name__ == "__main__":
    run(main)
