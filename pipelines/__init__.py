"""Both stages as one object: `from pipelines import Pipeline`."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pipelines.pipeline import Pipeline, PipelineOutput, Sampler

__all__ = ["Pipeline", "PipelineOutput", "Sampler"]


def __getattr__(name: str) -> Any:
    """Import the pipeline's module when one of its classes is first asked for: `--help` needs no torch."""
    if name in __all__:
        return getattr(importlib.import_module("pipelines.pipeline"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
