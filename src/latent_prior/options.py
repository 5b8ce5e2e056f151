"""Options: dataclasses whose fields carry their own range, and those that more than one entry script has.

Nothing here needs torch, so `--help` and a wrong flag are answered at once.
"""

from __future__ import annotations

import functools
import importlib.util
import types
import typing
from collections.abc import Callable
from dataclasses import MISSING, dataclass, field, fields
from typing import Any, ClassVar, Literal, NamedTuple


class Range(NamedTuple):
    """Which numbers an option takes; of a list, each of its numbers. None leaves an end open."""

    at_least: float | None = None
    above: float | None = None
    at_most: float | None = None
    below: float | None = None

    def __contains__(self, value: object) -> bool:
        assert isinstance(value, int | float)
        return (
            (self.at_least is None or value >= self.at_least)
            and (self.above is None or value > self.above)
            and (self.at_most is None or value <= self.at_most)
            and (self.below is None or value < self.below)
        )

    def __str__(self) -> str:
        """What a value must do, as in `must be at least 1`."""
        low = self.above if self.at_least is None else self.at_least
        high = self.below if self.at_most is None else self.at_most
        if low is not None and high is not None:
            opening = "(" if self.at_least is None else "["
            closing = ")" if self.at_most is None else "]"
            return f"lie in {opening}{low}, {high}{closing}"
        if low == 0:
            return "be positive" if self.at_least is None else "not be negative"
        if low is not None:
            return f"be above {low}" if self.at_least is None else f"be at least {low}"
        return f"be below {high}" if self.at_most is None else f"be at most {high}"


def option(
    default: Any = MISSING,
    *,
    factory: Callable[[], Any] | None = None,
    at_least: float | None = None,
    above: float | None = None,
    at_most: float | None = None,
    below: float | None = None,
    may_change: bool = False,
) -> Any:
    """A dataclass field with the range of its numbers.

    Args:
        default: missing makes the option required.
        factory: makes the default of a list.
        at_least: smallest number.
        above: number that all must be larger than.
        at_most: largest number.
        below: number that all must be smaller than.
        may_change: a folder that was begun with another value goes on with this one: what is written does not
            depend on it.
    """
    metadata: dict[str, Any] = {"may_change": may_change}
    limits = Range(at_least, above, at_most, below)
    if any(limit is not None for limit in limits):
        metadata["range"] = limits
    if factory is not None:
        return field(default_factory=factory, metadata=metadata)
    return field(default=default, metadata=metadata)


def changeable(options: Options | type[Options]) -> set[str]:
    """Names of the options that may differ between two commands that fill one folder."""
    return {each.name for each in fields(options) if each.metadata.get("may_change")}


@dataclass(kw_only=True)
class Options:
    """Abstract: options that check themselves. A subclass with rules of its own calls this class's check first."""

    flag_prefix: ClassVar[str] = ""
    """What stands before the fields' names on a command line, as `model.`."""

    def __post_init__(self) -> None:
        """Check every number against its range and every word against its choices.

        A config file may hold what a command line would not let through, so the choices are checked here too.

        Raises:
            ValueError: naming the flag, what it takes and what was given.
        """
        for each in fields(self):
            limits: Range | None = each.metadata.get("range")
            value = getattr(self, each.name)
            if limits is None or value is None:
                continue
            numbers = value if isinstance(value, list | tuple) else [value]
            if not all(number in limits for number in numbers):
                raise ValueError(f"--{self.flag_prefix}{each.name} must {limits}, not {value}")
        for name, choices in _choices(typing.cast(Any, type(self))).items():
            if getattr(self, name) not in choices:
                raise ValueError(
                    f"--{self.flag_prefix}{name} must be one of {', '.join(map(str, choices))}, "
                    f"not {getattr(self, name)!r}"
                )


@functools.cache
def _choices(options_class: Any) -> dict[str, tuple[Any, ...]]:
    """The values that every `Literal` field declared by an options class takes."""
    found = {}
    for base in options_class.__mro__:
        if Options in base.__mro__[:-1] and all(issubclass(b, Options) for b in base.__mro__[:-1]):
            for name, kind in typing.get_type_hints(base).items():
                union = typing.get_origin(kind) in (typing.Union, types.UnionType)
                parts = typing.get_args(kind) if union else (kind,)
                literals = [typing.get_args(p) for p in parts if typing.get_origin(p) is Literal]
                if literals:
                    found[name] = sum(literals, ()) + ((None,) if types.NoneType in parts else ())
    return found


@dataclass(kw_only=True)
class ComputeOptions(Options):
    """What a command may use of the machine."""

    cpu_threads: int | None = option(None, at_least=1, may_change=True)
    """Threads per process on a CPU; null shares the cores out among the processes of this machine."""


@dataclass(kw_only=True)
class ReadOptions(Options):
    """How images are read."""

    image_column: str = "image"
    """Column that holds the images."""
    label_column: str | None = None
    """Column that holds the class labels; null takes `label` where it exists."""
    image_size: int | None = option(None, at_least=1)
    """Height and width in pixels; null keeps the size of the images, which must then be one size."""
    channels: Literal[1, 3] | None = None
    """1 (grey) or 3 (RGB); null takes what the first image has. Transparency is laid over white."""
    on_corrupt: Literal["error", "skip"] = "error"
    """What an unreadable image does: end the program with its name, or be left out and counted."""


@dataclass(kw_only=True)
class ImageOptions(ReadOptions):
    """Where images come from and what shape they take."""

    dataset: str = "mnist5k"
    """Images: `mnist5k` (embedded), a local image folder, a folder of parquet or arrow files, or a hub id."""
    resize: int | None = option(None, at_least=1)
    """Pixels the shorter side is resized to (antialiased) before cropping; null means image_size."""
    crop_padding: int = option(0, at_least=0)
    """Pixels of repeated edge around the resized image that a random crop may reach into."""
    cache_mb: int = option(2048, may_change=True)
    """Megabytes per process up to which decoded images are kept in memory; larger sets are decoded as they come."""

    def __post_init__(self) -> None:
        """Check the ranges, and that a window fits into the resized image."""
        super().__post_init__()
        if (
            self.resize is not None
            and self.image_size is not None
            and self.resize < self.image_size
        ):
            raise ValueError(
                f"--resize {self.resize} is smaller than --image_size {self.image_size}"
            )


@dataclass(kw_only=True)
class RunOptions(ComputeOptions):
    """When a training run does what, and where it leaves it."""

    output_dir: str = option(may_change=True)
    """Run folder; repeating the command with the same folder resumes the run."""
    batch_size: int = option(64, at_least=1)
    """Images per optimizer step, over all processes and accumulated micro-batches."""
    accumulation_steps: int = option(1, at_least=1, may_change=True)
    """Micro-batches per optimizer step; more of them need less memory. Codebooks of moving averages move with each."""
    max_steps: int = option(10_000, at_least=0, may_change=True)
    """Optimizer steps of the whole run."""
    max_seconds: float | None = option(None, above=0, may_change=True)
    """Training seconds after which the run ends early, resumed time included; null means no limit."""
    max_cpu_seconds: float | None = option(None, above=0, may_change=True)
    """The same in processor seconds, summed over a process's threads: on a CPU a budget that other programs on the machine do not eat into."""
    learning_rate: float = option(3e-4, above=0)
    """Peak learning rate of AdamW."""
    schedule: Literal["constant", "cosine", "linear"] = "constant"
    """How the learning rate falls from the end of the warm-up to max_steps."""
    warmup_steps: int = option(100, at_least=0)
    """Steps over which the learning rate rises from 0."""
    final_learning_rate: float = option(0.0, at_least=0)
    """Learning rate at max_steps, unless the schedule is constant."""
    beta1: float = option(0.9, at_least=0, below=1)
    """AdamW's first-moment decay."""
    beta2: float = option(0.95, at_least=0, below=1)
    """AdamW's second-moment decay."""
    weight_decay: float = option(0.0, at_least=0)
    """AdamW's decoupled weight decay; applied to matrices and kernels only."""
    gradient_clip: float | None = option(1.0, above=0)
    """Largest gradient norm; null clips nothing."""
    ema_decay: float = option(0.999, at_least=0, below=1)
    """Decay per step of the averaged weights that are exported; warmed up at the start of a run."""
    mixed_precision: Literal["no", "fp16", "bf16"] = "no"
    """Autocast type; leave `no` on a CPU, where the others are slower."""
    seed: int = option(0, at_least=0)
    """Seed of weights, data order, augmentation and dropout."""
    log_every: int = option(50, at_least=1, may_change=True)
    """Steps between lines in metrics.jsonl."""
    evaluate_every: int | None = option(None, at_least=1, may_change=True)
    """Steps between evaluations and sample grids; null means once an epoch."""
    checkpoint_every: int = option(500, at_least=1, may_change=True)
    """Steps between checkpoints."""
    checkpoints_to_keep: int = option(2, at_least=1, may_change=True)
    """How many of the newest checkpoints stay."""
    report_to: Literal["tensorboard", "wandb", "trackio"] | None = option(None, may_change=True)
    """Tracker that gets the metrics besides metrics.jsonl."""

    def __post_init__(self) -> None:
        """Check the ranges, the tracker and the micro-batches."""
        super().__post_init__()
        if self.report_to is not None and importlib.util.find_spec(self.report_to) is None:
            raise ValueError(
                f'--report_to {self.report_to} needs: pip install "latent-prior[trackers]"'
            )
        if self.batch_size % self.accumulation_steps:
            raise ValueError(
                f"--batch_size {self.batch_size} does not divide into --accumulation_steps {self.accumulation_steps}"
            )


@dataclass(kw_only=True)
class TrainingImageOptions(RunOptions, ImageOptions):
    """Which images a training run sees."""

    split: str = "train"
    """Split to train on."""
    streaming: bool = False
    """Read the images one after the other without an index, shuffled in a buffer; for sets too large for the disk."""
    random_crop: bool = False
    """Cut windows of image_size at random places; `resize` and `crop_padding` say how far they may move."""
    random_flip: bool = False
    """Mirror every second image left to right."""

    def __post_init__(self) -> None:
        """Check the numbers, and that size and source fit."""
        super().__post_init__()
        if self.resize is not None and self.image_size is None:
            raise ValueError(
                "--resize needs --image_size, the size that is cut out of the resized image"
            )
        if self.streaming and (
            self.image_size is None or self.channels is None or self.evaluate_every is None
        ):
            raise ValueError(
                "--streaming needs --image_size, --channels and --evaluate_every: it cannot look ahead"
            )


@dataclass(kw_only=True)
class ResolutionOptions(Options):
    """Channels and blocks of a convolutional network at each of its resolutions."""

    flag_prefix: ClassVar[str] = "model."

    width: int = option(32, at_least=1)
    """Channels of the convolutions at full resolution, before the multiplier."""
    multipliers: list[int] = option(factory=lambda: [1, 2, 4], at_least=1)
    """Channels at each resolution in units of width, full resolution first; every further one halves the image."""
    blocks: int | list[int] = option(1, at_least=0)
    """Residual blocks in the encoder, and again in the decoder: a number for every resolution, or a list of numbers."""

    def __post_init__(self) -> None:
        """Check the ranges, and that every resolution has its blocks."""
        super().__post_init__()
        if not self.multipliers:
            raise ValueError(
                f"--model.multipliers must be at least one number, not {self.multipliers}"
            )
        if len(self.blocks_per_resolution) != len(self.multipliers):
            raise ValueError(
                f"--model.blocks must be one number, or one for each of the multipliers {self.multipliers}, not {self.blocks}"
            )

    @property
    def blocks_per_resolution(self) -> list[int]:
        """Blocks at each resolution, full resolution first."""
        return (
            [self.blocks] * len(self.multipliers) if isinstance(self.blocks, int) else self.blocks
        )

    @property
    def downsampling(self) -> int:
        """Pixels of the image along one side of a position at the lowest resolution."""
        return 2 ** (len(self.multipliers) - 1)

    def check_image_size(self, image_size: int) -> None:
        """Stop before an image size that the resolutions do not fit.

        Raises:
            ValueError: naming the size and what it must be.
        """
        if image_size < 1 or image_size % self.downsampling:
            raise ValueError(
                f"--image_size {image_size} is not divisible by the downsampling {self.downsampling} "
                f"of the {len(self.multipliers)} multipliers {self.multipliers}"
            )
