"""The blocks of the prior: pre-norm Llama form, written for few passes over memory.

- RMSNorm: Zhang and Sennrich, 2019, https://arxiv.org/abs/1910.07467
- SwiGLU: Shazeer, GLU variants improve Transformer, 2020, https://arxiv.org/abs/2002.05202
- Rotary positions: Su et al., RoFormer, 2021, https://arxiv.org/abs/2104.09864
- Llama: Touvron et al., 2023, https://arxiv.org/abs/2302.13971

Shapes: B images, L positions, W width, H heads, D = W / H channels per head.
"""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

NORM_EPSILON = 1e-6
ROTARY_BASE = 10_000.0
HIDDEN_MULTIPLE = 16


class Block(nn.Module):
    """Attention and MLP, each behind an RMSNorm and added to the residual stream.

    The norms' gains scale the columns of the matrix behind them, not the activations: the same product, but over a
    quarter of a million numbers in place of a million.
    """

    def __init__(self, width: int, heads: int, hidden: int, dropout: float) -> None:
        super().__init__()
        self.heads = heads
        self.attention_gain = nn.Parameter(torch.ones(width))
        self.qkv = nn.Linear(width, 3 * width, bias=False)
        self.attention_out = nn.Linear(width, width, bias=False)
        self.mlp_gain = nn.Parameter(torch.ones(width))
        self.gate_up = nn.Linear(width, 2 * hidden, bias=False)
        self.mlp_out = nn.Linear(hidden, width, bias=False)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor, rotation: Tensor) -> Tensor:
        """Map (B, L, W) to (B, L, W) given the rotation of every position (`rotations`)."""
        qkv = F.linear(normalise(x), self.qkv.weight * self.attention_gain)  # (B, L, 3 W)
        q, k, v = rotate(qkv.unflatten(-1, (3, self.heads, -1)), rotation).unbind(
            2
        )  # (B, L, H, D) each
        attended = F.scaled_dot_product_attention(
            q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2), is_causal=True
        )  # (B, H, L, D)
        x = x + self.dropout(self.attention_out(attended.transpose(1, 2).flatten(2)))
        gate_up = F.linear(normalise(x), self.gate_up.weight * self.mlp_gain)  # (B, L, 2 x hidden)
        return x + self.dropout(self.mlp_out(swiglu(gate_up)))


def swiglu_width(width: int, mlp_ratio: float) -> int:
    """Hidden channels that give three matrices the weights of two with mlp_ratio x width, rounded up."""
    return HIDDEN_MULTIPLE * math.ceil(mlp_ratio * width * 2 / 3 / HIDDEN_MULTIPLE)


def rotations(length: int, head_width: int, device: torch.device) -> Tensor:
    """What queries, keys and values of each position are multiplied by (Su et al., 2021, Eq. 14).

    Queries and keys turn by e^(i p theta_j) at position p and channel pair j. Values are multiplied by 1, so that all
    three go through one product and stay in one piece of memory.

    Returns:
        complex64 (length, 3, 1, head_width / 2)
    """
    exponents = torch.arange(0, head_width, 2, device=device) / head_width
    angles = torch.outer(torch.arange(length, device=device).float(), ROTARY_BASE**-exponents)
    turn = torch.polar(torch.ones_like(angles), angles)
    return torch.stack((turn, turn, torch.ones_like(turn)), dim=1).unsqueeze(2)


def rotate(x: Tensor, rotation: Tensor) -> Tensor:
    """Turn each pair of neighbouring channels by its position's angle: a product of complex numbers.

    Args:
        x: (B, L, 3, H, D) with D even.
        rotation: complex (L, 3, 1, D / 2).
    """
    full = x.to(
        torch.promote_types(x.dtype, torch.float32)
    )  # there are no complex bfloat16 numbers
    pairs = torch.view_as_complex(full.unflatten(-1, (-1, 2)))
    return torch.view_as_real(pairs * rotation).flatten(-2).to(x.dtype)


def normalise(x: Tensor) -> Tensor:
    """RMSNorm without its gain: x / sqrt(mean(x^2) + epsilon) over the last dimension (Zhang and Sennrich, 2019, Eq. 4)."""
    return _Normalise.apply(x)


def swiglu(gate_up: Tensor) -> Tensor:
    """silu(gate) * up for the two halves of the last dimension (Shazeer, 2020, Eq. 5)."""
    return _SwiGLU.apply(gate_up)


class _Normalise(torch.autograd.Function):
    """Its own backward pass: autograd's goes over the activations four times as often."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        width = x.shape[-1]
        dtype = torch.promote_types(x.dtype, torch.float32)
        norm = torch.linalg.vector_norm(x, dim=-1, keepdim=True, dtype=dtype)
        inverse = math.sqrt(width) / norm.hypot(norm.new_tensor(math.sqrt(width * NORM_EPSILON)))
        y = (x * inverse).to(x.dtype)
        ctx.save_for_backward(y, inverse)
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        y, inverse = ctx.saved_tensors
        projection = torch.linalg.vecdot(gradient, y).unsqueeze(-1) / -y.shape[-1]
        return torch.addcmul(gradient, y, projection).mul_(inverse)


class _SwiGLU(torch.autograd.Function):
    """Its own backward pass: both gradients are written where the fused matrix product expects them."""

    @staticmethod
    def forward(ctx: Any, gate_up: Tensor) -> Tensor:
        ctx.save_for_backward(gate_up)
        gate, up = gate_up.chunk(2, dim=-1)
        return F.silu(gate).mul_(up)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        (gate_up,) = ctx.saved_tensors
        gate, up = gate_up.chunk(2, dim=-1)
        both = torch.empty_like(gate_up)
        gate_gradient, up_gradient = both.chunk(2, dim=-1)
        torch.mul(gradient, F.silu(gate), out=up_gradient)
        torch.ops.aten.silu_backward.grad_input(gradient * up, gate, grad_input=gate_gradient)
        return both
