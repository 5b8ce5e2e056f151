"""Both stages as one object: the classes that `from latent_prior import Pipeline` imports."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import latent_prior

if TYPE_CHECKING:
    from latent_prior import Pipeline, PipelineOutput, Sampler

__all__ = ["Pipeline", "PipelineOutput", "Sampler"]


def __getattr__(name: str) -> Any:
    """Import a class on first use, so that the scripts answer `--help` without torch."""
    if name in __all__:
        return getattr(latent_prior, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
