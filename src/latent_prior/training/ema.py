"""An exponential moving average of a model's weights."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn


class EMA:
    """Moving averages of a model's parameters; buffers, such as codebook statistics, are copied.

    The decay is warmed up as min(decay, (1 + t) / (10 + t)), so that the initial weights are soon
    forgotten.
    """

    def __init__(self, model: nn.Module, decay: float) -> None:
        self.decay = decay
        self.updates = 0
        self.weights = {name: p.detach().clone() for name, p in model.named_parameters()}

    @torch.no_grad()
    def update(self, model: nn.Module, moved: Mapping[str, Tensor] | None = None) -> None:
        """Move the averages towards the model's weights.

        Args:
            model: as given to `__init__`.
            moved: rows of parameters, bool (K,) by name, that were put elsewhere since the last
                update, such as restarted codes; their averages start anew from the weights.
        """
        self.updates += 1
        decay = min(self.decay, (1 + self.updates) / (10 + self.updates))
        current = [p.detach() for _, p in model.named_parameters()]
        torch._foreach_lerp_(list(self.weights.values()), current, 1 - decay)
        for name, rows in (moved or {}).items():
            average, weight = self.weights[name], model.get_parameter(name)
            chosen = rows.view(-1, *[1] * (weight.ndim - 1))
            average.copy_(torch.where(chosen, weight, average))

    def state_for(self, model: nn.Module) -> dict[str, Tensor]:
        """Averaged parameters and the model's current buffers, under the model's names."""
        return {name: self.weights.get(name, value) for name, value in model.state_dict().items()}

    @contextmanager
    def applied_to(self, model: nn.Module) -> Iterator[None]:
        """Use the averaged weights in `model` within the block."""
        own = {name: p.detach().clone() for name, p in model.named_parameters()}
        try:
            _copy_parameters(model, self.weights)
            yield
        finally:
            _copy_parameters(model, own)

    def state_dict(self) -> dict[str, Any]:
        """Averaged parameters and the number of updates."""
        return {"updates": self.updates, "weights": self.weights}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """The inverse of `state_dict`.

        Raises:
            ValueError: when the names differ from the model's.
        """
        updates, weights = state["updates"], state["weights"]
        if set(weights) != set(self.weights):
            raise ValueError("the averaged weights in the checkpoint belong to another model")
        self.updates = updates
        for name, weight in self.weights.items():
            weight.copy_(weights[name])


@torch.no_grad()
def _copy_parameters(model: nn.Module, weights: dict[str, Tensor]) -> None:
    for name, parameter in model.named_parameters():
        parameter.copy_(weights[name])
