"""The sets of images that are compared: splits of data sets, and folders of any generator's images.

Classes of different sets are matched by name; their numbers may differ.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any, TypeVar

import msgspec
import numpy as np
from numpy.typing import NDArray

from latent_prior.data.embedded import shapes
from latent_prior.data.fingerprints import files_fingerprint
from latent_prior.data.found import tell_found
from latent_prior.data.image_files import FILE_LIMIT, read_header
from latent_prior.data.images import ImageSet, all_rows, open_images
from latent_prior.data.labels import PROMPT_HEADINGS, read_label_table
from latent_prior.data.listing import (
    ABOUT_FILE,
    GENERATION_FILE,
    LABELS_FILE,
    PROMPTS_FILE,
    files_below,
    images_among,
)
from latent_prior.data.sources import ImageTable
from latent_prior.evaluation.options import REFERENCE, Candidate, ScoreOptions
from latent_prior.files import open_regular, read_regular
from latent_prior.machine import in_threads
from latent_prior.options import ImageOptions
from latent_prior.records import read_record

T = TypeVar("T")
ARCHIVES = frozenset((".7z", ".bz2", ".gz", ".rar", ".tar", ".tgz", ".xz", ".zip", ".zst"))
NAMES_SHOWN = 10  # of the classes, in a message


_Amount = Annotated[float, msgspec.Meta(ge=0)] | None


class Training(msgspec.Struct):
    """The cost of a training, in an `about.json`."""

    images_seen: _Amount = None
    seconds: _Amount = None
    cpu_seconds: _Amount = None
    device: str | None = None


class About(msgspec.Struct):
    """`about.json`, the costs of a generator; other generators may add keys of their own."""

    parameters: _Amount = None
    seconds_per_image: _Amount = None
    training: Training | None = None


@dataclass(frozen=True, eq=False)
class ScoredSet:
    """The images of one row, in a fixed order.

    Attributes:
        name: of the row.
        source: folder or data set.
        split: of the data set; None for a folder.
        images: all images of the source.
        chosen: int64 (N,), ascending, the images that take part.
        classes: the name of the class of each, "" without one; None if no image has a class.
        generation: content of the generator's `generation.json`, if there is one.
        about: content of its `about.json`, the generator's costs.
        problem: why the classes of a `labels.csv` are not known; matters once they are asked for.
    """

    name: str
    source: str
    split: str | None
    images: ImageSet
    chosen: NDArray[np.int64]
    classes: list[str] | None = None
    generation: dict[str, Any] | None = None
    about: About | None = None
    problem: str | None = None

    def __len__(self) -> int:
        """Number of images that take part."""
        return len(self.chosen)

    def arrays(self, positions: range | NDArray[np.int64]) -> list[NDArray[np.uint8]]:
        """uint8 (H, W, C) arrays of the images at `positions` in `chosen`.

        Raises:
            ValueError: an image cannot be read.
        """
        return in_threads(self.images.array, self.chosen[np.asarray(positions)].tolist())

    @property
    def is_baseline(self) -> bool:
        """Whether the set is never marked best: images of a data set, or of random codes."""
        return self.split is not None or draws_random_codes(self.generation)

    @property
    def flag(self) -> str:
        """The flag that names this set, for messages."""
        return "--reference" if self.name == REFERENCE else f"--candidates {self.name}"

    def labels(self, class_names: Sequence[str] = ()) -> NDArray[np.int64] | None:
        """Class numbers int64 (N,), -1 for an image without a class; None if no image has one.

        They count in the order of `class_names`; if these are empty, of the set's own.

        Raises:
            ValueError: a class is not among `class_names`, or the table of classes is damaged.
        """
        if self.problem is not None and class_names:
            raise ValueError(f"{self.flag}: {self.problem}")
        if self.classes is None:
            return None
        present = sorted({*self.classes} - {""})
        names = class_names or self.images.class_names or present
        unknown = [name for name in present if name not in names]
        if unknown:
            known = ", ".join([*names[:NAMES_SHOWN], "..."][: len(names)])
            raise ValueError(
                f"{self.flag}: {self.source} has images of the class {unknown[0]!r}, which --train_split lacks; "
                f"it has: {known}"
            )
        number_of = {"": -1} | {name: number for number, name in enumerate(names)}
        return np.array([number_of[name] for name in self.classes])

    def costs(self) -> dict[str, float | tuple[float, float]]:
        """Size, speed and training costs from `about.json`, by the keys of `MEASURES`."""
        about = self.about or About()
        training = about.training or Training()
        values = {
            "seconds_per_image": about.seconds_per_image,
            "parameters": about.parameters,
            "training_images": training.images_seen,
            "training_seconds": (
                training.cpu_seconds if training.device == "cpu" else training.seconds
            ),
        }
        return {key: value for key, value in values.items() if value is not None}

    def protocol(self) -> dict[str, Any]:
        """Where the images came from, JSON-ready."""
        return {
            "source": self.source,
            "split": self.split,
            "num_images": len(self),
            "available": len(self.images),
            "skipped": self.images.skipped,
        } | ({} if self.generation is None else {"sampler": self.generation})

    def resized(self, size: int, channels: int) -> ScoredSet:
        """The same images at another size and number of channels."""
        options = replace(self.images.options, image_size=size)
        images = replace(self.images, options=options, channels=1 if channels == 1 else 3)
        return replace(self, images=images)


def draws_random_codes(generation: Any) -> bool:
    """Whether a generation.json describes images decoded from random codes."""
    return isinstance(generation, dict) and generation.get("random_codes") is True


def open_reference(options: ScoreOptions) -> ScoredSet:
    """The images that everything is compared with.

    Raises:
        ValueError: no such data set, split or column, or too few images.
    """
    return _scored_split(
        REFERENCE, options.reference, options.reference_split, "--reference", options
    )


def open_candidate(candidate: Candidate, options: ScoreOptions) -> ScoredSet:
    """The images of one entry of `--candidates`.

    Raises:
        ValueError: no such folder or data set, too few images, or a wrong labels.csv.
    """
    flag = f"--candidates {candidate.name}"
    if candidate.split is not None:
        return _scored_split(candidate.name, candidate.source, candidate.split, flag, options)
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
    generation = _optional(folder / GENERATION_FILE, dict[str, Any], flag)
    about = _optional(folder / ABOUT_FILE, About, flag)
    classes, problem = _classes_in_table(folder, images, chosen)
    return ScoredSet(
        candidate.name, candidate.source, None, images, chosen, classes, generation, about, problem
    )


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


def open_split(options: ImageOptions, split: str, flag: str) -> ImageSet:
    """Open a split; errors name the user's flag instead of `--dataset`."""
    with _flag_named(flag):
        return open_images(options, split)


def tell_data_sets(options: ScoreOptions) -> None:
    """Log what every data set holds that the options name, on the main process.

    Raises:
        ValueError: there is no such data set.
    """
    flags = {} if options.published else {options.reference: "--reference"}
    for name, source, split in options.parsed_candidates():
        if split is not None:
            flags.setdefault(source, f"--candidates {name}")
    for source, flag in flags.items():
        with _flag_named(flag):
            tell_found(options.image_options(source), f"{source}: ")


@contextmanager
def _flag_named(flag: str) -> Iterator[None]:
    """Errors name the user's flag instead of `--dataset`."""
    try:
        yield
    except ValueError as error:
        raise ValueError(str(error).replace("--dataset", flag)) from error


def _scored_split(
    name: str, source: str, split: str, flag: str, options: ScoreOptions
) -> ScoredSet:
    images = open_split(options.image_options(source), split, flag)
    chosen = choose(
        len(images), options.num_images, options.seed, f"{flag}: split {split} of {source}"
    )
    classes = None
    if (labels := images.labels_of(chosen)) is not None and labels.max() >= 0:
        names = [*images.class_names, ""]  # the last one belongs to the label -1
        classes = [names[label] for label in labels.tolist()]
    return ScoredSet(name, source, split, images, chosen, classes)


def _open_folder(folder: Path, flag: str, options: ImageOptions) -> ImageSet:
    """Every image in `folder` and its sub-folders."""
    files = images_among(files_below(folder))
    if not files:
        packed = sorted(path.name for path in folder.iterdir() if path.suffix.lower() in ARCHIVES)
        raise ValueError(
            f"{flag}: {folder} holds no images" + (f"; unpack its {packed[0]}" if packed else "")
        )
    _check_nesting(folder, files, flag)
    table = ImageTable(
        read=lambda row: read_regular(files[row], FILE_LIMIT),
        name_of=lambda row: str(files[row]),
        size=len(files),
        labels=None,
        class_names=(),
        contents=lambda: files_fingerprint(files),
    )
    assert options.channels is not None
    images = ImageSet(table, options, options.channels, all_rows(len(files)))
    if options.on_corrupt == "error":
        return images

    def readable(row: int) -> bool:
        try:
            images.decode_row(row)
        except ValueError:
            return False
        return True

    rows = np.flatnonzero(in_threads(readable, images.source_index.tolist()))
    return replace(images, source_index=rows, skipped=len(files) - len(rows))


def _check_nesting(folder: Path, files: list[Path], flag: str) -> None:
    """Sub-folders (e.g. classes) form one set; a set nested in another would be counted twice."""
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
    """Generated images must have one size; only the headers of the files are read."""

    def size(row: int) -> tuple[int, int]:
        try:
            with open_regular(Path(images.table.name_of(row)), FILE_LIMIT) as file:
                return read_header(file, images.options.max_pixels)[:2]
        except ValueError:
            height, width = images.decode_row(row).shape[:2]  # raises what is wrong with it
            return width, height

    rows = images.source_index[chosen]
    sizes = in_threads(size, rows.tolist())
    other = next((index for index, each in enumerate(sizes) if each != sizes[0]), None)
    if other is not None:
        (width, height), (other_width, other_height) = sizes[0], sizes[other]
        raise ValueError(
            f"{flag}: {images.table.name_of(int(rows[0]))} has {width} x {height} pixels and "
            f"{images.table.name_of(int(rows[other]))} {other_width} x {other_height}, so they do not come from one generator: "
            f"separate them, bring them to one size by --image_size, or {otherwise}"
        )


def _optional(path: Path, schema: type[T], flag: str) -> T | None:
    """A record of the generator of a folder's images; None without one."""
    if not path.exists() and not path.is_symlink():
        return None
    try:
        return read_record(path, schema, "mend it, or remove it from the folder")
    except ValueError as error:
        raise ValueError(f"{flag}: {error}") from error


def _classes_in_table(
    folder: Path, images: ImageSet, chosen: NDArray[np.int64]
) -> tuple[list[str] | None, str | None]:
    """Class names from the folder's labels.csv, and why there are none although there is one.

    Images that were drawn from captions of the data set `shapes` have the classes these ask for.
    """
    path = folder / LABELS_FILE
    if not os.path.lexists(path):
        return None, None
    try:
        class_of = read_label_table(path)
        if os.path.lexists(folder / PROMPTS_FILE):
            prompts = read_label_table(folder / PROMPTS_FILE, PROMPT_HEADINGS)
            class_of |= {name: shapes.class_of(asked) or "" for name, asked in prompts.items()}
    except ValueError as error:
        return None, str(error)
    rows = images.source_index[chosen].tolist()
    files = [Path(images.table.name_of(row)).relative_to(folder).as_posix() for row in rows]
    missing = next((name for name in files if name not in class_of), None)
    if missing is not None and any(class_of.values()):
        return None, f"{path} has no row for the image {missing}; add it, or remove the table"
    classes = [class_of.get(name, "") for name in files]
    return (classes if any(classes) else None), None
