"""Captions of images: texts that stay in their table until they are read.

An image has one caption or several: a cell holds a text or a list of texts. In a folder they may
also stand in `NAME.txt` beside `NAME.png`, one in each line.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from latent_prior.data.shards.arrow_tables import ArrowTable
from latent_prior.files import read_regular

CAPTION_COLUMN = "text"
"""Column of captions in a folder's metadata."""
NO_CAPTIONS = "none"
"""Value of `--caption_column` for images without captions."""
CAPTIONS_LIMIT = 64 * 2**10
"""Most bytes, in UTF-8, of all captions of an image."""
OTHERWISE = "leave such images out with --on_corrupt skip, or set --caption_column none"


class Captions:
    """The captions of one split, by row.

    Args:
        rows: the split.
        column: name of its column with the captions.

    Raises:
        ValueError: the column holds something else.
    """

    def __init__(self, rows: ArrowTable, column: str) -> None:
        import pyarrow

        kinds, kind = pyarrow.types, rows.type_of(column)
        lists = (kinds.is_list, kinds.is_large_list, kinds.is_fixed_size_list)
        inner = kind.value_type if any(is_list(kind) for is_list in lists) else kind
        if not (kinds.is_string(inner) or kinds.is_large_string(inner)):
            raise ValueError(
                f"--caption_column {column}: the column holds {str(kind)[:80]}, but captions are "
                f"text or lists of text; name another one, or set --caption_column {NO_CAPTIONS}"
            )
        self._rows, self._column = rows, column

    def __len__(self) -> int:
        """Number of rows, with captions and without."""
        return len(self._rows)

    def read(self, rows: Sequence[int]) -> list[tuple[str, ...]]:
        """The captions of rows for which there is none of the `problems`."""
        cells = (self._rows.cell(self._column, row) for row in rows)
        return [(cell,) if isinstance(cell, str) else tuple(cell) for cell in cells]

    def problems(self) -> Iterator[tuple[int, str]]:
        """The rows without usable captions, and what is wrong, for a sentence about the image."""
        first = 0
        for part in self._rows.parts(self._column):
            try:
                cells = part.to_pylist()
            except UnicodeDecodeError:
                cells = [_decoded(cell) for cell in part]
            for row, cell in enumerate(cells, first):
                if (problem := problem_of(cell)) is not None:
                    yield row, problem
            first += len(cells)


def problem_of(cell: Any) -> str | None:
    """What is wrong with the captions of an image, for a sentence about it; None if nothing is."""
    captions = cell if isinstance(cell, list) else [cell]
    if not captions or cell is None:
        return "has no caption"
    if any(isinstance(caption, bytes) for caption in captions):
        return "has a caption that is not UTF-8"
    if not all(caption and not caption.isspace() for caption in captions):
        return "has a caption without text"
    size = sum(len(caption.encode()) for caption in captions)
    if size > CAPTIONS_LIMIT:
        return f"has captions of {size:,} bytes, but at most {CAPTIONS_LIMIT:,} are read"
    return None


def read_text_file(path: Path) -> list[str]:
    """The captions in a text file, one in each line that is not empty.

    Raises:
        ValueError: naming the file and what is wrong with it.
    """
    try:
        text = read_regular(path, CAPTIONS_LIMIT).decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is not UTF-8 (byte {error.start}); convert it") from error
    lines = [line.strip() for line in re.split(r"\r\n|\r|\n", text)]
    if not any(lines):
        raise ValueError(f"{path} holds no caption; write one into it, or {OTHERWISE}")
    return [line for line in lines if line]


def _decoded(cell: Any) -> Any:
    try:
        return cell.as_py()
    except UnicodeDecodeError:
        return b""
