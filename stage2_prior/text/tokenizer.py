"""A byte-pair tokenizer that is learned from the training captions.

Byte-level pairs as in Radford et al., Language models are unsupervised multitask learners, 2019,
section 2.2: every string has tokens, whatever letters it holds. Upper case is folded, as in Ramesh
et al., Zero-shot text-to-image generation, 2021, section 2.2, https://arxiv.org/abs/2102.12092.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from pathlib import Path

from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

from latent_prior.files import read_regular, whole_file
from latent_prior.stage2_prior.text.reading import (
    SHORTEST,
    Text,
    TextSpec,
    check_length,
    left_padded,
)

TOKENIZER_FILE = "tokenizer.json"
BYTES = 256
LARGEST_FILE = 64 << 20  # bytes


class CaptionTokenizer:
    """Captions to token numbers from 0 up.

    Attributes:
        json: what `tokenizer.json` holds.
        length: most tokens in a caption.
    """

    def __init__(self, json: str, length: int) -> None:
        """Read a tokenizer as the library tokenizers writes it.

        Raises:
            ValueError: it is none, or not one for all bytes.
        """
        self.json, self.length = json, length
        try:
            self._tokenizer = Tokenizer.from_str(json)
        except Exception as error:  # the library raises nothing narrower
            raise ValueError(f"it holds no tokenizer ({error})") from error
        self._tokenizer.no_padding()
        self._tokenizer.no_truncation()

    @classmethod
    def train(
        cls, captions: Iterable[str], vocabulary: int, length: int = SHORTEST
    ) -> CaptionTokenizer:
        """Learn at most `vocabulary` tokens, at least the 256 bytes.

        Args:
            captions: to learn from.
            vocabulary: most tokens; there are fewer where no two of them follow each other twice.
            length: most tokens in a caption.
        """
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
        return cls(tokenizer.to_str(pretty=True), length)

    @classmethod
    def open(cls, folder: Path, spec: TextSpec) -> CaptionTokenizer:
        """The tokenizer in a prior's folder.

        Raises:
            ValueError: the file is missing, damaged or another prior's.
        """
        path = folder / TOKENIZER_FILE
        content = read_regular(path, LARGEST_FILE)
        if hashlib.sha256(content).hexdigest() != spec["sha256"]:
            raise ValueError(
                f"{path} is not the tokenizer of this prior; restore it, or train again"
            )
        try:
            return cls(content.decode(), spec["length"])
        except (UnicodeDecodeError, ValueError) as error:
            raise ValueError(f"{path}: {error}; restore it, or train again") from error

    def write(self, folder: Path) -> None:
        """Write `tokenizer.json`."""
        with whole_file(folder / TOKENIZER_FILE) as temporary:
            temporary.write_bytes(self.json.encode())

    @property
    def spec(self) -> TextSpec:
        """What a prior must know."""
        digest = hashlib.sha256(self.json.encode()).hexdigest()
        vocabulary = self._tokenizer.get_vocab_size()
        return TextSpec(
            length=self.length, vocabulary=vocabulary, width=0, sha256=digest, encoder=None
        )

    def numbers(self, captions: Sequence[str]) -> list[list[int]]:
        """Tokens of every caption; none of an empty one."""
        return [encoding.ids for encoding in self._tokenizer.encode_batch_fast(list(captions))]

    def read(self, captions: Sequence[str]) -> Text:
        """Captions as tokens, padded to the longest; an empty one is none.

        Raises:
            ValueError: a caption is too long.
        """
        numbers = self.numbers(captions)
        check_length(captions, [len(each) for each in numbers], self.length)
        return Text(left_padded(numbers))
