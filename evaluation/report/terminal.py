"""Tables that fit into the terminal; the columns that do not are left to a file."""

from __future__ import annotations

import shutil
import textwrap
import unicodedata
from collections.abc import Sequence
from pathlib import Path

from latent_prior.markdown import visible

NAME_WIDTH = 24  # columns of a name
FEWEST = 2  # columns of the table that stay in any terminal


def terminal_width() -> int:
    """Columns of the terminal, 80 without one."""
    return shutil.get_terminal_size().columns


def fit_table(
    headings: Sequence[str], rows: Sequence[Sequence[str]]
) -> tuple[list[str], Sequence[str]]:
    """A table cut to the terminal: its lines, and the headings of the columns that it shows.

    Args:
        headings: the most important first; each is broken at its first space.
        rows: cells, the first a name, which is aligned left and cut to `NAME_WIDTH`.
    """
    halves = [heading.partition(" ") for heading in headings]
    lines = [[first for first, _, _ in halves], [second for _, _, second in halves]]
    lines += [[cut(visible(cells[0]), NAME_WIDTH), *cells[1:]] for cells in rows]
    widths = [max(map(columns_of, cells)) for cells in zip(*lines, strict=True)]
    shown = len(widths)
    while shown > FEWEST and sum(widths[:shown]) + 2 * (shown - 1) > terminal_width():
        shown -= 1
    aligned = [
        "  ".join(
            cell + gap if number == 0 else gap + cell
            for number, cell in enumerate(line[:shown])
            for gap in [" " * (widths[number] - columns_of(cell))]
        ).rstrip()
        for line in lines
    ]
    return [line for line in aligned if line], headings[:shown]


def more_columns(count: int, path: Path) -> str:
    """Where the columns are that a table leaves out."""
    if count == 0:
        return f"The same table: {path}"
    return f"{count} more column{'s' * (count > 1)} in {path}"


def paragraph(text: str) -> str:
    """Text wrapped to the terminal, at most 100 columns."""
    return textwrap.fill(text, min(100, terminal_width()), break_on_hyphens=False)


def columns_of(text: str) -> int:
    """Columns that text takes: two for a wide character, none for one above another."""
    return sum(
        0 if unicodedata.combining(letter) else 1 + (unicodedata.east_asian_width(letter) in "WF")
        for letter in text
    )


def cut(text: str, width: int) -> str:
    """Text cut to a number of columns, with an ellipsis at its end."""
    if columns_of(text) <= width:
        return text
    while columns_of(text) >= width:
        text = text[:-1]
    return f"{text}…"
