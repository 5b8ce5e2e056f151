"""Options that more than one entry script has, as plain dataclasses that need no torch."""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal


@dataclass(kw_only=True)
class ImageOptions:
    """Where images come from and what shape they take."""

    dataset: str = "mnist5k"
    """Images: `mnist5k` (embedded), a local image folder, a folder of parquet or arrow files, or a hub id."""
    image_column: str = "image"
    """Column that holds the images."""
    label_column: str | None = None
    """Column that holds the class labels; null takes `label` where it exists."""
    image_size: int | None = None
    """Height and width in pixels; null keeps the size of the images, which must then be one size."""
    channels: Literal[1, 3] | None = None
    """1 (grey) or 3 (RGB); null takes what the first image has. Transparency is laid over white."""
    resize: int | None = None
    """Pixels the shorter side is resized to (antialiased) before cropping; null means image_size."""
    crop_padding: int = 0
    """Pixels of repeated edge around the resized image that a random crop may reach into."""
    on_corrupt: Literal["error", "skip"] = "error"
    """What an unreadable image does: end the program with its name, or be left out and counted."""
    cache_mb: int = 2048
    """Megabytes per process up to which decoded images are kept in memory; larger sets are decoded as they come."""

    def __post_init__(self) -> None:
        """Check what can be checked without reading data."""
        for name in ("image_size", "resize"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"--{name} must be at least 1 pixel, not {value}")
        if self.crop_padding < 0:
            raise ValueError(f"--crop_padding must not be negative, not {self.crop_padding}")
        if (
            self.resize is not None
            and self.image_size is not None
            and self.resize < self.image_size
        ):
            raise ValueError(
                f"--resize {self.resize} is smaller than --image_size {self.image_size}"
            )


@dataclass(kw_only=True)
class RunOptions:
    """When a training run does what, and where it leaves it."""

    output_dir: str
    """Run folder; repeating the command with the same folder resumes the run."""
    batch_size: int = 64
    """Images per optimizer step, over all processes and accumulated micro-batches."""
    accumulation_steps: int = 1
    """Micro-batches per optimizer step; more of them need less memory. Codebooks of moving averages move with each."""
    max_steps: int = 10_000
    """Optimizer steps of the whole run."""
    max_seconds: float | None = None
    """Training seconds after which the run ends early, resumed time included; null means no limit."""
    max_cpu_seconds: float | None = None
    """The same in processor seconds, summed over a process's threads: on a CPU a budget that other programs on the machine do not eat into."""
    learning_rate: float = 3e-4
    """Peak learning rate of AdamW."""
    schedule: Literal["constant", "cosine", "linear"] = "constant"
    """How the learning rate falls from the end of the warm-up to max_steps."""
    warmup_steps: int = 100
    """Steps over which the learning rate rises from 0."""
    final_learning_rate: float = 0.0
    """Learning rate at max_steps, unless the schedule is constant."""
    beta1: float = 0.9
    """AdamW's first-moment decay."""
    beta2: float = 0.95
    """AdamW's second-moment decay."""
    weight_decay: float = 0.0
    """AdamW's decoupled weight decay; applied to matrices and kernels only."""
    gradient_clip: float | None = 1.0
    """Largest gradient norm; null clips nothing."""
    ema_decay: float = 0.999
    """Decay per step of the averaged weights that are exported; warmed up at the start of a run."""
    mixed_precision: Literal["no", "fp16", "bf16"] = "no"
    """Autocast type; leave `no` on a CPU, where the others are slower."""
    seed: int = 0
    """Seed of weights, data order, augmentation and dropout."""
    log_every: int = 50
    """Steps between lines in metrics.jsonl."""
    evaluate_every: int | None = None
    """Steps between evaluations and sample grids; null means once an epoch."""
    checkpoint_every: int = 500
    """Steps between checkpoints."""
    checkpoints_to_keep: int = 2
    """How many of the newest checkpoints stay."""
    report_to: Literal["tensorboard", "wandb", "trackio"] | None = None
    """Tracker that gets the metrics besides metrics.jsonl."""
    cpu_threads: int | None = None
    """Threads per process on a CPU; null shares the cores out among the processes of this machine."""

    def __post_init__(self) -> None:
        """Check every number against its range."""
        at_least_one = (
            "batch_size", "accumulation_steps", "log_every", "checkpoint_every", "checkpoints_to_keep",
            "evaluate_every", "cpu_threads",
        )  # fmt: skip
        for name in at_least_one:
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"--{name} must be at least 1, not {value}")
        for name in ("max_steps", "warmup_steps", "weight_decay", "final_learning_rate", "seed"):
            if not getattr(self, name) >= 0:
                raise ValueError(f"--{name} must not be negative, not {getattr(self, name)}")
        for name in ("learning_rate", "gradient_clip", "max_seconds", "max_cpu_seconds"):
            value = getattr(self, name)
            if value is not None and not value > 0:
                raise ValueError(f"--{name} must be positive, not {value}")
        for name in ("beta1", "beta2", "ema_decay"):
            if not 0 <= getattr(self, name) < 1:
                raise ValueError(f"--{name} must lie in [0, 1), not {getattr(self, name)}")
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
        ImageOptions.__post_init__(self)
        RunOptions.__post_init__(self)
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


def check_choices(options: object, choices: Mapping[str, tuple[str, ...]]) -> None:
    """Stop at a word that is none of a field's choices: a config file may say anything.

    Raises:
        ValueError: naming the flag and the choices.
    """
    for name, allowed in choices.items():
        if getattr(options, name) not in allowed:
            raise ValueError(
                f"--model.{name} must be one of {', '.join(allowed)}, not {getattr(options, name)!r}"
            )
