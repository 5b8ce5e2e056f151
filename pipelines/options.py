"""Options of the pipeline's commands; nothing here needs torch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal, cast

from latent_prior.options import ComputeOptions, ImageOptions, Options, option
from latent_prior.stage2_prior.sampler import GuidanceSchedule, Sampler, Settings


@dataclass(kw_only=True)
class SamplerOptions(Options):
    """Sampler settings; null uses the default of the pipeline, or for a new one of `Sampler`."""

    guidance_scale: float | None = None
    """Classifier-free guidance; 1 is none. Default of a new pipeline: 1."""
    guidance_schedule: GuidanceSchedule | None = None
    """Guidance over the sequence or the rounds: constant, or rising from 1. Default: constant."""
    guidance_interval: list[float] | None = None
    """First and last share of the sequence or the rounds with guidance. Default: 0 and 1."""
    temperature: float | None = None
    """Divides the logits, 0 takes the likeliest code; scales the noise of latents. Default: 1."""
    top_k: int | None = None
    """Number of likeliest codes to sample from; 0 means all, the default."""
    top_p: float | None = None
    """Probability of the set of likeliest codes to sample from; 1 means all, the default."""
    steps: int | None = None
    """Masked prior: rounds of decoding. Default: 12."""
    choice_temperature: float | None = None
    """Masked prior: noise in choosing codes to keep; 0 keeps the most confident. Default: 4.5."""

    def __post_init__(self) -> None:
        super().__post_init__()
        try:
            Sampler(**self.settings())
        except ValueError as error:
            raise ValueError(f"--{error}") from error

    def settings(self) -> Settings:
        """The settings that are not null."""
        values = {name: getattr(self, name) for name in Settings.__annotations__}
        return cast(Settings, {name: value for name, value in values.items() if value is not None})


@dataclass(kw_only=True)
class AssembleOptions(SamplerOptions):
    """Put an autoencoder and the prior over its codes into one pipeline folder."""

    autoencoder: str = option(path=True)
    """Folder or hub id of the autoencoder."""
    prior: str | None = option(None, path=True)
    """Folder or hub id of the prior; null: a VAE samples N(0, I), others only encode and decode."""
    text_encoder: str | None = option(None, path=True)
    """Folder or hub id of the text encoder, if it is no longer where the prior was trained."""
    output_dir: str = option(path=True)
    """The pipeline folder."""


@dataclass(kw_only=True)
class DescribeOptions(Options):
    """Add samples and scores to the model card of a pipeline folder; both are copied into it."""

    pipeline: str = option(path=True)
    """The pipeline folder."""
    samples: str | None = option(None, path=True)
    """Folder that generate.py wrote from the pipeline; null keeps the samples in the card."""
    scores: str | None = option(None, path=True)
    """Folder that score.py wrote about the pipeline's images; null keeps the scores in the card."""
    license: str | None = None
    """License of the weights as spelled on the hub, such as apache-2.0; null keeps the card's."""


@dataclass(kw_only=True)
class ImageFolderOptions(ComputeOptions):
    """The folder of images that a generator fills."""

    output_dir: str = option(path=True)
    """Folder for the PNG files, labels.csv, generation.json, about.json and grid.png."""
    num_images: int = option(16, at_least=1)
    """Number of images."""
    labels: list[str] = option(factory=list)
    """Class numbers or names, used in turn; -1: any class. Empty: all with training images."""
    batch_size: int = option(64, at_least=1)
    """Images computed at a time."""
    seed: int = option(0, at_least=0)
    """Seed; each image depends on it, its number and its label, not on batch size or processes."""


@dataclass(kw_only=True)
class GenerateOptions(SamplerOptions, ImageFolderOptions):
    """Generate images into a folder; repeating the command continues where it stopped."""

    pipeline: str = option(path=True)
    """Folder or hub id of a pipeline."""
    prompts: list[str] = option(factory=list)
    """What the images show, used in turn; for a prior whose condition is text."""
    prompts_file: str | None = option(None, path=True)
    """Text file with a prompt on each line, instead of `prompts`."""
    random_codes: bool = False
    """Decode uniformly random codes instead of the prior's: the floor any prior must beat."""

    def __post_init__(self) -> None:
        """Check that prompts come from one place, and belong to a prior."""
        super().__post_init__()
        if self.prompts and self.prompts_file is not None:
            raise ValueError("give either --prompts or --prompts_file")
        if self.random_codes and (self.prompts or self.prompts_file is not None):
            raise ValueError("--random_codes belong to no prompt; leave one of the two out")


@dataclass(kw_only=True)
class AppOptions(Options):
    """Serve a page to generate, reconstruct and edit images with a pipeline."""

    pipeline: str = option(path=True)
    """Folder or hub id of a pipeline."""
    second: str | None = option(None, path=True)
    """Folder or hub id of another pipeline, to compare its images with."""
    images: list[str] = option(factory=list)
    """Images to compare with, as NAME=FOLDER or NAME=DATASET[SPLIT]; `real` names real ones."""
    host: str = "127.0.0.1"
    """Address to listen at; 0.0.0.0 lets other machines of the network in."""
    port: int | None = option(None, at_least=1)
    """Port to listen at; null: the first free one from 7860."""
    share: bool = False
    """Also give the page a public address, through a server of Gradio, for a week."""


@dataclass(kw_only=True)
class LatentOptions(ImageOptions, SamplerOptions, ComputeOptions):
    """Reconstruct, interpolate, edit, traverse, combine or complete images in latent space."""

    used_by: ClassVar[str] = "operation"

    operation: Literal[
        "reconstruct", "interpolate", "attribute", "traverse", "arithmetic", "complete"
    ]
    """What to do; options below that start with operations apply to these only."""
    output_dir: str = option(may_change=True, path=True)
    """Folder for grid.png, the single images and latents.json."""
    pipeline: str | None = option(None, may_change=True, path=True)
    """Folder or hub id of a pipeline; this or `autoencoder`."""
    autoencoder: str | None = option(None, may_change=True, path=True)
    """Folder or hub id of an autoencoder; enough for all operations but completing from codes."""
    split: str = "train"
    """Split with the images."""
    images: list[int] = option(factory=list, at_least=0)
    """Row numbers of the images; empty uses the first ones."""
    num_images: int | None = option(None, at_least=1)
    """Number of first images; null uses all of them to reconstruct, a few otherwise."""
    steps: int | None = option(None, only_for=["interpolate", "traverse", "complete"])
    """interpolate, traverse: images per row, 9 by default; complete: rounds of a masked prior."""
    method: Literal["linear", "spherical"] = option("linear", only_for=["interpolate"])
    """interpolate: straight from each image to the next, or along the arc."""
    attribute: str | None = option(None, only_for=["attribute"])
    """attribute: number or name of the class with the attribute."""
    against: str | None = option(None, only_for=["attribute"])
    """attribute: number or name of the class without the attribute; null uses all other classes."""
    direction: Literal["mean", "probe"] = option("mean", only_for=["attribute"])
    """attribute: difference of the two class means, or weights of a linear classifier."""
    strength: list[float] = option(
        factory=lambda: [-2.0, -1.0, 0.0, 1.0, 2.0], only_for=["attribute"]
    )
    """attribute: multiples of the direction; 1 leads from the mean without to the mean with it."""
    dimensions: list[int] = option(factory=list, at_least=0, only_for=["traverse"])
    """traverse: channels, counted through the levels; empty uses the eight that vary most."""
    span: float = option(3.0, above=0, only_for=["traverse"])
    """traverse: largest change either way, in standard deviations of the channel."""
    fit_split: str = option("train", only_for=["attribute", "traverse", "arithmetic"])
    """attribute, traverse, arithmetic with labels: split for directions and statistics."""
    labels: list[str] = option(factory=list, only_for=["arithmetic", "complete"])
    """arithmetic: three classes whose means replace images; complete: one or one per image."""
    prompt: str | None = option(None, only_for=["complete"])
    """complete: what the images show, for a prior whose condition is text."""
    mask: list[str] = option(factory=lambda: ["bottom"], only_for=["complete"])
    """complete: hidden part, `left right top bottom center`, or left, top, right, bottom pixel."""
    paste: bool = option(True, only_for=["complete"])
    """complete: paste the visible pixels over the decoded image."""
    batch_size: int = option(64, at_least=1, may_change=True)
    """Images computed at a time."""
    seed: int = option(0, only_for=["complete"])
    """complete: seed of the sampled codes, which depend on it and on the image's row."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if (self.pipeline is None) == (self.autoencoder is None):
            raise ValueError("give either --pipeline or --autoencoder")
        sampler = [name for name in self.settings() if name != "steps"]
        if self.operation != "complete" and sampler:
            raise ValueError(
                f"--{sampler[0]} is for --operation complete, not for {self.operation}"
            )
        self._check_images()
        if self.operation == "attribute" and self.attribute is None:
            raise ValueError("--operation attribute needs --attribute, the class that has it")
        if not self.strength:
            raise ValueError("--strength is empty: give at least one number")
        if self.operation != "complete" and self.steps is not None and self.steps < 2:
            raise ValueError(f"--steps must be at least 2, not {self.steps}")
        self.mask_box(_ANY_SIZE)

    def mask_box(self, size: int) -> tuple[int, int, int, int]:
        """Left, top, right and bottom edge of the hidden part of an image of size x size pixels.

        Raises:
            ValueError: `mask` names no part, or one that is empty or extends beyond the image.
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
                f"--mask {' '.join(map(str, self.mask))}: expected one of {', '.join(boxes)}, "
                "or four pixel numbers: left, top, right, bottom"
            )
        left, top, right, bottom = (int(word) for word in self.mask)
        if left < right <= size and top < bottom <= size:
            return left, top, right, bottom
        extent = "" if size == _ANY_SIZE else f" of {size} x {size} pixels"
        raise ValueError(
            f"--mask {left} {top} {right} {bottom}: expected left < right and top < bottom "
            f"within the image{extent}"
        )

    def _check_images(self) -> None:
        """Check the rows, and that there are as many as the operation needs."""
        if self.images and self.num_images is not None:
            raise ValueError("--num_images has no effect if --images names the rows")
        if twice := [row for row in self.images if self.images.count(row) > 1]:
            raise ValueError(f"--images: row {twice[0]} is given twice")
        count = len(self.images) or self.num_images
        if self.operation == "arithmetic" and self.labels:
            if count is not None:
                raise ValueError("--labels uses the means of classes instead of --images")
            if len(self.labels) != 3:
                raise ValueError(f"--labels: a - b + c needs three classes, not {len(self.labels)}")
        elif self.operation == "arithmetic" and count not in (None, 3):
            raise ValueError(f"--operation arithmetic: a - b + c needs three images, not {count}")
        if self.operation == "interpolate" and count == 1:
            raise ValueError("--operation interpolate needs at least two images, not 1")


_ANY_SIZE = 2**31
