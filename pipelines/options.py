"""What a user can set for the pipeline's commands, as plain dataclasses that need no torch."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from typing import Literal

from latent_prior.options import ImageOptions


@dataclass(kw_only=True)
class SamplerOptions:
    """How codes or latents are drawn; null takes what the pipeline was assembled with."""

    guidance_scale: float | None = None
    """Classifier-free guidance; 1 is none, and the default of assemble.py."""
    guidance_schedule: Literal["constant", "linear", "cosine"] | None = None
    """Guidance along the sequence or the rounds: at once (the default of assemble.py), or rising from 1."""
    guidance_interval: list[float] | None = None
    """Two shares of the sequence or the rounds, from and to, within which there is guidance; by default 0 and 1."""
    temperature: float | None = None
    """Divides the logits, 0 always takes the likeliest code; multiplies the deviations of latents. By default 1."""
    top_k: int | None = None
    """Codes to choose from, the likeliest; 0 means all, and is the default."""
    top_p: float | None = None
    """Probability of the set of likeliest codes to choose from; 1 means all, and is the default."""
    choice_temperature: float | None = None
    """Masked prior: how freely it chooses which codes to keep; 0 keeps those it is surest of, the default is 4.5."""

    def __post_init__(self) -> None:
        """Check the interval.

        Raises:
            ValueError: it is not two numbers.
        """
        if self.guidance_interval is not None and len(self.guidance_interval) != 2:
            raise ValueError(
                f"--guidance_interval needs two shares, from and to, not {len(self.guidance_interval)}"
            )


@dataclass(kw_only=True)
class AssembleOptions(SamplerOptions):
    """Put an autoencoder and the prior over its codes into one pipeline folder."""

    autoencoder: str
    """Folder or hub id of the autoencoder."""
    prior: str | None = None
    """Folder or hub id of the prior; with null a VAE's pipeline samples N(0, I), others encode and decode only."""
    output_dir: str
    """The pipeline folder."""
    steps: int | None = None
    """Masked prior: rounds of filling in masks; the default is 12."""


@dataclass(kw_only=True)
class DescribeOptions:
    """Complete the model card of a pipeline folder by samples and scores; both are copied into the folder."""

    pipeline: str
    """The pipeline folder."""
    samples: str | None = None
    """Folder of images that generate.py drew from the pipeline; null keeps those of the card."""
    scores: str | None = None
    """Folder that score.py wrote about the pipeline's images; null keeps those of the card."""
    license: str | None = None
    """License of the weights as the hub spells it, such as apache-2.0; null keeps that of the card, at first none."""


@dataclass(kw_only=True)
class GenerateOptions(SamplerOptions):
    """Generate images into a folder; repeating the command goes on where it stopped."""

    pipeline: str
    """Folder or hub id of a pipeline."""
    output_dir: str
    """Folder for the PNG files, labels.csv, generation.json and grid.png."""
    num_images: int = 16
    """How many images."""
    labels: list[str] = field(default_factory=list)
    """Class numbers or names to draw in turn; empty takes all classes, -1 is any class."""
    steps: int | None = None
    """Masked prior: rounds of filling in masks; null takes what the pipeline was assembled with."""
    random_codes: bool = False
    """Decode uniformly random codes in place of the prior's: the line any prior must beat."""
    batch_size: int = 64
    """Images computed at a time."""
    seed: int = 0
    """Seed; an image depends on it, on its number and its label, not on the batch size or the number of processes."""
    cpu_threads: int | None = None
    """Threads per process on a CPU; null shares the cores out among the processes of this machine."""

    def __post_init__(self) -> None:
        """Check the numbers."""
        SamplerOptions.__post_init__(self)
        for name in ("num_images", "batch_size", "cpu_threads"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"--{name} must be at least 1, not {value}")


@dataclass(kw_only=True)
class LatentOptions(ImageOptions, SamplerOptions):
    """Work on the latents of images: reconstruct, interpolate, change attributes, traverse, calculate, complete."""

    operation: Literal[
        "reconstruct", "interpolate", "attribute", "traverse", "arithmetic", "complete"
    ]
    """What to do; flags below that name an operation belong to it alone."""
    output_dir: str
    """Folder for grid.png, the single images and latents.json."""
    pipeline: str | None = None
    """Folder or hub id of a pipeline; this or `autoencoder`."""
    autoencoder: str | None = None
    """Folder or hub id of an autoencoder, which can do all but complete images from codes."""
    split: str = "train"
    """Split of the images to work on."""
    images: list[int] = field(default_factory=list)
    """Row numbers of the images to work on; empty takes the first ones."""
    num_images: int | None = None
    """How many of the first ones; null takes all to reconstruct, and otherwise a few."""
    steps: int | None = None
    """interpolate, traverse: images in a row, both ends included, by default 9; complete: rounds of a masked prior."""
    method: Literal["linear", "spherical"] = "linear"
    """interpolate: straight from each image to the next, or along the arc."""
    attribute: str | None = None
    """attribute: class number or name whose images have it."""
    against: str | None = None
    """attribute: class number or name whose images lack it; null is all other classes."""
    direction: Literal["mean", "probe"] = "mean"
    """attribute: the difference of the two means, or the weights of a linear classifier."""
    strength: list[float] = field(default_factory=lambda: [-2.0, -1.0, 0.0, 1.0, 2.0])
    """attribute: how much of it to add; 1 leads from the mean without to the mean with, below 0 takes it away."""
    dimensions: list[int] = field(default_factory=list)
    """traverse: channels of the latents, counted through the levels; empty takes the eight that vary most."""
    span: float = 3.0
    """traverse: largest change either way, in standard deviations of the channel."""
    fit_split: str = "train"
    """attribute, traverse, arithmetic with labels: split that directions, deviations and means are measured on."""
    labels: list[str] = field(default_factory=list)
    """arithmetic: three classes whose means take the place of images; complete: class of all images or of each."""
    mask: list[str] = field(default_factory=lambda: ["bottom"])
    """complete: hidden part, `left right top bottom center` or four pixel numbers: left, top, right, bottom."""
    paste: bool = True
    """complete: put the visible pixels back over what the decoder made of them."""
    batch_size: int = 64
    """Images computed at a time."""
    seed: int = 0
    """Seed of the codes drawn to complete an image; they depend on it and on the image's row."""
    cpu_threads: int | None = None
    """Threads per process on a CPU; null shares the cores out among the processes of this machine."""

    def __post_init__(self) -> None:
        """Check the flags by themselves, with each other and with the operation."""
        ImageOptions.__post_init__(self)
        SamplerOptions.__post_init__(self)
        for name in ("num_images", "batch_size", "cpu_threads"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"--{name} must be at least 1, not {value}")
        if (self.pipeline is None) == (self.autoencoder is None):
            raise ValueError("give either --pipeline or --autoencoder")
        for name, operations in OPERATIONS_OF.items():
            default = _default(self, name)
            if self.operation not in operations and getattr(self, name) != default:
                raise ValueError(
                    f"--{name} is for --operation {' or '.join(operations)}, not for {self.operation}"
                )
        self._check_images()
        self._check_operation()
        self.mask_box(_ANY_SIZE)

    def mask_box(self, size: int) -> tuple[int, int, int, int]:
        """The hidden part of an image of size x size pixels: left, top, right and bottom edge.

        Raises:
            ValueError: `mask` names no part, or one that is empty or reaches out of the image.
        """
        half, quarter = size // 2, size // 4
        boxes = {
            "left": (0, 0, half, size),
            "right": (size - half, 0, size, size),
            "top": (0, 0, size, half),
            "bottom": (0, size - half, size, size),
            "center": (quarter, quarter, size - quarter, size - quarter),
        }
        if len(self.mask) == 1 and self.mask[0] in boxes:
            return boxes[self.mask[0]]
        if len(self.mask) != 4 or not all(str(word).isdecimal() for word in self.mask):
            raise ValueError(
                f"--mask {' '.join(map(str, self.mask))}: expected one of {', '.join(boxes)}, or four pixel numbers: "
                "left, top, right, bottom"
            )
        left, top, right, bottom = (int(word) for word in self.mask)
        if left < right <= size and top < bottom <= size:
            return left, top, right, bottom
        extent = "" if size == _ANY_SIZE else f" of {size} x {size} pixels"
        raise ValueError(
            f"--mask {left} {top} {right} {bottom}: expected left < right and top < bottom within the image{extent}"
        )

    def _check_images(self) -> None:
        """Stop at rows that cannot be, or not as many as the operation needs."""
        if self.images and self.num_images is not None:
            raise ValueError("--num_images is without effect where --images names the rows")
        for row in self.images:
            if row < 0 or self.images.count(row) > 1:
                wrong = "is negative" if row < 0 else "is given twice"
                raise ValueError(f"--images: row {row} {wrong}")
        count = len(self.images) or self.num_images
        if self.operation == "arithmetic" and self.labels:
            if count is not None:
                raise ValueError("--labels takes the means of classes in place of --images")
            if len(self.labels) != 3:
                raise ValueError(f"--labels: a - b + c needs three classes, not {len(self.labels)}")
        elif self.operation == "arithmetic" and count not in (None, 3):
            raise ValueError(f"--operation arithmetic: a - b + c needs three images, not {count}")
        if self.operation == "interpolate" and count == 1:
            raise ValueError("--operation interpolate needs at least two images, not 1")

    def _check_operation(self) -> None:
        """Stop at values that the operation cannot take."""
        if self.operation == "attribute" and self.attribute is None:
            raise ValueError("--operation attribute needs --attribute, the class that has it")
        if not self.strength:
            raise ValueError("--strength is empty: give at least one number")
        if self.operation != "complete" and self.steps is not None and self.steps < 2:
            raise ValueError(f"--steps must be at least 2, not {self.steps}")
        if min(self.dimensions, default=0) < 0:
            raise ValueError(f"--dimensions must not be negative, not {min(self.dimensions)}")
        if not self.span > 0:
            raise ValueError(f"--span must be positive, not {self.span}")


OPERATIONS_OF = {
    "steps": ("interpolate", "traverse", "complete"), "method": ("interpolate",), "attribute": ("attribute",),
    "against": ("attribute",), "direction": ("attribute",), "strength": ("attribute",), "dimensions": ("traverse",),
    "span": ("traverse",), "fit_split": ("attribute", "traverse", "arithmetic"),
    "labels": ("arithmetic", "complete"), "mask": ("complete",), "paste": ("complete",),
    **{each.name: ("complete",) for each in dataclasses.fields(SamplerOptions)},
    "seed": ("complete",),
}  # fmt: skip
_ANY_SIZE = 2**31


def _default(options: LatentOptions, name: str) -> object:
    (found,) = (each for each in dataclasses.fields(options) if each.name == name)
    if found.default_factory is not dataclasses.MISSING:
        return found.default_factory()
    return found.default
