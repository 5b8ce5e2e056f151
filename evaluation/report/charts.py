"""Charts as inline SVG: bars per measure, the distance against N and against training time.

The view box is 360 wide and scales with the page. Colours come from report.css (classes `s0` to
`s7`, light and dark); every series also has its own marker, for readers who cannot tell colours
apart.
"""

from __future__ import annotations

import html
import math
from collections.abc import Sequence
from typing import NamedTuple

from latent_prior.evaluation.measures.table import Measure, Row, best, shorten

COLOURS = 8
WIDTH, HEIGHT = 360.0, 270.0
LEFT, RIGHT, TOP, BOTTOM = 46.0, 346.0, 30.0, 228.0  # the plot area
BAR_ROW, BAR_HEIGHT = 36.0, 9.0
LOGARITHMIC = 30.0  # an axis is logarithmic above this ratio of values
LONGEST_NAME = 34  # characters that fit beside a value
MARKERS = (
    "M4.5 0A4.5 4.5 0 1 1-4.5 0A4.5 4.5 0 1 1 4.5 0Z",  # circle
    "M-4-4H4V4H-4Z",  # square
    "M0-5.5L5.2 4H-5.2Z",  # triangle
    "M0-5.8L5.8 0L0 5.8L-5.8 0Z",  # diamond
    "M0 5.5L5.2-4H-5.2Z",  # triangle on its tip
)


class Axis(NamedTuple):
    """Maps values to coordinates: `low` to `start`, `high` to `end`."""

    low: float
    high: float
    start: float
    end: float
    logarithmic: bool = False

    def __call__(self, value: float) -> float:
        """The coordinate of a value."""
        low, high = self.low, self.high
        if self.logarithmic:
            low, high, value = math.log(low), math.log(high), math.log(value)
        return self.start + (self.end - self.start) * (value - low) / (high - low)

    def ticks(self) -> list[float]:
        """At most seven round values: evenly spaced, or 1, 2, 5 times powers of ten."""
        if not self.logarithmic:
            step = _round_step((self.high - self.low) / 5)
            first = math.ceil(self.low / step - 1e-9)
            return [n * step for n in range(first, math.floor(self.high / step + 1e-9) + 1)]
        powers = range(math.floor(math.log10(self.low)), math.ceil(math.log10(self.high)) + 1)
        for factors in ((1, 2, 5), (1, 3), (1,)):
            values = [factor * 10.0**power for power in powers for factor in factors]
            values = [value for value in values if self.low <= value <= self.high]
            if len(values) <= 7:
                break
        return values


def bars(measure: Measure, rows: Sequence[Row]) -> str:
    """One bar per row that has the measure, with its standard error; baselines are grey."""
    shown = [row for row in rows if math.isfinite(row.values.get(measure.key, math.nan))]
    ends = [row.values[measure.key] + side * _error(row, measure) for row in shown for side in (-1, 1)]  # fmt: skip
    low, high = min(0.0, *ends), max(0.0, *ends)
    axis = Axis(low, high if high > low else 1.0, 1.0, WIDTH - 1.0)
    winners = best(rows, measure)
    parts = []
    for place, row in enumerate(shown):
        value, error = row.values[measure.key], _error(row, measure)
        kind = "best" if row.name in winners else "" if row.contestant else "aside"
        top = BAR_ROW * place
        text = measure.text(value, row.errors.get(measure.key))
        left, right = sorted((axis(0.0), axis(value)))
        parts.append(
            f'<g class="row {kind}"><title>{_escape(row.name)}: {_escape(text)}</title>'
            f'<text x="0" y="{top + 14:g}">{_escape(shorten(row.name, LONGEST_NAME))}</text>'
            f'<text x="{WIDTH:g}" y="{top + 14:g}" class="end">{_escape(text)}</text>'
            f'<rect class="bar" x="{left:.2f}" y="{top + 20:g}" width="{right - left:.2f}" height="{BAR_HEIGHT:g}"/>'
            + (_error_bar(axis, value, error, top + 20 + BAR_HEIGHT / 2) if error else "")
            + "</g>\n"
        )
    return _svg("".join(parts), f"{measure.title} of each set", BAR_ROW * len(shown))


def distance_by_size(rows: Sequence[Row], column: str, title: str) -> str | None:
    """The distance over 1/N, where it is nearly linear, with its extrapolation at the left edge.

    Returns:
        None if no row has a curve of two points.
    """
    curves = {row.name: [(n, d) for n, d in row.curve if math.isfinite(d)] for row in rows}
    drawn = [(style, row) for style, row in enumerate(rows) if len(curves[row.name]) >= 2]
    if not drawn:
        return None
    key = f"{column}_infinity"
    sizes = sorted({size for _, row in drawn for size, _ in curves[row.name]})
    values = [distance for _, row in drawn for _, distance in curves[row.name]]
    for _, row in drawn:
        if math.isfinite(limit := row.values.get(key, math.nan)):
            values += [limit - row.errors.get(key, 0.0), limit + row.errors.get(key, 0.0)]
    values = [value for value in values if math.isfinite(value)]
    x = Axis(0.0, 1.03 / sizes[0], LEFT, RIGHT)
    margin = 0.06 * (max(values) - min(values)) or abs(values[0]) or 1.0
    y = Axis(min(values) - margin, max(values) + margin, BOTTOM, TOP)
    parts = [
        _frame(x, _size_ticks(x, sizes), y, f"{title} ↓", "N, number of images (scale of 1/N)")
    ]
    for style, row in drawn:
        points = [(1 / size, distance) for size, distance in curves[row.name]]
        marks = [_mark(x, y, style, *point, f"{row.name}: {title} {point[1]:.4g} at N = {round(1 / point[0]):,}") for point in points]  # fmt: skip
        line = _line(x, y, points, "")
        limit = row.values.get(key, math.nan)
        if math.isfinite(limit):
            line += _line(x, y, [(0.0, limit), points[-1]], "guess")
            line += _error_bar(y, limit, row.errors.get(key, 0.0), x(0.0), upright=True)
            marks.append(
                _mark(x, y, style, 0.0, limit, f"{row.name}: {title}∞ {limit:.4g}", "open")
            )
        parts.append(f'<g class="series s{style % COLOURS}">{line}{"".join(marks)}</g>\n')
    chart = _svg("".join(parts), f"{title} against the number of images", HEIGHT)
    return chart + _legend([(style, row.name) for style, row in drawn])


def distance_by_budget(rows: Sequence[Row], column: str, title: str) -> str | None:
    """The distance over the seconds of training; rows of one series are joined by a line.

    Returns:
        None if fewer than two rows have both.
    """
    shown = [
        row
        for row in rows
        if math.isfinite(row.values.get(column, math.nan))
        and math.isfinite(row.values.get("training_seconds", math.nan))
    ]
    if len(shown) < 2:
        return None
    x = _fitted([row.values["training_seconds"] for row in shown], LEFT, RIGHT)
    y = _fitted([row.values[column] for row in shown], BOTTOM, TOP)
    ticks = [(value, f"{value:,.6g}") for value in x.ticks()]
    parts = [_frame(x, ticks, y, f"{title} ↓", "seconds of training, all stages together")]
    names = list(dict.fromkeys(row.series or row.name for row in rows))
    labels = []
    for style, name in enumerate(names):
        members = [row for row in shown if (row.series or row.name) == name]
        if not members:
            continue
        places = sorted(
            (row.values["training_seconds"], row.values[column], row.name) for row in members
        )
        points = [place[:2] for place in places]
        line = _line(x, y, points, "") if len(points) > 1 else ""
        marks = [_mark(x, y, style, s, d, f"{n}: {title} {d:.4g} after {s:,.0f} s") for s, d, n in places]  # fmt: skip
        parts.append(f'<g class="series s{style % COLOURS}">{line}{"".join(marks)}</g>\n')
        labels.append((style, name))
    return _svg("".join(parts), f"{title} against the training budget", HEIGHT) + _legend(labels)


def _fitted(values: Sequence[float], start: float, end: float) -> Axis:
    """An axis from zero, or a logarithmic one if values are positive and far apart."""
    low, high = min(values), max(values)
    if low > 0 and high / low > LOGARITHMIC:
        return Axis(low / 1.25, high * 1.25, start, end, logarithmic=True)
    low, high = min(low, 0.0), max(high, 0.0)
    return Axis(low, high + (0.08 * (high - low) or 1.0), start, end)


def _round_step(step: float) -> float:
    power = 10.0 ** math.floor(math.log10(step))
    return next(factor * power for factor in (1, 2, 5, 10) if factor * power >= step * (1 - 1e-9))


def _size_ticks(x: Axis, sizes: Sequence[int]) -> list[tuple[float, str]]:
    """Ticks for infinity and for the sizes, largest first, where there is room."""
    ticks, left = [(0.0, "∞")], x(0.0) - 8.0
    for size in reversed(sizes):
        if x(1 / size) - left >= 36:
            ticks.append((1 / size, f"{size:,}"))
            left = x(1 / size)
    return ticks


def _frame(
    x: Axis, x_ticks: Sequence[tuple[float, str]], y: Axis, y_title: str, x_title: str
) -> str:
    """Grid lines, tick labels and axis titles."""
    lines, labels = [], []
    for value in y.ticks():
        lines.append(f"M{LEFT:g} {y(value):.2f}H{RIGHT:g}")
        labels.append(f'<text x="{LEFT - 7:g}" y="{y(value) + 4:.2f}" class="end">{value:,.6g}</text>')  # fmt: skip
    for value, label in x_ticks:
        lines.append(f"M{x(value):.2f} {BOTTOM:g}v5")
        labels.append(f'<text x="{x(value):.2f}" y="{BOTTOM + 19:g}" class="middle">{label}</text>')
    return (
        f'<path class="grid" d="{"".join(lines)}"/><g class="ticks">{"".join(labels)}'
        f'<text x="0" y="13">{_escape(y_title)}</text>'
        f'<text x="{RIGHT:g}" y="{HEIGHT - 4:g}" class="end">{_escape(x_title)}</text></g>\n'
    )


def _line(x: Axis, y: Axis, points: Sequence[tuple[float, float]], kind: str) -> str:
    path = "L".join(f"{x(a):.2f} {y(b):.2f}" for a, b in points)
    return f'<path class="line {kind}" d="M{path}"/>'


def _mark(x: Axis, y: Axis, style: int, a: float, b: float, text: str, kind: str = "") -> str:
    return (
        f'<path class="mark {kind}" d="{MARKERS[style % len(MARKERS)]}" transform="translate({x(a):.2f} {y(b):.2f})">'
        f"<title>{_escape(text)}</title></path>"
    )


def _error_bar(
    axis: Axis, value: float, error: float, across: float, *, upright: bool = False
) -> str:
    """One standard error to both sides of a value at `across` on the other axis."""
    if not (math.isfinite(error) and error > 0):
        return ""
    low, high = axis(value - error), axis(value + error)
    if upright:
        path = f"M{across:.2f} {low:.2f}V{high:.2f}M{across - 3:.2f} {low:.2f}h6M{across - 3:.2f} {high:.2f}h6"
    else:
        path = f"M{low:.2f} {across:.2f}H{high:.2f}M{low:.2f} {across - 3:.2f}v6M{high:.2f} {across - 3:.2f}v6"
    return f'<path class="error" d="{path}"/>'


def _legend(labels: Sequence[tuple[int, str]]) -> str:
    entries = "".join(
        f'<li><svg class="s{style % COLOURS}" viewBox="-7 -7 14 14" aria-hidden="true">'
        f'<path class="mark" d="{MARKERS[style % len(MARKERS)]}"/></svg>{_escape(name)}</li>'
        for style, name in labels
    )
    return f'<ul class="legend">{entries}</ul>\n'


def _svg(content: str, label: str, height: float) -> str:
    label = html.escape(label)
    return f'<svg viewBox="0 0 {WIDTH:g} {height:g}" role="img" aria-label="{label}">\n{content}</svg>\n'


def _error(row: Row, measure: Measure) -> float:
    error = row.errors.get(measure.key, 0.0)
    return error if math.isfinite(error) else 0.0


def _escape(text: str) -> str:
    return html.escape(text, quote=False)
