"""Data sources: the embedded data sets, local folders and the Hugging Face hub.

To add a source, subclass `ImageSource` and choose the subclass in `open_source`.
"""

from __future__ import annotations

import abc
import functools
import io
import itertools
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image

from latent_prior.data.captions import CAPTION_COLUMN, NO_CAPTIONS, Captions
from latent_prior.data.embedded import shapes
from latent_prior.data.embedded.mnist5k import digits
from latent_prior.data.fingerprints import files_fingerprint, fingerprint_of
from latent_prior.data.image_files import FILE_LIMIT
from latent_prior.data.image_folders import ignored, image_splits
from latent_prior.data.labels import NO_LABELS, read_labels
from latent_prior.data.listing import files_below, images_among
from latent_prior.data.splits import (
    FEWEST,
    SPLITS,
    held_out_remark,
    missing_parts,
    parts_of_rows,
    parts_of_stream,
)
from latent_prior.data.table_files import image_tables, open_tables
from latent_prior.files import read_regular
from latent_prior.options import DRAWN, ImageOptions

if TYPE_CHECKING:
    from numpy.typing import NDArray


LONGEST_PATH = 4096  # characters of a path that a table names
SHUFFLED = 10_000  # images of a stream in the buffer that shuffles them
StreamedImage = tuple[Callable[[], bytes], str, int]
"""Reader of the encoded image, its name in messages, its label or -1."""


@dataclass
class ImageTable:
    """Encoded images of one split, by row.

    Attributes:
        read: row -> content of an image file.
        name_of: row -> name of the image in messages.
        size: number of rows.
        labels: int64 (N,), or None.
        class_names: names of the labels in the order of their numbers.
        contents: a fingerprint of the encoded images, computed when called.
        path_of: row -> the image's own file, None for an image stored in a table.
        remark: why there are no labels although there is a column for them.
        captions: those of every row, or None.
    """

    read: Callable[[int], bytes]
    name_of: Callable[[int], str]
    size: int
    labels: NDArray[np.int64] | None
    class_names: tuple[str, ...]
    contents: Callable[[], str]
    path_of: Callable[[int], Path | None] = lambda row: None
    remark: str | None = None
    captions: Captions | None = None

    def __len__(self) -> int:
        """Number of rows, including unreadable images."""
        return self.size


class ImageSource(abc.ABC):
    """A dataset of encoded images."""

    @abc.abstractmethod
    def split_names(self) -> list[str]:
        """Names of the splits.

        Raises:
            ValueError: the dataset cannot be opened.
        """

    @abc.abstractmethod
    def size(self, split: str) -> int:
        """Number of images of a split that is there, without opening it."""

    @abc.abstractmethod
    def table(self, split: str) -> ImageTable:
        """Open a split by row.

        Raises:
            ValueError: there is no such dataset, split or column.
        """

    def remarks(self) -> list[str]:
        """What a user should know about the splits and unused files, as ends of a sentence."""
        return []

    def stream_fingerprint(self, split: str) -> str:
        """What `stream` reads, without reading it.

        Raises:
            ValueError: there is no such dataset or split.
        """
        return self.table(split).contents()

    def stream(self, split: str, *, shuffle_seed: int | None) -> Iterator[StreamedImage]:
        """Read a split row by row; without a seed in its own order.

        Raises:
            ValueError: there is no such dataset, split or column.
        """
        table = self.table(split)
        order = np.arange(len(table))
        if shuffle_seed is not None:
            np.random.default_rng(shuffle_seed).shuffle(order)
        for row in map(int, order):
            label = -1 if table.labels is None else int(table.labels[row])
            yield partial(table.read, row), table.name_of(row), label


def open_source(options: ImageOptions) -> ImageSource:
    """The source of `options.dataset`; a local folder of the same name hides an embedded one."""
    embedded = "" if Path(options.dataset).exists() else options.dataset
    if embedded == "mnist5k":
        return _EmbeddedDigits()
    return _EmbeddedShapes(options) if embedded in DRAWN else _DatasetsSource(options)


class _EmbeddedDigits(ImageSource):
    """The digits of `latent_prior.data.embedded.mnist5k`."""

    def split_names(self) -> list[str]:
        return list(SPLITS)

    def size(self, split: str) -> int:
        return len(digits(split)[1])

    def table(self, split: str) -> ImageTable:
        images, labels = digits(split)

        def read(row: int) -> bytes:
            buffer = io.BytesIO()
            Image.fromarray(images[row]).save(buffer, "bmp")
            return buffer.getvalue()

        names = tuple(map(str, range(10)))

        def contents() -> str:
            return fingerprint_of(images.tobytes())

        return ImageTable(
            read, lambda row: f"mnist5k {split} {row}", len(labels), labels, names, contents
        )


class _DatasetsSource(ImageSource):
    """What the `datasets` library reads: local folders and datasets of the hub."""

    def __init__(self, options: ImageOptions) -> None:
        self.options = options
        self.files: dict[str, list[Path]] = {}
        """The table files of every split; empty for other data."""
        self.remarked: list[str] = []
        self.parts: tuple[str, ...] = ()
        """Splits that are held out of the table `train`."""
        self.kept: dict[str, NDArray[np.intp]] = {}
        """The rows of the table `train` that make up each split, if parts are held out of it."""

    def split_names(self) -> list[str]:
        return list(self.splits)

    def size(self, split: str) -> int:
        return len(self.splits[split])

    def remarks(self) -> list[str]:
        self.split_names()  # opens the data, which makes the remarks
        return [*([held_out_remark(self.parts)] if self.parts else []), *self.remarked]

    def table(self, split: str) -> ImageTable:
        import datasets

        options = self.options
        rows = self._split(self.splits, split)
        try:
            rows = rows.cast_column(options.image_column, datasets.Image(decode=False))
        except (TypeError, ValueError, NotImplementedError) as error:
            raise ValueError(
                f"--image_column {options.image_column}: the column does not hold images"
            ) from error
        labels = read_labels(self.splits, split, options.label_column)
        images = rows.select_columns([options.image_column])

        def cell(row: int) -> dict[str, Any] | None:
            return images[row][options.image_column]

        def name_of(row: int) -> str:
            stored = f"row {row} of split {split}"
            if split in self.kept:
                stored = f"row {self.kept[split][row]} of split train"
            return _cell_name(cell(row), f"{stored} of {options.dataset}", folders)

        def path_of(row: int) -> Path | None:
            found = cell(row)
            if found is None or found["bytes"] is not None or found["path"] is None:
                return None
            return _own_file(found["path"], folders)

        folders = _own_folders(options.dataset)
        return ImageTable(
            lambda row: _content(cell(row), folders),
            name_of,
            len(rows),
            labels.numbers,
            labels.names,
            lambda: self._contents(rows, split),
            path_of,
            labels.remark,
            self._captions(rows),
        )

    def _captions(self, rows: Any) -> Captions | None:
        """The captions of a split; it may have none although another one has."""
        column = self.options.caption_column or self._own_captions(rows)
        if column in (None, NO_CAPTIONS) or column not in rows.column_names:
            return None
        return Captions(rows, column)

    def _own_captions(self, rows: Any) -> str | None:
        """The column of captions that nobody has to ask for."""
        return CAPTION_COLUMN if self._is_image_folder(rows) else None

    def stream_fingerprint(self, split: str) -> str:
        streaming = getattr(self.options, "streaming", False)
        splits = self._streams() if streaming else self.splits
        return self._contents(self._split(splits, split), split)

    def stream(self, split: str, *, shuffle_seed: int | None) -> Iterator[StreamedImage]:
        import datasets

        options = self.options
        rows = self._split(self._streams(), split)
        divided = bool(self.parts) and split in ("train", *self.parts)
        if isinstance(rows, datasets.Dataset):  # of a folder, and divided already
            rows, divided = rows.to_iterable_dataset(), False
        rows = rows.cast_column(options.image_column, datasets.Image(decode=False))
        if shuffle_seed is not None and not divided:
            rows = rows.shuffle(seed=shuffle_seed % 2**32, buffer_size=SHUFFLED)
        numbered: Iterator[tuple[int, Any]] = enumerate(rows)
        if divided:  # by row numbers, so its shards keep their order
            parts = parts_of_stream(self.parts)
            numbered = (each for each, part in zip(numbered, parts, strict=False) if part == split)
            numbered = numbered if shuffle_seed is None else _shuffled(numbered, shuffle_seed)
        folders = _own_folders(options.dataset)
        for number, row in numbered:
            cell, label = row[options.image_column], row.get(options.label_column or "label")
            name = _cell_name(cell, f"row {number} of the stream of {options.dataset}", folders)
            yield partial(_content, cell, folders), name, label if isinstance(label, int) else -1

    @functools.cached_property
    def splits(self) -> dict[str, Any]:
        """Every split, opened but not read."""
        return self._divided(self._open(streaming=False))

    def _streams(self) -> dict[str, Any]:
        """Every split to be streamed; of a divided table each is the whole, see `stream`."""
        return self._divided(self._open(streaming=True))

    def _divided(self, splits: dict[str, Any]) -> dict[str, Any]:
        """The splits, and those missing, which are held out of `train` if it is large enough."""
        import datasets

        parts, rows = missing_parts(splits), splits.get("train")
        if not parts or self._is_image_folder(rows):  # folders of images are divided by names
            return splits
        if _count(rows) < FEWEST:
            return splits
        self.parts = parts
        divided = dict.fromkeys(("train", *parts), rows)
        if isinstance(rows, datasets.Dataset):
            part_of = parts_of_rows(len(rows), parts)
            self.kept = {name: np.flatnonzero(part_of == name) for name in divided}
            divided = {name: rows.select(kept) for name, kept in self.kept.items()}
        return divided | {name: other for name, other in splits.items() if name != "train"}

    def _is_image_folder(self, rows: Any) -> bool:
        """Whether the rows name the files of a folder of images."""
        import datasets

        return isinstance(rows, datasets.Dataset) and not rows.cache_files

    def _open(self, *, streaming: bool) -> dict[str, Any]:
        """Every split as it is stored."""
        import datasets

        datasets.disable_progress_bars()
        name, path = self.options.dataset, Path(self.options.dataset)
        if path.is_dir():
            opened = self._open_folder(path, streaming)
        elif path.exists():
            raise ValueError(
                f"--dataset {path} is a file; expected a folder, mnist5k, shapes, shapes_text or a hub id"
            )
        elif name.startswith((".", "/", "~")) or name.count("/") > 1:
            raise ValueError(f"--dataset: there is no folder {path}")
        else:
            opened = _open_hub(name, streaming)
        if isinstance(opened, datasets.Dataset | datasets.IterableDataset):
            opened = {"train": opened}
        return dict(opened)

    def _open_folder(self, path: Path, streaming: bool) -> Any:
        """Open a folder written by `save_to_disk`, of parquet or arrow files, or of images."""
        import datasets

        saved = (path / "dataset_dict.json").is_file() or (path / "state.json").is_file()
        files = [] if saved else files_below(path)
        images = images_among(files)
        tables = image_tables(path, files, self.options.image_column, bool(images))
        try:
            if saved:
                return datasets.load_from_disk(str(path))
            if tables is not None:
                self.files = tables
                used = [file for paths in tables.values() for file in paths]
                self.remarked = ignored(files, used)
                return open_tables(tables, streaming)
        except Exception as error:  # damaged files raise KeyError, TypeError and many more
            raise ValueError(
                f"--dataset {path}: its {tables.kind if tables else 'arrow'} files cannot be read "
                f"({_first_line(error)})"
            ) from error
        splits, self.remarked = image_splits(path, files, self.options)
        if not splits:
            raise ValueError(
                f"--dataset {path}: the folder holds no images and no parquet or arrow files"
                + "".join(f"; {each}" for each in ignored(files, []))
            )
        return splits

    def _split(self, splits: dict[str, Any], split: str) -> Any:
        """The rows of a split that has the columns of the options."""
        import datasets

        if split not in splits:
            few = ""
            if split in missing_parts(splits):  # and were not held out
                few = f" ({_count(splits['train'])} images are too few to hold some out)"
            raise ValueError(
                f"--dataset {self.options.dataset} has no split {split!r}; "
                f"it has: {', '.join(splits)}{few}"
            )
        names = splits[split].column_names  # None for some streams
        elsewhere = {name for rows in splits.values() for name in rows.column_names or ()}
        for flag, others in (
            ("image_column", {NO_LABELS}),
            ("label_column", {NO_LABELS}),
            ("caption_column", {NO_CAPTIONS, *elsewhere}),  # a split may have none
        ):
            column = getattr(self.options, flag)
            if None not in (column, names) and column not in {*names, *others}:
                raise ValueError(
                    f"--{flag} {column}: there is no such column; there are: {', '.join(names)}"
                )
        feature = (splits[split].features or {}).get(self.options.image_column)
        if isinstance(getattr(feature, "feature", None), datasets.Value):  # a list of plain numbers
            raise ValueError(
                f"--image_column {self.options.image_column}: the column does not hold images"
            )
        return splits[split]

    def _contents(self, rows: Any, split: str) -> str:
        """A fingerprint of what a split holds: local files, or a revision on the hub."""
        import datasets

        options, loaded = self.options, isinstance(rows, datasets.Dataset)
        if self._is_image_folder(rows):
            cells = rows.data.column(options.image_column).to_pylist()
            return files_fingerprint([Path(cell["path"]) for cell in cells])
        count = str(len(rows)) if loaded else ""
        if Path(options.dataset).is_dir():
            saved = [Path(file["filename"]) for file in rows.cache_files] if loaded else []
            files = files_fingerprint(self.files.get(split) or self.files.get("train") or saved)
            return fingerprint_of(files, split, count)
        if loaded:  # the folder of a cached copy is named by its revision
            revision = Path(rows.cache_files[0]["filename"]).parent.name
            return fingerprint_of("hub", revision, split, count)
        return fingerprint_of("hub", _revision(options.dataset) or "", split)


class _EmbeddedShapes(_DatasetsSource):
    """The drawings of `latent_prior.data.embedded.shapes`."""

    def _open(self, *, streaming: bool) -> dict[str, Any]:
        import datasets

        datasets.disable_progress_bars()
        folder = shapes.shapes_folder(self.options.dataset)
        try:
            return dict(datasets.load_from_disk(str(folder)))
        except Exception as error:  # damaged files raise KeyError, TypeError and many more
            raise ValueError(
                f"--dataset {self.options.dataset}: {folder} cannot be read ({_first_line(error)}); delete it, and "
                "it is drawn again"
            ) from error

    def _own_captions(self, rows: Any) -> str | None:
        return "caption"

    def _contents(self, rows: Any, split: str) -> str:
        """What is drawn; another version of PIL may round a grey level otherwise."""
        return fingerprint_of(self.options.dataset, shapes.VERSION, split, str(len(rows)))


def _open_hub(name: str, streaming: bool) -> Any:
    """Open a dataset of the hub, or its cached copy without a network."""
    import datasets
    import huggingface_hub
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, RepositoryNotFoundError

    try:
        huggingface_hub.HfApi().dataset_info(name, timeout=10)
    except (RepositoryNotFoundError, HFValidationError) as error:
        raise ValueError(
            f"--dataset {name}: neither a folder here nor a dataset on the hub"
        ) from error
    except HfHubHTTPError as error:
        raise ValueError(
            f"--dataset {name}: no such folder here, and the hub refuses it ({_first_line(error)})"
        ) from error
    except Exception:  # no network; the type depends on the hub's HTTP library
        # Otherwise `datasets` retries for half a minute before it uses its cache.
        huggingface_hub.constants.HF_HUB_OFFLINE = datasets.config.HF_HUB_OFFLINE = True
    try:
        return datasets.load_dataset(name, streaming=streaming)
    except Exception as error:  # as above, and whatever damaged files raise
        raise ValueError(
            f"--dataset {name}: no such folder here, and the hub's copy cannot be read "
            f"({_first_line(error)}); check the name or the network"
        ) from error


def _count(rows: Any) -> int:
    """Number of rows; of a stream at most `FEWEST`, which is all that is read."""
    if hasattr(rows, "__len__"):
        return len(rows)
    return sum(1 for _ in rows.with_format("arrow").take(FEWEST))


def _shuffled(rows: Iterator[Any], seed: int) -> Iterator[Any]:
    """Rows in a random order; each comes at most `SHUFFLED` places before its own."""
    random, buffer = np.random.default_rng(seed), list(itertools.islice(rows, SHUFFLED))
    for row in rows:
        place = random.integers(SHUFFLED)
        yield buffer[place]
        buffer[place] = row
    random.shuffle(buffer)
    yield from buffer


def _revision(name: str) -> str | None:
    """The newest commit of a dataset on the hub; None without a network."""
    import huggingface_hub

    try:
        return huggingface_hub.HfApi().dataset_info(name, timeout=10).sha
    except Exception:  # its type depends on the hub's HTTP library
        return None


def _own_folders(dataset: str) -> list[str]:
    """The folders that a table may name files of: its own, or the caches of the hub."""
    import datasets
    import huggingface_hub

    if Path(dataset).is_dir():
        return [os.path.abspath(dataset)]
    caches = (datasets.config.HF_DATASETS_CACHE, huggingface_hub.constants.HF_HUB_CACHE)
    return [os.path.abspath(cache) for cache in caches]


def _own_file(path: str, folders: list[str]) -> Path | None:
    """A path that a cell names, from here or from the data set's folder; None if it leads away."""
    if len(path) > LONGEST_PATH:
        return None
    for candidate in (path, *(os.path.join(folder, path) for folder in folders)):
        absolute = Path(os.path.abspath(candidate))
        if any(absolute.is_relative_to(folder) for folder in folders):
            return absolute
    return None


def _cell_name(cell: dict[str, Any] | None, otherwise: str, folders: list[str]) -> str:
    """The path of an image file that is there; `otherwise` for an image stored in the table."""
    if not cell or cell["bytes"] is not None or not cell["path"]:
        return otherwise
    path = _own_file(cell["path"], folders)
    return str(cell["path"]) if path is not None and os.path.lexists(path) else otherwise


def _content(cell: dict[str, Any] | None, folders: list[str]) -> bytes:
    """The encoded image, from the table or from the file it points to."""
    if not cell or (cell["bytes"] is None and cell["path"] is None):
        raise ValueError("the cell is empty")
    if cell["bytes"] is not None:
        return bytes(cell["bytes"])
    path = _own_file(cell["path"], folders)
    if path is None:
        raise ValueError(f"it names {cell['path'][:200]}, a file outside of the data set's folder")
    return read_regular(path, FILE_LIMIT)


def _first_line(error: BaseException) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0][:200]
