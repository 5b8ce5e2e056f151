"""The figures of a run over its steps, as a picture."""

from __future__ import annotations

import gc
from collections.abc import Mapping
from pathlib import Path

from latent_prior.files import whole_file
from latent_prior.training.metrics import read_metrics, step_of


def plot_curves(
    run: Path, panels: Mapping[str, Mapping[str, str]], *, lowest: str | None = None
) -> None:
    """Plot figures of metrics.jsonl over the steps to `curves.png`.

    Args:
        run: the run folder.
        panels: name of the vertical axis -> metric -> its name in the legend; metrics that the run
            has not are left out, and so are panels without any.
        lowest: the metric whose lowest value is marked.

    Raises:
        ValueError: a figure in metrics.jsonl is no number.
    """
    log = run / "metrics.jsonl"
    if not log.is_file():  # nothing logged yet
        return
    lines = read_metrics(log)
    points: dict[str, list[tuple[float, float]]] = {}
    for name in (name for metrics in panels.values() for name in metrics):
        for number, line in enumerate(lines, start=1):
            value = line.get(name)
            if isinstance(value, int | float):
                points.setdefault(name, []).append((step_of(line), value))
            elif value is not None:
                raise ValueError(f"{log}, line {number}: {name} is no number; delete the line")
    shown = {axis: metrics for axis, metrics in panels.items() if points.keys() & metrics.keys()}
    if shown:
        _draw(run / "curves.png", shown, points, lowest)
        # Figures refer to themselves. Until the collector gets to them, dozens pile up in memory.
        gc.collect()


def _draw(
    final: Path,
    shown: Mapping[str, Mapping[str, str]],
    points: Mapping[str, list[tuple[float, float]]],
    lowest: str | None,
) -> None:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 4 if len(shown) == 1 else 3 * len(shown)), layout="constrained")
    columns = figure.subplots(len(shown), sharex=True, squeeze=False)[:, 0]
    for axes, (axis, metrics) in zip(columns, shown.items(), strict=True):
        for name in (name for name in metrics if name in points):
            marker = "." if len(points[name]) < 50 else ""
            axes.plot(*zip(*points[name], strict=True), label=metrics[name], marker=marker)
            if name == lowest:
                step, value = min(points[name], key=lambda point: point[1])
                label = f"best: {value:.3f}, step {step:.0f}"
                axes.plot(step, value, "o", fillstyle="none", label=label)
        axes.set(ylabel=axis)
        axes.legend()
    columns[-1].set(xlabel="step")
    with whole_file(final) as path:
        figure.savefig(path, dpi=110)
