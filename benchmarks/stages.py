"""Bytes, memory and seconds of every stage on given hardware."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from dataclasses import dataclass

from costs import Cost, Pass, autoencoder_cost, prior_cost
from scaling_options import ScalingOptions

from latent_prior.data.codes import CodeSpec
from latent_prior.data.codes_dataset import codes_features
from latent_prior.stage2_prior.options import PriorOptions
from latent_prior.stage2_prior.sampler import Sampler

FLOAT = 4
DRAWN = 64  # images that are drawn together
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


def pass_seconds(work: Pass, options: ScalingOptions, attained: float) -> float:
    """Time of a forward pass of one image on one device."""
    return work.operations / (options.flops * attained) + work.traffic / options.memory_bandwidth


def drawing_seconds(
    cost: Cost, model: PriorOptions, spec: CodeSpec, options: ScalingOptions, batch: int
) -> float:
    """Time of reading what drawing an image needs in a batch of so many.

    Each position reads all weights, and on average half of the cache. The codes are in float32. In
    masked order each round reads all weights.
    """
    if model.order == "masked":
        return Sampler().steps * FLOAT * cost.parameters / options.memory_bandwidth / batch
    positions = sum(level.length for level in spec.levels) / model.patch**2
    cache = batch * positions * model.depth * model.width * FLOAT  # half of keys and values
    return positions * (FLOAT * cost.parameters + cache) / options.memory_bandwidth / batch


def reading_seconds(options: ScalingOptions, size: int) -> float:
    """Time in which a core decodes an image and resizes it to size x size."""
    return options.stored_pixels / options.decoded_pixels + size**2 / options.resized_pixels


def reading_rates(options: ScalingOptions, size: int) -> dict[str, float]:
    """Images per second that the store sends, and that the cores make of it."""
    return {
        "storage": options.nodes * options.storage / options.stored_bytes,
        "decoding": options.nodes * options.cores / reading_seconds(options, size),
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
        processes = options.processes
        stage = training_stage(
            "train autoencoder",
            self.autoencoder,
            options,
            batch=first.batch_size,
            steps=first.max_steps,
            attained=options.attained_autoencoder,
        )
        reading = reading_rates(options, self.spec.image_size)
        stage.rates |= reading
        yield stage
        convolutions = options.attained_autoencoder
        encoding = processes / pass_seconds(self.autoencoder.using, options, convolutions)
        yield Stage("encode", options.images, {"computing": encoding, **reading}, serial)
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
        seconds = pass_seconds(self.autoencoder.decoding, options, convolutions)
        rounds = Sampler().steps if second.model.order == "masked" else 1
        seconds += rounds * pass_seconds(self.prior.using, options, options.attained_prior)
        weights = drawing_seconds(self.prior, second.model, self.spec, options, DRAWN)
        rates = {"computing": processes / seconds, "weights from memory": processes / weights}
        yield Stage("generate", options.generated, rates, serial)
