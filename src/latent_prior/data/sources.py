"""Data sources: the embedded data sets, local folders and the Hugging Face hub.

To add a source, subclass `ImageSource` and choose the subclass in `open_source`.
"""

from __future__ import annotations

import functools
import io
from pathlib import Path

from PIL import Image

from latent_prior.data.captions import CAPTION_COLUMN, NO_CAPTIONS, Captions
from latent_prior.data.embedded import shapes
from latent_prior.data.embedded.mnist5k import digits
from latent_prior.data.fingerprints import files_fingerprint, fingerprint_of
from latent_prior.data.image_folders import ignored, image_splits
from latent_prior.data.image_source import ImageSource, ImageTable
from latent_prior.data.labels import read_labels
from latent_prior.data.listing import files_below, images_among
from latent_prior.data.shards.arrow_tables import ArrowTable
from latent_prior.data.shards.cells import (
    Cell,
    cell_name,
    check_columns,
    content,
    no_images,
    own_file,
    own_folders,
)
from latent_prior.data.shards.places import Place, hub_place, is_url, local_place, remote_place
from latent_prior.data.shards.source import ShardedSource
from latent_prior.data.shards.tables import image_tables, open_datasets, open_saved, open_tables
from latent_prior.data.splits import (
    FEWEST,
    SPLITS,
    held_out_remark,
    missing_parts,
    rows_of_part,
)
from latent_prior.options import DRAWN, ImageOptions


def open_source(options: ImageOptions) -> ImageSource:
    """The source of `options.dataset`; a local folder of the same name hides an embedded one.

    Raises:
        ValueError: it is named by a URL at which there are no shards, or is a folder of shards that
            cannot be read, or is to be streamed from the hub and cannot be.
    """
    name, path = options.dataset, Path(options.dataset)
    embedded = "" if path.exists() else name
    if embedded == "mnist5k":
        return _EmbeddedDigits()
    if embedded in DRAWN:
        return _EmbeddedShapes(options)
    if is_url(name):
        return ShardedSource(options, remote_place(name))
    streaming = getattr(options, "streaming", False)
    if path.is_dir():
        place = local_place(path, options.image_column, tables=streaming)
        return _DatasetsSource(options) if place is None else ShardedSource(options, place)
    if streaming and _may_be_hub_id(name):
        return ShardedSource(options, _hub_place(name))
    return _DatasetsSource(options)


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
            images = rows.cast(options.image_column, datasets.Image(decode=False))
        except (TypeError, ValueError, NotImplementedError) as error:
            raise no_images(options.image_column) from error
        labels = read_labels(self.splits, split, options.label_column)

        def cell(row: int) -> Cell:
            found: Cell = images.cell(options.image_column, row)
            return found

        def name_of(row: int) -> str:
            whole = "train" if split in self.parts else split
            stored = f"row {images.stored_row(row)} of split {whole}"
            return cell_name(cell(row), f"{stored} of {options.dataset}", folders)

        def path_of(row: int) -> Path | None:
            found = cell(row)
            if found is None or found["bytes"] is not None or found["path"] is None:
                return None
            return own_file(found["path"], folders)

        folders = own_folders(options.dataset)
        return ImageTable(
            lambda row: content(cell(row), folders),
            name_of,
            len(rows),
            labels.numbers,
            labels.names,
            lambda: self._contents(rows, split),
            path_of,
            labels.remark,
            self._captions(rows),
        )

    def _captions(self, rows: ArrowTable) -> Captions | None:
        """The captions of a split; it may have none although another one has."""
        column = self.options.caption_column or self._own_captions(rows)
        if column in (None, NO_CAPTIONS) or column not in rows.column_names:
            return None
        return Captions(rows, column)

    def _own_captions(self, rows: ArrowTable) -> str | None:
        """The column of captions that nobody has to ask for."""
        return CAPTION_COLUMN if self._is_image_folder(rows) else None

    @functools.cached_property
    def splits(self) -> dict[str, ArrowTable]:
        """Every split, opened but not read."""
        return self._divided(self._open())

    def _divided(self, splits: dict[str, ArrowTable]) -> dict[str, ArrowTable]:
        """The splits, and those missing, which are held out of `train` if it is large enough."""
        parts = missing_parts(splits)
        if not parts:
            return splits
        rows = splits["train"]
        if self._is_image_folder(rows):  # folders of images are divided by names
            return splits
        if len(rows) < FEWEST:
            return splits
        self.parts = parts
        divided = {
            name: rows.choose(rows_of_part(len(rows), parts, name)) for name in ("train", *parts)
        }
        return divided | {name: other for name, other in splits.items() if name != "train"}

    def _is_image_folder(self, rows: ArrowTable) -> bool:
        """Whether the rows name the files of a folder of images."""
        return not rows.paths

    def _open(self) -> dict[str, ArrowTable]:
        """Every split as it is stored."""
        import datasets

        datasets.disable_progress_bars()
        name, path = self.options.dataset, Path(self.options.dataset)
        if path.is_dir():
            return self._open_folder(path)
        if path.exists():
            raise ValueError(
                f"--dataset {path} is a file; expected a folder, mnist5k, shapes, shapes_text or a hub id"
            )
        if not _may_be_hub_id(name):
            raise ValueError(f"--dataset: there is no folder {path}")
        return _open_hub(name)

    def _open_folder(self, path: Path) -> dict[str, ArrowTable]:
        """Open a folder written by `save_to_disk`, of parquet or arrow files, or of images."""
        saved = (path / "dataset_dict.json").is_file() or (path / "state.json").is_file()
        files = [] if saved else files_below(path)
        images = images_among(files)
        tables = image_tables(path, files, self.options.image_column, bool(images))
        try:
            if saved:
                return open_saved(path)
            if tables is not None:
                self.files = tables
                used = [file for paths in tables.values() for file in paths]
                self.remarked = ignored(files, used)
                return open_tables(tables)
        except Exception as error:  # damaged files raise KeyError, TypeError and many more
            raise ValueError(
                f"--dataset {path}: its {tables.kind if tables else 'arrow'} files cannot be read "
                f"({_first_line(error)})"
            ) from error
        splits, self.remarked = image_splits(path, files, self.options)
        if not splits:
            raise ValueError(
                f"--dataset {path}: the folder holds no images and no tar, parquet or arrow files"
                + "".join(f"; {each}" for each in ignored(files, []))
            )
        return open_datasets(splits)

    def _split(self, splits: dict[str, ArrowTable], split: str) -> ArrowTable:
        """The rows of a split that has the columns of the options."""
        import datasets

        if split not in splits:
            few = ""
            if split in missing_parts(splits):  # and were not held out
                few = f" ({len(splits['train'])} images are too few to hold some out)"
            raise ValueError(
                f"--dataset {self.options.dataset} has no split {split!r}; "
                f"it has: {', '.join(splits)}{few}"
            )
        elsewhere = {name for rows in splits.values() for name in rows.column_names}
        check_columns(self.options, splits[split].column_names, elsewhere)
        feature = splits[split].features.get(self.options.image_column)
        if isinstance(getattr(feature, "feature", None), datasets.Value):  # a list of plain numbers
            raise no_images(self.options.image_column)
        return splits[split]

    def _contents(self, rows: ArrowTable, split: str) -> str:
        """A fingerprint of what a split holds: local files, or a revision on the hub."""
        options, count = self.options, str(len(rows))
        if self._is_image_folder(rows):
            parts = (part.field("path") for part in rows.parts(options.image_column))
            return files_fingerprint([Path(name) for part in parts for name in part.to_pylist()])
        if Path(options.dataset).is_dir():
            tables = self.files.get(split) or self.files.get("train")
            files = files_fingerprint(tables or rows.paths)
            return fingerprint_of(files, split, count)
        # The folder of a cached copy is named by its revision.
        revision = rows.paths[0].parent.name
        return fingerprint_of("hub", revision, split, count)


class _EmbeddedShapes(_DatasetsSource):
    """The drawings of `latent_prior.data.embedded.shapes`."""

    def _open(self) -> dict[str, ArrowTable]:
        folder = shapes.shapes_folder(self.options.dataset)
        try:
            return open_saved(folder)
        except Exception as error:  # damaged files raise KeyError, TypeError and many more
            raise ValueError(
                f"--dataset {self.options.dataset}: {folder} cannot be read ({_first_line(error)}); delete it, and "
                "it is drawn again"
            ) from error

    def _own_captions(self, rows: ArrowTable) -> str | None:
        return "caption"

    def _contents(self, rows: ArrowTable, split: str) -> str:
        """What is drawn; another version of PIL may round a grey level otherwise."""
        return fingerprint_of(self.options.dataset, shapes.VERSION, split, str(len(rows)))


def _may_be_hub_id(name: str) -> bool:
    return not name.startswith((".", "/", "~")) and name.count("/") <= 1


def _check_hub(name: str) -> None:
    """Make `datasets` look for a dataset on the hub, or only in its cache without a network."""
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


def _open_hub(name: str) -> dict[str, ArrowTable]:
    """Open a dataset of the hub, or its cached copy without a network."""
    import datasets

    _check_hub(name)
    try:
        return open_datasets(datasets.load_dataset(name))
    except Exception as error:  # as above, and whatever damaged files raise
        raise ValueError(
            f"--dataset {name}: no such folder here, and the hub's copy cannot be read "
            f"({_first_line(error)}); check the name or the network"
        ) from error


def _hub_place(name: str) -> Place:
    """The shards of a dataset on the hub."""
    _check_hub(name)
    try:
        place = hub_place(name)
    except Exception as error:  # as above
        raise ValueError(
            f"--dataset {name}: no such folder here, and the hub's copy cannot be read "
            f"({_first_line(error)}); check the name or the network"
        ) from error
    if place is None:
        raise ValueError(
            f"--dataset {name} is not stored in tar, parquet or arrow files on the hub, so it cannot "
            "be streamed; leave out --streaming"
        )
    return place


def _first_line(error: BaseException) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0][:200]
