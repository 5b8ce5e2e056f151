"""Scores as files: scores.json for programs, scores.md for a README, report.html for eyes.

All three appear together and complete: each is written to a temporary name and then renamed.
"""

from __future__ import annotations

import hashlib
import itertools
import json
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from latent_prior.evaluation.measures.table import MEASURES, Row, table
from latent_prior.evaluation.report.html import Grid, page
from latent_prior.evaluation.report.terminal import fit_table, more_columns, paragraph
from latent_prior.files import whole_file
from latent_prior.markdown import markdown_table, plain
from latent_prior.records import record_text

JSON_FILE = "scores.json"
MARKDOWN_FILE = "scores.md"
HTML_FILE = "report.html"

# Comparable protocols may differ in what was scored, and by which programs.
PER_RUN = ("versions", "command", "pipeline", "autoencoder_fingerprint")
NOT_COMPARED = (*PER_RUN, "candidates", "compared", "fingerprint")


def write_report(
    folder: Path,
    protocol: dict[str, Any],
    rows: Sequence[Row],
    column: str,
    title: str,
    grids: Sequence[Grid],
    nearest: Sequence[Grid] = (),
) -> None:
    """Write the three files into `folder`.

    Args:
        folder: exists.
        protocol: JSON-ready values that define the numbers; its fingerprint is added.
        rows: the scores, in the order of the table.
        column: key of the feature distance in scores.json, as `fid`.
        title: its heading in the tables, as `FID`.
        grids: pictures for report.html, the reference first.
        nearest: generated images beside their nearest training images.

    Raises:
        ValueError: rows of different numbers of images.
    """
    check_sizes([(row.name, row.num_images) for row in rows])
    protocol = protocol | {"fingerprint": fingerprint(protocol)}
    scores = {
        "protocol": protocol,
        "distance": {"key": column, "title": title},
        "rows": [row.to_json() for row in rows],
    }
    texts = {
        JSON_FILE: record_text(scores, JSON_FILE, sealed=True),
        MARKDOWN_FILE: markdown(protocol, rows, column, title),
        HTML_FILE: page(protocol, describe(protocol), rows, column, title, grids, nearest),
    }
    with ExitStack() as files:
        for name, text in texts.items():
            files.enter_context(whole_file(folder / name)).write_text(text, encoding="utf-8")


def check_sizes(sizes: Sequence[tuple[str, int]]) -> None:
    """Check that all sets, given as (name, number of images), have one size: distances fall with N.

    Raises:
        ValueError: naming two of them.
    """
    for (name1, size1), (name2, size2) in itertools.pairwise(sizes):
        if size1 != size2:
            raise ValueError(
                f"{name1} has {size1:,} images and {name2} {size2:,}, and distances fall as sets grow: "
                f"score equally many of each by --num_images {min(size for _, size in sizes)}"
            )


def comparable(protocol: dict[str, Any]) -> dict[str, Any]:
    """The entries that must be equal for two numbers to be compared; null equals absent.

    A known `reference_sha256` replaces the reference's path. The classifier's accuracy is left out:
    it varies a little between processors.
    """
    left_out = set(NOT_COMPARED)
    if protocol.get("reference_sha256") is not None:
        left_out |= {"reference", "reference_split"}
    kept = {k: v for k, v in protocol.items() if k not in left_out and v is not None}
    if "classifier" in kept:
        classifier = kept["classifier"].items()
        kept["classifier"] = {k: v for k, v in classifier if k != "reference_accuracy"}
    return kept


def fingerprint(protocol: dict[str, Any]) -> str:
    """sha256 over the comparable entries, equal exactly where two reports may be merged."""
    text = json.dumps(comparable(protocol), sort_keys=True, separators=(",", ":"), allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()


def markdown(protocol: dict[str, Any], rows: Sequence[Row], column: str, title: str) -> str:
    """A Markdown table with the best values in bold, its notes, and the protocol in words."""
    shown = table(rows, column, title)
    cells = []
    for texts, wins, marks in zip(shown.cells, shown.best, shown.marks, strict=True):
        row = [f"**{text}**" if win else text for text, win in zip(texts, wins, strict=True)]
        row[0] = plain(row[0])
        row[0] += "".join(f" [{mark}]" for mark in marks)
        cells.append(row)
    lines = markdown_table(shown.headings, cells)
    notes = "".join(f"\n[{mark}] {plain(note)}\n" for mark, note in enumerate(shown.notes, 1))
    return "\n".join(lines) + f"\n{notes}\n{plain(describe(protocol))}\n"


def terminal_table(rows: Sequence[Row], column: str, title: str, folder: Path) -> str:
    """The main columns that fit the terminal, and where the other columns are.

    Args:
        rows: in the order of the table.
        column: key of the feature distance.
        title: its heading.
        folder: of the report.
    """
    main, whole = (table(rows, column, title, brief=brief) for brief in (True, False))
    cells = [
        [texts[0], *(text + " *"[win] for text, win in zip(texts[1:], wins[1:], strict=True))]
        for texts, wins in zip(main.cells, main.best, strict=True)
    ]
    lines, shown = fit_table(main.headings, cells)
    notes = [paragraph(note) for note in main.notes]
    if any(any(wins[: len(shown)]) for wins in main.best):
        notes.append("* is the best of its column.")
    files = [
        more_columns(len(whole.headings) - len(shown), folder / MARKDOWN_FILE),
        f"Charts, images, protocol: {folder / HTML_FILE}",
    ]
    return "\n".join([*lines, "", *notes, *files])


def describe(protocol: dict[str, Any]) -> str:
    """The protocol in a few sentences."""
    split, size = protocol.get("reference_split"), protocol.get("num_images")
    reference = protocol["reference"] + (f", split {split}" if split else "")
    sentences = (
        f"Reference: {reference} ({'published statistics' if size is None else f'{size:,} images'}). "
        f"Features: {protocol['features']} ({protocol['resizer']}). Distances fall as sets grow: compare rows of "
        f"equal size, and only numbers of one protocol, this one's fingerprint being {fingerprint(protocol)[:12]}."
    )
    classifier = protocol.get("classifier")
    if classifier is not None:
        seen = " it was trained on" if classifier["split"] == split else ""
        reached = MEASURES["class_accuracy"].text(classifier["reference_accuracy"])
        sentences += (
            f" Class accuracy is judged by a network trained on split {classifier['split']}; "
            f"on the reference{seen} it reaches {reached}."
        )
    return sentences
