"""Checks of what a prior is given: labels, codes, and the codes to keep."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from latent_prior.data.codes import CodeMaps, CodeSpec
from latent_prior.stage2_prior.tokens import Span, maps_to_sequence


def given_tokens(
    num_images: int,
    known: CodeMaps | None,
    keep: CodeMaps | None,
    spec: CodeSpec,
    levels: Sequence[Span],
) -> Tensor | None:
    """Tokens (num_images, L) that are not to be drawn, -1 at those that are; None where nothing is known.

    Args:
        num_images: that are to be drawn.
        known: level name -> integers (B, height, width), read where `keep` says so.
        keep: level name -> bool (B, height, width).
        spec: of the codes.
        levels: its spans.

    Raises:
        ValueError: one without the other, another shape or type, codes out of range, or latents.
    """
    if known is None and keep is None:
        return None
    if spec.kind == "latents":
        raise ValueError("known codes to keep: a prior over latents draws whole images only")
    if known is None or keep is None:
        raise ValueError("known codes and the places to keep belong together: give both")
    for name, codes in known.items():
        where = keep.get(name)
        if where is None or where.dtype != torch.bool or where.shape != codes.shape:
            raise ValueError(f"keep needs a bool map {name!r} of shape {tuple(codes.shape)}")
    # What is not kept may be anything in `known`; 0 is a code of every level.
    valid = {name: torch.where(keep[name], codes, 0) for name, codes in known.items()}
    tokens = maps_to_sequence(valid, spec)
    if len(tokens) != num_images:
        raise ValueError(f"{num_images} images need as many known codes, not {len(tokens)}")
    check_codes(tokens, levels)
    kept = torch.cat([keep[level.name].flatten(1) for level in levels], dim=1)
    return torch.where(kept, tokens, -1)


def check_labels(labels: Tensor, num_images: int, num_classes: int) -> None:
    """Stop at labels that are not one per image, or out of [-1, num_classes).

    Raises:
        ValueError: naming the label.
    """
    if labels.shape != (num_images,):
        raise ValueError(
            f"{num_images} images need labels of shape ({num_images},), not {tuple(labels.shape)}"
        )
    lowest, highest = labels.aminmax()
    if lowest < -1 or highest >= num_classes:
        known = (
            f"0 to {num_classes - 1}, or -1 for any class"
            if num_classes
            else "only -1: it has no classes"
        )
        wrong = int(lowest if lowest < -1 else highest)
        raise ValueError(f"label {wrong} is out of range: this prior knows {known}")


def check_codes(sequence: Tensor, levels: Sequence[Span]) -> None:
    """Stop at tokens (B, L) that are not of the level that their position belongs to.

    Raises:
        ValueError: naming the code and its map.
    """
    for level in levels:
        lowest, highest = sequence[:, level.start : level.stop].aminmax()
        if lowest < level.first or highest >= level.last:
            wrong = int(lowest if lowest < level.first else highest) - level.first
            raise ValueError(
                f"code {wrong} in map {level.name} is out of range: its vocabulary is {level.last - level.first}"
            )
