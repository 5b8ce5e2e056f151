"""One position of the prior at a time, with a preallocated cache of keys and values.

A step is some hundred small kernels, so what counts is their number and the memory they read. The weights are
therefore copied once per call into the form a step wants: norm gains and the attention's scale multiplied in, and
transposed so that a product reads them row by row (1.5 to 2 times faster for up to 32 rows, and in MKL the same bits
for any number of rows from 2 on: see `TransformerPrior.sample`). All of it is float32, whatever the weights are.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from latent_prior.stage2_prior.tokens import Span
from latent_prior.stage2_prior.transformer import NORM_EPSILON, Block

if TYPE_CHECKING:
    from latent_prior.stage2_prior.prior import TransformerPrior


class _BlockWeights(NamedTuple):
    """Matrices of a block, (channels in, channels out)."""

    qkv: Tensor
    attention_out: Tensor
    gate_up: Tensor
    mlp_out: Tensor


class Decoder:
    """The state of one sampling call: weights laid out for steps, and the keys and values of the steps so far.

    Every intermediate result has its place in memory, with the views of it that a step needs, so that a step makes
    neither tensors nor views per block.

    Shapes: R rows (sequences), L positions, W width, H heads, D = W / H channels per head, S positions so far.
    """

    def __init__(self, prior: TransformerPrior, rows: int) -> None:
        """Copy the weights and reserve the cache: 8 x depth x rows x L x W bytes."""
        config, device = prior.config, prior.device
        heads, head_width = config.heads, config.width // config.heads
        self.rows = rows
        self.embedding = prior.embedding.weight.float()
        self.projection = (
            None if prior.projection is None else prior.projection.weight.float().t().contiguous()
        )
        self.position_embedding = (
            None if prior.position_embedding is None else prior.position_embedding.float()
        )
        self.blocks = [_block_weights(block, head_width) for block in prior.blocks]
        self.heads_of_levels = {
            span.name: _behind_norm(prior.head.weight[span.first : span.last], prior.final_gain)
            for span in prior.levels
        }
        self.epsilon = torch.tensor(math.sqrt(config.width * NORM_EPSILON), device=device)

        turn = prior.rotation()  # (L, 3, 1, D / 2)
        self.turn_query, self.turn_key_value = turn[:, 0], turn[:, 1:].unsqueeze(1)

        cache = torch.empty(2, config.depth, rows, heads, prior.length, head_width, device=device)
        self.keys, self.values = cache.flatten(2, 3).unbind(0)  # (depth, R H, L, D) each
        self.new_key_value = _as_pairs(cache).permute(
            4, 1, 2, 0, 3, 5
        )  # (L, depth, R, 2, H, D / 2)

        self.norm = torch.empty(rows, 1, device=device)
        self.normalised = torch.empty(rows, config.width, device=device)
        self.qkv = torch.empty(rows, 3 * config.width, device=device)
        self.query, self.key_value = _as_pairs(self.qkv.view(rows, 3, heads, head_width)).split(
            (1, 2), dim=1
        )
        self.query = self.query.squeeze(1)  # (R, H, D / 2)
        self.turned_query = torch.empty(rows * heads, 1, head_width, device=device)
        self.turned_pairs = _as_pairs(self.turned_query).view_as(self.query)
        self.attended = torch.empty(rows, config.width, device=device)
        self.attended_heads = self.attended.view_as(self.turned_query)
        self.gate_up = torch.empty(rows, self.blocks[0].gate_up.shape[1], device=device)
        self.gate, self.up = self.gate_up.chunk(2, dim=1)

    def embed(self, tokens: Tensor) -> Tensor:
        """Inputs of a step from class tokens or codes: int64 (R,) -> (R, W)."""
        return F.embedding(tokens, self.embedding)

    def project(self, vectors: Tensor) -> Tensor:
        """Inputs of a step from vectors of latents: (R, D) -> (R, W)."""
        assert self.projection is not None
        return torch.mm(vectors, self.projection)

    def step(self, x: Tensor, position: int) -> Tensor:
        """Activations that predict what stands at `position`, given all before it.

        Args:
            x: (R, W), the class token at position 0 and what was drawn last afterwards; it is overwritten.
            position: steps come in the order 0, 1, ..., L - 1.

        Returns:
            (R, W), for `outputs`.
        """
        if self.position_embedding is not None:
            x += self.position_embedding[position]
        turn_query, turn_key_value = self.turn_query[position], self.turn_key_value[position]
        keys = self.keys.narrow(2, 0, position + 1).transpose(2, 3).unbind(0)  # (R H, D, S) each
        values = self.values.narrow(2, 0, position + 1).unbind(0)  # (R H, S, D) each
        new_key_value = self.new_key_value[position].unbind(0)  # (R, 2, H, D / 2) each
        scores = x.new_empty(len(keys[0]), 1, position + 1)
        for index, weights in enumerate(self.blocks):
            torch.mm(self._normalise(x), weights.qkv, out=self.qkv)
            torch.mul(self.key_value, turn_key_value, out=new_key_value[index])
            torch.mul(self.query, turn_query, out=self.turned_pairs)
            torch.bmm(self.turned_query, keys[index], out=scores)
            torch.softmax(scores, dim=-1, out=scores)
            torch.bmm(scores, values[index], out=self.attended_heads)
            x.addmm_(self.attended, weights.attention_out)
            torch.mm(self._normalise(x), weights.gate_up, out=self.gate_up)
            x.addmm_(F.silu(self.gate, inplace=True).mul_(self.up), weights.mlp_out)
        return x

    def outputs(self, x: Tensor, level: Span) -> Tensor:
        """What the head says after a step: logits (R, vocabulary of the level), or a mixture's parameters."""
        return torch.mm(self._normalise(x), self.heads_of_levels[level.name])

    def _normalise(self, x: Tensor) -> Tensor:
        """RMSNorm but for the factor sqrt(W), which the next matrix holds."""
        torch.linalg.vector_norm(x, dim=-1, keepdim=True, out=self.norm)
        return torch.div(x, self.norm.hypot_(self.epsilon), out=self.normalised)


def _block_weights(block: nn.Module, head_width: int) -> _BlockWeights:
    assert isinstance(block, Block)
    qkv = _behind_norm(block.qkv.weight, block.attention_gain)
    qkv[:, : qkv.shape[0]] /= math.sqrt(head_width)  # the queries carry the attention's scale
    return _BlockWeights(
        qkv,
        block.attention_out.weight.float().t().contiguous(),
        _behind_norm(block.gate_up.weight, block.mlp_gain),
        block.mlp_out.weight.float().t().contiguous(),
    )


def _as_pairs(x: Tensor) -> Tensor:
    """A complex view (..., D / 2) of (..., D)."""
    return torch.view_as_complex(x.unflatten(-1, (-1, 2)))


def _behind_norm(weight: Tensor, gain: Tensor) -> Tensor:
    """A weight (out, in) that follows an RMSNorm, as (in, out) with the norm's gain and sqrt(W) multiplied in."""
    return (weight.float() * (gain.float() * math.sqrt(gain.shape[0]))).t().contiguous()
