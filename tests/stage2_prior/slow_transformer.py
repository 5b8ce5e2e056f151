"""Slow reference of the prior: one position, head and pair of channels at a time, in float64."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from latent_prior.stage2_prior.prior import TransformerPrior


@torch.no_grad()
def slow_outputs(
    prior: TransformerPrior, start: int, sequence: Tensor, before: Sequence[Tensor] = ()
) -> Tensor:
    """Head outputs for L codes or vectors, float64 (L, outputs), given tokens (L,) or (L, D).

    `before` are the inputs (W,) of what stands in front of the start token.
    """
    bidirectional = prior.config.order == "masked"
    if prior.latents:
        codes = [prior.projection.weight.double() @ vector.double() for vector in sequence]
    else:
        codes = [
            sum(
                prior.embedding.weight[token + place * prior.num_codes].double()
                for place, token in enumerate(patch)
            )
            for patch in sequence.split(prior.slots)
        ]
    stream = [*(x.double() for x in before), prior.embedding.weight[start].double(), *codes]
    count = prior.length // prior.slots
    of_keys = list(range(-1 - len(before), count))  # positions that the members of the stream carry
    of_queries = list(of_keys)  # positions that they predict
    if not bidirectional:
        stream, of_keys, of_queries = stream[:-1], of_keys[:-1], of_keys[1:]
    if prior.position_embedding is not None:
        stream = [
            x + prior.position_embedding[position].double() if position >= 0 else x
            for x, position in zip(stream, of_queries, strict=True)
        ]
    queries = [row_and_column(prior, position) for position in of_queries]
    keys = [row_and_column(prior, position) for position in of_keys]
    if prior.config.positions == "1d":
        queries = keys = [(float(index),) for index in range(len(stream))]
    for block in prior.blocks:
        stream = slow_block(block, stream, queries, keys, bidirectional=bidirectional)
    stream = stream[len(before) :]
    if prior.within is not None:
        stream = [
            slow_within(prior.within, x, patch[:place], prior.num_codes)
            for x, patch in zip(stream, sequence.split(prior.slots), strict=True)
            for place in range(prior.slots)
        ]
    heads = prior.head.weight.double().chunk(prior.slots)
    outputs = [
        heads[number % prior.slots] @ (rms(x) * prior.final_gain.double())
        for number, x in enumerate(stream)
    ]
    return torch.stack(outputs[1:] if bidirectional else outputs)


def slow_within(within, x: Tensor, before: Tensor, num_codes: int) -> Tensor:
    """What predicts the code of a patch after those `before`."""
    x = x + within.place[len(before)].double()
    for place, token in enumerate(before):
        x = x + within.embedding.weight[token + place * num_codes].double()
    hidden = within.gate_up.weight.double() @ (rms(x) * within.gain.double())
    gate, up = hidden.chunk(2)
    return x + within.mlp_out.weight.double() @ (gate * torch.sigmoid(gate) * up)


def row_and_column(prior: TransformerPrior, position: int) -> tuple[float, float]:
    """Row and column in units of the finest map; what stands in front lies outside."""
    if position < 0:
        return float(position), float(position)
    for level in prior.levels:
        start, stop = level.start // prior.slots, level.stop // prior.slots
        if start <= position < stop:
            down, across = level.height // level.patch, level.width // level.patch
            chunks = (stop - start) // (down * across)
            row, column = divmod((position - start) // chunks, across)
            tall = max(span.height for span in prior.levels) / down
            wide = max(span.width for span in prior.levels) / across
            return row * tall + (tall - 1) / 2, column * wide + (wide - 1) / 2
    raise AssertionError(position)


def rms(x: Tensor) -> Tensor:
    return x / math.sqrt(float(x @ x) / len(x) + 1e-6)


def rotated(x: Tensor, position: tuple[float, ...]) -> list[complex]:
    """Pairs of channels as complex numbers, half of them rotated by each axis of the position."""
    pairs = [complex(x[2 * j], x[2 * j + 1]) for j in range(len(x) // 2)]
    base = 10_000 if len(position) == 1 else 100
    per_axis = len(pairs) // len(position)
    angles = [
        position[j // per_axis] / base ** ((j % per_axis) / per_axis) for j in range(len(pairs))
    ]
    return [
        pair * complex(math.cos(angle), math.sin(angle))
        for pair, angle in zip(pairs, angles, strict=True)
    ]


def slow_block(block, stream, queries, keys, *, bidirectional):
    projected = [
        (block.qkv.weight.double() @ (rms(x) * block.attention_gain.double())).view(
            3, block.heads, -1
        )
        for x in stream
    ]
    after = []
    for i, x in enumerate(stream):
        heads = []
        for head in range(block.heads):
            query = rotated(projected[i][0, head], queries[i])
            seen = range(len(stream) if bidirectional else i + 1)
            scores = []
            for j in seen:
                key = rotated(projected[j][1, head], keys[j])
                product = sum((q * k.conjugate()).real for q, k in zip(query, key, strict=True))
                scores.append(product / math.sqrt(2 * len(query)))
            weights = [math.exp(score - max(scores)) for score in scores]
            value = sum(
                weight / sum(weights) * projected[j][2, head]
                for weight, j in zip(weights, seen, strict=True)
            )
            heads.append(value)
        x = x + block.attention_out.weight.double() @ torch.cat(heads)
        hidden = block.gate_up.weight.double() @ (rms(x) * block.mlp_gain.double())
        gate, up = hidden.chunk(2)
        after.append(x + block.mlp_out.weight.double() @ (gate * torch.sigmoid(gate) * up))
    return after
