"""report.html: one page with everything inside. No script, no server, no font or picture from elsewhere.

It is well-formed XML too, reads on a phone and on paper, and follows the reader's choice of light or dark.
"""

from __future__ import annotations

import base64
import html
import json
import math
from collections.abc import Sequence
from typing import Any, NamedTuple

from latent_prior.evaluation.measures.table import Measure, Row, measures_of, table
from latent_prior.evaluation.report import charts

LIGHT = {"ink": "#1d1d1f", "soft": "#636368", "line": "#dcdce0", "page": "#fdfdfc", "bar": "#7d97c0", "aside": "#a5a5ac", "best": "#1f5fb4"}  # fmt: skip
DARK = {"ink": "#ececee", "soft": "#a0a0a6", "line": "#3a3a3f", "page": "#18181a", "bar": "#5c79a8", "aside": "#6c6c74", "best": "#8fb8ff"}  # fmt: skip
SERIES_LIGHT = ("#0067a5", "#c4500a", "#0a7a53", "#b03a87", "#806400", "#6a51c4", "#0c7783", "#5f5f66")  # fmt: skip
SERIES_DARK = ("#6cb4f0", "#f08a4b", "#4cc79a", "#e58ac4", "#d9b93b", "#a99bff", "#4fc8d4", "#b0b0b8")  # fmt: skip


class Grid(NamedTuple):
    """Some images of one set, for report.html."""

    name: str
    caption: str
    png: bytes
    width: int  # pixels


def page(
    protocol: dict[str, Any],
    description: str,
    rows: Sequence[Row],
    column: str,
    title: str,
    grids: Sequence[Grid] = (),
    nearest: Sequence[Grid] = (),
) -> str:
    """The page as text.

    Args:
        protocol: shown at its end as it stands in scores.json.
        description: the protocol in a few sentences.
        rows: in the order of the table.
        column: key of the feature distance.
        title: its heading.
        grids: images of each set, the reference first.
        nearest: generated images beside their nearest training images.
    """
    measures = measures_of(rows, column, title)
    sections = [
        _table(rows, column, title),
        f"<p>{_escape(description)}</p>\n",
        _section("Side by side", _bars(rows, measures)),
        _section("Bias and budget", _curves(rows, column, title)),
        _section("Images", _grids(grids)),
        _section(
            "Nearest training images",
            _grids(nearest),
            "In each pair a generated image is followed by the training image whose features lie nearest to its own.",
        ),
        _section("What the columns mean", _meanings(measures)),
        _section(
            "Protocol",
            "<details><summary>How the numbers came about, as in scores.json</summary>"
            f"<pre>{_escape(json.dumps(protocol, indent=2))}</pre></details>\n",
        ),
    ]
    return _PAGE.replace("{title}", _escape(title)).replace("{style}", _style()).replace(
        "{body}", "".join(sections)
    )  # fmt: skip


def _table(rows: Sequence[Row], column: str, title: str) -> str:
    shown = table(rows, column, title)
    lines = []
    for cells, wins, marks in zip(shown.cells, shown.best, shown.marks, strict=True):
        texts = [
            f"<b>{_escape(cell)}</b>" if win else _escape(cell)
            for cell, win in zip(cells, wins, strict=True)
        ]
        name = texts[0] + (f"<sup>{' '.join(map(str, marks))}</sup>" if marks else "")
        data = "".join(f"<td>{text}</td>" for text in texts[1:])
        lines.append(f'<tr><th scope="row">{name}</th>{data}</tr>\n')
    headings = [heading.replace(" ↓", "\N{NO-BREAK SPACE}↓").replace(" ↑", "\N{NO-BREAK SPACE}↑") for heading in shown.headings]  # fmt: skip
    head = "".join(f'<th scope="col">{_escape(heading)}</th>' for heading in headings)
    notes = "".join(f"<li>{_escape(note)}</li>" for note in shown.notes)
    return (
        f'<div class="wide"><table>\n<thead><tr>{head}</tr></thead>\n<tbody>\n{"".join(lines)}</tbody>\n</table></div>\n'
        + (f'<ol class="notes">{notes}</ol>\n' if notes else "")
    )


def _meanings(measures: Sequence[Measure]) -> str:
    directions = {"lower": "lower is better", "higher": "higher is better", None: "no better or worse"}  # fmt: skip
    entries = "".join(
        f"<dt>{_escape(measure.title)}</dt><dd>{_escape(measure.meaning)} "
        f"<i>{directions[measure.better]}{'; ' * bool(measure.paper)}{_escape(measure.paper)}</i></dd>\n"
        for measure in measures
    )
    return f"<dl>\n{entries}</dl>\n" if entries else ""


def _bars(rows: Sequence[Row], measures: Sequence[Measure]) -> str:
    """A panel for every measure that at least two rows have."""
    panels = [
        _chart(measure.heading, charts.bars(measure, rows))
        for measure in measures
        if sum(math.isfinite(row.values.get(measure.key, math.nan)) for row in rows) >= 2
    ]
    return f'<div class="panels">\n{"".join(panels)}</div>\n' if panels else ""


def _curves(rows: Sequence[Row], column: str, title: str) -> str:
    size = charts.distance_by_size(rows, column, title)
    budget = charts.distance_by_budget(rows, column, title)
    dashed = f"{title} against N; dashed towards {title}∞"
    panels = [_chart(dashed, size)] if size else []
    panels += [_chart(f"{title} against training time", budget)] if budget else []
    return f'<div class="panels charts">\n{"".join(panels)}</div>\n' if panels else ""


def _chart(caption: str, svg: str) -> str:
    return f"<figure><figcaption><b>{_escape(caption)}</b></figcaption>\n{svg}</figure>\n"


def _grids(grids: Sequence[Grid]) -> str:
    figures = "".join(_figure(grid) for grid in grids)
    return f'<div class="grids">\n{figures}</div>\n' if figures else ""


def _figure(grid: Grid) -> str:
    name, caption = html.escape(grid.name), _escape(grid.caption)
    shown = grid.width * max(1, 480 // grid.width)  # whole multiples keep pixels square
    data = base64.b64encode(grid.png).decode("ascii")
    return (
        f'<figure><figcaption><b>{name}</b> {caption}</figcaption><img alt="{name}" width="{shown}" '
        f'src="data:image/png;base64,{data}" /></figure>\n'
    )


def _section(heading: str, content: str, explanation: str = "") -> str:
    """A heading with what stands under it; nothing where there is nothing to show."""
    if not content:
        return ""
    told = f"<p>{_escape(explanation)}</p>\n" if explanation else ""
    return f"<section><h2>{_escape(heading)}</h2>\n{told}{content}</section>\n"


def _style() -> str:
    def variables(colours: dict[str, str], series: Sequence[str]) -> str:
        named = colours | {f"s{place}": colour for place, colour in enumerate(series)}
        return " ".join(f"--{name}: {colour};" for name, colour in named.items())

    classes = " ".join(f".s{n} {{ color: var(--s{n}); }}" for n in range(charts.COLOURS))
    return (
        f":root {{ color-scheme: light; {variables(LIGHT, SERIES_LIGHT)} }}\n"
        "@media screen and (prefers-color-scheme: dark) {\n"
        f"  :root {{ color-scheme: dark; {variables(DARK, SERIES_DARK)} }}\n}}\n{classes}\n{_STYLE}"
    )


def _escape(text: str) -> str:
    return html.escape(text, quote=False)


_STYLE = """* { box-sizing: border-box; }
body { margin: 0 auto; max-width: 76rem; padding: 3rem 1.5rem; color: var(--ink); background: var(--page);
  font: 16px/1.55 system-ui, -apple-system, "Segoe UI", sans-serif; overflow-wrap: break-word; }
h1 { font-size: 1.7rem; font-weight: 600; margin: 0 0 1.5rem; }
h2 { font-size: 1.1rem; font-weight: 600; margin: 2.5rem 0 1rem; }
p, figcaption, summary, dd, .notes { color: var(--soft); }
b { color: var(--ink); font-weight: 650; }
.wide { overflow-x: auto; }
table { border-collapse: collapse; width: 100%; font-variant-numeric: tabular-nums; overflow-wrap: normal; }
th, td { padding: .5rem .6rem; border-bottom: 1px solid var(--line); text-align: right; white-space: nowrap; }
thead th { color: var(--soft); font-weight: 500; font-size: .85rem; line-height: 1.3; white-space: normal; vertical-align: bottom; }
tbody th { font-weight: 400; }
th:first-child { text-align: left; padding-left: 0; position: sticky; left: 0; background: var(--page); }
td b { color: var(--best); }
sup { color: var(--soft); margin-left: .2em; line-height: 0; }
.notes { font-size: .9rem; padding-left: 1.4rem; }
dl { display: grid; grid-template-columns: max-content 1fr; gap: .3rem 1.2rem; margin: 0; font-size: .92rem; }
dd { margin: 0; }
.panels { display: grid; grid-template-columns: repeat(auto-fill, minmax(min(19rem, 100%), 1fr)); gap: 2rem; align-items: start; }
.charts { grid-template-columns: repeat(auto-fill, minmax(min(26rem, 100%), 1fr)); }
.grids { display: grid; grid-template-columns: repeat(auto-fill, minmax(min(22rem, 100%), 1fr)); gap: 2rem; align-items: start; }
figure { margin: 0; break-inside: avoid; }
figcaption { margin-bottom: .5rem; font-size: .9rem; }
img { max-width: 100%; height: auto; image-rendering: pixelated; border-radius: 4px; }
svg { display: block; width: 100%; }
svg text { font-size: 12px; fill: currentColor; font-variant-numeric: tabular-nums; }
svg .end { text-anchor: end; }
svg .middle { text-anchor: middle; }
svg .ticks { color: var(--soft); }
.grid { stroke: var(--line); fill: none; }
.bar { fill: var(--bar); }
.aside .bar { fill: var(--aside); }
.best .bar { fill: var(--best); }
.best text { font-weight: 650; }
.line, .error { stroke: currentColor; fill: none; stroke-width: 1.6; }
.guess { stroke-dasharray: 4 4; }
.mark { fill: currentColor; stroke: currentColor; stroke-width: 1.4; }
.open { fill: var(--page); }
.legend { list-style: none; padding: 0; margin: .6rem 0 0; display: flex; flex-wrap: wrap; gap: .2rem 1.2rem; font-size: .85rem; }
.legend li { display: flex; align-items: center; gap: .4rem; }
.legend svg { width: 14px; height: 14px; flex: none; }
pre { overflow-x: auto; font-size: .82rem; line-height: 1.45; }
@media (max-width: 40rem) { body { padding: 1.5rem 1rem; } dl { grid-template-columns: 1fr; gap: 0; } dd { margin-bottom: .6rem; } }
@page { size: A4 landscape; margin: 10mm; }
@media print { body { max-width: none; padding: 0; font-size: 9pt; background: none; } table, thead th { font-size: 7pt; } .wide { overflow: visible; }
  th, td { padding: .2rem .25rem; } .notes, dl, .legend { font-size: 8pt; } section { break-inside: auto; } h2 { break-after: avoid; } }
"""

_PAGE = """<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8" />
<meta name="viewport" content="width=device-width, initial-scale=1" />
<meta name="color-scheme" content="light dark" />
<title>Scores: {title}</title>
<style>
{style}</style>
</head>
<body>
<h1>Scores</h1>
{body}</body>
</html>
"""
