"""The prior one position at a time, with a preallocated cache of keys and values.

A step is about a hundred small kernels, so their number and the memory they read decide its speed.
The weights are therefore copied once per call into the form a step needs: norm gains and the
attention's scale multiplied in, and transposed so that products read rows (1.5 to 2 times faster
for up to 32 rows, and in MKL the same bits for any number of rows from 2 on, see
`TransformerPrior.sample`). All of it is float32, whatever the type of the weights.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from latent_prior.stage2_prior.network import CodeTransformer, PatchMLP, Prefix
from latent_prior.stage2_prior.sequences import Span
from latent_prior.stage2_prior.transformer import NORM_EPSILON, Block

# Added to the score of what must not be seen: its weight is then exactly 0. Infinity would make NaN
# of a row that sees nothing else.
NEVER = -1e9


@contextmanager
def decoder_for(network: CodeTransformer, rows: int, front: int = 1) -> Iterator[Decoder]:
    """A decoder for `rows` sequences after `front` positions; the last one if all of it matches.

    Until the end of the context no other call gets it: calls may alternate step by step.
    """
    parameters = list(network.parameters())
    versions = [(p.data_ptr(), 0 if p.is_inference() else p._version) for p in parameters]
    # Fused optimizers change weights without their versions. Norms cost less than a step.
    norms = torch.stack([torch.linalg.vector_norm(p.detach()).float() for p in parameters])
    key = (rows, front, network.device, versions, norms.tolist())
    last, network.last_decoder = network.last_decoder, None
    if last is None or last[0] != key:
        last = None  # two caches at once could exceed the memory
        last = (key, Decoder(network, rows, front))
    try:
        yield last[1]
    finally:
        network.last_decoder = last


class _BlockWeights(NamedTuple):
    """Matrices of a block, (channels in, channels out)."""

    qkv: Tensor
    attention_out: Tensor
    gate_up: Tensor
    mlp_out: Tensor


class _PatchWeights(NamedTuple):
    """Of a `PatchMLP`; matrices (channels in, channels out)."""

    place: Tensor
    embedding: Tensor
    gate_up: Tensor
    mlp_out: Tensor


class Decoder:
    """State of one sampling call: weights laid out for steps, keys and values of the steps so far.

    All intermediate results and their views are allocated once, so that a step creates neither
    tensors nor views per block.

    Shapes: R rows (sequences), P positions in front of the codes, L positions of codes, W width, H
    heads, D = W / H channels per head, S positions so far.
    """

    def __init__(self, network: CodeTransformer, rows: int, front: int = 1) -> None:
        """Copy the weights and reserve the cache: 8 x depth x rows x (P + L - 1) x W bytes.

        Args:
            network: with the weights.
            rows: R.
            front: P.
        """
        config, device = network.config, network.device
        heads, head_width = config.heads, config.width // config.heads
        self.rows, self.before = rows, front - 1
        self.embedding = network.embedding.weight.float()
        projection, positions = network.projection, network.position_embedding
        self.projection = None if projection is None else _transposed(projection.weight)
        of_text = network.text_projection
        self.text_projection = None if of_text is None else _transposed(of_text.weight)
        self.position_embedding = None if positions is None else positions.float()
        self.blocks = [_block_weights(block, head_width) for block in network.blocks]
        head = network.head.weight.unflatten(0, (network.slots, -1))
        self.heads_of_levels = {
            span.name: [
                _fold_norm(head[slot, span.first : span.last], network.final_gain)
                for slot in range(network.slots)
            ]
            for span in network.levels
        }
        self.slots, self.num_codes = network.slots, network.num_codes
        self.within = None if network.within is None else _patch_weights(network.within)
        self.epsilon = torch.tensor(math.sqrt(config.width * NORM_EPSILON), device=device)

        rotation = network.rotation(front)  # (P + L - 1, 3, 1, D / 2)
        self.query_rotation, self.key_value_rotation = rotation[:, 0], rotation[:, 1:].unsqueeze(1)

        steps = self.before + network.length // network.slots
        cache = torch.empty(2, config.depth, rows, heads, steps, head_width, device=device)
        self.keys, self.values = cache.flatten(2, 3).unbind(0)  # (depth, R H, P + L - 1, D) each
        # (P + L - 1, depth, R, 2, H, D / 2)
        self.new_key_value = _as_pairs(cache).permute(4, 1, 2, 0, 3, 5)

        self.padding: Tensor | None = None
        """Added to the scores of the positions in front, (R H, 1, P - 1)."""

        self.norm = torch.empty(rows, 1, device=device)
        self.normalised = torch.empty(rows, config.width, device=device)
        self.qkv = torch.empty(rows, 3 * config.width, device=device)
        pairs = _as_pairs(self.qkv.view(rows, 3, heads, head_width))
        self.query, self.key_value = pairs[:, 0], pairs[:, 1:]  # (R, H, D / 2), (R, 2, H, D / 2)
        self.rotated_query = torch.empty(rows * heads, 1, head_width, device=device)
        self.rotated_pairs = _as_pairs(self.rotated_query).view_as(self.query)
        self.attended = torch.empty(rows, config.width, device=device)
        self.attended_heads = self.attended.view_as(self.rotated_query)
        self.gate_up = torch.empty(rows, self.blocks[0].gate_up.shape[1], device=device)
        self.gate, self.up = self.gate_up.chunk(2, dim=1)

    def embed(self, tokens: Tensor) -> Tensor:
        """Inputs of a step from class or null tokens: int64 (R,) -> (R, W)."""
        return F.embedding(tokens, self.embedding)

    def read(self, start: Prefix) -> Tensor:
        """Take in what stands in front of the codes of R images; returns the first step's inputs.

        All P - 1 positions before the last are computed at once. Every image costs the same
        whatever the others' lengths, so that it does not depend on them.
        """
        heads, head_width = self.new_key_value.shape[4], self.keys.shape[-1]
        inputs = self.embed(start.tokens[:, -1])
        if not self.before:
            return inputs
        if self.text_projection is None or start.states is None:
            x = F.embedding(start.tokens[:, :-1].clamp(min=0), self.embedding)  # (R, P - 1, W)
        else:
            x = start.states.float() @ self.text_projection
        seen = start.tokens[:, :-1] >= 0
        hidden = torch.zeros_like(seen, dtype=x.dtype).masked_fill_(~seen, NEVER)
        self.padding = hidden.repeat_interleave(heads, 0).unsqueeze(1)
        causal = torch.full((self.before, self.before), NEVER, device=x.device).triu(1)
        mask = (hidden[:, None, None] + causal).clamp(min=NEVER)
        rotation = self.query_rotation[: self.before]  # (P - 1, 1, D / 2)
        of_keys = self.key_value_rotation[: self.before]  # (P - 1, 1, 2, 1, D / 2)
        for index, weights in enumerate(self.blocks):
            qkv = self._normalised(x) @ weights.qkv
            pairs = _as_pairs(qkv.unflatten(-1, (3, heads, head_width)))
            stored = self.new_key_value[: self.before, index]  # (P - 1, R, 2, H, D / 2)
            torch.mul(pairs[:, :, 1:].transpose(0, 1), of_keys, out=stored)
            query = torch.view_as_real(pairs[:, :, 0] * rotation).flatten(-2).transpose(1, 2)
            shape = (self.rows, heads, -1, head_width)
            key, value = (
                cache[index].narrow(1, 0, self.before).view(shape)
                for cache in (self.keys, self.values)
            )
            attended = F.scaled_dot_product_attention(query, key, value, mask, scale=1.0)
            x = x + attended.transpose(1, 2).flatten(2) @ weights.attention_out
            gate, up = (self._normalised(x) @ weights.gate_up).chunk(2, dim=-1)
            x = x + (F.silu(gate) * up) @ weights.mlp_out
        return inputs

    def embed_patch(self, tokens: Tensor) -> Tensor:
        """Inputs of a step from the codes of a patch: int64 (R, slots) -> (R, W)."""
        x = F.embedding(tokens[:, 0], self.embedding)
        for slot in range(1, self.slots):
            x += F.embedding(tokens[:, slot] + slot * self.num_codes, self.embedding)
        return x

    def project(self, vectors: Tensor) -> Tensor:
        """Inputs of a step from vectors of latents: (R, D) -> (R, W)."""
        assert self.projection is not None
        return torch.mm(vectors, self.projection)

    def step(self, x: Tensor, position: int) -> Tensor:
        """Activations that predict the code, patch or vector at `position`, given all before it.

        Args:
            x: (R, W), what `read` returned at position 0, then what was sampled last; it is
                overwritten.
            position: 0, 1, ..., L / slots - 1, in this order.

        Returns:
            (R, W), for `outputs`.
        """
        if self.position_embedding is not None:
            x += self.position_embedding[position]
        position += self.before
        query_rotation = self.query_rotation[position]
        key_value_rotation = self.key_value_rotation[position]
        keys = self.keys.narrow(2, 0, position + 1).transpose(2, 3).unbind(0)  # (R H, D, S) each
        values = self.values.narrow(2, 0, position + 1).unbind(0)  # (R H, S, D) each
        new_key_value = self.new_key_value[position].unbind(0)  # (R, 2, H, D / 2) each
        scores = x.new_empty(len(keys[0]), 1, position + 1)
        for index, weights in enumerate(self.blocks):
            torch.mm(self._normalise(x), weights.qkv, out=self.qkv)
            torch.mul(self.key_value, key_value_rotation, out=new_key_value[index])
            torch.mul(self.query, query_rotation, out=self.rotated_pairs)
            torch.bmm(self.rotated_query, keys[index], out=scores)
            if self.padding is not None:
                scores[..., : self.before] += self.padding
            torch.softmax(scores, dim=-1, out=scores)
            torch.bmm(scores, values[index], out=self.attended_heads)
            x.addmm_(self.attended, weights.attention_out)
            torch.mm(self._normalise(x), weights.gate_up, out=self.gate_up)
            x.addmm_(F.silu(self.gate, inplace=True).mul_(self.up), weights.mlp_out)
        return x

    def outputs(self, x: Tensor, level: Span, slot: int = 0) -> Tensor:
        """Head outputs after a step: logits (R, vocabulary of the level), or mixture parameters.

        Args:
            x: what `step` returned, with patches as `add_code` has changed it.
            level: of the code.
            slot: its place in its patch.
        """
        if self.within is not None:
            x = x + self.within.place[slot]
            gate_up = torch.mm(self._normalise(x), self.within.gate_up)
            gate, up = gate_up.chunk(2, dim=1)
            x.addmm_(F.silu(gate).mul_(up), self.within.mlp_out)
        return torch.mm(self._normalise(x), self.heads_of_levels[level.name][slot])

    def add_code(self, x: Tensor, tokens: Tensor, slot: int) -> None:
        """Add the codes (R,) at a place in their patch to x (R, W), which predicts those after."""
        assert self.within is not None
        x += F.embedding(tokens + slot * self.num_codes, self.within.embedding)

    def _normalised(self, x: Tensor) -> Tensor:
        """As `_normalise`, of any shape (..., W)."""
        norm = torch.linalg.vector_norm(x, dim=-1, keepdim=True)
        return x / norm.hypot(self.epsilon)

    def _normalise(self, x: Tensor) -> Tensor:
        """RMSNorm without the factor sqrt(W), which the next matrix holds."""
        torch.linalg.vector_norm(x, dim=-1, keepdim=True, out=self.norm)
        return torch.div(x, self.norm.hypot_(self.epsilon), out=self.normalised)


def _patch_weights(within: PatchMLP) -> _PatchWeights:
    return _PatchWeights(
        within.place.float(),
        within.embedding.weight.float(),
        _fold_norm(within.gate_up.weight, within.gain),
        _transposed(within.mlp_out.weight),
    )


def _block_weights(block: nn.Module, head_width: int) -> _BlockWeights:
    assert isinstance(block, Block)
    qkv = _fold_norm(block.qkv.weight, block.attention_gain)
    qkv[:, : qkv.shape[0]] /= math.sqrt(head_width)  # the queries carry the attention's scale
    return _BlockWeights(
        qkv,
        _transposed(block.attention_out.weight),
        _fold_norm(block.gate_up.weight, block.mlp_gain),
        _transposed(block.mlp_out.weight),
    )


def _as_pairs(x: Tensor) -> Tensor:
    """A complex view (..., D / 2) of (..., D)."""
    return torch.view_as_complex(x.unflatten(-1, (-1, 2)))


def _fold_norm(weight: Tensor, gain: Tensor) -> Tensor:
    """A weight (out, in) after an RMSNorm, as (in, out) with the gain and sqrt(W) multiplied in."""
    return _transposed(weight.float() * (gain.float() * math.sqrt(gain.shape[0])))


def _transposed(weight: Tensor) -> Tensor:
    """A weight (out, in) as contiguous float32 (in, out)."""
    return weight.float().t().contiguous()
