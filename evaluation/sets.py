"""The sets of images that are compared: splits of data sets, and folders of any generator's images.

Classes of different sets are matched by name; their numbers may differ.
"""

from __future__ import annotations

import csv
import itertools
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from latent_prior.data.image_files import UNREADABLE
from latent_prior.data.image_folders import IMAGE_SUFFIXES, files_below
from latent_prior.data.images import ImageSet, open_images
from latent_prior.data.sources import ImageTable
from latent_prior.evaluation.options import REFERENCE, Candidate, ScoreOptions
from latent_prior.machine import thread_pool
from latent_prior.options import ImageOptions

ARCHIVES = frozenset((".7z", ".bz2", ".gz", ".rar", ".tar", ".tgz", ".xz", ".zip", ".zst"))
# Written by this project's generators: sampler settings, costs, and the class of each file.
GENERATION_FILE, ABOUT_FILE, LABELS_FILE = "generation.json", "about.json", "labels.csv"
NAMES_SHOWN = 10  # of the classes, in a message
TOGETHER = 8  # images decoded by a thread at a time


@dataclass(frozen=True, eq=False)
class ScoredSet:
    """The images of one row, in a fixed order.

    Attributes:
        name: of the row.
        source: folder or data set.
        split: of the data set; None for a folder.
        images: all images of the source.
        chosen: int64 (N,), ascending, the images that take part.
        labels: int64 (N,), their classes in the set's own numbers, -1 without one; None if no image
            has a class.
        sampler: content of the generator's `generation.json`, if there is one.
        about: content of its `about.json`, the generator's costs.
    """

    name: str
    source: str
    split: str | None
    images: ImageSet
    chosen: NDArray[np.int64]
    labels: NDArray[np.int64] | None = None
    sampler: dict[str, Any] | None = None
    about: dict[str, Any] | None = None

    def __len__(self) -> int:
        """Number of images that take part."""
        return len(self.chosen)

    def arrays(self, positions: range | NDArray[np.int64]) -> list[NDArray[np.uint8]]:
        """uint8 (H, W, C) arrays of the images at `positions` in `chosen`.

        Raises:
            ValueError: naming an image that cannot be read.
        """
        return list(_in_threads(self.images.array, self.chosen[np.asarray(positions)]))

    @property
    def is_baseline(self) -> bool:
        """Whether the set is never marked best: images of a data set, or of random codes."""
        return self.split is not None or (self.sampler or {}).get("random_codes") is True

    @property
    def flag(self) -> str:
        """The flag that names this set, for messages."""
        return "--reference" if self.name == REFERENCE else f"--candidates {self.name}"

    def costs(self) -> dict[str, float | tuple[float, float]]:
        """Size, speed and training costs from `about.json`, by the keys of `MEASURES`."""
        about = self.about or {}
        training = about.get("training") or {}
        clock = "cpu_seconds" if training.get("device") == "cpu" else "seconds"
        values = {
            "seconds_per_image": about.get("seconds_per_image"),
            "parameters": about.get("parameters"),
            "training_images": training.get("images_seen"),
            "training_seconds": training.get(clock),
        }
        return {
            key: float(value) for key, value in values.items() if isinstance(value, int | float)
        }

    def protocol(self) -> dict[str, Any]:
        """Where the images came from, JSON-ready."""
        values: dict[str, Any] = {
            "source": self.source,
            "split": self.split,
            "num_images": len(self),
        }
        values |= {"available": len(self.images), "skipped": self.images.skipped}
        return values | ({} if self.sampler is None else {"sampler": self.sampler})

    def resized(self, size: int, channels: int) -> ScoredSet:
        """The same images at another size and number of channels."""
        options = replace(self.images.options, image_size=size)
        images = replace(self.images, options=options, channels=1 if channels == 1 else 3)
        return replace(self, images=images)


def open_reference(options: ScoreOptions) -> ScoredSet:
    """The images that everything is compared with.

    Raises:
        ValueError: no such data set, split or column, or too few images.
    """
    return _open_split(
        REFERENCE, options.reference, options.reference_split, "--reference", options
    )


def open_candidate(candidate: Candidate, options: ScoreOptions) -> ScoredSet:
    """The images of one entry of `--candidates`.

    Raises:
        ValueError: no such folder or data set, too few images, or a wrong labels.csv.
    """
    flag = f"--candidates {candidate.name}"
    if candidate.split is not None:
        return _open_split(candidate.name, candidate.source, candidate.split, flag, options)
    folder = Path(candidate.source)
    if folder.is_file():
        what = "an archive: unpack it and" if folder.suffix.lower() in ARCHIVES else "a file:"
        raise ValueError(f"{flag}: {folder} is {what} name the folder of images")
    if not folder.is_dir():
        raise ValueError(
            f"{flag}: there is no folder {folder}; for a data set write {candidate.name}={candidate.source}[SPLIT]"
        )
    images = _open_folder(folder, flag, options.image_options(str(folder)))
    chosen = choose(len(images), options.num_images, options.seed, f"{flag}: {folder}")
    if options.image_size is None:
        _check_sizes(images, chosen, flag, f"write {candidate.name}={folder}[train] for a data set")
    sampler, about = (_read_json(folder / name, flag) for name in (GENERATION_FILE, ABOUT_FILE))
    scored = ScoredSet(candidate.name, candidate.source, None, images, chosen, None, sampler, about)
    names = set(_classes_by_file(scored).values()) - {""}
    return replace(scored, labels=class_numbers(scored, sorted(names)) if names else None)


def class_numbers(scored: ScoredSet, class_names: Sequence[str]) -> NDArray[np.int64] | None:
    """Classes of the images that take part, from the data set or from the folder's labels.csv.

    Args:
        scored: a split of a data set, or a folder.
        class_names: the names of the classes in the order of their numbers.

    Returns:
        int64 (N,), indices of `class_names`, -1 without a class; None if no image has one.

    Raises:
        ValueError: a class is not among `class_names`, or labels.csv lacks a column or an image.
    """
    number_of = {name: number for number, name in enumerate(class_names)}
    find = _numbers_of_folder if scored.split is None else _numbers_of_split
    numbers = find(scored, number_of)
    return None if numbers is None or (numbers < 0).all() else numbers


def image_files(folder: Path) -> list[Path]:
    """Image files in `folder` and below, sorted, without the overview grids of our generators."""
    generated = any((folder / name).is_file() for name in (GENERATION_FILE, LABELS_FILE))
    return [
        path
        for path in files_below(folder)
        if path.suffix.lower() in IMAGE_SUFFIXES
        and not (generated and path.parent == folder and path.name.startswith("grid"))
    ]


def choose(available: int, wanted: int | None, seed: int, where: str) -> NDArray[np.int64]:
    """Ascending indices of the images that take part: all, or `wanted` of them chosen at random.

    The choice depends on these numbers alone, not on the set's name or source.

    Raises:
        ValueError: there are too few images.
    """
    if available < max(2, wanted or 2):
        needed = (
            "a distance needs at least 2" if wanted is None else f"--num_images asks for {wanted}"
        )
        raise ValueError(
            f"{where} holds {available} readable image{'s' * (available != 1)}; {needed}"
        )
    if wanted is None:
        return np.arange(available)
    return np.sort(np.random.default_rng(seed).choice(available, wanted, replace=False))


def _open_split(name: str, source: str, split: str, flag: str, options: ScoreOptions) -> ScoredSet:
    try:
        images = open_images(options.image_options(source), split)
    except ValueError as error:
        raise ValueError(str(error).replace("--dataset", flag)) from error
    chosen = choose(
        len(images), options.num_images, options.seed, f"{flag}: split {split} of {source}"
    )
    scored = ScoredSet(name, source, split, images, chosen)
    return replace(scored, labels=class_numbers(scored, images.class_names))


def _open_folder(folder: Path, flag: str, options: ImageOptions) -> ImageSet:
    """Every image below `folder`, whatever its sub-folders are called."""
    files = image_files(folder)
    if not files:
        packed = sorted(path.name for path in folder.iterdir() if path.suffix.lower() in ARCHIVES)
        raise ValueError(
            f"{flag}: {folder} holds no images" + (f"; unpack its {packed[0]}" if packed else "")
        )
    _check_nesting(folder, files, flag)
    table = ImageTable(
        read=lambda row: files[row].read_bytes(),
        name_of=lambda row: str(files[row]),
        size=len(files),
        labels=None,
        class_names=(),
    )
    assert options.channels is not None
    images = ImageSet(table, options, options.channels, np.arange(len(files)))
    if options.on_corrupt == "error":
        return images

    def readable(row: int) -> bool:
        try:
            images.decode_row(row)
        except ValueError:
            return False
        return True

    rows = np.flatnonzero(list(_in_threads(readable, images.source_index)))
    return replace(images, source_index=rows, skipped=len(files) - len(rows))


def _check_nesting(folder: Path, files: list[Path], flag: str) -> None:
    """Sub-folders (e.g. classes) form one set; a set nested in another would be counted twice.

    Raises:
        ValueError: naming the nested folder.
    """
    parents = {path.parent for path in files}
    for inner in sorted(parents - {folder}):
        within = set(inner.parents) & parents
        if within or (inner / GENERATION_FILE).is_file():
            outer = max(within, default=folder, key=lambda parent: len(parent.parts))
            raise ValueError(
                f"{flag}: {inner} is a folder of images within {outer}, which "
                + ("has images of its own" if within else "is not the folder of one set")
                + ": name the folder of one set, or move the other one away"
            )


def _check_sizes(images: ImageSet, chosen: NDArray[np.int64], flag: str, otherwise: str) -> None:
    """Generated images must have one size; only the headers of the files are read.

    Raises:
        ValueError: naming two images of different sizes, or one that cannot be read.
    """

    def size(row: int) -> tuple[int, int]:
        try:
            with Image.open(images.table.name_of(row)) as opened:
                return opened.size
        except UNREADABLE:
            height, width = images.decode_row(row).shape[:2]  # raises what is wrong with it
            return width, height

    rows = images.source_index[chosen]
    sizes = _in_threads(size, rows)
    other = next((index for index, each in enumerate(sizes) if each != sizes[0]), None)
    if other is not None:
        (width, height), (other_width, other_height) = sizes[0], sizes[other]
        raise ValueError(
            f"{flag}: {images.table.name_of(int(rows[0]))} has {width} x {height} pixels and "
            f"{images.table.name_of(int(rows[other]))} {other_width} x {other_height}, so they do not come from one generator: "
            f"separate them, bring them to one size by --image_size, or {otherwise}"
        )


def _read_json(path: Path, flag: str) -> dict[str, Any] | None:
    if not path.is_file():
        return None
    try:
        settings = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{flag}: {path} is not JSON: {error}") from error
    return settings if isinstance(settings, dict) else {"settings": settings}


def _numbers_of_split(scored: ScoredSet, number_of: Mapping[str, int]) -> NDArray[np.int64] | None:
    labels, names = scored.images.labels, scored.images.class_names
    if labels is None:
        return None
    chosen = labels.numpy()[scored.chosen]
    numbers = np.full(len(names) + 1, -1)  # the last one belongs to the label -1
    for label in np.unique(chosen[chosen >= 0]).tolist():
        where = f"{scored.flag}: {scored.source} has images of"
        numbers[label] = _number(names[label], number_of, where)
    return numbers[chosen]


def _numbers_of_folder(scored: ScoredSet, number_of: Mapping[str, int]) -> NDArray[np.int64] | None:
    path = Path(scored.source) / LABELS_FILE
    if not path.is_file():
        return None
    class_of = _classes_by_file(scored)
    known = {"": -1} | {
        name: _number(name, number_of, f"{scored.flag}: {path} asks for")
        for name in sorted(set(class_of.values()) - {""})
    }
    numbers = np.empty(len(scored), np.int64)
    for index, row in enumerate(scored.images.source_index[scored.chosen].tolist()):
        file = Path(scored.images.table.name_of(row)).relative_to(scored.source).as_posix()
        if file not in class_of:
            raise ValueError(
                f"{scored.flag}: {path} has no row for the image {file}; add it, or remove the table"
            )
        numbers[index] = known[class_of[file]]
    return numbers


def _classes_by_file(scored: ScoredSet) -> dict[str, str]:
    """Class names of the files in labels.csv, "" for a file without a class."""
    path = Path(scored.source) / LABELS_FILE
    if not path.is_file():
        return {}
    with path.open(newline="", encoding="utf-8") as file:
        table = csv.DictReader(file, restval="")
        if not {"file", "class"} <= set(table.fieldnames or ()):
            raise ValueError(f"{scored.flag}: {path} needs the columns file and class")
        return {row["file"]: row["class"] for row in table}


def _number(name: str, number_of: Mapping[str, int], where: str) -> int:
    if name not in number_of:
        shown = ", ".join([*number_of][:NAMES_SHOWN]) + ", ..." * (len(number_of) > NAMES_SHOWN)
        raise ValueError(f"{where} the class {name!r}, which --train_split lacks; it has: {shown}")
    return number_of[name]


def _in_threads(function: Callable[[int], Any], rows: NDArray[np.int64]) -> list[Any]:
    """Files are read and decoded outside Python's lock; small ones are not worth a task each."""
    pieces = [rows[start : start + TOGETHER].tolist() for start in range(0, len(rows), TOGETHER)]
    found = thread_pool().map(lambda piece: [function(row) for row in piece], pieces)
    return list(itertools.chain.from_iterable(found))
