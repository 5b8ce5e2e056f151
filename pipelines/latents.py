r"""Reconstruct, interpolate and edit images in latent space.

Further operations traverse the space, add and subtract images, or complete them.

python pipelines/latents.py --pipeline runs/mnist/pipeline --operation interpolate \
    --images 3 8 15 --output_dir runs/mnist/between
accelerate launch pipelines/latents.py --pipeline runs/mnist/pipeline \
    --operation reconstruct --split validation --output_dir runs/mnist/reconstructions
"""

from __future__ import annotations

from latent_prior.cli import answer_early, dump_config, parse_config, run
from latent_prior.pipelines.options import LatentOptions

answer_early(__name__, LatentOptions)

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from accelerate import Accelerator
from torch import Tensor

from latent_prior.calls import takes_options
from latent_prior.data.codes import fit_images
from latent_prior.data.found import tell_found
from latent_prior.data.images import (
    ImageSet,
    grid,
    open_images,
    save_png,
    to_uint8,
)
from latent_prior.data.labels import write_labels
from latent_prior.data.listing import GRID_FILE, LABELS_FILE, LATENTS_FILE
from latent_prior.data.sources import open_source
from latent_prior.folders import check_replaceable, whole_folder
from latent_prior.machine import is_main_process
from latent_prior.manifests import check_finished
from latent_prior.options import changeable
from latent_prior.pipelines.image_folder import make_missing, read_images
from latent_prior.pipelines.pipeline import Pipeline
from latent_prior.pipelines.sheets import MAKERS, Sheet, read, row_names
from latent_prior.processes import start_processes
from latent_prior.records import check_output_dir, write_record
from latent_prior.stage1_autoencoders import load_autoencoder

GRID_IMAGES, GRID_COLUMNS = 50, 10


@dataclass(frozen=True)
class Pictures:
    """A folder of pictures, which may be given wherever a folder of images may."""

    folder: Path

    def __fspath__(self) -> str:
        return str(self.folder)

    @property
    def grid(self) -> Path:
        """All in one picture."""
        return self.folder / GRID_FILE


@takes_options(LatentOptions)
def latents(options: LatentOptions) -> Pictures:
    """Reconstruct, interpolate, traverse, edit or complete images into a folder.

    `Pipeline` has the same operations for images in memory.

    Raises:
        ValueError: the options, images, the pipeline or the output folder are wrong.
    """
    folder = Path(options.output_dir)
    if options.operation != "reconstruct":
        check_replaceable(folder, "pictures", "--output_dir ")
    check_output_dir(folder, LATENTS_FILE, {}, "images")
    accelerator = start_processes(cpu_threads=options.cpu_threads, seed=options.seed)
    pipe = open_pipeline(options).to(accelerator.device)
    options = fit_images(options, pipe.code_spec)
    options.mask_box(pipe.code_spec.image_size)  # checks it for this size
    tell_found(options)
    images = open_images(options, options.split)
    positions = choose_positions(images, options)
    settings = resolved_settings(pipe, images, options)
    main_process = accelerator.is_main_process
    stored = check_output_dir(folder, LATENTS_FILE, settings, "images") if main_process else None
    if options.operation == "reconstruct":
        reconstruct(pipe, images, positions, options, settings, accelerator)
    elif main_process and stored is not None:
        check_finished(folder, "pictures")
    elif main_process:
        sheet = MAKERS[options.operation](pipe, images, positions, options)
        write_sheet(folder, sheet, settings)
    accelerator.wait_for_everyone()
    return Pictures(folder)


def open_pipeline(options: LatentOptions) -> Pipeline:
    """The pipeline, or one of an autoencoder alone."""
    if options.pipeline is not None:
        return Pipeline.from_pretrained(options.pipeline)
    assert options.autoencoder is not None
    return Pipeline(load_autoencoder(options.autoencoder))


def choose_positions(images: ImageSet, options: LatentOptions) -> list[int]:
    """Positions of the chosen images among the readable ones of the split."""
    if options.images:
        positions = np.searchsorted(images.source_index, options.images)
        for row, position in zip(options.images, positions.tolist(), strict=True):
            if position == len(images) or images.source_index[position] != row:
                raise ValueError(
                    f"--images: split {options.split!r} of {options.dataset} has no readable row {row}, "
                    f"its last is {images.source_index[-1]}"
                )
        found: list[int] = positions.tolist()
        return found
    defaults = {"interpolate": 5, "attribute": 8, "traverse": 1, "arithmetic": 3, "complete": 8}
    needed = options.num_images or {"interpolate": 2, "arithmetic": 3}.get(options.operation, 1)
    if needed > len(images):
        raise ValueError(
            f"split {options.split!r} of {options.dataset} holds {len(images)} images, not {needed}"
        )
    count = options.num_images or defaults.get(options.operation, len(images))
    return list(range(min(count, len(images))))


def resolved_settings(pipe: Pipeline, images: ImageSet, options: LatentOptions) -> dict[str, Any]:
    """What the images depend on, for latents.json; fingerprints stand for models and images."""
    unused = changeable(options)
    settings = {k: v for k, v in dump_config(options).items() if k not in unused}
    settings["autoencoder_fingerprint"] = pipe.autoencoder.fingerprint
    settings["images_fingerprint"] = images.fingerprint
    of_classes = options.operation == "arithmetic" and options.labels
    if options.operation in ("attribute", "traverse") or of_classes:
        settings["fit_fingerprint"] = open_source(options).table(options.fit_split).contents()
    if options.operation == "complete":
        sampler = pipe.resolve_completion(
            options.labels or None, options.settings(), "--", prompt=options.prompt
        )
        if sampler is not None and pipe.prior is not None:
            settings |= sampler.to_dict() | {"prior_fingerprint": pipe.prior.fingerprint}
    return settings


def reconstruct(
    pipe: Pipeline,
    images: ImageSet,
    positions: list[int],
    options: LatentOptions,
    settings: dict[str, Any],
    accelerator: Accelerator,
) -> None:
    """Write one file per image, named by its row; undamaged ones of an earlier call are kept."""
    folder, main_process = Path(options.output_dir), accelerator.is_main_process
    if main_process:
        write_record(folder / LATENTS_FILE, settings)
    names = [f"{name}.png" for name in row_names(images, positions)]

    def make(numbers: range) -> Tensor:
        pixels = read(images, positions[numbers.start : numbers.stop])
        return to_uint8(pipe.reconstruct(pixels)).cpu()

    make_missing(
        folder,
        names,
        make,
        kind="pictures",
        batch_size=options.batch_size,
        accelerator=accelerator,
    )
    if main_process:
        labels = images.labels_of(positions)
        numbers = [-1] * len(names) if labels is None else labels.tolist()
        write_labels(folder / LABELS_FILE, names, numbers, images.class_names)
        save_png(original_and_reconstruction(images, positions[:GRID_IMAGES], folder), folder / GRID_FILE)  # fmt: skip


def original_and_reconstruction(images: ImageSet, positions: list[int], folder: Path) -> Tensor:
    """A grid of originals, with the reconstructions below each row."""
    columns, parts = min(GRID_COLUMNS, len(positions)), []
    for start in range(0, len(positions), columns):
        some = positions[start : start + columns]
        files = [folder / f"{name}.png" for name in row_names(images, some)]
        for row in (to_uint8(read(images, some)), read_images(files)):
            parts.append(F.pad(row, (0, 0, 0, 0, 0, 0, 0, columns - len(row)), value=128))
    return grid(torch.cat(parts), columns)


def write_sheet(folder: Path, sheet: Sheet, settings: dict[str, Any]) -> None:
    """Write each image as ROW_COLUMN.png, all of them as grid.png, and latents.json."""
    with whole_folder(folder, "pictures") as temporary:
        for row, pictures in zip(sheet.rows, sheet.pictures, strict=True):
            for column, picture in zip(sheet.columns, pictures, strict=True):
                save_png(picture, temporary / f"{row}_{column}.png")
        save_png(grid(sheet.pictures.flatten(0, 1), len(sheet.columns)), temporary / GRID_FILE)
        content = settings | {"rows": sheet.rows, "columns": sheet.columns}
        write_record(temporary / LATENTS_FILE, content)


def main(argv: Sequence[str] | None = None) -> None:
    """Entry point."""
    made = latents(options=parse_config(LatentOptions, argv))
    if is_main_process():
        print(f"images: {made.folder}, overview: {made.grid}")


if __name__ == "__main__":
    run(main)
