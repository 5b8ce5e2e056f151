"""Transformer blocks in pre-norm Llama form, written for few passes over memory.

- RMSNorm: Zhang and Sennrich, 2019, https://arxiv.org/abs/1910.07467
- SwiGLU: Shazeer, GLU variants improve Transformer, 2020, https://arxiv.org/abs/2002.05202
- Rotary positions: Su et al., RoFormer, 2021, https://arxiv.org/abs/2104.09864
- 2-D rotary positions: Heo et al., 2024, https://arxiv.org/abs/2403.13298
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

from latent_prior.seeds import draw_kept, dropped_of_65536

NORM_EPSILON = 1e-6
ROTARY_BASE = 10_000.0
ROTARY_BASE_2D = 100.0  # rows and columns are few (Heo et al., 2024)
HIDDEN_MULTIPLE = 16


class Block(nn.Module):
    """Attention and MLP, each after an RMSNorm and added to the residual stream.

    The norms' gains scale the columns of the next matrix instead of the activations: the same
    product over fewer numbers.
    """

    def __init__(
        self, width: int, heads: int, hidden: int, dropout: float, *, causal: bool = True
    ) -> None:
        super().__init__()
        self.heads = heads
        self.causal = causal
        self.attention_gain = nn.Parameter(torch.ones(width))
        self.qkv = nn.Linear(width, 3 * width, bias=False)
        self.attention_out = nn.Linear(width, width, bias=False)
        self.mlp_gain = nn.Parameter(torch.ones(width))
        self.gate_up = nn.Linear(width, 2 * hidden, bias=False)
        self.mlp_out = nn.Linear(hidden, width, bias=False)
        self.dropout = Dropout(dropout)

    def forward(self, x: Tensor, rotation: Tensor, mask: Tensor | None = None) -> Tensor:
        """Map (B, L, W) to (B, L, W).

        Args:
            x: activations.
            rotation: of every position, see `rotations`.
            mask: which positions each one sees, bool (B, 1, L, L or 1 in place of the first); None:
                those before it and itself if `causal`, otherwise all.
        """
        qkv = F.linear(normalise(x), self.qkv.weight * self.attention_gain)  # (B, L, 3 W)
        # (B, L, H, D) each
        q, k, v = rotate(qkv.unflatten(-1, (3, self.heads, -1)), rotation).unbind(2)
        attended = F.scaled_dot_product_attention(
            q.transpose(1, 2),
            k.transpose(1, 2),
            v.transpose(1, 2),
            attn_mask=mask,
            is_causal=self.causal and mask is None,
        )  # (B, H, L, D)
        x = x + self.dropout(self.attention_out(attended.transpose(1, 2).flatten(2)))
        gate_up = F.linear(normalise(x), self.gate_up.weight * self.mlp_gain)  # (B, L, 2 x hidden)
        return x + self.dropout(self.mlp_out(swiglu(gate_up)))


class Dropout(nn.Dropout):
    """Dropout that draws a training step's numbers as `latent_prior.seeds` says."""

    def forward(self, x: Tensor) -> Tensor:
        """Drop elements of (B, ...)."""
        if not self.training or self.p == 0:
            return x
        kept = draw_kept(x.shape, self.p, x.device)
        scale = 65536 / max(1, 65536 - dropped_of_65536(self.p))
        return torch.where(kept, x * scale, 0.0)


def swiglu_width(width: int, mlp_ratio: float) -> int:
    """Hidden channels of an MLP with as many weights as a plain one of mlp_ratio x width channels.

    SwiGLU has three matrices instead of two; rounded up to a multiple of `HIDDEN_MULTIPLE`.
    """
    return HIDDEN_MULTIPLE * math.ceil(mlp_ratio * width * 2 / 3 / HIDDEN_MULTIPLE)


def rotations(queries: Tensor, keys: Tensor, head_width: int) -> Tensor:
    """Factors for queries, keys and values of each position (Su et al., 2021, Eq. 14).

    Queries and keys rotate by e^(i p theta_j) at position p and channel pair j; with rows and
    columns, half of the pairs rotates by the row and half by the column (Heo et al., 2024, section
    3.2). Values have factor 1, so that one product serves all three and they stay contiguous.

    Args:
        queries: positions of the queries, float (L, 1) in the sequence or (L, 2) as row and column.
        keys: positions of the keys, of the same shape.
        head_width: D, a multiple of twice the number of axes.

    Returns:
        complex64 (L, 3, 1, D / 2)
    """
    of_queries, of_keys = (_unit_factors(positions, head_width) for positions in (queries, keys))
    return torch.stack((of_queries, of_keys, torch.ones_like(of_keys)), dim=1).unsqueeze(2)


def _unit_factors(positions: Tensor, head_width: int) -> Tensor:
    """Complex64 (L, D / 2) of absolute value 1."""
    axes = positions.shape[1]
    base = ROTARY_BASE if axes == 1 else ROTARY_BASE_2D
    exponents = torch.arange(0, head_width, 2 * axes, device=positions.device) / head_width
    angles = (positions.float().unsqueeze(-1) * base**-exponents).flatten(1)
    return torch.polar(torch.ones_like(angles), angles)


def rotate(x: Tensor, rotation: Tensor) -> Tensor:
    """Multiply pairs of neighbouring channels, as complex numbers, by their position's factor.

    x is (B, L, 3, H, D) with D even, rotation complex (L, 3, 1, D / 2).
    """
    # There are no complex bfloat16 numbers.
    full = x.to(torch.promote_types(x.dtype, torch.float32))
    pairs = torch.view_as_complex(full.unflatten(-1, (-1, 2)))
    return torch.view_as_real(pairs * rotation).flatten(-2).to(x.dtype)


def normalise(x: Tensor) -> Tensor:
    """RMSNorm without gain: x / sqrt(mean(x^2) + epsilon) (Zhang and Sennrich, 2019, Eq. 4)."""
    return _Normalise.apply(x)


def swiglu(gate_up: Tensor) -> Tensor:
    """silu(gate) * up for the two halves of the last dimension (Shazeer, 2020, Eq. 5)."""
    return _SwiGLU.apply(gate_up)


class _Normalise(torch.autograd.Function):
    """A custom backward pass: autograd's makes four times as many passes over the activations."""

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
    """A custom backward pass: it writes both gradients where the matrix product reads them."""

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
