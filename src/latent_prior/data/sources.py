"""Where images come from: the embedded digits, local folders, parquet or arrow folders, the Hugging Face hub."""

from __future__ import annotations

import glob
import io
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from latent_prior.data.image_folders import files_below, image_splits
from latent_prior.data.mnist5k import digits
from latent_prior.options import ImageOptions

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
    if _is_embedded(options):
        return _embedded_table(split)
    return _dataset_table(_splits(options), options, split)


def split_names(options: ImageOptions) -> list[str]:
    """The splits that `options.dataset` has.

    Raises:
        ValueError: no such dataset.
    """
    if _is_embedded(options):
        return ["train", "test"]
    return list(_splits(options))


def open_stream(
    options: ImageOptions, split: str, *, shuffle_seed: int | None
) -> Iterator[tuple[Callable[[], bytes], str, int]]:
    """(reader of an image file's content, its name, label or -1) row by row, without an index.

    Raises:
        ValueError: no such dataset, split or column.
    """
    if _is_embedded(options):
        table = open_table(options, split)
        assert table.labels is not None
        order = np.arange(len(table))
        if shuffle_seed is not None:
            np.random.default_rng(shuffle_seed).shuffle(order)
        for row in map(int, order):
            yield partial(table.read, row), table.name_of(row), int(table.labels[row])
        return
    import datasets

    splits = _splits(options, streaming=True)
    _check_split(options, splits, split)
    rows = splits[split]
    if isinstance(rows, datasets.Dataset):  # a folder is never streamed
        rows = rows.to_iterable_dataset()
    if rows.column_names is not None:
        _check_columns(options, rows.column_names)
    rows = rows.cast_column(options.image_column, datasets.Image(decode=False))
    if shuffle_seed is not None:
        rows = rows.shuffle(seed=shuffle_seed % 2**32, buffer_size=10_000)
    for number, row in enumerate(rows):
        cell, label = row[options.image_column], row.get(options.label_column or "label")
        name = _cell_name(cell, f"row {number} of the stream of {options.dataset}")
        yield partial(_content, cell), name, label if isinstance(label, int) else -1


def _is_embedded(options: ImageOptions) -> bool:
    return options.dataset == EMBEDDED and not Path(EMBEDDED).exists()


def _embedded_table(split: str) -> ImageTable:
    images, labels = digits(split)

    def read(row: int) -> bytes:
        from PIL import Image

        buffer = io.BytesIO()
        Image.fromarray(images[row]).save(buffer, "bmp")
        return buffer.getvalue()

    def name_of(row: int) -> str:
        return f"mnist5k {split} {row}"

    return ImageTable(read, name_of, len(labels), labels, tuple(map(str, range(10))))


def _splits(options: ImageOptions, *, streaming: bool = False) -> dict[str, Any]:
    """Every split of a dataset, unread.

    Raises:
        ValueError: with what is wrong with the name or the folder.
    """
    import datasets

    datasets.disable_progress_bars()
    path = Path(options.dataset)
    if path.is_dir():
        opened = _open_folder(path, streaming)
    elif path.exists():
        raise ValueError(f"--dataset {path} is a file; expected a folder, mnist5k or a hub id")
    elif options.dataset.startswith((".", "/", "~")) or options.dataset.count("/") > 1:
        raise ValueError(f"--dataset: there is no folder {path}")
    else:
        opened = _open_hub(options.dataset, streaming)
    if isinstance(opened, datasets.Dataset | datasets.IterableDataset):
        opened = {"train": opened}
    return dict(opened)


def _open_folder(path: Path, streaming: bool) -> Any:
    """A folder written by `save_to_disk`, of parquet or arrow files, or of images.

    Raises:
        ValueError: it holds none of these, or they are damaged.
    """
    import datasets

    saved = (path / "dataset_dict.json").is_file() or (path / "state.json").is_file()
    files = [] if saved else files_below(path)
    suffixes = {file.suffix for file in files}
    kind = next((kind for kind in ("parquet", "arrow") if f".{kind}" in suffixes), None)
    try:
        if saved:
            return datasets.load_from_disk(str(path))
        if kind is not None:
            return datasets.load_dataset(
                kind, data_dir=glob.escape(str(path.absolute())), streaming=streaming
            )
    except (OSError, ValueError, RuntimeError, datasets.exceptions.DatasetsError) as error:
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
    """A dataset of the hub, or its copy in the cache where there is no network.

    Raises:
        ValueError: no such dataset, or neither network nor copy.
    """
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
    except Exception:  # no network; the type depends on the version of the hub's http library
        # Without this, `datasets` retries for half a minute before it looks into its cache.
        huggingface_hub.constants.HF_HUB_OFFLINE = datasets.config.HF_HUB_OFFLINE = True
    try:
        return datasets.load_dataset(name, streaming=streaming)
    except Exception as error:  # as above, and whatever the dataset's own files provoke
        raise ValueError(
            f"--dataset {name}: no such folder here, and the hub's copy cannot be read "
            f"({_first_line(error)}); check the name or the network"
        ) from error


def _dataset_table(splits: dict[str, Any], options: ImageOptions, split: str) -> ImageTable:
    import datasets

    _check_split(options, splits, split)
    rows: Dataset = splits[split]
    _check_columns(options, rows.column_names)
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
        return _cell_name(cell(row), f"row {row} of split {split} of {options.dataset}")

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


def _labels(
    splits: dict[str, Any], split: str, options: ImageOptions
) -> tuple[NDArray[np.int64] | None, tuple[str, ...]]:
    """Labels as numbers with their names, -1 where a class is unknown; any column of integers or text can serve.

    The numbers are the same in every split, also where a split lacks a class.

    Raises:
        ValueError: the column that was asked for holds neither, or misses values.
    """
    import datasets

    column = options.label_column or "label"
    if column not in splits[split].column_names:
        return None, ()
    feature = splits[split].features[column]
    if isinstance(feature, datasets.ClassLabel):
        numbers = [-1 if number is None else number for number in splits[split][column]]
        return np.asarray(numbers, dtype=np.int64), tuple(feature.names)
    found = {
        name: np.asarray(rows.with_format(None)[column][:])
        for name, rows in splits.items()
        if column in rows.column_names
    }
    kinds = {values.dtype.kind for values in found.values()}
    if not kinds <= set("iub") and kinds != {"U"}:
        if options.label_column is None:  # a column that merely has this name
            return None, ()
        raise ValueError(
            f"--label_column {column}: some labels are missing, or are neither class numbers nor class names"
        )
    names = np.unique(np.concatenate(list(found.values())))
    return np.searchsorted(names, found[split]), tuple(str(name) for name in names)


def _cell_name(cell: dict[str, Any] | None, otherwise: str) -> str:
    """What a user would call an image: its file, where it is one."""
    return cell["path"] if cell and cell["path"] and cell["bytes"] is None else otherwise


def _content(cell: dict[str, Any] | None) -> bytes:
    """The encoded image, from the table itself or from the file it points to.

    Raises:
        OSError, ValueError: an empty cell, or a file that cannot be read.
    """
    if not cell or (cell["bytes"] is None and cell["path"] is None):
        raise ValueError("the cell is empty")
    return cell["bytes"] if cell["bytes"] is not None else Path(cell["path"]).read_bytes()


def _first_line(error: BaseException) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0][:200]
