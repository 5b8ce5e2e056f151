r"""Encode a dataset's images as a dataset of codes or latents.

accelerate launch stage1_autoencoders/encode.py --autoencoder runs/mnist/vqvae/model \
    --dataset mnist5k --output_dir runs/mnist/codes
"""

from __future__ import annotations

from latent_prior.cli import answer_early, command_line, dump_config, parse_config, run
from latent_prior.stage1_autoencoders.options import EncodeOptions

answer_early(__name__, EncodeOptions)

import dataclasses
import glob
import logging
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from numpy.typing import NDArray
from torch import Tensor

from latent_prior.calls import takes_options
from latent_prior.closing import beside, preset_of, recorded_flags, say_next
from latent_prior.data.codes import CAPTIONS, CodeMaps, CodeSpec, fit_images
from latent_prior.data.codes_dataset import (
    AGAIN,
    codes_features,
    join_shards,
    measure_latents,
    open_codes,
    split_names,
    write_shard,
)
from latent_prior.data.found import tell_found
from latent_prior.data.images import ImageSet, crop_windows, open_images, random_offsets, to_float
from latent_prior.data.sources import open_source
from latent_prior.data.splits import split_named
from latent_prior.folders import check_replaceable, clear_leftover, remove, whole_folder
from latent_prior.machine import is_main_process
from latent_prior.manifests import (
    FileRecord,
    check_finished,
    digest,
    read_manifest,
    write_manifest,
)
from latent_prior.options import changeable
from latent_prior.processes import share, start_processes
from latent_prior.progress import Progress
from latent_prior.records import (
    check_output_dir,
    check_same_settings,
    read_record,
    write_record,
)
from latent_prior.seeds import generator
from latent_prior.stage1_autoencoders import load_autoencoder
from latent_prior.stage1_autoencoders.autoencoder import Autoencoder

SETTINGS_FILE = "encode.json"
IMAGES = "images_fingerprint"
OF_SPLITS = (IMAGES, CAPTIONS)
"""Settings that hold a fingerprint for each split."""
_log = logging.getLogger("latent_prior")


@dataclass(frozen=True)
class Codes:
    """A dataset of codes, which may be given wherever its folder may.

    Attributes:
        folder: of the dataset; `open_codes` reads it.
        splits: number of images of each split that was asked for.
    """

    folder: Path
    splits: dict[str, int]

    def __fspath__(self) -> str:
        return str(self.folder)


@takes_options(EncodeOptions)
def encode(options: EncodeOptions) -> Codes:
    """Encode a dataset's images, from the finished shards of a stopped call if there are any.

    Splits that the folder holds already are left as they are, others are added to it.

    Returns:
        The codes.

    Raises:
        ValueError: invalid options, images or autoencoder, or an output folder with other codes.
    """
    final = Path(options.output_dir)
    check_replaceable(final, "codes", "--output_dir ")
    check_output_dir(final, SETTINGS_FILE, {}, "codes")
    accelerator = start_processes(cpu_threads=options.cpu_threads, seed=options.seed)
    autoencoder = load_autoencoder(options.autoencoder).to(
        accelerator.device, memory_format=torch.channels_last
    )
    options = fit_options(options, autoencoder)
    tell_found(options)
    sets = {name: open_images(options, name) for name in choose_splits(options)}
    found = Codes(final, {name: len(images) for name, images in sets.items()})
    settings = settings_of(options, autoencoder, sets)
    there = check_settings(final, settings, options)
    missing = {name: images for name, images in sets.items() if name not in there}
    class_names = next((images.class_names for images in sets.values() if images.class_names), ())
    spec = dataclasses.replace(autoencoder.code_spec, class_names=class_names)
    shard_folder = final.with_name(f".{final.name}.shards")
    if not missing:
        if accelerator.is_main_process:
            check_codes(final)
            remove(shard_folder)
            clear_leftover(final)
            _log.info("codes: %s (already there)", final)
        accelerator.wait_for_everyone()
        return found
    if there:
        spec = fit_spec(final, spec, missing, options)
    if accelerator.is_main_process:
        start_or_continue(shard_folder, settings)
    accelerator.wait_for_everyone()
    try:
        write_shards(shard_folder, autoencoder, spec, missing, options, accelerator)
    except ValueError:
        if accelerator.is_main_process and not any(shard_folder.glob("*.arrow")):
            remove(shard_folder)
        raise
    accelerator.wait_for_everyone()
    if accelerator.is_main_process:
        join(final, shard_folder, spec, missing, settings, options)
        counts = ", ".join(f"{len(images)} {name}" for name, images in missing.items())
        captions = any(images.has_captions for images in missing.values())
        columns = list(codes_features(spec, captions=captions))
        _log.info("codes: %s (%s images, %s per row)", final, counts, columns)
    accelerator.wait_for_everyone()
    return found


def settings_of(
    options: EncodeOptions, autoencoder: Autoencoder, sets: Mapping[str, ImageSet]
) -> dict[str, Any]:
    """What the codes depend on, for `encode.json`."""
    captions = {n: s.captions_fingerprint for n, s in sets.items() if s.has_captions}
    return dump_config(options) | {
        "autoencoder_fingerprint": autoencoder.fingerprint,
        IMAGES: {name: images.fingerprint for name, images in sets.items()},
        CAPTIONS: captions or None,
    }


def check_settings(final: Path, settings: dict[str, Any], options: EncodeOptions) -> list[str]:
    """The splits that the output folder holds, with the same settings and of the same images.

    Raises:
        ValueError: they are of other settings, images or captions, or the folder is damaged.
    """
    own = {name: value for name, value in settings.items() if name not in OF_SPLITS}
    stored = check_output_dir(final, SETTINGS_FILE, own, "codes", may_change=changeable(options))
    if stored is None:
        return []
    try:
        there = split_names(final)
    except ValueError as error:
        raise ValueError(f"{error}; to make it anew, delete --output_dir {final} first") from error
    both = [name for name in settings[IMAGES] if name in there]

    def of_both(values: dict[str, Any]) -> dict[str, Any]:
        parts = {key: values[key] or {} for key in OF_SPLITS if key in values}
        return {key: {n: part[n] for n in both if n in part} or None for key, part in parts.items()}

    check_same_settings(
        of_both(stored),
        of_both(settings),
        f"--output_dir {final} holds codes",
        "choose another folder or delete this one",
    )
    return there


def check_codes(final: Path) -> None:
    """Compare finished codes with their manifest; those from before manifests with their spec.

    Raises:
        ValueError: they are damaged; the way out is to delete them and to repeat the command.
    """
    if check_finished(final, "codes") is None:
        for split in open_codes(final)[0].values():
            split.table.check()


def fit_spec(
    final: Path, spec: CodeSpec, missing: Collection[str], options: EncodeOptions
) -> CodeSpec:
    """The spec of a folder to which splits are added.

    Raises:
        ValueError: the classes differ, or its latents were measured without the training images.
    """
    stored = open_codes(final)[1]
    way_out = "encode all splits into another folder"
    if spec.class_names and spec.class_names != stored.class_names:
        raise ValueError(
            f"--output_dir {final} holds codes of images with other classes than those of "
            f"{', '.join(missing)}; {way_out}"
        )
    if spec.kind == "latents" and options.augmented_split in missing:
        raise ValueError(
            f"--output_dir {final} holds latents whose mean and deviation are not those of the "
            f"split {options.augmented_split}; {way_out}"
        )
    return stored


def write_shards(
    folder: Path,
    autoencoder: Autoencoder,
    spec: CodeSpec,
    sets: Mapping[str, ImageSet],
    options: EncodeOptions,
    accelerator: Accelerator,
) -> None:
    """Encode this process's shards, except those that an earlier call finished."""
    work = [
        (name, first, shard)
        for name, images in sets.items()
        for first, shard in plan_shards(name, len(images), options)
    ]
    with Progress(
        "encoding",
        sum(map(len, sets.values())),
        shown=accelerator.is_main_process,
        processes=accelerator.num_processes,
    ) as line:
        for (number,) in share(len(work), 1, accelerator):
            name, first, shard = work[number]
            if find_shard(folder, shard) is not None:
                line.skip(min(options.shard_images, len(sets[name]) - first))
                continue
            rows = encode_images(autoencoder, sets[name], name, first, options, line)
            temporary = folder / f".{shard}.partial.arrow"
            remove(temporary)
            try:
                write_shard(temporary, spec, rows)
                temporary.rename(folder / f"{shard}.{digest(temporary)}.arrow")
            finally:
                remove(temporary)


def join(
    final: Path,
    shard_folder: Path,
    spec: CodeSpec,
    sets: Mapping[str, ImageSet],
    settings: dict[str, Any],
    options: EncodeOptions,
) -> None:
    """Make one dataset of all shards and the splits that are there, and delete the shards."""
    files = {
        name: [
            next(shard_folder.glob(f"{glob.escape(shard)}.*.arrow"))
            for _, shard in plan_shards(name, len(images), options)
        ]
        for name, images in sets.items()
    }
    if spec.kind == "latents" and spec.latent_shift is None:  # of the prior's training images
        measured = (
            options.augmented_split if options.augmented_split in files else next(iter(files))
        )
        spec = measure_latents(files[measured], spec)
    recorded = settings | {"command": command_line()}
    with whole_folder(final, "codes", keep=True) as folder:
        known: dict[str, FileRecord] = {}
        names = None  # all files
        if (folder / SETTINGS_FILE).exists():
            stored = read_record(folder / SETTINGS_FILE, dict[str, Any], AGAIN)
            for key in OF_SPLITS:
                recorded[key] = {**(stored.get(key) or {}), **(settings[key] or {})} or None
            before = read_manifest(final, "codes")
            if before is not None:
                known = {n: record for n, record in before.files.items() if n.endswith(".arrow")}
                names = set(before.files)  # without what people put beside them
        known |= join_shards(folder, files, spec, recorded)
        write_record(folder / SETTINGS_FILE, recorded)
        if names is not None:
            names |= {f"{name}/{path.name}" for name in files for path in (folder / name).iterdir()}
        write_manifest(folder, "codes", names, known)
    remove(shard_folder)


def choose_splits(options: EncodeOptions) -> list[str]:
    """The splits to encode: by default all but test, which the final scores alone read.

    Raises:
        ValueError: there are no others.
    """
    if options.split is not None:
        return [options.split]
    names = open_source(options).split_names()
    chosen = [name for name in names if split_named(name) != "test"]
    if not chosen:
        raise ValueError(
            f"--dataset {options.dataset} has only the split {names[0]}, which is not encoded "
            f"unless it is asked for: --split {names[0]}"
        )
    return chosen


def fit_options(options: EncodeOptions, autoencoder: Autoencoder) -> EncodeOptions:
    """Take image size and channels from the autoencoder.

    Raises:
        ValueError: flags that contradict it, or posterior samples of a model with codes.
    """
    if options.posterior == "sample" and autoencoder.code_spec.kind == "codes":
        raise ValueError(
            f"--posterior sample: {options.autoencoder} writes codes and has no posterior; leave the flag out"
        )
    return fit_images(options, autoencoder.code_spec)


def start_or_continue(folder: Path, settings: dict[str, Any]) -> None:
    """Keep the shards of a stopped run with the same settings; delete any others."""
    path = folder / SETTINGS_FILE
    try:
        if (
            not folder.is_symlink()
            and read_record(path, dict[str, Any], "encode again") == settings
        ):
            return
    except ValueError:
        pass  # there are none, or they are of no use
    remove(folder)
    write_record(path, settings)


def plan_shards(split: str, count: int, options: EncodeOptions) -> list[tuple[int, str]]:
    """(first image, name) of every shard of a split, for any number of processes."""
    firsts = range(0, count, options.shard_images)
    return [(first, f"{split}-{number:06d}") for number, first in enumerate(firsts)]


def find_shard(folder: Path, shard: str) -> Path | None:
    """The file of a finished shard, which has its digest in its name; a damaged one is deleted."""
    for path in sorted(folder.glob(f"{glob.escape(shard)}.*.arrow")):
        try:
            if path.name == f"{shard}.{digest(path)}.arrow":
                return path
        except ValueError:
            pass
        _log.warning("%s is damaged; its images are encoded again", path)
        remove(path)
    return None


def encode_images(
    autoencoder: Autoencoder,
    images: ImageSet,
    split: str,
    first: int,
    options: EncodeOptions,
    line: Progress,
) -> dict[str, Any]:
    """Columns of one shard: all views of an image, then of the next; view 0 is unaugmented."""
    last = min(first + options.shard_images, len(images))
    maps: dict[str, list[NDArray[Any]]] = {}
    for start in range(first, last, options.batch_size):
        batch = range(start, min(start + options.batch_size, last))
        batch_rows = images.source_index[batch.start : batch.stop].astype(np.int64)
        views = make_views(images.read(batch), batch_rows, split, options)
        columns = [
            encode_view(autoencoder, view, number, batch_rows, options)
            for number, view in enumerate(views)
        ]
        for name in columns[0]:
            stacked = np.stack([column[name] for column in columns], axis=1)  # (B, views, H, W)
            maps.setdefault(name, []).append(stacked.reshape(-1, *stacked.shape[2:]))
        line.advance(len(batch))
    count = len(views)
    rows = np.arange(first, last)
    source = images.source_index[rows].astype(np.int64)
    known = images.table.labels
    labels = {} if known is None else {"label": known[source].astype(np.int64).repeat(count)}
    captions = {}
    if images.has_captions:
        listed = map(list, images.captions(range(first, last)))
        captions[CAPTIONS] = [each for each in listed for _ in range(count)]
    return {
        **{name: np.concatenate(parts) for name, parts in maps.items()},
        **labels,
        **captions,
        "view": np.tile(np.arange(count, dtype=np.uint16), len(rows)),
        "source_index": source.repeat(count),
    }


def make_views(
    images: Tensor, rows: NDArray[np.int64], split: str, options: EncodeOptions
) -> list[Tensor]:
    """Central crops, then for the augmented split random crops, each with its mirror image.

    A crop depends on (seed, row, view) only, not on batches or processes.
    """
    assert options.image_size is not None
    views = [crop_windows(images, options.image_size, 0, None)]
    if split == options.augmented_split:
        for number in range(options.crops):
            offsets = [
                random_offsets(1, options, generator(options.seed, "crop", int(row), number))
                for row in rows
            ]
            views.append(
                crop_windows(images, options.image_size, options.crop_padding, torch.cat(offsets))
            )
        if options.flip:
            views = [view for plain in views for view in (plain, plain.flip(-1))]
    return views


@torch.no_grad()
def encode_view(
    autoencoder: Autoencoder,
    images: Tensor,
    view: int,
    rows: NDArray[np.int64],
    options: EncodeOptions,
) -> dict[str, NDArray[Any]]:
    """Codes or latents by level of one view, uint8 (B, C, H, W), of the images with these rows.

    Raises:
        ValueError: latents that are not finite in float16.
    """
    pixels = to_float(images.to(autoencoder.device)).contiguous(memory_format=torch.channels_last)
    if options.posterior == "sample":
        maps = sample_latents(autoencoder, pixels, view, rows, options.seed)
    else:
        maps = autoencoder.encode(pixels)
    if autoencoder.levels[0].vocabulary is not None:
        return {name: values.cpu().numpy() for name, values in maps.items()}
    latents = {name: values.half().cpu().numpy() for name, values in maps.items()}
    for name, values in latents.items():
        finite = np.isfinite(values).reshape(len(values), -1).all(1)
        if not finite.all():
            raise ValueError(
                f"--autoencoder {options.autoencoder}: {name} of image {rows[finite.argmin()]} are not finite in "
                f"float16 (at most {np.finfo(np.float16).max:,.0f}): the model has diverged; train it again"
            )
    return latents


def sample_latents(
    autoencoder: Autoencoder, pixels: Tensor, view: int, rows: NDArray[np.int64], seed: int
) -> CodeMaps:
    """One sample of each image's posterior, which depends on (seed, row, view) only."""
    posterior = autoencoder.posterior(pixels)
    assert posterior is not None, "a model with codes has no posterior"
    (level,) = autoencoder.levels
    noise = [
        torch.randn(level.shape, generator=generator(seed, "latent", int(row), view))
        for row in rows
    ]
    return {level.name: posterior.from_noise(torch.stack(noise))}


def main(argv: Sequence[str] | None = None) -> None:
    """Entry point."""
    options = parse_config(EncodeOptions, argv)
    codes = encode(options=options)
    if is_main_process():
        training = recorded_flags(Path(options.autoencoder), "stage1_autoencoders")
        flags = {
            "config": preset_of(training.get("config"), "stage2_prior"),
            "codes": codes.folder,
            "autoencoder": options.autoencoder,
            "output_dir": beside(codes.folder, "prior"),
        }
        say_next("stage2_prior/train.py", flags)


if __name__ == "__main__":
    run(main)
