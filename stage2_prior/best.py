"""The best validation figure of a run."""

from __future__ import annotations

import math


class Best:
    """The lowest figure so far; part of the checkpoint, so that a resumed run does not forget it."""

    def __init__(self) -> None:
        self.figure = math.inf

    def improves(self, figure: float) -> bool:
        """Whether this one is lower than all before it, and remember it if so."""
        if not figure < self.figure:
            return False
        self.figure = figure
        return True

    def state_dict(self) -> dict[str, float]:
        """The figure."""
        return {"figure": self.figure}

    def load_state_dict(self, state: dict[str, float]) -> None:
        """The inverse of `state_dict`."""
        self.figure = state["figure"]
