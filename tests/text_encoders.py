"""Tiny text encoders with random weights, as transformers stores them."""

from pathlib import Path

import torch
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import (
    BertConfig,
    BertModel,
    CLIPTextConfig,
    CLIPTextModel,
    PreTrainedTokenizerFast,
    T5Config,
    T5EncoderModel,
)

WORDS = [
    "<pad>",
    "</s>",
    "<unk>",
    "a",
    "red",
    "green",
    "blue",
    "circle",
    "square",
    "star",
    "at",
    "the",
    "top",
    "left",
    ",",
    "large",
]
ENCODERS = {
    "t5": (
        T5EncoderModel,
        T5Config(
            vocab_size=24, d_model=16, d_kv=8, d_ff=32, num_layers=2, num_heads=2, dropout_rate=0.1
        ),
    ),
    "clip": (
        CLIPTextModel,
        CLIPTextConfig(
            vocab_size=24, hidden_size=16, intermediate_size=32, num_hidden_layers=2,
            num_attention_heads=2, max_position_embeddings=20, eos_token_id=1, bos_token_id=0,
            pad_token_id=0,
        ),
    ),
    "bert": (
        BertModel,
        BertConfig(
            vocab_size=24, hidden_size=16, intermediate_size=32, num_hidden_layers=2,
            num_attention_heads=2, max_position_embeddings=20,
        ),
    ),
}  # fmt: skip


def write_encoder(folder: Path, kind: str = "t5", seed: int = 0) -> Path:
    """A folder that transformers' Auto classes load."""
    torch.manual_seed(seed)
    model_class, config = ENCODERS[kind]
    model_class(config).save_pretrained(folder)
    tokenizer = Tokenizer(
        models.WordLevel({word: n for n, word in enumerate(WORDS)}, unk_token="<unk>")
    )
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="$A </s>", special_tokens=[("</s>", 1)]
    )
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<pad>", eos_token="</s>", unk_token="<unk>",
        model_max_length=20,
    ).save_pretrained(folder)  # fmt: skip
    return folder
