"""Fill a folder with generated images, whatever generates them: numbered files, labels, a grid, and how they were made.

A command that is repeated goes on where it stopped, and several processes share the work. The cut into batches does not
depend on the number of processes, so neither does any image.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from PIL import Image
from torch import Tensor
from tqdm import tqdm

from latent_prior.cli import command_line
from latent_prior.data.images import grid, save_png
from latent_prior.files import check_output_dir, write_json
from latent_prior.models import StrictModel
from latent_prior.pipelines.arguments import label_number
from latent_prior.pipelines.results import write_labels
from latent_prior.processes import share

SETTINGS_FILE, ABOUT_FILE = "generation.json", "about.json"
GRID_IMAGES, GRID_COLUMNS = 100, 10


def fill_folder(
    folder: Path,
    settings: dict[str, Any],
    draw: Callable[[range], Tensor],
    labels: Sequence[int],
    *,
    class_names: Sequence[str],
    components: Sequence[StrictModel],
    batch_size: int,
    accelerator: Accelerator,
) -> None:
    """Draw the images that are not there yet; all processes call it.

    Args:
        folder: new, empty, or with images of the same settings.
        settings: everything an image depends on besides its number and label, written to `generation.json`.
        draw: the images with these numbers, uint8 (B, C, H, W) on the CPU.
        labels: the class of every image, -1 for none; there are as many images.
        class_names: names of the classes.
        components: all models that `draw` needs, for `about.json`.
        batch_size: images drawn at a time.
        accelerator: of the command.

    Raises:
        ValueError: the folder holds something else, or more images.
    """
    if accelerator.is_main_process:
        _check_folder(folder, settings, len(labels))
        write_json(folder / SETTINGS_FILE, settings)
    accelerator.wait_for_everyone()
    batches = share(len(labels), batch_size, accelerator)
    seconds, drawn = 0.0, 0
    for numbers in tqdm(
        batches, desc="generating", unit="batch", disable=not accelerator.is_main_process
    ):
        if all(image_path(folder, number).exists() for number in numbers):
            continue
        started = time.perf_counter()
        images = draw(numbers)
        seconds, drawn = seconds + time.perf_counter() - started, drawn + len(numbers)
        for number, image in zip(numbers, images, strict=True):
            save_png(image, image_path(folder, number))
    sums = accelerator.reduce(torch.tensor([seconds, drawn], device=accelerator.device), "sum")
    accelerator.wait_for_everyone()

    if accelerator.is_main_process:
        seconds, drawn = sums.tolist()
        names = [image_path(folder, number).name for number in range(len(labels))]
        write_labels(folder / "labels.csv", names, labels, class_names)
        save_png(_first_images(folder, len(labels)), folder / "grid.png")
        if drawn or not (folder / ABOUT_FILE).exists():
            each = seconds / drawn if drawn == len(labels) else None
            about = describe(components, each) | {"command": command_line()}
            write_json(folder / ABOUT_FILE, about)
        print(f"images: {folder}, looked at together: {folder / 'grid.png'}")
    accelerator.wait_for_everyone()


def classes_in_turn(asked: Sequence[str], class_names: Sequence[str], count: int) -> list[int]:
    """The class of every image: those asked for in turn, or all classes in turn; -1 where there are none.

    Raises:
        ValueError: there is no such class.
    """
    numbers = [label_number(label, class_names) for label in asked]
    numbers = numbers or list(range(len(class_names))) or [-1]
    return [numbers[place % len(numbers)] for place in range(count)]


def describe(components: Sequence[StrictModel], seconds_per_image: float | None) -> dict[str, Any]:
    """What the images have cost, for tables that compare generators.

    Returns:
        `parameters` of all components; `seconds_per_image` of one process, None where images of an earlier call were
        reused; `training`, the sum over the components, None where one does not say.
    """
    budgets = [component.config.training for component in components]
    known = [budget for budget in budgets if budget is not None]
    training = {
        "images_seen": sum(budget["images_seen"] for budget in known),
        "seconds": round(sum(budget["seconds"] for budget in known), 1),
        "cpu_seconds": round(sum(budget["cpu_seconds"] for budget in known), 1),
        "device": ", ".join(dict.fromkeys(budget["device"] for budget in known)),
    }
    return {
        "parameters": sum(component.num_parameters() for component in components),
        "seconds_per_image": seconds_per_image,
        "training": training if len(known) == len(budgets) else None,
    }


def image_path(folder: Path, number: int) -> Path:
    """Where an image lies."""
    return folder / f"{number:06d}.png"


def _check_folder(folder: Path, settings: dict[str, Any], num_images: int) -> None:
    """Images of other settings, or more of them than asked for, must not be mixed with these.

    Raises:
        ValueError: the folder holds something else.
    """
    stored = check_output_dir(folder, SETTINGS_FILE, settings, "images")
    if stored is not None and image_path(folder, num_images).exists():
        raise ValueError(
            f"--output_dir {folder} holds more than --num_images {num_images} images: choose another folder"
        )


def _first_images(folder: Path, num_images: int) -> Tensor:
    """The first images in one picture."""
    pictures = []
    for number in range(min(num_images, GRID_IMAGES)):
        with Image.open(image_path(folder, number)) as image:
            pixels = torch.frombuffer(bytearray(image.tobytes()), dtype=torch.uint8)
            pictures.append(pixels.reshape(image.height, image.width, -1).permute(2, 0, 1))
    return grid(torch.stack(pictures), GRID_COLUMNS)
