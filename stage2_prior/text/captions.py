"""The captions of a codes dataset: a tokenizer that is learned from them, or their states."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator

from accelerate import Accelerator
from accelerate.utils import broadcast_object_list

from latent_prior.data.codes_dataset import CodesSplit
from latent_prior.stage2_prior.options import TrainOptions
from latent_prior.stage2_prior.text.encoder import TextEncoder
from latent_prior.stage2_prior.text.reading import (
    CaptionReader,
    check_length,
    in_parts,
    length_for,
)
from latent_prior.stage2_prior.text.states import StateStore
from latent_prior.stage2_prior.text.tokenizer import CaptionTokenizer

_log = logging.getLogger("latent_prior")
VOCABULARY = 4096
STATES_FOLDER = "text_states"


class _Captions:
    """All captions of some splits, as often as they are asked for."""

    def __init__(self, *splits: CodesSplit) -> None:
        self.splits = splits

    def __iter__(self) -> Iterator[str]:
        for split in self.splits:
            yield from split.distinct_captions()


def open_reader(
    train: CodesSplit, validation: CodesSplit, options: TrainOptions, accelerator: Accelerator
) -> CaptionReader | None:
    """What reads the captions; None for a prior whose condition is no text.

    The main process learns the tokenizer or runs the encoder, the others wait.

    Raises:
        ValueError: the codes have no captions, one is too long, or there is no such encoder.
    """
    if options.model.condition != "text":
        return None
    captions = _Captions(train, validation)
    if options.text_encoder is not None:
        encoder = TextEncoder(options.text_encoder, options.text_length).to(accelerator.device)
        longest = longest_of(encoder, captions)
        if options.text_length is None:
            encoder.length = min(encoder.length, length_for(longest))
        check_longest(encoder, captions, longest)
        folder = train.table.folder / STATES_FOLDER
        if accelerator.is_main_process:
            StateStore.make(folder, encoder, captions)
        accelerator.wait_for_everyone()
        store = StateStore.find(folder, encoder.spec)
        assert store is not None, "the main process has made it"
        reader: CaptionReader = store
    else:
        learned = [("", 0, 0)]
        if accelerator.is_main_process:
            size = options.text_vocabulary or VOCABULARY
            tokenizer = CaptionTokenizer.train(_Captions(train), size)
            longest = longest_of(tokenizer, captions)
            tokenizer.length = options.text_length or length_for(longest)
            check_longest(tokenizer, captions, longest)
            learned = [(tokenizer.json, tokenizer.length, longest)]
        json, length, longest = broadcast_object_list(learned)[0]
        reader = CaptionTokenizer(json, length)
    if accelerator.is_main_process:
        length = reader.spec["length"]
        _log.info("captions: up to %d tokens, prompts up to %d", longest, length)
    return reader


def longest_of(reader: CaptionTokenizer | TextEncoder, captions: Iterable[str]) -> int:
    """Most tokens in one of the captions, at least 1."""
    parts = (reader.numbers(part) for part in in_parts(captions))
    return max((len(each) for part in parts for each in part), default=1)


def check_longest(
    reader: CaptionTokenizer | TextEncoder, captions: Iterable[str], longest: int
) -> None:
    """Check that no caption is longer than what is read.

    Raises:
        ValueError: naming the first one that is.
    """
    if longest > reader.length:
        for part in in_parts(captions):
            check_length(part, [len(each) for each in reader.numbers(part)], reader.length)
