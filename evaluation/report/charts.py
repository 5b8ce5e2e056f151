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
    rows = [row for row in rows if math.isfinite(row.value(measure.key))]
    ends = [row.value(measure.key) + sign * row.error(measure.key) for row in rows for sign in (-1, 1)]  # fmt: skip
    low, high = min(0.0, *ends), max(0.0, *ends)
    axis = Axis(low, high if high > low else 1.0, 1.0, WIDTH - 1.0)
    winners = best(rows, measure)
    parts = []
    for number, row in enumerate(rows):
        value, error = row.value(measure.key), row.error(measure.key)
        kind = "best" if row.name in winners else "" if row.contestant else "aside"
        top = BAR_ROW * number
        text = _escape(measure.text(value, row.errors.get(measure.key)))
        left, right = sorted((axis(0.0), axis(value)))
        parts.append(
            f'<g class="row {kind}"><title>{_escape(row.name)}: {text}</title>'
            f'<text x="0" y="{top + 14:g}">{_escape(shorten(row.name, LONGEST_NAME))}</text>'
            f'<text x="{WIDTH:g}" y="{top + 14:g}" class="end">{text}</text>'
            f'<rect class="bar" x="{left:.2f}" y="{top + 20:g}" width="{right - left:.2f}" height="{BAR_HEIGHT:g}"/>'
            f"{_error_bar(axis, value, error, top + 20 + BAR_HEIGHT / 2)}</g>\n"
        )
    return _svg("".join(parts), f"{measure.title} of each set", BAR_ROW * len(rows))


def distance_by_size(rows: Sequence[Row], column: str, title: str) -> str | None:
    """The distance over 1/N, where it is nearly linear, with its extrapolation at the left edge.

    Returns:
        None if no row has a curve of two points.
    """
    curves = {
        style: points
        for style, row in enumerate(rows)
        if len(points := [(n, d) for n, d in row.curve if math.isfinite(d)]) >= 2
    }
    if not curves:
        return None
    infinity = f"{column}_infinity"
    sizes = sorted({size for points in curves.values() for size, _ in points})
    values = [distance for points in curves.values() for _, distance in points]
    limits = {style: (rows[style].value(infinity), rows[style].error(infinity)) for style in curves}
    values += [limit + sign * error for limit, error in limits.values() if math.isfinite(limit) for sign in (-1, 1)]  # fmt: skip
    x = Axis(0.0, 1.03 / sizes[0], LEFT, RIGHT)
    margin = 0.06 * (max(values) - min(values)) or abs(values[0]) or 1.0
    y = Axis(min(values) - margin, max(values) + margin, BOTTOM, TOP)
    ticks = _size_ticks(x, sizes)
    content = _frame(x, ticks, y, f"{title} ↓", "N, number of images (scale of 1/N)")
    for style, sized in curves.items():
        name, (limit, error) = rows[style].name, limits[style]
        marks = [(1 / n, d, f"{name}: {title} {d:.4g} at N = {n:,}") for n, d in sized]
        extrapolation = ""
        if math.isfinite(limit):
            label = f"{name}: {title}∞ {limit:.4g}"
            extrapolation = _line(x, y, [(0.0, limit), marks[-1][:2]], "guess")
            extrapolation += _error_bar(y, limit, error, x(0.0), upright=True)
            extrapolation += _mark(x, y, style, 0.0, limit, label, "open")
        content += _series(x, y, style, marks, extrapolation)
    chart = _svg(content, f"{title} against the number of images", HEIGHT)
    return chart + _legend([(style, rows[style].name) for style in curves])


def distance_by_budget(rows: Sequence[Row], column: str, title: str) -> str | None:
    """The distance over the seconds of training; rows of one series are joined by a line.

    Returns:
        None if fewer than two rows have both.
    """
    names = list(dict.fromkeys(row.series or row.name for row in rows))
    budgets: dict[int, list[tuple[float, float, str]]] = {}
    for row in rows:
        seconds, distance = row.value("training_seconds"), row.value(column)
        if math.isfinite(seconds) and math.isfinite(distance):
            label = f"{row.name}: {title} {distance:.4g} after {seconds:,.0f} s"
            style = names.index(row.series or row.name)
            budgets.setdefault(style, []).append((seconds, distance, label))
    points = [point for series in budgets.values() for point in series]
    if len(points) < 2:
        return None
    x = _fitted([seconds for seconds, _, _ in points], LEFT, RIGHT)
    y = _fitted([distance for _, distance, _ in points], BOTTOM, TOP)
    ticks = [(value, f"{value:,.6g}") for value in x.ticks()]
    content = _frame(x, ticks, y, f"{title} ↓", "seconds of training, all stages together")
    styles = sorted(budgets)
    content += "".join(_series(x, y, style, sorted(budgets[style])) for style in styles)
    chart = _svg(content, f"{title} against the training budget", HEIGHT)
    return chart + _legend([(style, names[style]) for style in styles])


def _series(
    x: Axis, y: Axis, style: int, points: Sequence[tuple[float, float, str]], more: str = ""
) -> str:
    """Labelled points joined by a line."""
    line = _line(x, y, [point[:2] for point in points], "") if len(points) > 1 else ""
    marks = "".join(_mark(x, y, style, *point) for point in points)
    return f'<g class="series s{style % COLOURS}">{line}{more}{marks}</g>\n'


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


def _escape(text: str) -> str:
    return html.escape(text, quote=False)
