"""How many steps fit into a budget, so that a learning rate schedule ends with it.

A probe times some steps beforehand. It may meet a busier machine than the training does, so the
training stops at some shares of its budget, and what is left is planned anew from its own pace.
"""

from __future__ import annotations

import itertools
import json
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import NamedTuple

from latent_prior.records import write_record

PROBE = 1 / 40  # of the budget, spent beforehand on measuring how long a step takes
MARKS = (0.3, 0.8, 1.0)  # shares of the budget at which a training stops
PLANNED = 0.99  # of the budget: the last steps may take a little longer than those before
LOADS_PER_SECOND = 40
"""Reference loads (`reference_load.py`) in a reference second."""


class StepCosts(NamedTuple):
    """What steps cost: `early` each, and `late` each from step `change` on, where a critic joins.

    Any unit will do.
    """

    early: float
    late: float
    change: float = 0.0

    def of(self, steps: float) -> float:
        """The cost of the first steps."""
        return steps * self.early + max(0.0, steps - self.change) * (self.late - self.early)

    def steps(self, budget: float) -> float:
        """The inverse of `of`."""
        if budget <= self.change * self.early:
            return budget / self.early
        return self.change + (budget - self.change * self.early) / self.late


def step_costs(times: list[float], budget: float) -> StepCosts:
    """Costs from the time of a step, or of two kinds of which each is to make half of the steps."""
    early, late = times[0], times[-1]
    change = int(PLANNED * budget / (early + late)) if len(times) > 1 else 0
    return StepCosts(early, late, change)


def planned_steps(costs: StepCosts, budget: float, done: int = 0, spent: float = 0.0) -> int:
    """Steps in all that fit into a budget, of which `done` steps have cost `spent`.

    The rest is taken to be as much dearer or cheaper than `costs` as those steps were.
    """
    pace = spent / costs.of(done) if done and spent else 1.0
    left = max(0.0, PLANNED * budget - spent) / pace
    return max(1, done, int(costs.steps(costs.of(done) + left)))


class Segment(NamedTuple):
    """Where a training stood when it stopped: steps and seconds from its start."""

    planned: int
    steps: int
    seconds: float


@dataclass
class Plan:
    """What is known of a training within a budget.

    Attributes:
        step_seconds: of a step of each kind, from the probe.
        loads: seconds of the reference load, before the training and after each segment.
        segments: the training from its start up to each stop.
    """

    step_seconds: list[float] = field(default_factory=list)
    loads: list[float] = field(default_factory=list)
    segments: list[Segment] = field(default_factory=list)

    @classmethod
    def read(cls, path: Path) -> Plan:
        """From a file; a new plan if there is none."""
        if not path.is_file():
            return cls()
        stored = json.loads(path.read_text())
        return cls(**{**stored, "segments": [Segment(*each) for each in stored["segments"]]})

    def write(self, path: Path) -> None:
        """Into a JSON file."""
        write_record(path, asdict(self))

    @property
    def last(self) -> Segment:
        """The training so far."""
        return self.segments[-1] if self.segments else Segment(0, 0, 0.0)

    @property
    def pace(self) -> float:
        """Seconds per reference second as measured last."""
        return self.loads[-1] * LOADS_PER_SECOND

    def reference_seconds(self) -> float:
        """The training so far in reference seconds; each segment by the loads around it."""
        ends = [0.0, *(segment.seconds for segment in self.segments)]
        loads = itertools.pairwise(self.loads)
        return sum(
            (end - start) / (LOADS_PER_SECOND * (before + after) / 2)
            for (start, end), (before, after) in zip(itertools.pairwise(ends), loads, strict=False)
        )
