"""Code maps and latents as one sequence, and back, without loss except for rounding.

Codes: the sequence runs through the levels from coarse to fine, and through each map in raster
order (row by row, left to right). Each level has its own range of token numbers.

Latents: a grid becomes one vector per position in raster order; a flat latent, which has a single
position, is cut into chunks of channels (Tschannen et al., GIVT, 2023, section 3,
https://arxiv.org/abs/2312.02116). Channels are normalised by the mean and standard deviation that
encode.py measured, so that one head suits all autoencoders.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from latent_prior.data.codes import CodeMaps, CodeSpec, Level

FLAT_CHUNK = 4
# Keeps a constant channel from being divided by 0; float16 resolves no less than this around 1.
SMALLEST_SCALE = 1e-4


@dataclass(frozen=True)
class Span:
    """Where a level lies: [start, stop) of the sequence, head outputs [first, last).

    The outputs of a level of codes are its token numbers. Codes of a patch are neighbours in the
    sequence.
    """

    name: str
    height: int
    width: int
    start: int
    stop: int
    first: int
    last: int
    chunk: int = 1
    patch: int = 1

    @property
    def num_values(self) -> int:
        """Codes of the level, or latent numbers: `chunk` at each position."""
        return (self.stop - self.start) * self.chunk


def level_spans(spec: CodeSpec, patch: int = 1) -> tuple[Span, ...]:
    """The spans of all levels of codes, in the order of the sequence, in patches of patch x patch.

    Raises:
        ValueError: the spec is of latents, which have no tokens, or a map cannot be cut so.
    """
    spans: list[Span] = []
    start = first = 0
    for level in spec.levels:
        if spec.kind != "codes" or level.vocabulary is None:
            raise ValueError(
                f"a prior over codes cannot model {spec.kind}: encode with a VQ autoencoder"
            )
        if level.height % patch or level.width % patch:
            raise ValueError(
                f"--model.patch {patch} does not divide the sides of the map {level.name} of "
                f"{level.height} x {level.width} codes"
            )
        stop, last = start + level.length, first + level.vocabulary
        size = (level.height, level.width)
        spans.append(Span(level.name, *size, start, stop, first, last, patch=patch))
        start, first = stop, last
    return tuple(spans)


def grid_positions(levels: Sequence[Span], device: torch.device) -> Tensor:
    """Row and column of every patch or vector of latents, float (N, 2), in codes of the finest map.

    All maps cover the same image: a coarse code or a patch lies at the centre of what it covers.
    """
    height, width = (max(getattr(span, side) for span in levels) for side in ("height", "width"))
    grids = []
    for span in levels:
        down, across = span.height // span.patch, span.width // span.patch
        rows = (torch.arange(down, device=device) + 0.5) * (height / down) - 0.5
        columns = (torch.arange(across, device=device) + 0.5) * (width / across) - 0.5
        grid = torch.cartesian_prod(rows, columns)
        # Chunks of latents share a row and column.
        chunks = (span.stop - span.start) // (span.patch**2 * len(grid))
        grids.append(grid.repeat_interleave(chunks, dim=0))
    return torch.cat(grids)


def maps_to_sequence(maps: CodeMaps, spec: CodeSpec, patch: int = 1) -> Tensor:
    """Flatten code maps to tokens.

    Args:
        maps: level name -> integers (B, height, width) in [0, vocabulary), which is not checked.
        spec: levels, shapes and vocabularies of the maps.
        patch: side of the patches whose codes follow each other, row by row; 1 orders each map so.

    Returns:
        int64 (B, L) with L = `spec.length`, values in [0, sum of the vocabularies).

    Raises:
        ValueError: a level is missing or unknown, or a map has the wrong shape or holds floats.
    """
    spans = level_spans(spec, patch)
    if set(maps) != {span.name for span in spans}:
        expected = ", ".join(span.name for span in spans)
        raise ValueError(
            f"the code maps are {', '.join(maps)}; the prior's code spec has {expected}"
        )
    for span in spans:
        codes = maps[span.name]
        if tuple(codes.shape[1:]) != (span.height, span.width):
            raise ValueError(
                f"code map {span.name} has shape {tuple(codes.shape)}, "
                f"expected (batch, {span.height}, {span.width})"
            )
        if codes.is_floating_point():
            raise ValueError(f"code map {span.name} holds {codes.dtype}; codes are integers")
    parts = [_in_patches(maps[span.name], patch).long() + span.first for span in spans]
    return torch.cat(parts, dim=1)


def sequence_to_maps(sequence: Tensor, spec: CodeSpec, patch: int = 1) -> CodeMaps:
    """Invert `maps_to_sequence`: int64 (B, L) -> level name -> int64 (B, height, width)."""
    maps = {}
    for span in level_spans(spec, patch):
        codes = sequence[:, span.start : span.stop] - span.first
        patches = codes.unflatten(1, (span.height // patch, span.width // patch, patch, patch))
        maps[span.name] = patches.transpose(2, 3).flatten(3, 4).flatten(1, 2)
    return maps


def _in_patches(values: Tensor, patch: int) -> Tensor:
    """(B, height, width) to (B, height x width), patch after patch."""
    rows = values.unflatten(2, (-1, patch)).unflatten(1, (-1, patch))  # (B, h, patch, w, patch)
    return rows.transpose(2, 3).flatten(1)


def check_codes(sequence: Tensor, levels: Sequence[Span]) -> None:
    """Check that tokens (B, L) belong to the level of their position.

    Raises:
        ValueError: naming the code and its map.
    """
    for level in levels:
        lowest, highest = sequence[:, level.start : level.stop].aminmax()
        if lowest < level.first or highest >= level.last:
            wrong = int(lowest if lowest < level.first else highest) - level.first
            raise ValueError(
                f"code {wrong} in map {level.name} is out of range: "
                f"its vocabulary is {level.last - level.first}"
            )


def known_tokens(
    known: CodeMaps | None,
    keep: CodeMaps | None,
    num_images: int,
    spec: CodeSpec,
    patch: int = 1,
) -> Tensor | None:
    """Tokens (num_images, L) of codes to keep, -1 where one is to be sampled; None without any.

    `known` and `keep` as in `TransformerPrior.sample`, `patch` as in `maps_to_sequence`.

    Raises:
        ValueError: only one of the maps is given, their shape or type is wrong, codes are out of
            range, or the spec is of latents.
    """
    if known is None and keep is None:
        return None
    if spec.kind == "latents":
        raise ValueError("known codes to keep: a prior over latents samples whole images only")
    if known is None or keep is None:
        raise ValueError("known codes and the positions to keep belong together: give both")
    for name, codes in known.items():
        kept = keep.get(name)
        if kept is None or kept.dtype != torch.bool or kept.shape != codes.shape:
            raise ValueError(f"keep needs a bool map {name!r} of shape {tuple(codes.shape)}")
    # Codes that are not kept may be any number; 0 is a code of every level.
    valid = {name: torch.where(keep[name], codes, 0) for name, codes in known.items()}
    tokens = maps_to_sequence(valid, spec, patch)
    if len(tokens) != num_images:
        raise ValueError(f"{num_images} images need as many known codes, not {len(tokens)}")
    levels = level_spans(spec, patch)
    check_codes(tokens, levels)
    kept = torch.cat([_in_patches(keep[span.name], patch) for span in levels], 1)
    return torch.where(kept, tokens, -1)


def latent_level(spec: CodeSpec) -> Level:
    """The one level of latents.

    Raises:
        ValueError: there are several, or the latents' mean and deviation are missing.
    """
    if len(spec.levels) != 1:
        names = ", ".join(level.name for level in spec.levels)
        raise ValueError(f"a prior over latents needs one level, not {names}")
    if spec.latent_shift is None or spec.latent_scale is None:
        raise ValueError("the latents' mean and deviation were not measured: encode with encode.py")
    return spec.levels[0]


def chunk_width(level: Level, chunk: int | None) -> int:
    """Latent channels sampled at a time, D.

    Raises:
        ValueError: the level's channels cannot be cut into such chunks.
    """
    assert level.channels is not None
    if chunk is None:
        return level.channels if level.length > 1 else math.gcd(level.channels, FLAT_CHUNK)
    if level.channels % chunk:
        raise ValueError(f"--model.chunk {chunk} does not divide the {level.channels} channels")
    return chunk


def latents_to_sequence(latents: Tensor, shift: Tensor, scale: Tensor, chunk: int) -> Tensor:
    """Flatten latents to vectors of mean 0 and deviation 1.

    Args:
        latents: float (B, C, height, width).
        shift: mean per channel (C,).
        scale: standard deviation per channel (C,).
        chunk: D, channels per vector.

    Returns:
        float32 (B, L, D) with L = height x width x C / D, the chunks of each position together.
    """
    positions = latents.float().flatten(2).transpose(1, 2)  # (B, height width, C)
    return ((positions - shift) / scale).reshape(len(latents), -1, chunk)


def sequence_to_latents(sequence: Tensor, shift: Tensor, scale: Tensor, level: Level) -> CodeMaps:
    """Invert `latents_to_sequence`: (B, L, D) -> level name -> (B, C, height, width)."""
    positions = sequence.reshape(len(sequence), level.length, -1) * scale + shift
    return {level.name: positions.transpose(1, 2).reshape(len(sequence), *level.shape)}


def latents_of(maps: CodeMaps, level: Level) -> Tensor:
    """The latents (B, C, height, width) of a batch.

    Raises:
        ValueError: another level, or a map of another shape or of integers.
    """
    latents = maps.get(level.name)
    if latents is None or set(maps) != {level.name}:
        raise ValueError(
            f"the latents are {', '.join(maps)}; the prior's code spec has {level.name}"
        )
    if tuple(latents.shape[1:]) != level.shape or not torch.is_floating_point(latents):
        expected = ", ".join(map(str, ("batch", *level.shape)))
        raise ValueError(
            f"latents {level.name} are {latents.dtype} of shape {tuple(latents.shape)}, "
            f"expected floats ({expected})"
        )
    return latents
