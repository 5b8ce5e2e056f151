"""Markdown tables, in one form for all reports."""

from __future__ import annotations

from collections.abc import Sequence


def markdown_table(
    headings: Sequence[str], rows: Sequence[Sequence[str]], *, left: int = 1
) -> list[str]:
    """The lines of a table; the first `left` columns are aligned left, the others right.

    `|` is escaped in cells.
    """
    assert all(len(row) == len(headings) for row in rows), "every row needs a cell for each heading"
    rule = [" --- "] * left + [" ---: "] * (len(headings) - left)
    lines = [f"|{'|'.join(rule)}|"]
    for row in (headings, *rows):
        lines.append(f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in row)} |")
    return [lines[1], lines[0], *lines[2:]]
