"""Options: dataclasses that check themselves, and those that several entry scripts share.

Nothing here needs torch, so `--help` and a wrong flag are answered at once.
"""

from __future__ import annotations

import functools
import importlib.util
import itertools
import os
import types
import typing
from collections.abc import Callable, Sequence
from dataclasses import MISSING, Field, dataclass, field, fields
from pathlib import Path
from typing import Any, ClassVar, Literal, NamedTuple

MAX_PIXELS = 50 * 2**20
"""Default of the largest number of pixels of an image."""
DRAWN = ("shapes", "shapes_text")
"""Data sets that the project draws."""
EMBEDDED = ("mnist5k", *DRAWN)
"""Data sets that need no files."""


class Range(NamedTuple):
    """The numbers an option takes; for a list, each of its items. None leaves an end open."""

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
        """The range in words: `at least 0 and below 1`."""
        ends = {name: end for name, end in self._asdict().items() if end is not None}
        numbers = {name: f"{end:g}" if end % 1 else f"{end:.0f}" for name, end in ends.items()}
        return " and ".join(f"{name.replace('_', ' ')} {text}" for name, text in numbers.items())


def option(
    default: Any = MISSING,
    *,
    factory: Callable[[], Any] | None = None,
    at_least: float | None = None,
    above: float | None = None,
    at_most: float | None = None,
    below: float | None = None,
    may_change: bool = False,
    only_for: Sequence[str] = (),
    path: bool = False,
) -> Any:
    """A dataclass field with the range of its numbers, required without a default or a factory.

    With `may_change` a command may continue a folder that was begun with another value: the files
    do not depend on it, or the new value holds from there on, as a lower learning rate does.
    `only_for` lists the values of `Options.used_by` with which the option is used; empty means all.
    The value of a `path`, or each of its values, is read by `expanded_path`.
    """
    metadata: dict[str, Any] = {"may_change": may_change, "only_for": only_for, "path": path}
    limits = Range(at_least, above, at_most, below)
    if limits != Range():
        metadata["range"] = limits
    if factory is not None:
        return field(default_factory=factory, metadata=metadata)
    return field(default=default, metadata=metadata)


def changeable(options: Options | type[Options]) -> set[str]:
    """Names of the options that may differ between two commands that fill one folder.

    Those of options within options have a dot: `critic.learning_rate`.
    """
    names = {each.name for each in fields(options) if each.metadata.get("may_change")}
    for each in fields(options):
        if isinstance(inner := getattr(options, each.name, None), Options):
            names |= {f"{each.name}.{name}" for name in changeable(inner)}
    return names


@dataclass(kw_only=True)
class Options:
    """Abstract: options that check themselves.

    A subclass with rules of its own extends `__post_init__` and calls this one first.
    """

    flag_prefix: ClassVar[str] = ""
    """Prefix of the flags, for example `model.`."""
    used_by: ClassVar[str] = ""
    """Option whose value decides which options are used, for example `operation`."""

    def __post_init__(self) -> None:
        """Check ranges of numbers, choices of `Literal` fields, and options without effect.

        The command line checks choices too, a config file edited by hand only here.

        Raises:
            ValueError: naming the flag, the allowed values and the given one; also for a URL as the
                folder of the results.
        """
        choices_of = _choices(typing.cast(Any, type(self)))
        for each in fields(self):
            value = getattr(self, each.name)
            flag = f"--{self.flag_prefix}{each.name}"
            if each.metadata.get("path") and value is not None:
                listed = isinstance(value, list)
                paths = [expanded_path(flag, path) for path in (value if listed else [value])]
                value = paths if listed else paths[0]
                setattr(self, each.name, value)
                if each.name == "output_dir" and "://" in value:
                    raise ValueError(
                        f"{flag} {value}: results are written to a local folder; choose one, and "
                        "copy it from there when it is finished"
                    )
            items = value if isinstance(value, list | tuple) else [value]
            limits: Range | None = each.metadata.get("range")
            if limits is not None and not all(item is None or item in limits for item in items):
                raise ValueError(f"{flag} must be {limits}, not {value}")
            choices = choices_of.get(each.name)
            if choices is not None and not all(item in choices for item in items):
                allowed = ", ".join(map(str, choices))
                raise ValueError(f"{flag} must be one of {allowed}, not {value!r}")
            users = each.metadata.get("only_for")
            if users and getattr(self, self.used_by) not in users and value != default_of(each):
                raise ValueError(
                    f"{flag} is for --{self.flag_prefix}{self.used_by} {' or '.join(users)}, "
                    f"not for {getattr(self, self.used_by)}"
                )


def expanded_path(flag: str, path: str) -> str:
    """A path as the user means it: `~` is a home folder, and a path has a last part.

    `.`, `..` and the like become absolute, because files beside a folder are named after it. Other
    relative paths stay relative to the current folder, also those of presets. Empty text stays
    empty: options made in Python may name no folder.

    Raises:
        ValueError: the path holds a NUL, or there is no such home folder.
    """
    if not path:
        return path
    if "\0" in path:
        raise ValueError(f"{flag} {path!r}: a path holds no NUL")
    expanded = os.path.expanduser(path)
    if expanded.startswith("~"):
        user = Path(expanded).parts[0]
        raise ValueError(f"{flag} {path}: there is no home folder {user}; ./{user} is a name here")
    return os.path.abspath(expanded) if Path(expanded).name in ("", "..") else expanded


def default_of(option: Field[Any]) -> Any:
    """The default value of an option; `dataclasses.MISSING` if it is required."""
    factory = option.default_factory
    return option.default if factory is MISSING else factory()


@functools.cache
def _choices(options_class: Any) -> dict[str, tuple[Any, ...]]:
    """The allowed values of each `Literal` field, in order; None for an optional field.

    Reads only pure options: a model's config class also inherits from transformers.
    """
    choices = {}
    for base in reversed(options_class.__mro__[:-1]):
        if all(issubclass(parent, Options) for parent in base.__mro__[:-1]):
            for name, kind in typing.get_type_hints(base).items():
                parts = (kind, *typing.get_args(kind))
                words = [typing.get_args(p) for p in parts if typing.get_origin(p) is Literal]
                if words:
                    none = [None] if types.NoneType in parts else []
                    choices[name] = (*itertools.chain(*words), *none)
    return choices


@dataclass(kw_only=True)
class ComputeOptions(Options):
    """What a command may use of the machine."""

    cpu_threads: int | None = option(None, at_least=1, may_change=True)
    """Threads per process on a CPU; null divides the cores among the processes of this machine."""


@dataclass(kw_only=True)
class ReadOptions(Options):
    """How images are read."""

    image_column: str = "image"
    """Column with the images."""
    label_column: str | None = None
    """Column with the class labels; null uses `label` if it exists, `none` means no classes."""
    image_size: int | None = option(None, at_least=1)
    """Height and width in pixels; null keeps the size of the images, which must all be equal."""
    channels: Literal[1, 3] | None = None
    """1 (grey) or 3 (RGB); null: RGB if any image is. Transparency is laid over white."""
    on_corrupt: Literal["error", "skip"] = "error"
    """Unreadable images: `error` ends the program with their name, `skip` leaves them out."""
    max_pixels: int = option(MAX_PIXELS, at_least=1, at_most=178_956_970, may_change=True)
    """Pixels (height x width) above which an image counts as unreadable: a small file can fill the
    memory. Decoding takes up to 20 bytes per pixel."""


@dataclass(kw_only=True)
class ImageOptions(ReadOptions):
    """Where images come from and what shape they take."""

    dataset: str = option("mnist5k", path=True)
    """Images: `mnist5k` or `shapes` (embedded), a folder of images, of tar, parquet or arrow files,
    a URL of such files (`s3://...`), or a hub id."""
    caption_column: str | None = None
    """Column with the captions; null uses those of `shapes` and of a folder: `text` of its metadata
    files, or .txt files beside the images. `none` means no captions."""
    resize: int | None = option(None, at_least=1)
    """Length of the shorter side, in pixels, before cropping (antialiased); null: image_size."""
    crop_padding: int = option(0, at_least=0)
    """Pixels of repeated edge around the resized image that random crops may include."""
    cache_mb: int = option(2048, may_change=True)
    """Megabytes of decoded images per process; larger datasets are decoded on every access."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.resize is not None and self.resize < (self.image_size or 0):
            raise ValueError(
                f"--resize {self.resize} is smaller than --image_size {self.image_size}"
            )


@dataclass(kw_only=True)
class RunOptions(ComputeOptions):
    """Length, optimizer, outputs and reports of a training run."""

    output_dir: str = option(may_change=True, path=True)
    """Run folder; repeating the command with the same folder resumes the run."""
    batch_size: int = option(64, at_least=1)
    """Images per optimizer step, over all processes and accumulated micro-batches."""
    accumulation_steps: int = option(1, at_least=1, may_change=True)
    """Micro-batches per optimizer step; more need less memory. EMA codebooks update with each."""
    max_steps: int = option(10_000, at_least=0, may_change=True)
    """Optimizer steps of the whole run."""
    max_seconds: float | None = option(None, above=0, may_change=True)
    """Training seconds, resumed time included, after which the run ends; null: no limit."""
    max_cpu_seconds: float | None = option(None, above=0, may_change=True)
    """The same in CPU seconds of all threads: a budget that other programs do not affect."""
    learning_rate: float = option(3e-4, above=0, may_change=True)
    """Peak learning rate of AdamW and Muon. A resumed run may have another one from there on."""
    schedule: Literal["constant", "cosine", "linear"] = "constant"
    """Decay of the learning rate from the end of the warm-up to max_steps."""
    warmup_steps: int = option(100, at_least=0)
    """Steps over which the learning rate rises from 0."""
    final_learning_rate: float = option(0.0, at_least=0, may_change=True)
    """Learning rate at max_steps, unless the schedule is constant."""
    beta1: float = option(0.9, at_least=0, below=1)
    """AdamW's first-moment decay."""
    beta2: float = option(0.95, at_least=0, below=1)
    """AdamW's second-moment decay."""
    weight_decay: float = option(0.0, at_least=0)
    """AdamW's decoupled weight decay, applied to matrices and kernels only."""
    gradient_clip: float | None = option(1.0, above=0)
    """Largest gradient norm; null disables clipping."""
    ema_decay: float = option(0.999, at_least=0, below=1)
    """Decay per step of the exported weight average; warmed up at the start of a run."""
    mixed_precision: Literal["no", "fp16", "bf16"] = "no"
    """Autocast type; keep `no` on a CPU, where the others are slower."""
    seed: int = option(0, at_least=0)
    """Seed of weights, data order, augmentation and dropout."""
    log_every: int = option(50, at_least=1, may_change=True)
    """Steps between lines in metrics.jsonl."""
    evaluate_every: int | None = option(None, at_least=1, may_change=True)
    """Steps between evaluations and sample grids; null: once per epoch."""
    checkpoint_every: int = option(500, at_least=1, may_change=True)
    """Steps between checkpoints."""
    checkpoints_to_keep: int = option(2, at_least=1, may_change=True)
    """Number of newest checkpoints to keep."""
    report_to: Literal["tensorboard", "wandb", "trackio"] | None = option(None, may_change=True)
    """Tracker that receives the metrics in addition to metrics.jsonl."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.report_to is not None and importlib.util.find_spec(self.report_to) is None:
            raise ValueError(
                f'--report_to {self.report_to} needs: pip install "latent-prior[trackers]"'
            )
        if self.batch_size % self.accumulation_steps:
            raise ValueError(
                f"--batch_size {self.batch_size} is not divisible by --accumulation_steps {self.accumulation_steps}"
            )


@dataclass(kw_only=True)
class TrainingImageOptions(RunOptions, ImageOptions):
    """Which images a training run uses."""

    split: str = "train"
    """Split to train on."""
    streaming: bool = False
    """Read blocks of images in a random order; for data larger than the memory or the disk."""
    random_crop: bool = False
    """Crop to image_size at random positions; `resize` and `crop_padding` set the room to move."""
    random_flip: bool = False
    """Mirror images left to right with probability 1/2."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.resize is not None and self.image_size is None:
            raise ValueError(
                "--resize needs --image_size, the size of the crop from the resized image"
            )
        if self.streaming and None in (self.image_size, self.channels):
            raise ValueError(
                "--streaming needs --image_size and --channels: the images are not looked at in advance"
            )


@dataclass(kw_only=True)
class ResolutionOptions(Options):
    """Channels and blocks of a convolutional network at each resolution."""

    flag_prefix: ClassVar[str] = "model."

    width: int = option(32, at_least=1)
    """Channels at full resolution, before the multiplier."""
    multipliers: list[int] = option(factory=lambda: [1, 2, 4], at_least=1)
    """Channels per resolution in units of width, full resolution first, each next one halved."""
    blocks: int | list[int] = option(1, at_least=0, at_most=1000)
    """Residual blocks per resolution, in encoder and decoder each: one number, or one for each."""

    def __post_init__(self) -> None:
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
        if isinstance(self.blocks, int):
            return [self.blocks] * len(self.multipliers)
        return self.blocks

    @property
    def downsampling(self) -> int:
        """Image pixels per position of the lowest resolution, along one side."""
        return 2 ** (len(self.multipliers) - 1)

    def check_image_size(self, image_size: int) -> None:
        """Check that the image size is divisible by the downsampling.

        Raises:
            ValueError: if it is not.
        """
        if image_size < 1 or image_size % self.downsampling:
            raise ValueError(
                f"--image_size {image_size} is not divisible by the downsampling {self.downsampling} "
                f"of the {len(self.multipliers)} multipliers {self.multipliers}"
            )
