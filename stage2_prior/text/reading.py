"""What a prior reads of captions, and the captions of a batch of codes."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from itertools import islice
from typing import NamedTuple, Protocol, TypedDict

import torch
from torch import Tensor

from latent_prior.data.codes_dataset import CodesSplit
from latent_prior.seeds import derive_seed

PART = 4096  # captions read at a time
SHORTEST = 64
"""Tokens that a prompt may have even if all captions are short: a word that none of them has takes
a token for each letter."""


class TextSpec(TypedDict):
    """How a prior reads captions."""

    length: int
    """Most tokens in a caption, T."""
    vocabulary: int
    """Tokens of the prior's own tokenizer; 0 with an encoder."""
    width: int
    """Numbers in each state of the encoder, D; 0 without one."""
    sha256: str
    """Of `tokenizer.json`, or of the encoder's weights and tokenizer."""
    encoder: str | None
    """Folder or hub id of the encoder, from where the prior was trained."""


class Text(NamedTuple):
    """Captions of B images, as a prior reads them.

    Attributes:
        tokens: int64 (B, T), numbers of a `CaptionTokenizer`; shorter captions have -1 in front, an
            image without a caption has nothing else.
        states: float (B, T, D) of a text encoder; then tokens are 0 where there is a state.
    """

    tokens: Tensor
    states: Tensor | None = None

    def repeated(self, times: int) -> Text:
        """Every caption `times` times."""
        states = None if self.states is None else self.states.repeat_interleave(times, 0)
        return Text(self.tokens.repeat_interleave(times, 0), states)


class CaptionReader(Protocol):
    """A tokenizer or an encoder."""

    @property
    def spec(self) -> TextSpec:
        """What a prior must know."""

    def read(self, captions: Sequence[str]) -> Text:
        """B captions; an empty one is none."""


def length_for(longest: int) -> int:
    """Most tokens of a prompt after captions of at most `longest` tokens."""
    return max(SHORTEST, 2 * longest)


def captions_of(
    codes: CodesSplit, indices: Tensor, draw: tuple[int, int] | None = None
) -> list[str]:
    """One caption for each of these rows.

    Args:
        codes: with captions.
        indices: of rows.
        draw: seed and step, of which the choice among several captions is a pure function; None
            takes the first one.
    """
    return [
        several[0]
        if draw is None or len(several) == 1
        else several[derive_seed(draw[0], "caption", draw[1], row) % len(several)]
        for several, row in zip(codes.captions(indices), indices.tolist(), strict=True)
    ]


def in_parts(captions: Iterable[str]) -> Iterator[list[str]]:
    """Captions in lists of at most `PART`."""
    every = iter(captions)
    while part := list(islice(every, PART)):
        yield part


def left_padded(numbers: Sequence[Sequence[int]]) -> Tensor:
    """Rows of different lengths as int64 (B, T), T at least 1, with -1 in front."""
    length = max(1, *map(len, numbers)) if numbers else 1
    return torch.tensor([[-1] * (length - len(row)) + [*row] for row in numbers])


def check_length(captions: Sequence[str], lengths: Sequence[int], longest: int) -> None:
    """Check that captions are not too long; they are never cut.

    Raises:
        ValueError: naming the caption.
    """
    for caption, length in zip(captions, lengths, strict=True):
        if length > longest:
            shown = caption if len(caption) <= 60 else f"{caption[:57]}..."
            raise ValueError(
                f"the text {shown!r} has {length} tokens, more than the {longest} that are read: "
                "shorten it, or train with a larger --text_length"
            )
