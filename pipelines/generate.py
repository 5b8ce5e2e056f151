"""Generate images into a folder.

accelerate launch pipelines/generate.py --pipeline runs/mnist/pipeline --num_images 1000 --output_dir runs/mnist/samples
"""

from __future__ import annotations

from common.cli import dump_config, parse_config, run
from pipelines.options import GenerateOptions

if __name__ == "__main__":
    parse_config(GenerateOptions)  # --help and mistakes are answered before torch is imported

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor
from tqdm import tqdm

from common.checkpoint import whole_file
from common.images import grid, save_png, to_uint8
from common.processes import start_processes
from common.seeds import generator
from pipelines.arguments import given_settings, label_number
from pipelines.pipeline import Pipeline
from pipelines.results import holds_these, write_labels

SETTINGS_FILE = "generation.json"
GRID_IMAGES, GRID_COLUMNS = 100, 10


def main(argv: Sequence[str] | None = None) -> None:
    """Entry point.

    Raises:
        ValueError: options, the pipeline or the output folder are at fault.
    """
    options = parse_config(GenerateOptions, argv)
    accelerator = start_processes(cpu_threads=options.cpu_threads, seed=options.seed)
    pipe = Pipeline.from_pretrained(options.pipeline).to(accelerator.device)
    labels = choose_labels(pipe, options)
    settings = resolved_settings(pipe, options)
    folder = Path(options.output_dir)
    if accelerator.is_main_process:
        check_folder(folder, settings, options.num_images)
        with whole_file(folder / SETTINGS_FILE) as path:
            path.write_text(json.dumps(settings, indent=2) + "\n")
    accelerator.wait_for_everyone()

    # The cut into batches does not depend on the number of processes, so neither does any image.
    batches = [range(first, min(first + options.batch_size, options.num_images))
               for first in range(0, options.num_images, options.batch_size)]  # fmt: skip
    mine = batches[accelerator.process_index :: accelerator.num_processes]
    for numbers in tqdm(
        mine, desc="generating", unit="batch", disable=not accelerator.is_main_process
    ):
        if not all(image_path(folder, number).exists() for number in numbers):
            images = draw(pipe, numbers, [labels[number] for number in numbers], options, settings)
            for number, image in zip(numbers, images, strict=True):
                save_png(image, image_path(folder, number))
    accelerator.wait_for_everyone()

    if accelerator.is_main_process:
        names = [image_path(folder, number).name for number in range(options.num_images)]
        write_labels(folder / "labels.csv", names, labels, pipe.class_names)
        save_png(first_images(folder, options.num_images), folder / "grid.png")
        print(f"images: {folder}, looked at together: {folder / 'grid.png'}")
    accelerator.wait_for_everyone()


def choose_labels(pipe: Pipeline, options: GenerateOptions) -> list[int]:
    """The class of every image: those asked for in turn, or all classes in turn.

    Raises:
        ValueError: there is no such class.
    """
    if options.labels and not options.random_codes:
        asked = [label_number(label, pipe.class_names) for label in options.labels]
        return [asked[number % len(asked)] for number in range(options.num_images)]
    return pipe.label_numbers(-1 if options.random_codes else None, options.num_images)


def resolved_settings(pipe: Pipeline, options: GenerateOptions) -> dict[str, Any]:
    """Everything an image depends on, for generation.json.

    Raises:
        ValueError: a sampler setting out of its range or without effect, or nothing to sample from.
    """
    latents = pipe.code_spec.kind == "latents"
    if options.random_codes and latents:
        raise ValueError(
            f"--random_codes: --pipeline {options.pipeline} has latents; without a prior they are drawn from N(0, I)"
        )
    if pipe.prior is None and not options.random_codes and not latents:
        raise ValueError(
            f"--pipeline {options.pipeline} has no prior; assemble one with --prior, or use --random_codes"
        )
    sampler = pipe.resolve(given_settings(options), "--").to_dict()
    effective = () if options.random_codes else pipe.settings
    return {
        "random_codes": options.random_codes,
        "autoencoder_fingerprint": pipe.autoencoder.fingerprint,
        "prior_fingerprint": None
        if options.random_codes or pipe.prior is None
        else pipe.prior.fingerprint,
        **{name: value if name in effective else None for name, value in sampler.items()},
        "labels": dump_config(options)["labels"],
        "seed": options.seed,
    }


def check_folder(folder: Path, settings: dict[str, Any], num_images: int) -> None:
    """Images of other settings, or more of them than asked for, must not be mixed with these.

    Raises:
        ValueError: the folder holds something else.
    """
    if holds_these(folder, SETTINGS_FILE, settings) and image_path(folder, num_images).exists():
        raise ValueError(
            f"--output_dir {folder} holds more than --num_images {num_images} images: choose another folder"
        )


def draw(
    pipe: Pipeline,
    numbers: range,
    labels: list[int],
    options: GenerateOptions,
    settings: dict[str, Any],
) -> Tensor:
    """The images with these numbers, uint8 (B, C, H, W); every image has its own random numbers."""
    generators = [generator(options.seed, "image", number) for number in numbers]
    if options.random_codes:
        return to_uint8(pipe.decode(pipe.random_codes(len(numbers), generators)).cpu())
    sampler = {name: settings[name] for name in pipe.settings}
    output = pipe(
        len(numbers),
        labels=labels,
        **sampler,
        generator=generators,
        batch_size=len(numbers),
        output_type="pt",
    )
    assert isinstance(output.images, Tensor)
    return to_uint8(output.images)


def image_path(folder: Path, number: int) -> Path:
    """Where an image lies."""
    return folder / f"{number:06d}.png"


def first_images(folder: Path, num_images: int) -> Tensor:
    """The first images in one picture."""
    pictures = []
    for number in range(min(num_images, GRID_IMAGES)):
        with Image.open(image_path(folder, number)) as image:
            pixels = torch.frombuffer(bytearray(image.tobytes()), dtype=torch.uint8)
            pictures.append(pixels.reshape(image.height, image.width, -1).permute(2, 0, 1))
    return grid(torch.stack(pictures), GRID_COLUMNS)


if __name__ == "__main__":
    run(main)
