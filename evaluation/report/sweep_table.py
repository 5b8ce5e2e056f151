"""A sweep as a table and a heat map of its sampler settings."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from latent_prior.evaluation.measures import fid
from latent_prior.evaluation.options import SWEPT
from latent_prior.evaluation.report.terminal import fit_table, more_columns, paragraph
from latent_prior.markdown import markdown_table

CELL = 0.9  # inches
MEASURES = {
    "sliced_wasserstein": "the sliced Wasserstein distance (SWD)",
    "kid": "the kernel distance (KID)",
    "distance": "the Frechet distance",
}
DARK = 0.6  # share of the colour scale from which text on it is white


def markdown(
    protocol: Mapping[str, Any],
    rows: Sequence[Mapping[str, Any]],
    full: Mapping[str, Any],
    column: str,
    title: str,
) -> str:
    """The table, best settings first, and how to read it.

    Args:
        protocol: of the sweep.
        rows: each with `settings` and a value under `column`, lower is better.
        full: the same for the best settings and more images, `num_images`.
        column: key of the value.
        title: name of the value.
    """
    names, cells = _cells(rows, column)
    cells = [[*settings, figure] for figure, *settings in cells]
    lines = markdown_table([*names, f"{title} ↓"], cells, left=0)
    return "\n".join(lines) + f"\n\n{describe(protocol, full, names, column, title)}\n"


def terminal_table(
    protocol: Mapping[str, Any],
    rows: Sequence[Mapping[str, Any]],
    full: Mapping[str, Any],
    column: str,
    title: str,
    path: Path,
) -> str:
    """The same in the columns of the terminal, the value first; `path` has the Markdown."""
    names, cells = _cells(rows, column)
    lines, shown = fit_table([f"{title} ↓", *names], cells)
    text = describe(protocol, full, names, column, title).split("\n\n")
    more = more_columns(1 + len(names) - len(shown), path)
    return "\n".join([*lines, "", *map(paragraph, text), more])


def describe(
    protocol: Mapping[str, Any],
    full: Mapping[str, Any],
    names: Sequence[str],
    column: str,
    title: str,
) -> str:
    """How to read the table, in two paragraphs; arguments as for `markdown`."""
    text = (
        f"{protocol['num_images']:,} images per row, all from the same random numbers (seed {protocol['seed']}), "
        f"against {protocol['reference']}; features: {protocol['features']} ({protocol['resizer']})."
    )
    if protocol["minimise"] == "distance" and fid.rank_deficient(
        protocol["num_images"], protocol["feature_dimension"]
    ):
        text += (
            f" With no more images than features ({protocol['feature_dimension']:,}) much of each distance reflects "
            "the sample size, and it is lowest for samples with less variety than the reference: choose by "
            "another measure (`--minimise`)."
        )
    chosen = ", ".join(f"{name} {full['settings'][name]}" for name in names)
    text += (
        f"\n\nChosen by {MEASURES[protocol['minimise']]}: {chosen}. With {full['num_images']:,} images: {title} {_number(full, column)}. "
        "The settings were selected on this reference: report their scores against another split."
    )
    return text


def draw_heatmap(rows: Sequence[Mapping[str, Any]], column: str, title: str, path: Path) -> None:
    """Write a PNG heat map: two settings with the most values per panel, the others across panels.

    Args:
        rows: each with `settings` and a value under `column`; the lowest gets a frame.
        column: key of the value.
        title: name of the value.
        path: the PNG file.
    """
    from matplotlib.figure import Figure
    from matplotlib.patches import Rectangle

    names, values = axes_of(rows)
    table = fill_table(rows, names, values, column)  # (panel rows, panel columns, y, x)
    down, across, height, width = table.shape
    size = (across * (CELL * width + 1.2) + 1.2, down * (CELL * height + 1) + 0.4)
    figure = Figure(figsize=size, layout="constrained")
    panels: Any = figure.subplots(down, across, squeeze=False)
    low, high = np.nanmin(table), np.nanmax(table)
    best = np.unravel_index(np.nanargmin(table), table.shape)
    for panel in np.ndindex(down, across):
        axes, cells = panels[panel], table[panel]
        image = axes.imshow(cells, cmap="viridis_r", vmin=low, vmax=high, aspect="equal")
        for (y, x), value in np.ndenumerate(cells):
            if np.isfinite(value):
                dark = value > low + DARK * (high - low)
                axes.text(
                    x, y, f"{value:.4g}", ha="center", va="center", color="w" if dark else "k"
                )
            if (*panel, y, x) == best:
                axes.add_patch(
                    Rectangle((x - 0.5, y - 0.5), 1, 1, fill=False, ec="r", lw=3, clip_on=False)
                )
        axes.set_xticks(range(width), [str(value) for value in values[3]])
        axes.set_yticks(range(height), [str(value) for value in values[2]])
        axes.set(xlabel=names[3], ylabel=names[2])
        fixed = [(names[i], values[i][panel[i]]) for i in (0, 1) if len(values[i]) > 1]
        axes.set_title(", ".join(f"{name} {value}" for name, value in fixed), fontsize=10)
    figure.colorbar(image, ax=panels, label=title)
    figure.savefig(path, dpi=110)


def axes_of(rows: Sequence[Mapping[str, Any]]) -> tuple[list[str], list[list[Any]]]:
    """Four settings and the values that occur, the one with the most values last."""
    values = {
        name: sorted({row["settings"][name] for row in rows if name in row["settings"]}) or [""]
        for name in SWEPT
    }
    names = sorted(values, key=lambda name: (len(values[name]), -SWEPT.index(name)))
    return names, [values[name] for name in names]


def fill_table(
    rows: Sequence[Mapping[str, Any]],
    names: Sequence[str],
    values: Sequence[list[Any]],
    column: str,
) -> NDArray[np.float64]:
    """The values along the four axes; NaN for combinations that were not measured."""
    table = np.full([len(options) for options in values], np.nan)
    for row in rows:
        index = tuple(
            values[axis].index(row["settings"].get(name, "")) for axis, name in enumerate(names)
        )
        table[index] = row[column]
    return table


def _cells(rows: Sequence[Mapping[str, Any]], column: str) -> tuple[list[str], list[list[str]]]:
    """Names of the settings, and rows of the value and each setting, the best value first."""
    names = [name for name in SWEPT if name in rows[0]["settings"]]
    return names, [
        [_number(row, column), *(str(row["settings"][name]) for name in names)]
        for row in sorted(rows, key=lambda row: row[column])
    ]


def _number(row: Mapping[str, Any], column: str) -> str:
    error = f" ± {row['kid_stderr']:.3g}" if column == "kid" else ""
    return f"{row[column]:.4g}{error}"
