"""report.html: one page with everything inside, no script, server, font or picture from elsewhere.

The page is well-formed XML, readable on a phone and on paper, and follows light or dark mode.
"""

from __future__ import annotations

import base64
import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jinja2

from latent_prior.evaluation.measures.table import Row, measures_of, table
from latent_prior.evaluation.report import charts
from latent_prior.markdown import visible

DIRECTIONS = {"lower": "lower is better", "higher": "higher is better", None: "no better or worse"}


class Grid(NamedTuple):
    """Some images of one set, for report.html."""

    name: str
    caption: str
    png: bytes
    width: int  # pixels

    @property
    def base64(self) -> str:
        """The PNG file as text."""
        return base64.b64encode(self.png).decode("ascii")


def _well_formed(value: Any) -> Any:
    """Text without characters that XML does not have; SVG and numbers as they are."""
    if type(value) is not str:
        return value
    return "\n".join(map(visible, value.split("\n")))


def page(
    protocol: dict[str, Any],
    description: str,
    rows: Sequence[Row],
    column: str,
    title: str,
    grids: Sequence[Grid] = (),
    nearest: Sequence[Grid] = (),
) -> str:
    """The page as text; a section with nothing to show is left out.

    Args:
        protocol: shown at its end as in scores.json.
        description: the protocol in a few sentences.
        rows: in the order of the table.
        column: key of the feature distance.
        title: its heading.
        grids: images of each set, the reference first.
        nearest: generated images beside their nearest training images.
    """
    measures = measures_of(rows, column, title)
    curves = {
        f"{title} against N; dashed towards {title}∞": charts.distance_by_size(rows, column, title),
        f"{title} against training time": charts.distance_by_budget(rows, column, title),
    }
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        trim_blocks=True,
        undefined=jinja2.StrictUndefined,
        finalize=_well_formed,
    )
    return environment.get_template("report.html.jinja").render(
        title=title,
        table=table(rows, column, title),
        description=description,
        bars=[
            (measure.heading, charts.bars(measure, rows))
            for measure in measures
            if sum(math.isfinite(row.value(measure.key)) for row in rows) >= 2
        ],
        curves=[(caption, svg) for caption, svg in curves.items() if svg is not None],
        grids=grids,
        nearest=nearest,
        measures=measures,
        directions=DIRECTIONS,
        protocol=json.dumps(protocol, indent=2),
    )
