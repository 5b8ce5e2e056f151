"""What a training takes on given hardware: bytes, memory, hours, and what saturates first.

    python benchmarks/scaling.py --images 1281167 --nodes 4

Operations and parameters are counted from the real modules (`costs.py`). `--check` compares with
measurements on this machine (`scaling_check.py`).
"""

from __future__ import annotations

import math
import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Literal

from latent_prior.cli import answer_early, parse_config, run
from latent_prior.options import Options, option
from latent_prior.stage1_autoencoders.options import TrainOptions as AutoencoderOptions
from latent_prior.stage2_prior.options import TrainOptions as PriorOptions

IMAGENET_AUTOENCODER = (
    "--image_size 256 --channels 3 --batch_size 256 --max_steps 200000 --model.width 128 "
    "--model.multipliers 1 1 2 2 4 --model.blocks 2 --model.attention 16 "
    "--model.codebook_size 16384 --model.code_dim 8"
)
IMAGENET_PRIOR = (
    "--batch_size 1024 --max_steps 375000 --model.width 1024 --model.depth 24 --model.heads 16"
)


@dataclass(kw_only=True)
class ScalingOptions(Options):
    """Compute bytes, memory and hours of both stages for given hardware."""

    images: int = option(1_281_167, at_least=1)
    """Training images; by default those of ImageNet-1k."""
    autoencoder: str = IMAGENET_AUTOENCODER
    """Flags of stage1_autoencoders/train.py, as one word."""
    prior: str = IMAGENET_PRIOR
    """Flags of stage2_prior/train.py, as one word; the codes are the autoencoder's."""
    classes: int = option(1000, at_least=0)
    """Classes of the images; 0 for none."""
    generated: int = option(50_000, at_least=1)
    """Images to generate."""
    stored_bytes: float = option(110e3, above=0)
    """Bytes of a stored image."""
    stored_pixels: float = option(400 * 350, above=0)
    """Pixels of a stored image, all of which are decoded."""
    shard_bytes: float = option(512e6, above=0)
    """Bytes of a shard of stored images."""
    shard_images: int = option(1024, at_least=1)
    """Images of a shard of codes; `--shard_images` of encode.py."""

    flops: float = option(989e12, above=0)
    """Largest number of operations per second of a device in the precision of the training."""
    attained_autoencoder: float = option(0.4, above=0, at_most=1)
    """Share of `flops` that convolutions attain; other operations are bound by the memory."""
    attained_prior: float = option(0.6, above=0, at_most=1)
    """Share of `flops` that the products of a Transformer attain."""
    memory: float = option(80e9, above=0)
    """Bytes of memory of a device."""
    memory_bandwidth: float = option(3.35e12, above=0)
    """Bytes per second between a device and its memory."""
    network: float = option(50e9, above=0)
    """Bytes per second that a device sends to others, and receives at the same time."""
    storage: float = option(5e9, above=0)
    """Bytes per second that a node reads from the disk or object store with the images."""
    decoded_pixels: float = option(25e6, above=0)
    """Pixels per second that a core decodes."""
    cores: int = option(96, at_least=1)
    """Cores of a node that decode."""
    devices: int = option(8, at_least=1)
    """Devices, and processes, of a node."""
    nodes: int = option(1, at_least=1)
    """Nodes."""
    sharding: Literal["ddp", "fsdp"] = "ddp"
    """Whole copies of the prior (DDP) or shards (FSDP 2); the autoencoder is always copied."""
    overlap: bool = True
    """Whether reading, computing and sending happen at the same time, as on accelerators."""

    check: bool = False
    """Measure on this machine, in one process and in two, what this arithmetic says of it."""
    output: str | None = None
    """JSON file for the check's results; null only prints them."""

    @cached_property
    def autoencoder_options(self) -> AutoencoderOptions:
        """The autoencoder's options."""
        words = shlex.split(self.autoencoder)
        options: AutoencoderOptions = parse_config(
            AutoencoderOptions, [*words, "--dataset", "none", "--output_dir", "none"]
        )
        if options.image_size is None or options.channels is None:
            raise ValueError("--autoencoder needs --image_size and --channels")
        return options

    @cached_property
    def prior_options(self) -> PriorOptions:
        """The prior's options."""
        words = shlex.split(self.prior)
        options: PriorOptions = parse_config(
            PriorOptions, [*words, "--codes", "none", "--output_dir", "none"]
        )
        return options

    @property
    def processes(self) -> int:
        """Processes of a training, one for each device."""
        return self.devices * self.nodes


answer_early(__name__, ScalingOptions)

import dataclasses

from costs import Cost, autoencoder_cost, prior_cost

from latent_prior.data.codes import CodeSpec
from latent_prior.data.codes_dataset import codes_features
from latent_prior.markdown import markdown_table

FLOAT = 4
# Bytes to and from memory for each parameter in an update: the norm reads the gradient, clipping
# reads and writes it, AdamW reads four numbers and writes three, the average reads two and writes
# one. All are float32.
UPDATE_BYTES = (1 + 2 + 7 + 3) * FLOAT


def state_bytes(cost: Cost, options: ScalingOptions, sharded: bool) -> dict[str, float]:
    """Bytes of a process for what a training keeps from step to step."""
    share = 1 / options.processes if sharded else 1
    counts = dict.fromkeys(("parameters", "gradients", "average"), cost.parameters)
    counts["moments"] = cost.moments
    parts = {name: FLOAT * count * share for name, count in counts.items()}
    if sharded:
        parts["gathered"] = 2 * FLOAT * cost.largest_block  # weights and gradients of a block
    elif options.processes > 1:
        parts["buckets"] = FLOAT * cost.parameters  # DDP sends the gradients from these
    return parts


def activation_bytes(cost: Cost, images: float) -> float:
    """Bytes that a process keeps for the backward pass of so many images, in float32."""
    return cost.kept_once + images * cost.activations


def sent_bytes(cost: Cost, processes: int, sharded: bool) -> float:
    """Bytes that a process sends in a step.

    A ring all-reduce sends every gradient twice but for the own share. With shards the weights are
    gathered in the forward and in the backward pass, and the gradients are summed into shards.
    """
    times = 3 if sharded else 2
    return times * FLOAT * cost.parameters * (processes - 1) / processes


def update_seconds(cost: Cost, options: ScalingOptions, sharded: bool) -> float:
    """Time of clipping, AdamW and average in a step, bound by the memory."""
    share = options.processes if sharded else 1
    return UPDATE_BYTES * cost.parameters / share / options.memory_bandwidth


def code_bytes(spec: CodeSpec) -> float:
    """Bytes of a row of a codes dataset: Arrow's values and offsets of its lists."""
    sizes = 0.0
    for level in spec.levels:
        sizes += level.dtype.itemsize
        lists = 1.0  # one offset of 4 bytes for each list, at every depth
        for length in (1, *level.shape[:-1]):
            lists *= length
            sizes += FLOAT * lists
    columns = codes_features(spec, captions=False)
    fixed = {"label": 8, "view": 2, "source_index": 8}
    return sizes + sum(size for name, size in fixed.items() if name in columns)


@dataclass
class Stage:
    """A stage on all devices.

    Attributes:
        name: of the stage.
        images: that pass through it.
        rates: images per second that each resource alone would allow.
        serial: whether the resources wait for each other.
    """

    name: str
    images: float
    rates: dict[str, float]
    serial: bool

    @property
    def rate(self) -> float:
        """Images per second."""
        if self.serial:
            return 1 / sum(1 / rate for rate in self.rates.values())
        return min(self.rates.values())

    @property
    def hours(self) -> float:
        """Hours of the stage."""
        return self.images / self.rate / 3600

    @property
    def bound(self) -> str:
        """What saturates first, and by how much before the next."""
        first, *others = sorted(self.rates, key=lambda name: self.rates[name])
        if not others:
            return first
        factor = self.rates[others[0]] / self.rates[first]
        return f"{first}; {others[0]} at {100 / factor:.0f} %"


def training_stage(
    name: str, cost: Cost, options: ScalingOptions, *, batch: int, steps: int, attained: float
) -> Stage:
    """Training with batches of so many images over all processes."""
    sharded = options.sharding == "fsdp" and name == "train prior"
    processes = options.processes
    mine = batch / processes
    products = (mine * cost.training + cost.update) / (options.flops * attained)
    others = (mine * cost.traffic + cost.traffic_once) / options.memory_bandwidth
    seconds = products + others + update_seconds(cost, options, sharded)
    rates = {"computing": batch / seconds}
    if processes > 1:
        rates["network"] = batch * options.network / sent_bytes(cost, processes, sharded)
    return Stage(name, batch * steps, rates, not options.overlap)


def reading_rates(options: ScalingOptions) -> dict[str, float]:
    """Images per second that the store sends and that the cores decode."""
    return {
        "storage": options.nodes * options.storage / options.stored_bytes,
        "decoding": options.nodes * options.cores * options.decoded_pixels / options.stored_pixels,
    }


@dataclass
class Plan:
    """Both stages on given hardware."""

    options: ScalingOptions
    autoencoder: Cost
    prior: Cost
    spec: CodeSpec

    @classmethod
    def of(cls, options: ScalingOptions) -> Plan:
        """Count the costs of both networks."""
        autoencoder, spec = autoencoder_cost(options.autoencoder_options)
        names = tuple(map(str, range(options.classes)))
        spec = dataclasses.replace(spec, class_names=names)
        prior = prior_cost(options.prior_options.model, spec)
        return cls(options, autoencoder, prior, spec)

    def stages(self) -> Iterator[Stage]:
        """The stages from images to generated images."""
        options = self.options
        first, second = options.autoencoder_options, options.prior_options
        serial = not options.overlap
        devices = options.processes * options.flops
        stage = training_stage(
            "train autoencoder",
            self.autoencoder,
            options,
            batch=first.batch_size,
            steps=first.max_steps,
            attained=options.attained_autoencoder,
        )
        stage.rates |= reading_rates(options)
        yield stage
        encoding = devices * options.attained_autoencoder / self.autoencoder.using
        yield Stage(
            "encode", options.images, {"computing": encoding, **reading_rates(options)}, serial
        )
        stage = training_stage(
            "train prior",
            self.prior,
            options,
            batch=second.batch_size,
            steps=second.max_steps,
            attained=options.attained_prior,
        )
        stage.rates["storage"] = options.nodes * options.storage / code_bytes(self.spec)
        yield stage
        seconds = self.autoencoder.decoding / (devices * options.attained_autoencoder)
        seconds += self.prior.using / (devices * options.attained_prior)
        rates = {"computing": 1 / seconds, "weights from memory": self.drawn()}
        yield Stage("generate", options.generated, rates, serial)

    def drawn(self, batch: int = 64) -> float:
        """Images per second if drawing waits for weights, and for keys and values, only.

        Each position reads all weights, and on average half of the cache. The codes are in float32.
        """
        model, length = self.options.prior_options.model, sum(e.length for e in self.spec.levels)
        cache = batch * length * model.depth * model.width * FLOAT  # half of keys and values
        seconds = length * (FLOAT * self.prior.parameters + cache) / self.options.memory_bandwidth
        return self.options.processes * batch / seconds


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
    "buckets",
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
