"""Code maps as one sequence of tokens and back, without loss.

The sequence runs through the levels from coarse to fine and through each map in raster order (row by row, left to
right). Every level has its own range of token numbers, so a token says which level it belongs to.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from latent_prior.data.codes import CodeMaps, CodeSpec


@dataclass(frozen=True)
class Span:
    """Where one level lies: positions [start, stop) of the sequence, outputs of the head [first, last).

    The outputs of a level of codes are its token numbers.
    """

    name: str
    height: int
    width: int
    start: int
    stop: int
    first: int
    last: int
    chunk: int = 1

    @property
    def numbers(self) -> int:
        """Codes of the level, or latent numbers: `chunk` at each position."""
        return (self.stop - self.start) * self.chunk


def level_spans(spec: CodeSpec) -> tuple[Span, ...]:
    """The spans of all levels, in the order of the sequence.

    Raises:
        ValueError: for a spec of latents, which have no tokens.
    """
    spans: list[Span] = []
    start = first = 0
    for level in spec.levels:
        if spec.kind != "codes" or level.vocabulary is None:
            raise ValueError(
                f"a prior over codes cannot model {spec.kind}: encode with a VQ autoencoder"
            )
        stop, last = start + level.length, first + level.vocabulary
        spans.append(Span(level.name, level.height, level.width, start, stop, first, last))
        start, first = stop, last
    return tuple(spans)


def places(levels: Sequence[Span], device: torch.device) -> Tensor:
    """Row and column of every position, float (L, 2), in units of the finest map.

    The maps lie over the same image: a coarse code stands at the middle of the fine ones that cover its patch.
    """
    height, width = (max(getattr(span, side) for span in levels) for side in ("height", "width"))
    found = []
    for span in levels:
        rows = (torch.arange(span.height, device=device) + 0.5) * (height / span.height) - 0.5
        columns = (torch.arange(span.width, device=device) + 0.5) * (width / span.width) - 0.5
        grid = torch.cartesian_prod(rows, columns)
        # Latents may take several positions at one place.
        found.append(grid.repeat_interleave((span.stop - span.start) // len(grid), dim=0))
    return torch.cat(found)


def maps_to_sequence(maps: CodeMaps, spec: CodeSpec) -> Tensor:
    """Flatten code maps to tokens.

    Args:
        maps: level name -> integers (B, height, width) in [0, vocabulary); the values are not read here.
        spec: what the maps must look like.

    Returns:
        int64 (B, L) with L = `spec.length`, values in [0, sum of the vocabularies).

    Raises:
        ValueError: a missing or unknown level, a map of another shape, or one of floats.
    """
    spans = level_spans(spec)
    if set(maps) != {span.name for span in spans}:
        expected = ", ".join(span.name for span in spans)
        raise ValueError(
            f"the code maps are {', '.join(maps)}; the prior's code spec has {expected}"
        )
    for span in spans:
        if tuple(maps[span.name].shape[1:]) != (span.height, span.width):
            raise ValueError(
                f"code map {span.name} has shape {tuple(maps[span.name].shape)}, "
                f"expected (batch, {span.height}, {span.width})"
            )
        if maps[span.name].is_floating_point():
            raise ValueError(
                f"code map {span.name} holds {maps[span.name].dtype}; codes are integers"
            )
    parts = [maps[span.name].flatten(1).long() for span in spans]
    shifted = [
        part + span.first if span.first else part for part, span in zip(parts, spans, strict=True)
    ]
    return shifted[0] if len(shifted) == 1 else torch.cat(shifted, dim=1)


def sequence_to_maps(sequence: Tensor, spec: CodeSpec) -> CodeMaps:
    """The inverse of `maps_to_sequence`: int64 (B, L) -> level name -> int64 (B, height, width)."""
    return {
        span.name: (sequence[:, span.start : span.stop] - span.first).unflatten(
            1, (span.height, span.width)
        )
        for span in level_spans(spec)
    }
