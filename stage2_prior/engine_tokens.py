"""Convert tokens from an inference engine to code maps (docs/serving.md)."""

from __future__ import annotations

from collections.abc import Iterable, Sequence, Sized
from typing import Any

import torch
from torch import Tensor

from latent_prior.data.codes import CodeMaps, CodeSpec
from latent_prior.stage2_prior.sequences import level_spans, sequence_to_maps


def codes_from_tokens(tokens: Tensor | Sequence[Sequence[int]], spec: CodeSpec) -> CodeMaps:
    """Code maps of sequences that an engine sampled from an exported prior.

    Args:
        tokens: integers (B, L), or (B, 1 + L) with the class token first, as a tensor or lists.
        spec: of the codes; L is its length.

    Returns:
        level name -> int64 (B, height, width), on the tokens' device.

    Raises:
        ValueError: the spec is of latents, sequences have another length, tokens are not integers,
            a token is not a code (for example a class), or a code stands for the class token.
    """
    if spec.kind != "codes":
        raise ValueError(f"{spec.kind} have no tokens: decode them as maps")
    sequences = _as_tensor(tokens, spec.length)
    spans = level_spans(spec)
    if sequences.shape[1] > spec.length and bool((sequences[:, 0] < spans[-1].last).any()):
        raise ValueError(
            f"a sequence of {spec.length + 1} tokens must begin with a class token "
            f"({spans[-1].last} or more), but one begins with a code"
        )
    sequence = sequences[:, -spec.length :]
    for span in spans:
        part = sequence[:, span.start : span.stop]
        wrong = part[(part < span.first) | (part >= span.last)]
        if wrong.numel():
            raise ValueError(
                f"token {int(wrong[0])} is not a code of {span.name} ({span.first} to {span.last - 1}): "
                "restrict the engine to codes (suppress_tokens, allowed_token_ids or logit_bias)"
            )
    return sequence_to_maps(sequence, spec)


def _as_tensor(tokens: Any, length: int) -> Tensor:
    """Tokens as int64 (B, length) or (B, 1 + length)."""
    if not isinstance(tokens, Tensor):
        if not isinstance(tokens, Iterable):
            raise ValueError(f"tokens must be lists of integers, not {tokens!r}")
        lengths = {len(sequence) for sequence in tokens if isinstance(sequence, Sized)}
        if len(lengths) > 1:
            counts = " and ".join(map(str, sorted(lengths)))
            raise ValueError(f"the sequences have {counts} tokens; each needs {length}")
        try:
            tokens = torch.tensor([list(sequence) for sequence in tokens])
        except (TypeError, ValueError, RuntimeError, OverflowError) as error:
            raise ValueError(f"tokens must be lists of integers ({error})") from error
    if tokens.ndim != 2 or tokens.shape[1] not in (length, length + 1):
        raise ValueError(
            f"tokens have shape {tuple(tokens.shape)}; expected (images, {length}), "
            f"or (images, {length + 1}) with the class token first"
        )
    if tokens.is_floating_point() or tokens.is_complex() or tokens.dtype == torch.bool:
        raise ValueError(f"tokens must be integers, not {tokens.dtype}")
    return tokens.long()
