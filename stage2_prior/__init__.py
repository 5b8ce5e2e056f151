"""Stage 2: a Transformer prior that learns the distribution of codes and samples new ones."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from latent_prior.stage2_prior.prior import PriorConfig, TransformerPrior

__all__ = ["PriorConfig", "TransformerPrior"]


def __getattr__(name: str) -> Any:
    """Import the model's module on first use of a class."""
    if name in __all__:
        return getattr(importlib.import_module("latent_prior.stage2_prior.prior"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
