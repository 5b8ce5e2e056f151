"""Both stages as one object: `from pipelines import Pipeline`."""

from __future__ import annotations

from pipelines.pipeline import Pipeline, PipelineOutput, Sampler

__all__ = ["Pipeline", "PipelineOutput", "Sampler"]
