"""What a training takes on given hardware: bytes, memory, hours, and what saturates first.

    python benchmarks/scaling.py --images 1281167 --nodes 4

Operations and parameters are counted from the real modules (`costs.py`), and `stages.py` says what
they take. `--check` compares with measurements on this machine (`scaling_check.py`).
"""

from __future__ import annotations

from scaling_options import ScalingOptions

from latent_prior.cli import answer_early, parse_config, run

answer_early(__name__, ScalingOptions)

import math
from collections.abc import Iterator

from stages import FLOAT, Plan, activation_bytes, code_bytes, state_bytes

from latent_prior.markdown import markdown_table


def main() -> None:
    """Entry point."""
    options = parse_config(ScalingOptions)
    if options.check:
        from scaling_check import check

        check(options.output)
        return
    plan = Plan.of(options)
    for title, lines in tables(plan):
        print(f"{title}\n", *lines, "", sep="\n")


def tables(plan: Plan) -> Iterator[tuple[str, list[str]]]:
    """Bytes, memory and hours as tables in Markdown."""
    options = plan.options
    headings = ["", "bytes of an image", f"{options.images:,} images", "shards"]
    yield "Bytes", markdown_table(headings, list(_bytes(plan)))
    yield "Gigabytes of a process", markdown_table(["", *MEMORY_COLUMNS], list(_memory(plan)))
    headings = ["", "images", "images/s", "hours", "saturates first"]
    rows = [
        [stage.name, f"{stage.images:,.0f}", f"{stage.rate:,.0f}", _short(stage.hours), stage.bound]
        for stage in plan.stages()
    ]
    yield f"Time on {options.nodes} x {options.devices} devices", markdown_table(headings, rows)


def _bytes(plan: Plan) -> Iterator[list[str]]:
    options, spec = plan.options, plan.spec
    pixels = spec.image_channels * spec.image_size**2
    values = sum(level.dtype.itemsize for level in spec.levels)
    shards = {
        "stored": options.images * options.stored_bytes / options.shard_bytes,
        f"{spec.kind} on disk": options.images / options.shard_images,
    }
    sizes = {
        "stored": options.stored_bytes,
        "decoded, uint8": 3 * options.stored_pixels,
        "resized, uint8": pixels,
        "in the model, float32": FLOAT * pixels,
        f"{spec.kind} alone": values,
        f"{spec.kind} on disk": code_bytes(spec),
    }
    for name, size in sizes.items():
        count = f"{math.ceil(shards[name]):,}" if name in shards else ""
        yield [name, f"{size:,.0f}", _with_unit(options.images * size), count]


MEMORY_COLUMNS = (
    "parameters",
    "gradients",
    "moments",
    "average",
    "gathered",
    "activations",
    "sum",
    "largest batch",
)


def _memory(plan: Plan) -> Iterator[list[str]]:
    """A line for the autoencoder and two for the prior, which can be sharded."""
    options = plan.options
    first, second = options.autoencoder_options, options.prior_options
    for name, cost, batch, sharded in (
        ("autoencoder", plan.autoencoder, first.batch_size, False),
        ("prior, DDP", plan.prior, second.batch_size, False),
        ("prior, FSDP 2", plan.prior, second.batch_size, True),
    ):
        images = batch / options.processes
        parts = state_bytes(cost, options, sharded)
        free = options.memory - sum(parts.values()) - activation_bytes(cost, 0)
        parts["activations"] = activation_bytes(cost, images)
        parts["sum"] = sum(parts.values())
        cells = [
            f"{parts[each] / 1e9:.2f}" if each in parts else "" for each in MEMORY_COLUMNS[:-1]
        ]
        largest = max(0, int(free / cost.activations))
        yield [f"{name}: {cost.parameters / 1e6:,.0f} M, {images:g} images", *cells, f"{largest:,}"]


def _with_unit(size: float) -> str:
    """A size with its unit, in powers of 1,000."""
    for unit in ("B", "kB", "MB", "GB", "TB"):
        if size < 1000:
            return f"{size:.3g} {unit}"
        size /= 1000
    return f"{size:,.3g} PB"


def _short(hours: float) -> str:
    return f"{hours:,.0f}" if hours >= 10 else f"{hours:.2g}"


if __name__ == "__main__":
    run(main)
