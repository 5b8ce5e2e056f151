"""The captions of a codes dataset: a tokenizer that is learned from them, or their states."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from accelerate import Accelerator
from accelerate.utils import broadcast_object_list

from latent_prior.data.codes_dataset import CodesSplit
from latent_prior.stage2_prior.options import TrainOptions
from latent_prior.stage2_prior.text.encoder import TextEncoder
from latent_prior.stage2_prior.text.reading import CaptionReader
from latent_prior.stage2_prior.text.states import StateStore
from latent_prior.stage2_prior.text.tokenizer import CaptionTokenizer

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
        path = Path(options.codes, STATES_FOLDER, f"{encoder.spec['sha256'][:32]}.arrow")
        if accelerator.is_main_process:
            StateStore.make(path, encoder, captions)
        accelerator.wait_for_everyone()
        return StateStore(path, encoder.spec)
    learned = [("", 0)]
    if accelerator.is_main_process:
        size = options.text_vocabulary or VOCABULARY
        tokenizer = CaptionTokenizer.train(_Captions(train), size, options.text_length)
        if options.text_length is None:  # a validation caption may be the longest
            longest = tokenizer.longest(_Captions(validation))
            tokenizer.length = max(tokenizer.length, longest)
        learned = [(tokenizer.json, tokenizer.length)]
    return CaptionTokenizer(*broadcast_object_list(learned)[0])
