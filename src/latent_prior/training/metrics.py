"""Metrics of a run: means over a window, `metrics.jsonl`, and an optional tracker."""

from __future__ import annotations

import logging
import math
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec
import torch
from torch import Tensor

from latent_prior.files import read_regular, whole_file
from latent_prior.options import RunOptions
from latent_prior.records import LINES_LIMIT, parse_record, read_lines
from latent_prior.training.trackers import Tracker

if TYPE_CHECKING:
    from accelerate import Accelerator

_log = logging.getLogger("latent_prior")

Metrics = dict[str, Tensor]
"""Scalars of one step, still on their device."""

Figure = int | float | list[float | None] | str
Figures = dict[str, Figure | Path]
"""Entries of a line in `metrics.jsonl`, of which a tracker gets the single numbers, and pictures.

Pictures are the paths of PNG files, for the tracker alone.
"""


@dataclass
class Window:
    """Sums of the metrics since the last line of the log, on their device."""

    sums: Metrics = field(default_factory=dict)
    counts: dict[str, int] = field(default_factory=dict)

    def add(self, metrics: Metrics) -> None:
        """Add one step's metrics."""
        for name, value in metrics.items():
            self.sums[name] = self.sums.get(name, 0) + value.detach().float()
            self.counts[name] = self.counts.get(name, 0) + 1

    def clear(self) -> None:
        """Begin a new line."""
        self.sums, self.counts = {}, {}

    def share(self, accelerator: Accelerator) -> None:
        """Replace the sums by their means over all processes; this synchronises the device."""
        if self.sums and accelerator.num_processes > 1:
            sums = torch.stack([value.to(accelerator.device) for value in self.sums.values()])
            shared = accelerator.reduce(sums, "mean")
            self.sums = dict(zip(self.sums, shared.unbind(), strict=True))

    def state_dict(self) -> dict[str, Any]:
        """Plain numbers, which hold float32 exactly."""
        return {"sums": {n: float(v) for n, v in self.sums.items()}, "counts": dict(self.counts)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """The inverse of `state_dict`."""
        self.sums = {name: torch.tensor(value) for name, value in state["sums"].items()}
        self.counts = dict(state["counts"])

    def means(self, accelerator: Accelerator) -> dict[str, float]:
        """Means over the window and all processes; this synchronises the device."""
        sums, device = self.sums.items(), accelerator.device
        means = torch.stack([value.to(device) / self.counts[name] for name, value in sums])
        return dict(zip(self.sums, accelerator.reduce(means, "mean").tolist(), strict=True))


class MetricsLog:
    """`metrics.jsonl` and an optional tracker; only the main process writes."""

    def __init__(
        self, accelerator: Accelerator, run: Path, options: RunOptions, *, start: int
    ) -> None:
        self._tracker = Tracker(accelerator, run, options)
        self._accelerator, self._batch_size = accelerator, options.batch_size
        self._path = run / "metrics.jsonl"
        if accelerator.is_main_process and os.path.lexists(self._path):
            # Lines later than the checkpoint will be written again.
            lines = read_regular(self._path, LINES_LIMIT).split(b"\n")
            steps = [_step_of(line) for line in lines]
            if damaged := [n for n, step in enumerate(steps[:-1], start=1) if step is None]:
                _log.warning(
                    "%s: %d lines that are no metrics are left out, the first is line %d",
                    self._path,
                    len(damaged),
                    damaged[0],
                )
            kept = zip(lines, steps, strict=True)
            with whole_file(self._path) as path:
                path.write_bytes(
                    b"".join(
                        line + b"\n" for line, step in kept if step is not None and step <= start
                    )
                )

    def write(self, step: int, seconds: float, metrics: Mapping[str, Figure | Path]) -> None:
        """Append a line after `step` steps and `seconds` of training; text is also a warning.

        Pictures, the paths of PNG files, go to the tracker alone.
        """
        pictures = {name: path for name, path in metrics.items() if isinstance(path, Path)}
        metrics = {name: value for name, value in metrics.items() if name not in pictures}
        if self._accelerator.is_main_process:
            for entry in metrics.values():
                if isinstance(entry, str):
                    _log.warning("step %d: %s", step, entry)
            images = step * self._batch_size
            line = {"step": step, "images_seen": images, "seconds": round(seconds, 3), **metrics}
            with self._path.open("ab") as file:
                file.write(msgspec.json.encode(line) + b"\n")
        numbers = {name: value for name, value in metrics.items() if isinstance(value, float | int)}
        self._tracker.log(step, numbers)
        self._tracker.show(step, pictures)

    def close(self) -> None:
        """Flush the tracker."""
        self._tracker.close()


def check_finite(sums: Metrics, step: int) -> None:
    """Stop a diverged run.

    Raises:
        ValueError: naming the first metric that is not finite.
    """
    for name, value in sums.items():
        if not math.isfinite(float(value)):
            raise ValueError(
                f"step {step}: {name} is {float(value)}; stopped before the weights took it up: resume from the last "
                "checkpoint with a lower --learning_rate, or look at the images of this step"
            )


def _step_of(line: bytes) -> int | None:
    """The step of a line of metrics.jsonl; None for one that is cut off or no such line."""
    try:
        step = parse_record(line, dict[str, Figure | None], "the line", "").get("step")
    except ValueError:
        return None
    return step if type(step) is int else None


def read_metrics(path: Path) -> list[dict[str, Figure | None]]:
    """The lines of a `metrics.jsonl`; null stands for a figure that was not finite.

    Raises:
        ValueError: naming the file and the line that is none.
    """
    way_out = "delete the line"
    lines = read_lines(path, dict[str, Figure | None], way_out)
    for number, line in enumerate(lines, start=1):
        if type(line.get("step")) not in (int, float) or not 0 <= step_of(line) < 1e15:
            raise ValueError(f"{path}, line {number}: step is no number of steps; {way_out}")
    return lines


def step_of(line: dict[str, Figure | None]) -> float:
    """The optimizer steps before a line was written."""
    step = line["step"]
    assert isinstance(step, int | float)
    return step
