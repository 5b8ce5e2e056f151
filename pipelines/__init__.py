"""Both stages as one object: `from pipelines import Pipeline`."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pipelines.outputs import PipelineOutput
    from pipelines.pipeline import Pipeline
    from stage2_prior.sampler import Sampler

__all__ = ["Pipeline", "PipelineOutput", "Sampler"]

_HOMES = {
    "Pipeline": "pipelines.pipeline",
    "PipelineOutput": "pipelines.outputs",
    "Sampler": "stage2_prior.sampler",
}


def __getattr__(name: str) -> Any:
    """Import the pipeline's module when one of its classes is first asked for: `--help` needs no torch."""
    if name in _HOMES:
        return getattr(importlib.import_module(_HOMES[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
