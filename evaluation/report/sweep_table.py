"""A sweep as a table and a heat map of its sampler settings."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from latent_prior.evaluation.measures import fid
from latent_prior.evaluation.options import SWEPT
from latent_prior.markdown import markdown_table

CELL = 0.9  # inches
DARK = 0.6  # share of the colour scale from which text on it is white


def markdown(
    protocol: Mapping[str, Any],
    rows: Sequence[Mapping[str, Any]],
    full: Mapping[str, Any],
    column: str,
    title: str,
) -> str:
    """The table, best settings first, and the sentences that say what it is worth.

    Args:
        protocol: of the sweep.
        rows: each with `settings` and a value under `column`, lower is better.
        full: the same for the best settings and more images, `num_images`.
        column: key of the value.
        title: what it is called.
    """
    names = [name for name in SWEPT if name in rows[0]["settings"]]
    cells = [
        [*(str(row["settings"][name]) for name in names), _number(row, column)]
        for row in sorted(rows, key=lambda row: row[column])
    ]
    lines = markdown_table([*names, f"{title} ↓"], cells, left=0)
    text = (
        f"{protocol['num_images']:,} images for each row, all from the same random numbers (seed {protocol['seed']}), "
        f"against {protocol['reference']}; features: {protocol['features']} ({protocol['resizer']})."
    )
    if column != "kid" and fid.rank_deficient(
        protocol["num_images"], protocol["feature_dimension"]
    ):
        text += (
            f" With no more images than features ({protocol['feature_dimension']:,}) much of each distance is owed to "
            "their number: compare rows with each other only."
        )
    chosen = ", ".join(f"{name} {full['settings'][name]}" for name in names)
    text += (
        f"\n\nChosen: {chosen}. Once more with {full['num_images']:,} images: {title} {_number(full, column)}. "
        "The settings were chosen for being good against this very reference, so report what they reach against images "
        "that had no say in the choice: another split."
    )
    return "\n".join(lines) + f"\n\n{text}\n"


def draw_heatmap(rows: Sequence[Mapping[str, Any]], column: str, title: str, path: Path) -> None:
    """Write a PNG heat map: two settings with the most values per panel, the others across panels.

    Args:
        rows: each with `settings` and a value under `column`; the lowest gets a frame.
        column: key of the value.
        title: what it is called.
        path: of the picture.
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
    for place in np.ndindex(down, across):
        axes, cells = panels[place], table[place]
        image = axes.imshow(cells, cmap="viridis_r", vmin=low, vmax=high, aspect="equal")
        for (y, x), value in np.ndenumerate(cells):
            if np.isfinite(value):
                dark = value > low + DARK * (high - low)
                axes.text(
                    x, y, f"{value:.4g}", ha="center", va="center", color="w" if dark else "k"
                )
            if (*place, y, x) == best:
                axes.add_patch(
                    Rectangle((x - 0.5, y - 0.5), 1, 1, fill=False, ec="r", lw=3, clip_on=False)
                )
        axes.set_xticks(range(width), [str(value) for value in values[3]])
        axes.set_yticks(range(height), [str(value) for value in values[2]])
        axes.set(xlabel=names[3], ylabel=names[2])
        fixed = [(names[i], values[i][place[i]]) for i in (0, 1) if len(values[i]) > 1]
        axes.set_title(", ".join(f"{name} {value}" for name, value in fixed), fontsize=10)
    figure.colorbar(image, ax=panels, label=title)
    figure.savefig(path, dpi=110)


def axes_of(rows: Sequence[Mapping[str, Any]]) -> tuple[list[str], list[list[Any]]]:
    """Four settings and the values that occur, the one with the most values last."""
    found = {
        name: sorted({row["settings"][name] for row in rows if name in row["settings"]}) or [""]
        for name in SWEPT
    }
    names = sorted(found, key=lambda name: (len(found[name]), -SWEPT.index(name)))
    return names, [found[name] for name in names]


def fill_table(
    rows: Sequence[Mapping[str, Any]],
    names: Sequence[str],
    values: Sequence[list[Any]],
    column: str,
) -> NDArray[np.float64]:
    """The values along the four axes; NaN for combinations that were not measured."""
    table = np.full([len(each) for each in values], np.nan)
    for row in rows:
        place = tuple(
            values[i].index(row["settings"].get(name, "")) for i, name in enumerate(names)
        )
        table[place] = row[column]
    return table


def _number(row: Mapping[str, Any], column: str) -> str:
    error = f" ± {row['kid_stderr']:.3g}" if column == "kid" else ""
    return f"{row[column]:.4g}{error}"
