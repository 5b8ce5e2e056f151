"""Scores as files: scores.json for programs, scores.md for a README, report.html for eyes.

All three appear together and complete: each is written to a temporary name and then renamed.
"""

from __future__ import annotations

import base64
import html
import io
import json
import math
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, ImageOps

from common.checkpoint import whole_file
from common.images import grid, to_pil

JSON_FILE = "scores.json"
MARKDOWN_FILE = "scores.md"
HTML_FILE = "report.html"


@dataclass(frozen=True)
class Row:
    """Scores of one set of images; `psnr` (dB) and `ssim` exist for reconstructions, `class_accuracy` in [0, 1] for labelled ones."""

    name: str
    num_images: int
    distance: float
    kid: float
    kid_stderr: float
    psnr: float | None = None
    ssim: float | None = None
    class_accuracy: float | None = None

    def to_json(self, column: str) -> dict[str, Any]:
        """The row as it stands in scores.json, its distance under `column`."""
        values: dict[str, Any] = {
            "name": self.name,
            "num_images": self.num_images,
            column: self.distance,
        }
        values |= {
            "kid": self.kid,
            "kid_stderr": self.kid_stderr if math.isfinite(self.kid_stderr) else None,
        }
        optional = {"psnr": self.psnr, "ssim": self.ssim, "class_accuracy": self.class_accuracy}
        return values | {key: value for key, value in optional.items() if value is not None}


class Grid(NamedTuple):
    """Some images of one set, for report.html."""

    name: str
    caption: str
    png: bytes
    width: int  # pixels


def write_report(
    folder: Path,
    protocol: dict[str, Any],
    rows: Sequence[Row],
    column: str,
    title: str,
    grids: Sequence[Grid],
) -> None:
    """Write the three files into `folder`.

    Args:
        folder: exists.
        protocol: JSON-ready values that say how the numbers came about.
        rows: the scores, in the order of the table.
        column: key of the feature distance in scores.json, as `fid`.
        title: its heading in the tables, as `FID`.
        grids: pictures for report.html, the reference first.
    """
    scores = {"protocol": protocol, "rows": [row.to_json(column) for row in rows]}
    _write_together(
        folder,
        {
            JSON_FILE: json.dumps(scores, indent=2, allow_nan=False) + "\n",
            MARKDOWN_FILE: markdown(protocol, rows, title),
            HTML_FILE: page(protocol, rows, title, grids),
        },
    )


def markdown(protocol: dict[str, Any], rows: Sequence[Row], title: str) -> str:
    """A Markdown table and the sentence that makes its numbers comparable."""
    columns = _columns(rows, title)
    lines = [
        "| " + " | ".join(heading for heading, _ in columns) + " |",
        "|" + "|".join([" --- "] + [" ---: "] * (len(columns) - 1)) + "|",
    ]
    for row in rows:
        lines.append("| " + " | ".join(text(row).replace("|", "\\|") for _, text in columns) + " |")
    return "\n".join(lines) + f"\n\n{describe(protocol)}\n"


def describe(protocol: dict[str, Any]) -> str:
    """The protocol in a few sentences."""
    sentences = (
        f"Reference: {protocol['reference']}, split {protocol['reference_split']} ({protocol['num_images']:,} images). "
        f"Features: {protocol['features']} ({protocol['resizer']}). Distances fall as sets grow: compare rows of "
        "equal size, and only numbers of one protocol."
    )
    classifier = protocol["classifier"]
    if classifier is not None:
        seen = " it was trained on" if classifier["split"] == protocol["reference_split"] else ""
        sentences += (
            f" Class accuracy is judged by a network trained on split {classifier['split']}; "
            f"on the reference{seen} it reaches {_percent(classifier['reference_accuracy'])}."
        )
    return sentences


def page(protocol: dict[str, Any], rows: Sequence[Row], title: str, grids: Sequence[Grid]) -> str:
    """One HTML file with everything inside: no script, no server, no font or picture from elsewhere."""
    columns = _columns(rows, title)
    longest = max((row.distance for row in rows), default=0.0) or 1.0
    head = "".join(f"<th>{html.escape(heading)}</th>" for heading, _ in columns)
    body = ""
    for row in rows:
        cells = [html.escape(text(row)) for _, text in columns]
        share = 100 * row.distance / longest
        cells[2] = f'{cells[2]}<i style="width:{share:.1f}%"></i>'
        body += "<tr>" + "".join(f"<td>{cell}</td>" for cell in cells) + "</tr>\n"
    figures = "".join(_figure(grid) for grid in grids)
    return _PAGE.format(
        title=html.escape(title),
        head=head,
        body=body,
        description=html.escape(describe(protocol)),
        figures=figures,
        protocol=html.escape(json.dumps(protocol, indent=2)),
    )


def picture(
    name: str, caption: str, images: Sequence[NDArray[np.uint8]], columns: int = 10
) -> Grid:
    """Lay out uint8 images (H, W, C) of any sizes; those larger than 128 pixels are shown smaller."""
    side = min(128, max(max(image.shape[:2]) for image in images))
    cells = []
    for image in images:
        cell = Image.fromarray(np.repeat(image, 3, axis=2) if image.shape[2] == 1 else image)
        cells.append(
            np.asarray(ImageOps.pad(cell, (side, side)) if cell.size != (side, side) else cell)
        )
    sheet = to_pil(grid(torch.from_numpy(np.stack(cells)).permute(0, 3, 1, 2), columns))
    buffer = io.BytesIO()
    sheet.save(buffer, "png")
    return Grid(name, caption, buffer.getvalue(), sheet.width)


def _columns(rows: Sequence[Row], title: str) -> list[tuple[str, Callable[[Row], str]]]:
    """Headings and the text of a cell; PSNR, SSIM and class accuracy only where a row has them."""
    columns: list[tuple[str, Callable[[Row], str]]] = [
        ("Images", lambda row: row.name),
        ("N", lambda row: f"{row.num_images:,}"),
        (f"{title} ↓", lambda row: _number(row.distance)),
        (
            "KID x 1000 ↓",
            lambda row: f"{_number(1000 * row.kid)} ± {_number(1000 * row.kid_stderr)}",
        ),
    ]
    if any(row.psnr is not None for row in rows):
        columns.append(("PSNR (dB) ↑", lambda row: "" if row.psnr is None else f"{row.psnr:.2f}"))
    if any(row.ssim is not None for row in rows):
        columns.append(("SSIM ↑", lambda row: "" if row.ssim is None else f"{row.ssim:.4f}"))
    if any(row.class_accuracy is not None for row in rows):
        columns.append(("Class accuracy ↑", lambda row: _percent(row.class_accuracy)))
    return columns


def _percent(share: float | None) -> str:
    return "" if share is None else f"{100 * share:.1f} %"


def _number(value: float) -> str:
    """Two decimals, or three digits where that would show too little."""
    return f"{value:.2f}" if abs(value) >= 1 or value == 0 else f"{value:.3g}"


def _figure(grid: Grid) -> str:
    name, caption = html.escape(grid.name), html.escape(grid.caption)
    shown = grid.width * max(1, 480 // grid.width)  # whole multiples keep pixels square
    data = base64.b64encode(grid.png).decode("ascii")
    return (
        f'<figure><figcaption><b>{name}</b> {caption}</figcaption><img alt="{name}" width="{shown}" '
        f'src="data:image/png;base64,{data}"></figure>\n'
    )


def _write_together(folder: Path, texts: dict[str, str]) -> None:
    with ExitStack() as files:
        for name, text in texts.items():
            files.enter_context(whole_file(folder / name)).write_text(text, encoding="utf-8")


_PAGE = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<title>Scores: {title}</title>
<style>
:root {{ --ink: #1d1d1f; --soft: #6b6b70; --line: #dcdce0; --page: #fdfdfc; --bar: #4a72b8; }}
@media (prefers-color-scheme: dark) {{
  :root {{ --ink: #ececee; --soft: #a0a0a6; --line: #3a3a3f; --page: #18181a; --bar: #84a8e6; }}
}}
body {{ margin: 0 auto; max-width: 68rem; padding: 3rem 1.5rem; color: var(--ink); background: var(--page);
  font: 16px/1.55 system-ui, -apple-system, "Segoe UI", sans-serif; }}
h1 {{ font-size: 1.7rem; font-weight: 600; margin: 0 0 1.5rem; }}
h2 {{ font-size: 1.1rem; font-weight: 600; margin: 2.5rem 0 1rem; }}
p, figcaption, summary {{ color: var(--soft); }}
b {{ color: var(--ink); }}
.wide {{ overflow-x: auto; }}
table {{ border-collapse: collapse; width: 100%; font-variant-numeric: tabular-nums; }}
th, td {{ padding: .55rem .9rem; border-bottom: 1px solid var(--line); text-align: right; white-space: nowrap; }}
th:first-child, td:first-child {{ text-align: left; padding-left: 0; }}
th {{ color: var(--soft); font-weight: 500; font-size: .9rem; }}
td i {{ display: block; height: 3px; margin-left: auto; background: var(--bar); border-radius: 2px; }}
.grids {{ display: grid; grid-template-columns: repeat(auto-fill, minmax(22rem, 1fr)); gap: 2rem; align-items: start; }}
figure {{ margin: 0; }}
figcaption {{ margin-bottom: .5rem; font-size: .9rem; }}
img {{ max-width: 100%; height: auto; image-rendering: pixelated; border-radius: 4px; }}
pre {{ overflow-x: auto; font-size: .82rem; line-height: 1.45; }}
</style>
</head>
<body>
<h1>Scores</h1>
<div class="wide"><table>
<thead><tr>{head}</tr></thead>
<tbody>
{body}</tbody>
</table></div>
<p>{description}</p>
<h2>Images</h2>
<div class="grids">
{figures}</div>
<h2>Protocol</h2>
<details><summary>How the numbers came about, as in scores.json</summary><pre>{protocol}</pre></details>
</body>
</html>
"""
