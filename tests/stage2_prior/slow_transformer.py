"""The prior's function once more: one position, one head, one pair of channels at a time, in float64."""

import math

import torch
from torch import Tensor

from latent_prior.stage2_prior.prior import TransformerPrior


@torch.no_grad()
def slow_outputs(prior: TransformerPrior, start: int, sequence: Tensor) -> Tensor:
    """What the head says about each of L positions, float64 (L, outputs), given tokens (L,) or vectors (L, D)."""
    bidirectional = prior.config.order == "masked"
    if prior.latents:
        codes = [prior.projection.weight.double() @ vector.double() for vector in sequence]
    else:
        codes = [prior.embedding.weight[token].double() for token in sequence]
    stream = [prior.embedding.weight[start].double(), *codes]
    about = list(range(-1, prior.length))  # the position whose place each member of the stream has
    asking = list(about)
    if not bidirectional:
        stream, about, asking = stream[:-1], about[:-1], list(range(prior.length))
    if prior.position_embedding is not None:
        stream = [
            x + prior.position_embedding[place].double() if place >= 0 else x
            for x, place in zip(stream, asking, strict=True)
        ]
    queries, keys = ([place_of(prior, at) for at in places] for places in (asking, about))
    if prior.config.positions == "1d":
        queries = keys = [(float(index),) for index in range(len(stream))]
    for block in prior.blocks:
        stream = slow_block(block, stream, queries, keys, bidirectional=bidirectional)
    head = prior.head.weight.double()
    outputs = [head @ (rms(x) * prior.final_gain.double()) for x in stream]
    return torch.stack(outputs[1:] if bidirectional else outputs)


def place_of(prior: TransformerPrior, position: int) -> tuple[float, float]:
    """Row and column in units of the finest map; the class token, at -1, stands outside."""
    if position < 0:
        return -1.0, -1.0
    for level in prior.levels:
        if level.start <= position < level.stop:
            at_a_place = (level.stop - level.start) // (level.height * level.width)
            row, column = divmod((position - level.start) // at_a_place, level.width)
            tall = max(span.height for span in prior.levels) / level.height
            wide = max(span.width for span in prior.levels) / level.width
            return row * tall + (tall - 1) / 2, column * wide + (wide - 1) / 2
    raise AssertionError(position)


def rms(x: Tensor) -> Tensor:
    return x / math.sqrt(float(x @ x) / len(x) + 1e-6)


def turned(x: Tensor, place: tuple[float, ...]) -> list[complex]:
    """Pairs of neighbouring channels as complex numbers, the first half turned by the first axis, the rest by the second."""
    pairs = [complex(x[2 * j], x[2 * j + 1]) for j in range(len(x) // 2)]
    base = 10_000 if len(place) == 1 else 100
    per_axis = len(pairs) // len(place)
    angles = [place[j // per_axis] / base ** ((j % per_axis) / per_axis) for j in range(len(pairs))]
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
            query = turned(projected[i][0, head], queries[i])
            seen = range(len(stream) if bidirectional else i + 1)
            scores = []
            for j in seen:
                key = turned(projected[j][1, head], keys[j])
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
