"""Pixel values in [-1, 1] with a gradient that leads back into the range."""

from __future__ import annotations

from typing import Any, cast

import torch
from torch import Tensor


def bounded(values: Tensor) -> Tensor:
    """Clamp values of any shape to [-1, 1], for the output of a decoder or generator.

    Saved images hold exact black and white, and a network of features or a critic recognizes values
    beside them. A tanh reaches them only at infinity, and both its gradient and that of a plain
    clamp vanish there, so that an image that is once all black stays so. Here the gradient passes,
    except where descent would lead further out of range.
    """
    return cast(Tensor, _Bounded.apply(values))


class _Bounded(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, values: Tensor) -> Tensor:
        within = values.clamp(-1, 1)
        ctx.save_for_backward(values - within)
        return within

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        (excess,) = ctx.saved_tensors
        return gradient * (gradient * excess >= 0)
