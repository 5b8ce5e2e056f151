"""Data sources: the embedded digits, local folders and the Hugging Face hub.

To add a source, subclass `ImageSource` and choose the subclass in `open_source`.
"""

from __future__ import annotations

import abc
import glob
import io
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image

from latent_prior.data.fingerprints import files_fingerprint, fingerprint_of
from latent_prior.data.image_files import FILE_LIMIT
from latent_prior.data.image_folders import image_splits
from latent_prior.data.listing import files_below
from latent_prior.data.mnist5k import digits
from latent_prior.files import read_regular
from latent_prior.options import ImageOptions

if TYPE_CHECKING:
    from numpy.typing import NDArray


TABLES = frozenset((".parquet", ".arrow"))
LONGEST_PATH = 4096  # characters of a path that a table names
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
    """

    read: Callable[[int], bytes]
    name_of: Callable[[int], str]
    size: int
    labels: NDArray[np.int64] | None
    class_names: tuple[str, ...]
    contents: Callable[[], str]

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
    def table(self, split: str) -> ImageTable:
        """Open a split by row.

        Raises:
            ValueError: there is no such dataset, split or column.
        """

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
    """The source of `options.dataset`; a local folder of the same name hides the digits."""
    if options.dataset == "mnist5k" and not Path("mnist5k").exists():
        return _EmbeddedDigits()
    return _DatasetsSource(options)


class _EmbeddedDigits(ImageSource):
    """The digits of `latent_prior.data.mnist5k`."""

    def split_names(self) -> list[str]:
        return ["train", "test"]

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

    def split_names(self) -> list[str]:
        return list(self._splits())

    def table(self, split: str) -> ImageTable:
        import datasets

        options, splits = self.options, self._splits()
        rows = self._split(splits, split)
        try:
            rows = rows.cast_column(options.image_column, datasets.Image(decode=False))
        except (TypeError, ValueError, NotImplementedError) as error:
            raise ValueError(
                f"--image_column {options.image_column}: the column does not hold images"
            ) from error
        labels, names = _labels(splits, split, options)
        images = rows.select_columns([options.image_column])

        def cell(row: int) -> dict[str, Any] | None:
            return images[row][options.image_column]

        def name_of(row: int) -> str:
            return _cell_name(
                cell(row), f"row {row} of split {split} of {options.dataset}", folders
            )

        def contents() -> str:
            return _contents(options, images)

        folders = _own_folders(options.dataset)
        return ImageTable(
            lambda row: _content(cell(row), folders), name_of, len(rows), labels, names, contents
        )

    def stream_fingerprint(self, split: str) -> str:
        rows = self._split(self._splits(streaming=True), split)
        return _contents(self.options, rows)

    def stream(self, split: str, *, shuffle_seed: int | None) -> Iterator[StreamedImage]:
        import datasets

        options = self.options
        rows = self._split(self._splits(streaming=True), split)
        if isinstance(rows, datasets.Dataset):  # of a folder
            rows = rows.to_iterable_dataset()
        rows = rows.cast_column(options.image_column, datasets.Image(decode=False))
        if shuffle_seed is not None:
            rows = rows.shuffle(seed=shuffle_seed % 2**32, buffer_size=10_000)
        folders = _own_folders(options.dataset)
        for number, row in enumerate(rows):
            cell, label = row[options.image_column], row.get(options.label_column or "label")
            name = _cell_name(cell, f"row {number} of the stream of {options.dataset}", folders)
            yield partial(_content, cell, folders), name, label if isinstance(label, int) else -1

    def _splits(self, *, streaming: bool = False) -> dict[str, Any]:
        """Every split, opened but not read."""
        import datasets

        datasets.disable_progress_bars()
        name, path = self.options.dataset, Path(self.options.dataset)
        if path.is_dir():
            opened = _open_folder(path, streaming)
        elif path.exists():
            raise ValueError(f"--dataset {path} is a file; expected a folder, mnist5k or a hub id")
        elif name.startswith((".", "/", "~")) or name.count("/") > 1:
            raise ValueError(f"--dataset: there is no folder {path}")
        else:
            opened = _open_hub(name, streaming)
        if isinstance(opened, datasets.Dataset | datasets.IterableDataset):
            opened = {"train": opened}
        return dict(opened)

    def _split(self, splits: dict[str, Any], split: str) -> Any:
        """The rows of a split that has the columns of the options."""
        import datasets

        if split not in splits:
            raise ValueError(
                f"--dataset {self.options.dataset} has no split {split!r}; "
                f"it has: {', '.join(splits)}"
            )
        names = splits[split].column_names  # None for some streams
        for flag in ("image_column", "label_column"):
            column = getattr(self.options, flag)
            if None not in (column, names) and column not in names:
                raise ValueError(
                    f"--{flag} {column}: there is no such column; there are: {', '.join(names)}"
                )
        feature = (splits[split].features or {}).get(self.options.image_column)
        if isinstance(getattr(feature, "feature", None), datasets.Value):  # a list of plain numbers
            raise ValueError(
                f"--image_column {self.options.image_column}: the column does not hold images"
            )
        return splits[split]


def _open_folder(path: Path, streaming: bool) -> Any:
    """Open a folder written by `save_to_disk`, of parquet or arrow files, or of images."""
    import datasets

    saved = (path / "dataset_dict.json").is_file() or (path / "state.json").is_file()
    files = [] if saved else files_below(path)
    suffixes = {file.suffix for file in files}
    kind = next((kind for kind in ("parquet", "arrow") if f".{kind}" in suffixes), None)
    for file in files:
        if file.suffix == f".{kind}" and not file.is_file():  # a FIFO would be waited for
            raise ValueError(f"--dataset {path}: {file} is no regular file; remove or replace it")
    try:
        if saved:
            return datasets.load_from_disk(str(path))
        if kind is not None:
            return datasets.load_dataset(
                kind, data_dir=glob.escape(str(path.absolute())), streaming=streaming
            )
    except Exception as error:  # damaged files raise KeyError, TypeError and many more
        raise ValueError(
            f"--dataset {path}: its {kind or 'arrow'} files cannot be read ({_first_line(error)})"
        ) from error
    splits = image_splits(path, files)
    if not splits:
        raise ValueError(
            f"--dataset {path}: the folder holds no images and no parquet or arrow files"
        )
    return splits


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


def _contents(options: ImageOptions, rows: Any) -> str:
    """A fingerprint of what a split holds: local files, or a revision on the hub."""
    import datasets

    path, loaded = Path(options.dataset), isinstance(rows, datasets.Dataset)
    if path.is_dir() and loaded and not rows.cache_files:  # a folder of images
        cells = rows.data.column(options.image_column).to_pylist()
        return files_fingerprint([Path(cell["path"]) for cell in cells])
    if path.is_dir():
        return files_fingerprint([file for file in files_below(path) if file.suffix in TABLES])
    if loaded:  # the folder of a cached copy is named by its revision
        return fingerprint_of("hub", Path(rows.cache_files[0]["filename"]).parent.name)
    return fingerprint_of("hub", _revision(options.dataset) or "")


def _revision(name: str) -> str | None:
    """The newest commit of a dataset on the hub; None without a network."""
    import huggingface_hub

    try:
        return huggingface_hub.HfApi().dataset_info(name, timeout=10).sha
    except Exception:  # its type depends on the hub's HTTP library
        return None


def _labels(
    splits: dict[str, Any], split: str, options: ImageOptions
) -> tuple[NDArray[np.int64] | None, tuple[str, ...]]:
    """Labels of a split as numbers, -1 for an unknown class, and the names of the classes.

    A column of integers or text is numbered by its sorted values in all splits, so a class has the
    same number everywhere.
    """
    import datasets

    column = options.label_column or "label"
    if column not in splits[split].column_names:
        return None, ()
    feature = splits[split].features[column]
    if isinstance(feature, datasets.ClassLabel):
        numbers = [-1 if number is None else number for number in splits[split][column]]
        return np.asarray(numbers, dtype=np.int64), tuple(feature.names)
    values = {
        name: np.asarray(rows.with_format(None)[column][:])
        for name, rows in splits.items()
        if column in rows.column_names
    }
    kinds = {array.dtype.kind for array in values.values()}
    if not kinds <= set("iub") and kinds != {"U"}:
        if options.label_column is None:  # a column that happens to be called `label`
            return None, ()
        raise ValueError(
            f"--label_column {column}: some labels are missing, or are neither integers nor text"
        )
    names = np.unique(np.concatenate(list(values.values())))
    return np.searchsorted(names, values[split]), tuple(str(name) for name in names)


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
