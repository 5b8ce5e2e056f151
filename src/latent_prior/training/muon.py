"""Muon for convolution kernels: a momentum whose singular values are made equal.

Jordan et al., Muon: an optimizer for hidden layers in neural networks, 2024,
https://kellerjordan.github.io/posts/muon/. In float32, for kernels as matrices of one row per
output channel; torch's own takes matrices only, in bfloat16.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

MOMENTUM = 0.95
_COEFFICIENTS = (3.4445, -4.7750, 2.0315)
_STEPS = 5


class Muon(torch.optim.AdamW):
    """AdamW whose groups with `orthogonal` true are updated by orthogonalised Nesterov momentum.

    Their update is scaled to a root mean square of about the learning rate per weight, so that one
    learning rate serves all groups. (Liu et al., Muon is scalable for LLM training, 2025,
    https://arxiv.org/abs/2502.16982, section 2.2, scale it alike, to a fifth of that.)
    """

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        """Update all groups; none where `found_inf` is set, as the fused AdamW does."""
        skipped = getattr(self, "found_inf", None)
        for group in self.param_groups:
            for weight in group["params"] if group["orthogonal"] else ():
                if weight.grad is None:
                    continue
                state = self.state[weight]
                if not state:  # AdamW expects a step in every state that it loads
                    state |= {"step": torch.tensor(0.0), "exp_avg": torch.zeros_like(weight)}
                momentum = state["exp_avg"].lerp(weight.grad, 1 - MOMENTUM)
                ahead = weight.grad.lerp(momentum, MOMENTUM).flatten(1)
                update = orthogonal(ahead).view_as(weight) * math.sqrt(max(ahead.shape))
                decayed = weight * (1 - group["lr"] * group["weight_decay"])
                moved = decayed.sub_(update, alpha=group["lr"])
                if skipped is not None:  # without waiting for the device
                    momentum = torch.where(skipped > 0, state["exp_avg"], momentum)
                    moved = torch.where(skipped > 0, weight, moved)
                state["exp_avg"].copy_(momentum)
                weight.copy_(moved)
                weight.grad = None  # AdamW leaves it out
        super().step(closure)


def orthogonal(matrix: Tensor) -> Tensor:
    """The matrix (M, N) with singular values of about 1, between 0.7 and 1.2, instead of its own.

    Newton and Schulz's iteration X <- a X + b (X X^T) X + c (X X^T)^2 X, from a matrix of norm 1.
    All its factors are polynomials of X X^T, so they are multiplied in the smaller of the two
    dimensions and meet the matrix once.
    """
    if matrix.shape[0] > matrix.shape[1]:
        return orthogonal(matrix.T).T
    a, b, c = _COEFFICIENTS
    unit = matrix / matrix.norm().clamp_min(1e-30)
    gram = unit @ unit.T  # (M, M)
    identity = torch.eye(len(gram), dtype=gram.dtype, device=gram.device)
    product = identity
    for _ in range(_STEPS):
        factor = a * identity + torch.addmm(gram, gram, gram, beta=b, alpha=c)
        product = factor @ product
        gram = factor @ gram @ factor
    return product @ unit
