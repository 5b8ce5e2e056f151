"""Classes of images: from a column to numbers, from what a user types to one, and `labels.csv`."""

from __future__ import annotations

import codecs
import csv
import io
import math
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from latent_prior.data.listing import TABLE_LIMIT
from latent_prior.data.shards.arrow_tables import ArrowTable
from latent_prior.files import read_regular, whole_file

NO_LABELS = "none"
"""Value of `--label_column` for images without classes."""
_SHOWN = 20  # names in a message
_FILES = ("file", "file_name", "filename", "image", "path")
CLASS_HEADINGS, PROMPT_HEADINGS = ("class", "class_name", "label", "category"), ("prompt", "text")
_FORMULA = re.compile(r"'*[=+\-@\t\r]")
_NUMBER = re.compile(r"-?[0-9]+")


class Labels(NamedTuple):
    """The classes of one split."""

    numbers: NDArray[np.integer] | None
    """(N,), of the smallest type, -1 without a class; None if the images have no classes."""
    names: tuple[str, ...] = ()
    """In the order of their numbers."""
    remark: str | None = None
    """Why there are no classes although there is a column for them."""


def natural_order(names: Iterable[str]) -> list[str]:
    """Names in the order of the numbers in them: 0, 1, 2, 10."""

    def key(name: str) -> tuple[list[Any], str]:
        parts = re.split(r"([0-9]+)", name)  # text and digits in turn
        return [int(part) if place % 2 else part for place, part in enumerate(parts)], name

    return sorted(names, key=key)


def read_labels(splits: Mapping[str, ArrowTable], split: str, label_column: str | None) -> Labels:
    """The labels of one split of a dataset.

    A column of integers or text is numbered by its values in all splits, in natural order, so a
    class has the same number everywhere. Missing values, NaN, empty text and -1 are no class.

    Args:
        splits: tables by name.
        split: one of them.
        label_column: its column; None takes `label` if it holds classes, `none` takes no column.

    Raises:
        ValueError: the column holds lists, or a column that was asked for holds no classes.
    """
    import datasets

    column = label_column or "label"
    if column == NO_LABELS or column not in splits[split].column_names:
        return Labels(None)
    feature = splits[split].features[column]
    if isinstance(feature, datasets.ClassLabel):
        numbers = _numbers(splits[split], column, feature.num_classes)
        if numbers is None:
            raise ValueError(
                f"--label_column {column}: the labels of split {split} lie outside its "
                f"{feature.num_classes} classes; repair them, or set --label_column {NO_LABELS}"
            )
        return Labels(numbers, tuple(feature.names))
    present, problem = _present(splits, column)
    if problem is not None:
        if label_column is not None:
            raise ValueError(
                f"--label_column {column}: the column {problem}, but classes are whole numbers or "
                f"text; name another one, or set --label_column {NO_LABELS}"
            )
        return Labels(None, remark=f"no classes, because the column {column} {problem}")
    texts = [value for value in present if isinstance(value, str)]
    names: list[Any] = natural_order(texts) if texts else sorted(present)
    if not names:
        return Labels(None)
    number_of: dict[Any, int] = {None: -1} | {name: place for place, name in enumerate(names)}
    parts = [np.zeros(0, _smallest_type(len(names)))]
    for part in splits[split].parts(column):
        coded = part.dictionary_encode()
        found = [number_of[_class_of(value)] for value in coded.dictionary.to_pylist()]
        places = coded.indices.fill_null(len(found)).to_numpy(zero_copy_only=False)
        parts.append(np.array([*found, -1], parts[0].dtype)[places])
    return Labels(np.concatenate(parts), tuple(str(name) for name in names))


def _present(splits: Mapping[str, ArrowTable], column: str) -> tuple[set[Any], str | None]:
    """The classes in a column of all splits, or why there are none, for a sentence about it.

    Raises:
        ValueError: the column holds lists.
    """
    import pyarrow

    kinds, present = pyarrow.types, set[Any]()
    for rows in splits.values():
        if column not in rows.column_names:
            continue
        kind = rows.type_of(column)
        if kinds.is_list(kind) or kinds.is_large_list(kind) or kinds.is_fixed_size_list(kind):
            raise ValueError(
                f"--label_column {column}: the column holds lists, not classes; name another one, "
                f"or set --label_column {NO_LABELS} for images without classes"
            )
        for part in rows.parts(column):
            # Of values that pyarrow cannot compare, none is a class.
            distinct = part.drop_null()[:1] if kinds.is_nested(kind) else part.unique()
            values = distinct.to_pylist()
            if (problem := _problem(values)) is not None:
                return set(), problem
            present.update(map(_class_of, values))
    present.discard(None)
    if {isinstance(value, str) for value in present} == {True, False}:
        return set(), "holds text and numbers"
    return present, None


def _problem(values: Sequence[Any]) -> str | None:
    """Why values are no classes, for a sentence about their column."""
    for value in values:
        if isinstance(value, float) and not (math.isnan(value) or value.is_integer()):
            return f"holds fractions such as {value}"
        if value is not None and not isinstance(value, bool | int | float | str):
            return f"holds values of the type {type(value).__name__}"
    return None


def _class_of(value: Any) -> int | str | None:
    """A plain value as a class; None for a value that says there is none."""
    if value is None or value in ("", -1) or value != value:
        return None
    return int(value) if isinstance(value, float) else value


def _numbers(rows: ArrowTable, column: str, classes: int) -> NDArray[np.integer] | None:
    """A column of numbers of classes, -1 where there is none; None if one is out of range."""
    numbers, first = np.empty(len(rows), _smallest_type(classes)), 0
    for part in rows.parts(column):
        found = part.fill_null(-1).to_numpy(zero_copy_only=False)
        if not -1 <= found.min() <= found.max() < classes:
            return None
        numbers[first : first + len(found)] = found
        first += len(found)
    return numbers


def _smallest_type(classes: int) -> np.dtype[np.integer]:
    """The smallest type that holds the numbers of so many classes, and -1."""
    return np.min_scalar_type(-max(classes, 1))


def seen_classes(numbers: NDArray[np.integer] | None, count: int) -> list[int] | None:
    """The classes, of `count`, that some image of `numbers` has; None if all or none are."""
    if numbers is None:
        return None
    seen: list[int] = np.unique(numbers[numbers >= 0]).tolist()
    return seen if 0 < len(seen) < count else None


def classes_in_turn(count: int, classes: int, trained: Sequence[int] | None) -> list[int]:
    """The class of each of `count` images: the trained ones of `classes` in turn; -1 without.

    `trained` lists the classes that have training images; None stands for all.
    """
    numbers = (list(range(classes)) if trained is None else list(trained)) if classes else [-1]
    return [numbers[index % len(numbers)] for index in range(count)]


def label_number(label: Any, names: Sequence[str]) -> int:
    """The number of the class that a user means; -1 is any class.

    A name is the class of that name. So is a number if any class is called by a number; otherwise
    it is the place in `names`, from 0.

    Raises:
        ValueError: there is no such class.
    """
    usual = type(label) is not bool and isinstance(label, str | int | np.integer)
    text = str(label) if usual else ""
    if text == "-1":
        return -1
    if text in names:
        return list(names).index(text)
    if _NUMBER.fullmatch(text):
        numbered = {int(name): place for place, name in enumerate(names) if _NUMBER.fullmatch(name)}
        number = int(text)
        if number in numbered:
            return numbered[number]
        if not numbered and 0 <= number < len(names):
            return number
    known = "there are no classes"
    if names:
        more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
        known = f"the classes are {', '.join(names[:_SHOWN])}{more}"
    raise ValueError(f"label {label!r} is out of range: {known}")


def write_labels(
    path: Path, files: Sequence[str], labels: Sequence[int], names: Sequence[str]
) -> None:
    """Write a table of file, class number and class name; the last two are empty for label -1.

    Text that a spreadsheet would compute gets an apostrophe in front; `read_label_table` removes
    it.
    """
    with whole_file(path) as temporary, temporary.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["file", "label", "class"])
        for name, label in zip(files, labels, strict=True):
            known = (label, _guarded(names[label])) if label >= 0 else ("", "")
            writer.writerow([_guarded(name), *known])


def write_prompts(path: Path, files: Sequence[str], prompts: Sequence[str | None]) -> None:
    """Write a table of file and prompt, which is empty for None; guarded as in `write_labels`."""
    with whole_file(path) as temporary, temporary.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["file", "prompt"])
        for name, prompt in zip(files, prompts, strict=True):
            writer.writerow([_guarded(name), _guarded(prompt or "")])


def read_label_table(path: Path, headings: Sequence[str] = CLASS_HEADINGS) -> dict[str, str]:
    """The class of each file in a `labels.csv`, ours or another generator's; "" for no class.

    With `headings`, another column than the class: the prompt of each file in a `prompts.csv`.

    Reads UTF-8, UTF-16 with a mark and Latin-1; commas, semicolons and tabs; any line ends. A
    column of files and one of classes are found by their headings, other columns are ignored.

    Raises:
        ValueError: naming the file and why it cannot be read.
    """
    rows = csv_rows(path, _decoded(read_regular(path, TABLE_LIMIT)))
    columns = [name.strip().lower() for name in next(rows, [])]
    files = [columns.index(name) for name in _FILES if name in columns]
    classes = [columns.index(name) for name in headings if name in columns]
    if not files or not classes:
        raise ValueError(
            f"{path} needs the columns file and {headings[0]} in its first line, not "
            f"{', '.join(columns)[:100] or 'nothing'}"
        )
    file, label = files[0], classes[0]
    return {
        _unguarded(row[file]).replace("\\", "/").removeprefix("./"): _unguarded(row[label])
        if label < len(row)
        else ""
        for row in rows
        if file < len(row)
    }


def csv_rows(path: Path, text: str, *, strict: bool = False) -> Iterator[list[str]]:
    """Rows of a table, the first one included; of `,;` and tabs, that line's most frequent divides.

    Raises:
        ValueError: naming the file and why it cannot be read; if `strict`, also for quotes that
            are not closed or stand within a cell.
    """
    first_line = re.split(r"[\r\n]", text, maxsplit=1)[0]
    delimiter = max(",;\t", key=first_line.count)
    try:
        yield from csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=strict)
    except csv.Error as error:
        raise ValueError(f"{path} cannot be read as a table ({error})") from error


def _decoded(data: bytes) -> str:
    for mark, encoding in (
        (codecs.BOM_UTF8, "utf-8-sig"),
        (codecs.BOM_UTF16_LE, "utf-16"),
        (codecs.BOM_UTF16_BE, "utf-16"),
    ):
        if data.startswith(mark):
            return data.decode(encoding, "replace")
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError:
        return data.decode("latin-1")


def _guarded(text: str) -> str:
    return f"'{text}" if _FORMULA.match(text) else text


def _unguarded(text: str) -> str:
    return text[1:] if text.startswith("'") and _FORMULA.match(text) else text
