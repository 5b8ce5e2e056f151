"""Tokens as an inference engine returns them, back to code maps (docs/serving.md)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from latent_prior.data.codes import CodeMaps, CodeSpec
from latent_prior.stage2_prior.tokens import level_spans, sequence_to_maps


def codes_from_tokens(tokens: Tensor | Sequence[Sequence[int]], spec: CodeSpec) -> CodeMaps:
    """Code maps of sequences that an engine has drawn from an exported prior.

    Args:
        tokens: integers (B, L), or (B, 1 + L) with the class token in front, as a tensor or as lists.
        spec: of the codes; L is its length.

    Returns:
        level name -> int64 (B, height, width), on the tokens' device.

    Raises:
        ValueError: latents in place of codes, sequences of another length, numbers that are no integers, a token
            among the codes that is none (a class, say), or a code in the place of the class token.
    """
    if spec.kind != "codes":
        raise ValueError(f"{spec.kind} have no tokens: decode them as maps")
    sequences = _as_tensor(tokens, spec.length)
    spans = level_spans(spec)
    with_class = sequences.shape[1] == spec.length + 1
    if with_class and bool((sequences[:, 0] < spans[-1].last).any()):
        raise ValueError(
            f"sequences of {spec.length + 1} tokens begin with a class token, which is {spans[-1].last} or more: "
            "one begins with a code"
        )
    sequence = sequences[:, -spec.length :]
    for span in spans:
        part = sequence[:, span.start : span.stop]
        wrong = part[(part < span.first) | (part >= span.last)]
        if wrong.numel():
            raise ValueError(
                f"token {int(wrong[0])} is no code of {span.name}, whose tokens are {span.first} to {span.last - 1}: "
                "let the engine draw codes only (suppress_tokens, allowed_token_ids or logit_bias)"
            )
    return sequence_to_maps(sequence, spec)


def _as_tensor(tokens: Tensor | Sequence[Sequence[int]], length: int) -> Tensor:
    """Tokens as int64 (B, length) or (B, 1 + length)."""
    if not isinstance(tokens, Tensor):
        lengths = {len(sequence) for sequence in tokens}
        if len(lengths) > 1:
            raise ValueError(
                f"the sequences have {' and '.join(map(str, sorted(lengths)))} tokens; each needs {length}"
            )
        tokens = torch.tensor([list(sequence) for sequence in tokens])
    if tokens.ndim != 2 or tokens.shape[1] not in (length, length + 1):
        raise ValueError(
            f"tokens have shape {tuple(tokens.shape)}; expected (images, {length}), "
            f"or (images, {length + 1}) with the class token in front"
        )
    if tokens.is_floating_point() or tokens.is_complex() or tokens.dtype == torch.bool:
        raise ValueError(f"tokens are integers, not {tokens.dtype}")
    return tokens.long()
