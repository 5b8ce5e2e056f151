"""Memory of a prior: the peak computed on paper beside the measured peak.

    python benchmarks/memory.py --output memory.json

Peaks are resident memory beyond what was there before (Linux), each in a process of its own.
"""

from __future__ import annotations

import json
import tempfile
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from measuring import MeasuringOptions, extra_memory, in_own_process, write_json

from latent_prior.cli import answer_early, parse_config, run


@dataclass(kw_only=True)
class MemoryOptions(MeasuringOptions):
    """Measure the memory of a prior."""

    only: str = ""
    """Measure the lines whose name contains this text."""
    inside: str | None = None
    """Measure this line in this process; what the other processes are started with."""


answer_early(__name__, MemoryOptions)

import numpy as np
import prior
import torch
from numpy.typing import NDArray

from latent_prior.data.codes_dataset import join_shards, open_codes, write_shard
from latent_prior.stage2_prior.prior import PriorConfig, TransformerPrior
from latent_prior.stage2_prior.transformer import swiglu_width

MIB = 2**20
FLOAT = 4
SAMPLE_BATCH = 64
TRAIN_BATCH, TRAIN_SIDE = 8, 32
CODES_BATCHES, CODES_BATCH, CODES_SIDE = 2000, 128, 8


@dataclass
class Line:
    """One measurement in MiB; `without` is the peak without the technique shown."""

    name: str
    paper: float
    measured: float
    without: float
    what: str


def main() -> None:
    """Entry point."""
    options = parse_config(MemoryOptions)
    if options.inside is not None:
        print(json.dumps(asdict(LINES[options.inside]())))
        return
    lines = []
    for name in LINES:
        if options.only in name:
            (measured,) = in_own_process(MemoryOptions(inside=name))
            line = Line(**measured)
            lines.append(line)
            print(
                f"{name:24} measured {line.measured:7,.0f} MiB, on paper {line.paper:7,.0f}, {line.what}: {line.without:7,.0f}",
                flush=True,
            )
    write_json(options.output, lines)


def sampling() -> Line:
    """Sampling 64 images: all keys and values, and the copy of the weights laid out for steps."""
    torch.set_num_threads(1)
    model = prior.build_prior()
    labels = torch.arange(SAMPLE_BATCH) % prior.NUM_CLASSES
    model.sample(2, labels[:2])  # libraries' own buffers
    model.last_decoder = None
    measured = extra_memory(lambda: model.sample(SAMPLE_BATCH, labels))
    config = model.config
    cache = 2 * config.depth * SAMPLE_BATCH * model.length * config.width * FLOAT
    weights = sum(p.numel() for p in model.blocks.parameters()) * FLOAT
    return Line(
        "sample_b64", (cache + weights) / MIB, measured / MIB, 2 * cache / MIB, "a cache joined anew at each step"
    )  # fmt: skip


def training() -> Line:
    """Forward and backward over 1,024 codes an image, 8 images."""
    torch.set_num_threads(1)
    spec = prior.code_spec(TRAIN_SIDE)
    model = TransformerPrior(PriorConfig(code_spec=spec.to_dict(), dropout=0.0)).train()
    config, length = model.config, model.length
    codes = torch.randint(prior.VOCABULARY, (TRAIN_BATCH, TRAIN_SIDE, TRAIN_SIDE))
    tiny = TransformerPrior(
        PriorConfig(code_spec=prior.code_spec(2, 8).to_dict(), width=16)
    ).train()
    tiny({"codes": codes[:, :2, :2] % 8}).loss.backward()  # libraries' own buffers
    measured = extra_memory(lambda: model({"codes": codes}).loss.backward())
    # Kept for the backward pass by each block: two normalised inputs, queries, keys, values, the
    # attention's output, both halves of the MLP and their product; by the head: its input, logits,
    # probabilities and their gradient.
    hidden = swiglu_width(config.width, config.mlp_ratio)
    per_code = config.depth * (6 * config.width + 3 * hidden) + config.width + 3 * prior.VOCABULARY
    gradients = sum(p.numel() for p in model.parameters()) * FLOAT
    paper = TRAIN_BATCH * length * per_code * FLOAT + gradients
    attention = config.depth * TRAIN_BATCH * config.heads * length**2 * FLOAT
    return Line(
        "train_1024x8", paper / MIB, measured / MIB, (paper + attention) / MIB, "with the attention matrices kept"
    )  # fmt: skip


def codes_of(images: int) -> Line:
    """Random batches of codes: growth of resident memory from opening to the last batch."""
    spec = prior.code_spec(CODES_SIDE)
    with tempfile.TemporaryDirectory() as temporary:
        folder, shards = Path(temporary), []
        rows = 10_000
        for first in range(0, images, rows):
            shards.append(folder / f"{first}.arrow")
            numbers = np.arange(first, first + rows)
            codes = np.random.default_rng(first).integers(
                prior.VOCABULARY, size=(rows, CODES_SIDE, CODES_SIDE), dtype=np.uint16
            )
            columns: dict[str, NDArray[Any]] = {
                "codes": codes,
                "view": np.zeros(rows, np.uint16),
                "source_index": numbers,
            }
            write_shard(shards[-1], spec, columns)
        join_shards(folder / "codes", {"train": shards}, spec, {})
        splits, _ = open_codes(folder / "codes")
        splits["train"].batch(torch.arange(CODES_BATCH))

        def read() -> None:
            split = open_codes(folder / "codes")[0]["train"]
            order = torch.Generator().manual_seed(0)
            for _ in range(CODES_BATCHES):
                split.batch(torch.randint(images, (CODES_BATCH,), generator=order))

        measured = extra_memory(read)
    in_memory = images * CODES_SIDE**2 * 2
    return Line(f"codes_{images}", 0.0, measured / MIB, in_memory / MIB, "with all codes in memory")


LINES = {
    "sample_b64": sampling,
    "train_1024x8": training,
    "codes_10000": lambda: codes_of(10_000),
    "codes_1000000": lambda: codes_of(1_000_000),
}


if __name__ == "__main__":
    run(main)
