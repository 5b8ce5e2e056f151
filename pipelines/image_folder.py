"""Folders of generated images: numbered files, labels, a grid, settings and cost.

Each image has random numbers of its own, so it depends only on seed, number, label and settings.
Repeating a command generates what is missing or damaged, and several processes share the work.
"""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor

from latent_prior.cli import command_line
from latent_prior.data.image_files import FILE_LIMIT, read_image
from latent_prior.data.images import grid, save_png, to_uint8
from latent_prior.data.labels import classes_in_turn, label_number, write_labels, write_prompts
from latent_prior.data.listing import (
    ABOUT_FILE,
    GENERATION_FILE,
    GRID_FILE,
    LABELS_FILE,
    PROMPTS_FILE,
)
from latent_prior.files import clear_temporary, read_regular
from latent_prior.manifests import MANIFEST, FileRecord, digest, read_manifest, write_manifest
from latent_prior.models import StrictModel
from latent_prior.pipelines.pipeline import Pipeline
from latent_prior.processes import share
from latent_prior.progress import Progress
from latent_prior.records import check_output_dir, read_record, write_record
from latent_prior.seeds import generator

GRID_IMAGES, GRID_COLUMNS = 100, 10
_log = logging.getLogger("latent_prior")


@dataclass(frozen=True)
class GeneratedImages:
    """A folder of generated images, which may be given wherever a folder of images may.

    Attributes:
        folder: of the images; `labels.csv` and others stand beside them.
        paths: of the images, in order.
        labels: class of each image, -1 for none.
        class_names: names of the classes.
    """

    folder: Path
    paths: list[Path]
    labels: list[int]
    class_names: tuple[str, ...]

    def __fspath__(self) -> str:
        return str(self.folder)

    @property
    def grid(self) -> Path:
        """The first images in one picture."""
        return self.folder / GRID_FILE


def fill_folder(
    folder: Path,
    settings: dict[str, Any],
    sample: Callable[[range], Tensor],
    labels: Sequence[int],
    *,
    class_names: Sequence[str],
    models: Sequence[StrictModel],
    batch_size: int,
    accelerator: Accelerator,
    prompts: Sequence[str | None] = (),
) -> GeneratedImages:
    """Generate the missing images of a folder; all processes call it.

    Args:
        folder: new, empty, or with images of the same settings.
        settings: what an image depends on besides its number and label, for `generation.json`.
        sample: numbers of images -> these images, uint8 (B, C, H, W) on the CPU.
        labels: class of each image, -1 for none; as many as images.
        class_names: names of the classes.
        models: all models that `sample` uses, for `about.json`.
        batch_size: images generated at a time.
        accelerator: the processes.
        prompts: what each image was asked to show, for `prompts.csv`; empty without prompts.

    Raises:
        ValueError: the folder holds something else, or more images.
    """
    main_process = accelerator.is_main_process
    if main_process:
        stored = check_output_dir(folder, GENERATION_FILE, settings, "images")
        if stored is not None and image_path(folder, len(labels)).exists():
            raise ValueError(
                f"--output_dir {folder} holds more than --num_images {len(labels)} images: "
                "choose another folder"
            )
        write_record(folder / GENERATION_FILE, settings, sealed=True)
    names = [image_path(folder, number).name for number in range(len(labels))]
    seconds, count = make_missing(
        folder, names, sample, kind="images", batch_size=batch_size, accelerator=accelerator
    )
    if main_process:
        write_labels(folder / LABELS_FILE, names, labels, class_names)
        if prompts:
            write_prompts(folder / PROMPTS_FILE, names, prompts)
        first = read_images([folder / name for name in names[:GRID_IMAGES]])
        save_png(grid(first, GRID_COLUMNS), folder / GRID_FILE)
        if count or not _is_record(folder / ABOUT_FILE):
            seconds_per_image = seconds / count if count == len(labels) else None
            about = cost(models, seconds_per_image) | {"command": command_line()}
            write_record(folder / ABOUT_FILE, about, sealed=True)
        _log.info("images: %s, overview: %s", folder, folder / GRID_FILE)
    accelerator.wait_for_everyone()
    paths = [folder / name for name in names]
    return GeneratedImages(folder, paths, list(labels), tuple(class_names))


def make_missing(
    folder: Path,
    names: Sequence[str],
    make: Callable[[range], Tensor],
    *,
    kind: str,
    batch_size: int,
    accelerator: Accelerator,
) -> tuple[float, int]:
    """Make the images of a folder that are missing or damaged, and record all of them.

    All processes call it. An image of a finished call is damaged if its digest is not that of the
    folder's manifest, one of a stopped call if it cannot be decoded.

    Args:
        folder: of the images.
        names: of all images.
        make: numbers of images -> these images, uint8 (B, C, H, W) on the CPU.
        kind: of the folder, for its manifest.
        batch_size: images made at a time.
        accelerator: the processes.

    Returns:
        The seconds that `make` took, and how many images were made, in all processes together.
    """
    main_process = accelerator.is_main_process
    if main_process:
        clear_temporary(folder)
    accelerator.wait_for_everyone()
    records = _recorded_images(folder, kind)
    seconds, count = 0.0, 0
    batches = share(len(names), batch_size, accelerator)
    with Progress(
        "generating", len(names), shown=main_process, processes=accelerator.num_processes
    ) as line:
        for numbers in batches:
            missing = [
                n for n in numbers if not _is_sound(folder / names[n], records.get(names[n]))
            ]
            if not missing:
                line.skip(len(numbers))
                continue
            started = time.perf_counter()
            images = make(numbers)
            seconds, count = seconds + time.perf_counter() - started, count + len(missing)
            for number in missing:
                save_png(images[number - numbers.start], folder / names[number])
            line.advance(len(numbers))
    sums = accelerator.reduce(torch.tensor([seconds, count], device=accelerator.device), "sum")
    accelerator.wait_for_everyone()
    seconds, count = sums.tolist()
    if main_process and (count or set(names) != set(records)):
        write_manifest(folder, kind, names)
    return seconds, int(count)


def _recorded_images(folder: Path, kind: str) -> dict[str, FileRecord]:
    """Sizes and digests of the images of a finished call; empty if they are not known."""
    try:
        manifest = read_manifest(folder, kind) if (folder / MANIFEST).exists() else None
    except ValueError as error:
        _log.warning("%s: images are checked without it, and it is written again", error)
        return {}
    return {} if manifest is None else manifest.files


def _is_sound(path: Path, record: FileRecord | None) -> bool:
    """Whether an image is there, and is what was recorded or can at least be decoded."""
    if not os.path.lexists(path):
        return False
    try:
        if record is not None:
            if path.stat().st_size == record.size and digest(path) == record.xxh3:
                return True
        elif read_images([path]).numel():
            return True
    except (OSError, ValueError):
        pass
    _log.warning("%s is damaged or was exchanged; it is made again", path)
    return False


def _is_record(path: Path) -> bool:
    """Whether a file of an earlier call can be read."""
    try:
        return bool(read_record(path, dict[str, Any], "it is written anew"))
    except (OSError, ValueError):
        return False


def sample_images(
    pipe: Pipeline,
    numbers: range,
    labels: Sequence[int],
    settings: Mapping[str, Any],
    seed: int,
    prompts: Sequence[str | None] = (),
) -> Tensor:
    """Generate the images with these numbers, uint8 (B, C, H, W).

    Labels and prompts, if any, are those of the whole folder, settings those of the sampler that
    have an effect.
    """
    output = pipe(
        len(numbers),
        prompt=[prompts[number] for number in numbers] if prompts else None,
        labels=[labels[number] for number in numbers],
        generator=[generator(seed, "image", number) for number in numbers],
        batch_size=len(numbers),
        output_type="pt",
        **settings,
    )
    assert isinstance(output.images, Tensor)
    return to_uint8(output.images)


def generation_settings(pipe: Pipeline, settings: Mapping[str, Any], seed: int) -> dict[str, Any]:
    """What an image of `sample_images` depends on besides its number and label; null: no effect."""
    return {
        "random_codes": False,
        "autoencoder_fingerprint": pipe.autoencoder.fingerprint,
        "prior_fingerprint": None if pipe.prior is None else pipe.prior.fingerprint,
        **{name: settings.get(name) for name in pipe.sampler.to_dict()},
        "labels": [],
        "seed": seed,
    }


def chosen_classes(
    chosen: Sequence[str], class_names: Sequence[str], trained: Sequence[int] | None, count: int
) -> list[int]:
    """The class of each image: the chosen ones in turn, or all trained ones; -1 without classes.

    `trained` lists the classes that have training images; None stands for all.

    Raises:
        ValueError: there is no such class.
    """
    numbers = [label_number(label, class_names) for label in chosen]
    if not numbers:
        return classes_in_turn(count, len(class_names), trained)
    return [numbers[index % len(numbers)] for index in range(count)]


def cost(models: Sequence[StrictModel], seconds_per_image: float | None) -> dict[str, Any]:
    """What the images cost, for tables that compare generators.

    Returns:
        `parameters` of all models; `seconds_per_image` in one process, None if images of an
        earlier call were kept; `training`, summed over the models, None if one has no record.
    """
    budgets = [budget for model in models if (budget := model.config.training) is not None]
    training = {
        "images_seen": sum(budget["images_seen"] for budget in budgets),
        "seconds": round(sum(budget["seconds"] for budget in budgets), 3),
        "cpu_seconds": round(sum(budget["cpu_seconds"] for budget in budgets), 3),
        "device": ", ".join(dict.fromkeys(budget["device"] for budget in budgets)),
    }
    return {
        "parameters": sum(model.num_parameters() for model in models),
        "seconds_per_image": seconds_per_image,
        "training": training if len(budgets) == len(models) else None,
    }


def image_path(folder: Path, number: int) -> Path:
    """Path of an image file."""
    return folder / f"{number:06d}.png"


def read_images(paths: Sequence[Path]) -> Tensor:
    """Image files of one size and mode, as uint8 (N, C, H, W).

    Raises:
        ValueError: an image cannot be read, or differs from the first in size or channels.
    """
    images = []
    for path in paths:
        try:
            array = read_image(read_regular(path, FILE_LIMIT), None, None)
        except ValueError as error:
            raise ValueError(
                f"{path} cannot be read as an image ({error}); delete it and repeat the command"
            ) from error
        images.append(torch.from_numpy(array.copy()).permute(2, 0, 1))
        if images[-1].shape != images[0].shape:
            raise ValueError(
                f"{path} has shape {tuple(images[-1].shape)}, {paths[0]} {tuple(images[0].shape)}: "
                "delete the wrong one and repeat the command"
            )
    return torch.stack(images)
