"""Work on the latents of images: reconstruct, interpolate, change attributes, traverse, calculate, complete.

python pipelines/latents.py --pipeline runs/mnist/pipeline --operation interpolate --images 3 8 15 --output_dir runs/mnist/between
accelerate launch pipelines/latents.py --pipeline runs/mnist/pipeline --operation reconstruct --split test --output_dir runs/mnist/reconstructions
"""

from __future__ import annotations

from latent_prior.cli import answer_early, dump_config, parse_config, run
from latent_prior.pipelines.options import LatentOptions

answer_early(__name__, LatentOptions)

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from accelerate import Accelerator
from torch import Tensor
from tqdm import tqdm

from latent_prior.data.codes import fit_images
from latent_prior.data.image_files import decode_image
from latent_prior.data.images import ImageSet, grid, open_images, save_png, to_uint8
from latent_prior.files import check_output_dir, whole_folder, write_json
from latent_prior.pipelines.arguments import given_settings
from latent_prior.pipelines.pipeline import Pipeline
from latent_prior.pipelines.results import write_labels
from latent_prior.pipelines.sheets import MAKERS, Sheet, read, row_names
from latent_prior.processes import share, start_processes
from latent_prior.stage1_autoencoders import load_autoencoder

SETTINGS_FILE = "latents.json"
GRID_IMAGES, GRID_COLUMNS = 50, 10
# What changes no picture; fingerprints stand for the folders.
HARMLESS = {"output_dir", "pipeline", "autoencoder", "batch_size", "cpu_threads", "cache_mb"}


def main(argv: Sequence[str] | None = None) -> None:
    """Entry point.

    Raises:
        ValueError: options, images, the pipeline or the output folder are at fault.
    """
    options = parse_config(LatentOptions, argv)
    accelerator = start_processes(cpu_threads=options.cpu_threads, seed=options.seed)
    pipe = open_pipeline(options).to(accelerator.device)
    options = fit_images(options, pipe.code_spec)
    options.mask_box(pipe.code_spec.image_size)  # may reach out of images of this size
    images = open_images(options, options.split)
    places = choose_places(images, options)
    settings = resolved_settings(pipe, options)
    folder = Path(options.output_dir)
    main_process = accelerator.is_main_process
    stored = check_output_dir(folder, SETTINGS_FILE, settings, "images") if main_process else None
    if options.operation == "reconstruct":
        reconstruct(pipe, images, places, options, settings, accelerator)
    elif main_process and stored is None:
        sheet = MAKERS[options.operation](pipe, images, places, options)
        write_sheet(folder, sheet, settings)
    accelerator.wait_for_everyone()
    if accelerator.is_main_process:
        print(f"images: {folder}, looked at together: {folder / 'grid.png'}")


def open_pipeline(options: LatentOptions) -> Pipeline:
    """The pipeline, or one made of an autoencoder alone.

    Raises:
        ValueError: a missing or damaged folder.
    """
    if options.pipeline is not None:
        return Pipeline.from_pretrained(options.pipeline)
    assert options.autoencoder is not None
    return Pipeline(load_autoencoder(options.autoencoder))


def choose_places(images: ImageSet, options: LatentOptions) -> list[int]:
    """Where the images to work on stand among those that can be read.

    Raises:
        ValueError: the split has not got them.
    """
    if options.images:
        place_of = {row: place for place, row in enumerate(images.source_index.tolist())}
        for row in options.images:
            if row not in place_of:
                raise ValueError(
                    f"--images: split {options.split!r} of {options.dataset} has no readable row {row}, "
                    f"its last is {images.source_index[-1]}"
                )
        return [place_of[row] for row in options.images]
    few = {"interpolate": 5, "attribute": 8, "traverse": 1, "arithmetic": 3, "complete": 8}
    needed = {"interpolate": 2, "arithmetic": 3}.get(options.operation, 1)
    least = needed if options.num_images is None else options.num_images
    if least > len(images):
        raise ValueError(
            f"split {options.split!r} of {options.dataset} holds {len(images)} images, not {least}"
        )
    wanted = options.num_images or few.get(options.operation, len(images))
    return list(range(min(wanted, len(images))))


def resolved_settings(pipe: Pipeline, options: LatentOptions) -> dict[str, Any]:
    """Everything a picture depends on, for latents.json.

    Raises:
        ValueError: nothing to complete from, or a sampler setting out of its range or without effect.
    """
    settings = {k: v for k, v in dump_config(options).items() if k not in HARMLESS}
    settings["autoencoder_fingerprint"] = pipe.autoencoder.fingerprint
    if options.operation != "complete":
        return settings
    given = {k: v for k, v in given_settings(options).items() if v is not None}
    if pipe.code_spec.kind == "latents":
        named = ["labels"] * bool(options.labels) + list(given)
        if named:
            raise ValueError(
                f"--{named[0]} is for a prior over codes; latents are completed without one"
            )
        return settings
    if pipe.prior is None:
        raise ValueError(
            "--operation complete draws the hidden codes from a prior: give a --pipeline that was assembled with one"
        )
    sampler = pipe.resolve(given, "--").to_dict()
    return settings | sampler | {"prior_fingerprint": pipe.prior.fingerprint}


def reconstruct(
    pipe: Pipeline,
    images: ImageSet,
    places: list[int],
    options: LatentOptions,
    settings: dict[str, Any],
    accelerator: Accelerator,
) -> None:
    """One file per image, its name the image's row; repeating the command goes on where it stopped."""
    folder, main_process = Path(options.output_dir), accelerator.is_main_process
    if main_process:
        write_json(folder / SETTINGS_FILE, settings)
    accelerator.wait_for_everyone()
    batches = share(len(places), options.batch_size, accelerator)
    for part in tqdm(batches, desc="reconstructing", unit="batch", disable=not main_process):
        batch = places[part.start : part.stop]
        paths = [folder / f"{name}.png" for name in row_names(images, batch)]
        if not all(path.exists() for path in paths):
            pictures = to_uint8(pipe.reconstruct(read(images, batch))).cpu()
            for path, picture in zip(paths, pictures, strict=True):
                save_png(picture, path)
    accelerator.wait_for_everyone()
    if main_process:
        names = [f"{name}.png" for name in row_names(images, places)]
        numbers = [-1] * len(names) if images.labels is None else images.labels[places].tolist()
        write_labels(folder / "labels.csv", names, numbers, images.class_names)
        save_png(original_and_reconstruction(images, places[:GRID_IMAGES], folder), folder / "grid.png")  # fmt: skip


def original_and_reconstruction(images: ImageSet, places: list[int], folder: Path) -> Tensor:
    """Rows of originals, each with the row of their reconstructions below."""
    columns, parts = min(GRID_COLUMNS, len(places)), []
    for start in range(0, len(places), columns):
        some = places[start : start + columns]
        files = [folder / f"{name}.png" for name in row_names(images, some)]
        arrays = [decode_image(file.read_bytes(), images.channels).copy() for file in files]
        given_back = torch.stack([torch.from_numpy(array).permute(2, 0, 1) for array in arrays])
        for row in (to_uint8(read(images, some)), given_back):
            parts.append(F.pad(row, (0, 0, 0, 0, 0, 0, 0, columns - len(row)), value=128))
    return grid(torch.cat(parts), columns)


def write_sheet(folder: Path, sheet: Sheet, settings: dict[str, Any]) -> None:
    """Every picture as ROW_COLUMN.png, all of them in grid.png, and latents.json."""
    with whole_folder(folder) as temporary:
        for row, pictures in zip(sheet.rows, sheet.pictures, strict=True):
            for column, picture in zip(sheet.columns, pictures, strict=True):
                save_png(picture, temporary / f"{row}_{column}.png")
        save_png(grid(sheet.pictures.flatten(0, 1), len(sheet.columns)), temporary / "grid.png")
        described = settings | {"rows": sheet.rows, "columns": sheet.columns}
        write_json(temporary / SETTINGS_FILE, described)


if __name__ == "__main__":
    run(main)
