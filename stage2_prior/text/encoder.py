"""A frozen text encoder of the library transformers, and its states on disk.

As in Sun et al., Autoregressive model beats diffusion: Llama for scalable image generation, 2024,
section 2.2, https://arxiv.org/abs/2406.06525: the states stand in front of the codes.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch
import xxhash
from torch import Tensor
from transformers import (
    MODEL_FOR_TEXT_ENCODING_MAPPING,
    AutoConfig,
    AutoModel,
    AutoModelForTextEncoding,
    AutoTokenizer,
    CLIPTextModel,
)

from latent_prior.files import whole_file
from latent_prior.models import fingerprint, local_folder, quiet
from latent_prior.stage2_prior.text.reading import (
    Text,
    TextSpec,
    check_length,
    in_parts,
    left_padded,
)

BATCH = 64  # captions encoded at a time
SCHEMA = pa.schema(
    [("caption", pa.uint64()), ("tokens", pa.int32()), ("states", pa.large_binary())]
)


class TextEncoder:
    """A frozen encoder and its tokenizer, such as T5, CLIP's text model or MiniLM.

    Attributes:
        source: folder or hub id.
        length: most tokens in a caption.
    """

    def __init__(self, source: str, length: int | None = None) -> None:
        """Load an encoder.

        Args:
            source: folder or hub id.
            length: most tokens in a caption; None takes what the tokenizer states.

        Raises:
            ValueError: there is none, or it is no text encoder with weights in safetensors.
        """
        self.source = source
        folder = local_folder(source)
        try:
            with quiet():
                config = AutoConfig.from_pretrained(folder, trust_remote_code=False)
                self.tokenizer: Any = AutoTokenizer.from_pretrained(
                    folder, trust_remote_code=False, padding_side="left"
                )
                encodes = type(config) in MODEL_FOR_TEXT_ENCODING_MAPPING
                kind: Any = AutoModelForTextEncoding if encodes else AutoModel
                if config.model_type == "clip":
                    kind, config = CLIPTextModel, config.text_config
                self.model: Any = kind.from_pretrained(
                    folder, use_safetensors=True, trust_remote_code=False, dtype=torch.float32
                )
        except (OSError, ValueError, KeyError, AttributeError, RuntimeError) as error:
            first = str(error).strip().splitlines()[0][:200] if str(error).strip() else "unknown"
            raise ValueError(
                f"{source} is no text encoder that transformers loads: {first}"
            ) from error
        self.model.eval().requires_grad_(False)
        stated = int(min(self.tokenizer.model_max_length, 4096))
        stated = min(stated, int(getattr(config, "max_position_embeddings", stated)))
        self.length = stated if length is None else min(length, stated)
        self.width = int(config.hidden_size)

    @cached_property
    def spec(self) -> TextSpec:
        """What a prior must know."""
        digest = hashlib.sha256(fingerprint(self.model.state_dict().items()).encode())
        # Written again, a tokenizer's files differ in what does not change its tokens.
        digest.update(json.dumps(self.tokenizer.get_vocab(), sort_keys=True).encode())
        return TextSpec(
            length=self.length,
            vocabulary=0,
            width=self.width,
            sha256=digest.hexdigest(),
            encoder=self.source,
        )

    def to(self, device: torch.device) -> TextEncoder:
        """Move the encoder."""
        self.model.to(device)
        return self

    def write(self, folder: Path) -> None:
        """Write the encoder and its tokenizer as transformers stores them."""
        with quiet():
            self.model.save_pretrained(folder, safe_serialization=True)
            self.tokenizer.save_pretrained(folder)

    @torch.no_grad()
    def read(self, captions: Sequence[str]) -> Text:
        """Captions as states (B, T, D) on the CPU, padded to the longest; an empty one is none.

        Raises:
            ValueError: a caption is too long.
        """
        rows = [self.tokenizer(each)["input_ids"] if each.strip() else [] for each in captions]
        check_length(captions, [len(row) for row in rows], self.length)
        states = [torch.zeros(0, self.width) for _ in rows]
        # Captions of one length at a time: no padding, whichever way a model would treat it.
        for length in sorted({len(row) for row in rows} - {0}):
            same = [number for number, row in enumerate(rows) if len(row) == length]
            for begin in range(0, len(same), BATCH):
                part = same[begin : begin + BATCH]
                numbers = torch.tensor([rows[n] for n in part], device=self.model.device)
                found = self.model(input_ids=numbers).last_hidden_state.float().cpu()
                for number, state in zip(part, found, strict=True):
                    states[number] = state
        return padded_states(states)


class StateStore:
    """States of every distinct caption, in a file beside the codes.

    Args:
        path: of the Arrow file.
        spec: of the encoder.

    Raises:
        ValueError: the file is damaged.
    """

    def __init__(self, path: Path, spec: TextSpec) -> None:
        self.path, self.spec = path, spec
        try:
            self._table = pa.ipc.open_file(pa.memory_map(str(path))).read_all()
            if self._table.schema != SCHEMA:
                raise ValueError("its columns are others")
            captions = self._table.column("caption").to_numpy()
        except (OSError, pa.ArrowException, ValueError) as error:
            raise ValueError(
                f"{path} is damaged ({error}); delete it, and repeat the command"
            ) from error
        self._order = np.argsort(captions)
        self._captions = captions[self._order]

    @classmethod
    def make(cls, path: Path, encoder: TextEncoder, captions: Iterable[str]) -> StateStore:
        """Encode every distinct caption once, unless the file is there."""
        if not path.is_file():
            path.parent.mkdir(exist_ok=True)
            with whole_file(path) as temporary, pa.ipc.new_file(str(temporary), SCHEMA) as file:
                seen: set[int] = set()
                for part in in_parts(captions):
                    new = {number_of(each): each for each in part if number_of(each) not in seen}
                    seen.update(new)
                    if new:
                        file.write_batch(_rows_of(encoder.read(list(new.values())), [*new]))
        return cls(path, encoder.spec)

    def read(self, captions: Sequence[str]) -> Text:
        """Captions of the codes as states (B, T, D), padded to the longest.

        Raises:
            ValueError: a caption is not among those that were encoded, or the file is damaged.
        """
        states = []
        for caption in captions:
            number = np.uint64(number_of(caption))
            place = int(np.searchsorted(self._captions, number))
            if place == len(self._captions) or self._captions[place] != number:
                raise ValueError(
                    f"{self.path} has no states of {caption[:60]!r}; delete it, and repeat the command"
                )
            row = int(self._order[place])
            content = self._table.column("states")[row].as_buffer()
            tokens = self._table.column("tokens")[row].as_py()
            values = np.frombuffer(content, np.float16)
            if values.size != tokens * self.spec["width"] or not np.isfinite(values).all():
                raise ValueError(
                    f"{self.path} is damaged in row {row}; delete it, and repeat the command"
                )
            states.append(torch.from_numpy(values.reshape(tokens, -1).astype(np.float32)))
        return padded_states(states)


def number_of(caption: str) -> int:
    """A caption's number in the file."""
    return xxhash.xxh3_64_intdigest(caption.encode())


def padded_states(states: Sequence[Tensor]) -> Text:
    """States (T_i, D) of captions as (B, T, D), with zeros in front."""
    tokens = left_padded([[0] * len(each) for each in states])
    joined = torch.zeros(*tokens.shape, states[0].shape[-1])
    for row, each in zip(joined, states, strict=True):
        row[len(row) - len(each) :] = each
    return Text(tokens, joined)


def _rows_of(text: Text, numbers: Sequence[int]) -> pa.RecordBatch:
    """Rows of the file."""
    assert text.states is not None
    lengths = (text.tokens >= 0).sum(1).tolist()
    limit = torch.finfo(torch.float16).max
    content = [
        state[len(state) - length :].clamp(-limit, limit).half().numpy().tobytes()
        for state, length in zip(text.states, lengths, strict=True)
    ]
    columns = [
        pa.array(numbers, pa.uint64()),
        pa.array(lengths, pa.int32()),
        pa.array(content, pa.large_binary()),
    ]
    return pa.record_batch(columns, SCHEMA)
