"""Both stages as one object: `from pipelines import Pipeline`."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from latent_prior.pipelines.outputs import PipelineOutput
    from latent_prior.pipelines.pipeline import Pipeline
    from latent_prior.stage2_prior.sampler import Sampler

__all__ = ["Pipeline", "PipelineOutput", "Sampler"]

_HOMES = {
    "Pipeline": "latent_prior.pipelines.pipeline",
    "PipelineOutput": "latent_prior.pipelines.outputs",
    "Sampler": "latent_prior.stage2_prior.sampler",
}


def __getattr__(name: str) -> Any:
    """Import the pipeline's module when one of its classes is first asked for: `--help` needs no torch."""
    if name in _HOMES:
        return getattr(importlib.import_module(_HOMES[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
