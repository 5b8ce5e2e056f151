"""Markdown: tables in one form for all reports, and text of others that stays text."""

from __future__ import annotations

import re
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


def visible(text: str) -> str:
    r"""Text on one line: line breaks, control and direction characters as in `\x01`."""
    return "".join(letter if letter.isprintable() else ascii(letter)[1:-1] for letter in text)


def plain(text: str) -> str:
    """Text that Markdown shows as it is: no HTML, link, emphasis or code."""
    escaped = re.sub(r"([\\`*\[\]])", r"\\\1", visible(text))
    return escaped.replace("&", "&amp;").replace("<", "&lt;")


def code(text: str) -> str:
    """Text as code within a line, whatever backticks it has."""
    fence = _fence(text, "`")
    space = " " if text[:1] == "`" or text[-1:] == "`" or not text else ""
    return f"{fence}{space}{visible(text)}{space}{fence}"


def code_block(text: str, language: str) -> str:
    """Lines of code, whatever backticks they have."""
    fence = _fence(text, "```")
    lines = "\n".join(map(visible, text.split("\n")))
    return f"{fence}{language}\n{lines}\n{fence}"


def _fence(text: str, shortest: str) -> str:
    """More backticks than any run of them in the text."""
    longest = max((len(run) for run in re.findall("`+", text)), default=0)
    return max(shortest, "`" * (longest + 1), key=len)
