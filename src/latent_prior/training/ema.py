"""An exponential moving average of a model's weights."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn


class EMA:
    """The averaged parameters of a model; its buffers (a codebook's statistics, say) are copied as they are.

    The decay is warmed up as min(decay, (1 + t) / (10 + t)), so that a short run does not average in its start.
    """

    def __init__(self, model: nn.Module, decay: float) -> None:
        self.decay = decay
        self.updates = 0
        self.weights = {name: p.detach().clone() for name, p in model.named_parameters()}

    @torch.no_grad()
    def update(self, model: nn.Module) -> None:
        """Move the average a step towards the model's weights."""
        self.updates += 1
        decay = min(self.decay, (1 + self.updates) / (10 + self.updates))
        current = [p.detach() for _, p in model.named_parameters()]
        torch._foreach_lerp_(list(self.weights.values()), current, 1 - decay)

    def state_for(self, model: nn.Module) -> dict[str, Tensor]:
        """Averaged parameters together with the model's present buffers, under the model's names."""
        return {name: self.weights.get(name, value) for name, value in model.state_dict().items()}

    @contextmanager
    def applied_to(self, model: nn.Module) -> Iterator[None]:
        """Give `model` the averaged weights, and its own back at the end."""
        own = {name: p.detach().clone() for name, p in model.named_parameters()}
        try:
            _copy_parameters(model, self.weights)
            yield
        finally:
            _copy_parameters(model, own)

    def state_dict(self) -> dict[str, object]:
        """Averaged parameters and the number of updates."""
        return {"updates": self.updates, "weights": self.weights}

    def load_state_dict(self, state: dict[str, object]) -> None:
        """The inverse of `state_dict`.

        Raises:
            ValueError: when the names differ from the model's.
        """
        updates, weights = state["updates"], state["weights"]
        assert isinstance(updates, int)
        assert isinstance(weights, dict)
        if set(weights) != set(self.weights):
            raise ValueError("the averaged weights in the checkpoint belong to another model")
        self.updates = updates
        for name, weight in self.weights.items():
            weight.copy_(weights[name])


@torch.no_grad()
def _copy_parameters(model: nn.Module, weights: dict[str, Tensor]) -> None:
    for name, parameter in model.named_parameters():
        parameter.copy_(weights[name])
