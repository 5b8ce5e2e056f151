"""A byte-pair tokenizer that is learned from the training captions.

Byte-level pairs as in Radford et al., Language models are unsupervised multitask learners, 2019,
section 2.2: every string has tokens, whatever letters it holds. Upper case is folded, as in the
captions of Ramesh et al., Zero-shot text-to-image generation, 2021, section 2.2.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from pathlib import Path

from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

from latent_prior.files import whole_file
from latent_prior.records import read_bounded_text

TOKENIZER_FILE = "tokenizer.json"
BYTES = 256
LARGEST_FILE = 64 << 20  # bytes


class CaptionTokenizer:
    """Captions to token numbers from 0 up.

    Attributes:
        json: what `tokenizer.json` holds.
    """

    def __init__(self, json: str) -> None:
        """Read a tokenizer as the library tokenizers writes it.

        Raises:
            ValueError: it is none, or not one of this class.
        """
        self.json = json
        try:
            self._tokenizer = Tokenizer.from_str(json)
        except Exception as error:  # the library raises nothing narrower
            raise ValueError(f"it holds no tokenizer ({error})") from error
        self._tokenizer.no_padding()
        self._tokenizer.no_truncation()
        if self._tokenizer.get_vocab_size() < BYTES:
            raise ValueError("its tokenizer does not cover all bytes")

    @classmethod
    def train(cls, captions: Iterable[str], vocabulary: int) -> CaptionTokenizer:
        """Learn at most `vocabulary` tokens, at least the 256 bytes; the same captions give the same."""
        tokenizer = Tokenizer(models.BPE())
        tokenizer.normalizer = normalizers.Sequence(
            [normalizers.NFC(), normalizers.Strip(), normalizers.Lowercase()]
        )
        tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
        tokenizer.decoder = decoders.ByteLevel()
        trainer = trainers.BpeTrainer(
            vocab_size=max(vocabulary, BYTES),
            min_frequency=2,
            initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
            show_progress=False,
        )
        tokenizer.train_from_iterator(captions, trainer)
        return cls(tokenizer.to_str(pretty=True))

    @classmethod
    def read(cls, folder: Path) -> CaptionTokenizer:
        """The tokenizer in a prior's folder.

        Raises:
            ValueError: the file is missing or damaged.
        """
        path = folder / TOKENIZER_FILE
        try:
            return cls(read_bounded_text(path, LARGEST_FILE))
        except ValueError as error:
            raise ValueError(f"{path}: {error}; restore it, or train again") from error

    def write(self, folder: Path) -> None:
        """Write `tokenizer.json`."""
        with whole_file(folder / TOKENIZER_FILE) as temporary:
            temporary.write_text(self.json, encoding="utf-8")

    @property
    def sha256(self) -> str:
        """Of `tokenizer.json`."""
        return hashlib.sha256(self.json.encode()).hexdigest()

    @property
    def vocabulary(self) -> int:
        """Number of tokens."""
        return self._tokenizer.get_vocab_size()

    def numbers(self, captions: Sequence[str]) -> list[list[int]]:
        """Tokens of every caption; none of an empty one."""
        return [encoding.ids for encoding in self._tokenizer.encode_batch_fast(list(captions))]
