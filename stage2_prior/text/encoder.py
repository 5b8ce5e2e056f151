"""A frozen text encoder of the library transformers.

As in Sun et al., Autoregressive model beats diffusion: Llama for scalable image generation, 2024,
section 2.2, https://arxiv.org/abs/2406.06525: the states stand in front of the codes.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from torch import Tensor

from latent_prior.models import fingerprint, local_folder, quiet
from latent_prior.stage2_prior.text.reading import (
    Text,
    TextSpec,
    check_length,
    left_padded,
)

BATCH = 64  # captions encoded at a time
POOLING = "pooler."  # in names of weights that make no states
TOKENIZER_FILES = (
    "merges.txt", "sentencepiece.bpe.model", "spiece.model", "tokenizer.json", "tokenizer.model",
    "vocab.json", "vocab.txt",
)  # fmt: skip


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
        # Some of these import torchvision, which a pipeline without an encoder does not need.
        from transformers import (
            MODEL_FOR_TEXT_ENCODING_MAPPING,
            AutoConfig,
            AutoModel,
            AutoModelForTextEncoding,
            AutoTokenizer,
            CLIPTextModel,
        )

        self.source = source
        folder = local_folder(source)
        if not any(path.name in TOKENIZER_FILES for path in folder.iterdir()):
            raise ValueError(f"{source} holds no tokenizer; save it into the encoder's folder")
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
                loaded: Any = kind.from_pretrained(
                    folder,
                    use_safetensors=True,
                    trust_remote_code=False,
                    dtype=torch.float32,
                    output_loading_info=True,
                )
        except (
            OSError,
            ValueError,
            KeyError,
            AttributeError,
            RuntimeError,
            SafetensorError,
        ) as error:
            first = str(error).strip().splitlines()[0][:200] if str(error).strip() else "unknown"
            raise ValueError(
                f"{source} is no text encoder that transformers loads: {first}"
            ) from error
        self.model, report = loaded
        # transformers would leave them random. A head that pools the states is not used.
        missing = sorted(name for name in report["missing_keys"] if POOLING not in name)
        if missing:
            raise ValueError(f"{source}: the weight {missing[0]} is missing; restore the folder")
        self.model.eval().requires_grad_(False)
        stated = int(min(self.tokenizer.model_max_length, 4096))
        stated = min(stated, int(getattr(config, "max_position_embeddings", stated)))
        self.length = stated if length is None else min(length, stated)
        self.width = int(config.hidden_size)

    @property
    def spec(self) -> TextSpec:
        """What a prior must know."""
        return TextSpec(
            length=self.length,
            vocabulary=0,
            width=self.width,
            sha256=self._sha256,
            encoder=self.source,
        )

    @cached_property
    def _sha256(self) -> str:
        """Of the weights that make the states, and of the tokenizer's vocabulary."""
        weights = ((n, w) for n, w in self.model.state_dict().items() if POOLING not in n)
        digest = hashlib.sha256(fingerprint(weights).encode())
        # Written again, a tokenizer's files differ in what does not change its tokens.
        digest.update(json.dumps(self.tokenizer.get_vocab(), sort_keys=True).encode())
        return digest.hexdigest()

    def numbers(self, captions: Sequence[str]) -> list[list[int]]:
        """Tokens of every caption; none of an empty one."""
        return [
            self.tokenizer(each, verbose=False)["input_ids"] if each.strip() else []
            for each in captions
        ]

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
            ValueError: a caption is too long, or the encoder gives no numbers.
        """
        rows = self.numbers(captions)
        check_length(captions, [len(row) for row in rows], self.length)
        states = [torch.zeros(0, self.width) for _ in rows]
        # Captions of one length at a time: no padding, whichever way a model would treat it.
        for length in sorted({len(row) for row in rows} - {0}):
            same = [number for number, row in enumerate(rows) if len(row) == length]
            for begin in range(0, len(same), BATCH):
                part = same[begin : begin + BATCH]
                numbers = torch.tensor([rows[n] for n in part], device=self.model.device)
                found = self.model(input_ids=numbers).last_hidden_state.float().cpu()
                if not bool(found.isfinite().all()):
                    raise ValueError(f"{self.source} gives states that are no numbers; restore it")
                for number, state in zip(part, found, strict=True):
                    states[number] = state
        return padded_states(states)


def padded_states(states: Sequence[Tensor]) -> Text:
    """States (T_i, D) of captions as (B, T, D), with zeros in front."""
    tokens = left_padded([[0] * len(each) for each in states])
    joined = torch.zeros(*tokens.shape, states[0].shape[-1])
    for row, each in zip(joined, states, strict=True):
        row[len(row) - len(each) :] = each
    return Text(tokens, joined)
