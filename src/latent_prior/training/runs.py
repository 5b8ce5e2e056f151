"""What a training has left: its folder, the exported model and its figures."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Self

from latent_prior.training.metrics import Figure, read_metrics


@dataclass(frozen=True)
class Run:
    """A training that has ended.

    Attributes:
        folder: the run folder.
        figures: of the last evaluation; its line in `metrics.jsonl`, empty if there was none.
    """

    folder: Path
    figures: dict[str, Figure | None]

    @classmethod
    def open(cls, folder: Path) -> Self:
        """The run in a folder."""
        path = folder / "metrics.jsonl"
        lines = read_metrics(path) if path.is_file() else []
        evaluations = [line for line in lines if "learning_rate" not in line]
        return cls(folder, evaluations[-1] if evaluations else {})

    @property
    def model(self) -> Path:
        """Folder of the exported model."""
        return self.folder / "model"
