"""What a folder says of its images: `metadata.csv`, `.jsonl` or `.parquet`, and text files.

The convention is that of the `imagefolder` reader of `datasets`: a metadata file names images of
its own folder, or of those below it, by `file_name`; its other columns may be captions or classes.
Names are only looked up among the images that were listed.
"""

from __future__ import annotations

import posixpath
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from latent_prior.data.captions import (
    CAPTION_COLUMN,
    NO_CAPTIONS,
    OTHERWISE,
    read_text_file,
)
from latent_prior.data.labels import NO_LABELS, csv_rows
from latent_prior.data.listing import TABLE_LIMIT
from latent_prior.files import open_regular, read_regular
from latent_prior.options import ImageOptions
from latent_prior.records import parse_record

FILE_COLUMN, LABEL_COLUMN = "file_name", "label"
_ROWS = 1024  # of a parquet file that are in memory at a time


class Described(NamedTuple):
    """What is said of a folder's images."""

    columns: dict[str, list[Any]]
    """Captions and classes by the name of their column: a value for each image, or None."""
    files: list[Path]
    """Files that were read."""
    remarks: list[str]
    """What a user should know about them, as ends of a sentence."""


def describe_images(
    folder: Path,
    files: Sequence[Path],
    images: Sequence[Path],
    options: ImageOptions,
    *,
    class_folders: bool,
) -> Described:
    """The captions and classes in the metadata files of a folder of images.

    Captions are the column `caption_column` of the options. By default they are the column `text`
    or, if there is none, text files beside the images. Classes are the column `label_column`; by
    default folders if they are classes, and otherwise the column `label`.

    Args:
        folder: the data set.
        files: all files in it.
        images: those that are images.
        options: names of the columns, and what happens to rows that belong to no image.
        class_folders: whether folders are classes.

    Raises:
        ValueError: naming a file that cannot be read or does not fit the images, or a column that
            was asked for and is not there.
    """
    caption = options.caption_column or CAPTION_COLUMN
    label = options.label_column or LABEL_COLUMN
    wanted = [caption] * (caption != NO_CAPTIONS)
    wanted += [label] * (label != NO_LABELS and not (class_folders and not options.label_column))
    tables = [path for path in files if path.name in _READERS]
    described = Described({}, [], [])
    if tables and wanted:
        try:
            described = _read_tables(folder, tables, images, options, wanted)
        except ValueError as error:
            if caption in wanted or options.label_column:
                raise
            described.remarks.append(f"metadata is not read, because {error}")
    if caption == CAPTION_COLUMN and caption not in described.columns:
        _read_texts(described, files, images, options)
    if caption not in described.columns and described.files and not options.caption_column:
        described.remarks.append(
            f"no captions, because {described.files[0].name} has no column {caption}"
        )
    return described


def captioned_splits(
    captions: Sequence[Any], images: Sequence[Path], splits: Sequence[str], options: ImageOptions
) -> set[str]:
    """The splits with captions: those in which an image has one.

    Args:
        captions: those of each image, None for an image without.
        images: the images.
        splits: the split of each.
        options: what happens to images without captions.

    Raises:
        ValueError: no image has captions, or one of such a split has none.
    """
    covered = {split for split, cell in zip(splits, captions, strict=True) if cell is not None}
    if not covered:
        raise ValueError(
            f"not one image has a caption, for example {images[0]}: add them, or set "
            f"--caption_column {NO_CAPTIONS}"
        )
    cells = zip(images, splits, captions, strict=True)
    bare = [path for path, split, cell in cells if split in covered and cell is None]
    if bare and options.on_corrupt == "error":
        more = f" and {len(bare) - 1:,} others have" if len(bare) > 1 else " has"
        raise ValueError(f"{bare[0]}{more} no caption: add what is missing, {OTHERWISE}")
    return covered


def _read_texts(
    described: Described, files: Sequence[Path], images: Sequence[Path], options: ImageOptions
) -> None:
    """Add the captions in text files beside the images, if there are any."""
    texts = {path for path in files if path.suffix == ".txt"}
    beside = [path.with_suffix(".txt") for path in images]
    if texts.isdisjoint(beside):
        return

    def captions(path: Path) -> list[str] | None:
        try:
            return read_text_file(path) if path in texts else None
        except ValueError:
            if options.on_corrupt == "error":
                raise
            return None

    described.columns[CAPTION_COLUMN] = [captions(path) for path in beside]
    described.files.extend(sorted(texts.intersection(beside)))


def _read_tables(
    folder: Path,
    tables: Sequence[Path],
    images: Sequence[Path],
    options: ImageOptions,
    wanted: Sequence[str],
) -> Described:
    """Those of the wanted columns that metadata files have."""
    number = {path.relative_to(folder).as_posix(): place for place, path in enumerate(images)}
    columns: dict[str, list[Any]] = {name: [None] * len(images) for name in wanted}
    known: dict[str, None] = {}
    described: set[int] = set()
    strays = repeated = 0
    for place, path in enumerate(tables):
        if place and path.parent == tables[place - 1].parent:
            raise ValueError(
                f"{path.parent} has {tables[place - 1].name} and {path.name}; keep one of them"
            )
        base, rows = path.parent.relative_to(folder).as_posix(), 0
        for rows, row in enumerate(_READERS[path.name](path), start=1):
            known |= dict.fromkeys(row)
            image = number.get(_place(base, row, f"{path}, row {rows}"))
            named = f"{path} names {row[FILE_COLUMN][:200]!r}"
            if image is None:
                if options.on_corrupt == "error":
                    raise ValueError(
                        f"{named}, which is no image of its folder; correct the row, or leave "
                        "such rows out with --on_corrupt skip"
                    )
                strays += 1
            elif image in described:
                if options.on_corrupt == "error":
                    raise ValueError(
                        f"{named}, which has a row already; write several captions of an image as "
                        "a list in metadata.jsonl, or keep the first row with --on_corrupt skip"
                    )
                repeated += 1
            else:
                described.add(image)
                for name in wanted:
                    columns[name][image] = row.get(name)
        if not rows:
            raise ValueError(f"{path} holds no rows; fill it, or move it away")
    columns = {name: cells for name, cells in columns.items() if name in known}
    counts = ((strays, "without an image"), (repeated, "of an image that has one"))
    remarks = [f"{n:,} row{'s' * (n > 1)} of metadata {why} left out" for n, why in counts if n]
    _check_columns(columns, known, options, remarks)
    return Described(columns, list(tables), remarks)


def _place(base: str, row: dict[str, Any], where: str) -> str:
    """The path, from the data set's folder, of the file that a row names.

    Raises:
        ValueError: it names none, or one outside of the metadata's own folder.
    """
    name = row.get(FILE_COLUMN)
    if not isinstance(name, str) or not name:
        raise ValueError(
            f"{where}, names no image by {FILE_COLUMN}; its columns are {_listed(row)}; name the "
            "column, or fill in the row"
        )
    place = posixpath.normpath(name.replace("\\", "/"))
    if place.startswith(("/", "../")) or place == "..":
        raise ValueError(
            f"{where}, names {name[:200]!r}, a file outside of its folder; move the image into the "
            "folder, or remove the row"
        )
    return posixpath.normpath(posixpath.join(base, place))


def _check_columns(
    columns: dict[str, list[Any]],
    known: dict[str, None],
    options: ImageOptions,
    remarks: list[str],
) -> None:
    """Refuse missing columns and cells that are no captions; bring captions to one type.

    A column of classes is removed with a remark if nobody asked for it.
    """
    import pyarrow

    caption, label = (options.caption_column, CAPTION_COLUMN), (options.label_column, LABEL_COLUMN)
    for flag, (name, default) in (("caption", caption), ("label", label)):
        # Under their default names, text files and folders may serve.
        if name not in (None, default, NO_CAPTIONS, *known):
            raise ValueError(
                f"--{flag}_column {name}: there is no such column; there are: {_listed(known)}"
            )
    named = options.caption_column or CAPTION_COLUMN
    cells = columns.get(named, [])
    for cell in cells:
        for text in cell if isinstance(cell, list) else [cell]:
            if not isinstance(text, str | None):
                raise ValueError(
                    f"--caption_column {named}: the column holds {str(text)[:40]!r}, "
                    f"{type(text).__name__}, but captions are text or lists of text; name another "
                    f"one, or set --caption_column {NO_CAPTIONS}"
                )
    if any(isinstance(cell, list) for cell in cells):
        columns[named] = [[cell] if isinstance(cell, str) else cell for cell in cells]
    named = options.label_column or LABEL_COLUMN
    try:
        pyarrow.array(columns.get(named, []))
    except (pyarrow.ArrowException, OverflowError) as error:
        problem = "holds values of several types"
        if options.label_column:
            raise ValueError(
                f"--label_column {named}: the column {problem}, but classes are whole numbers or "
                f"text; name another one, or set --label_column {NO_LABELS}"
            ) from error
        del columns[named]
        remarks.append(f"no classes, because the column {named} {problem}")


def _listed(names: Iterable[str]) -> str:
    """Names of columns in one line."""
    return " ".join(", ".join(names).split())[:400] or "none"


def _csv(path: Path) -> Iterator[dict[str, Any]]:
    try:
        text = read_regular(path, TABLE_LIMIT).decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is not UTF-8 (byte {error.start}); save it as UTF-8") from error
    rows = csv_rows(path, text, strict=True)
    names = [name.strip() for name in next(rows, [])]
    if len(set(names)) < len(names):
        twice = next(name for name in names if names.count(name) > 1)
        raise ValueError(f"{path} has two columns {twice[:40]!r}; rename or remove one")
    for number, row in enumerate(filter(None, rows), start=1):
        if len(row) > len(names):
            raise ValueError(
                f"{path}, row {number}, has {len(row)} cells for {len(names)} columns; put text "
                "with commas into double quotes"
            )
        yield dict.fromkeys(names, "") | dict(zip(names, row, strict=False))


def _jsonl(path: Path) -> Iterator[dict[str, Any]]:
    lines = read_regular(path, TABLE_LIMIT).removeprefix(b"\xef\xbb\xbf").split(b"\n")
    for number, line in enumerate(lines, start=1):
        if line.strip():
            yield parse_record(line, dict[str, Any], f"{path}, line {number},", "repair it")


def _parquet(path: Path) -> Iterator[dict[str, Any]]:
    import pyarrow
    import pyarrow.parquet

    with open_regular(path, TABLE_LIMIT) as file:
        size = 0
        try:
            for batch in pyarrow.parquet.ParquetFile(file).iter_batches(batch_size=_ROWS):
                size += batch.nbytes
                if size > TABLE_LIMIT:
                    break
                yield from batch.to_pylist()
        except (OSError, UnicodeDecodeError, pyarrow.ArrowException) as error:
            reason = (str(error).strip() or type(error).__name__).splitlines()[0][:200]
            raise ValueError(f"{path} cannot be read as a table ({reason}); repair it") from error
        if size > TABLE_LIMIT:
            raise ValueError(f"{path} holds more than {TABLE_LIMIT:,} bytes of rows; shorten it")


_READERS: dict[str, Callable[[Path], Iterator[dict[str, Any]]]] = {
    "metadata.csv": _csv,
    "metadata.jsonl": _jsonl,
    "metadata.parquet": _parquet,
}
