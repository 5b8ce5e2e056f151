"""Export a raster-order prior as a Llama that inference engines serve, see docs/serving.md.

python stage2_prior/export.py --prior runs/mnist/prior/model --output_dir runs/mnist/llama
"""

from __future__ import annotations

from dataclasses import dataclass
from importlib.util import find_spec

from latent_prior.cli import answer_early, parse_config, run
from latent_prior.options import Options, option


@dataclass(kw_only=True)
class ExportOptions(Options):
    """Export a raster-order prior as a `LlamaForCausalLM` folder for inference engines."""

    prior: str = option(path=True)
    """Folder or hub id of the prior."""
    output_dir: str = option(path=True)
    """Folder to write; an earlier export in it is replaced."""
    gguf: bool = False
    """Also write `model.gguf`, for llama.cpp; needs the package gguf."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.gguf and find_spec("gguf") is None:
            raise ValueError('--gguf needs: pip install "latent-prior[engines]"')


answer_early(__name__, ExportOptions)

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from torch import Tensor
from transformers import GenerationConfig, LlamaConfig, LlamaForCausalLM
from transformers.utils import logging as transformers_logging

from latent_prior.calls import takes_options
from latent_prior.data.codes import write_spec
from latent_prior.folders import check_replaceable, whole_folder
from latent_prior.stage2_prior.prior import TransformerPrior
from latent_prior.stage2_prior.text.tokenizer import TOKENIZER_FILE, CaptionTokenizer
from latent_prior.stage2_prior.transformer import NORM_EPSILON, ROTARY_BASE, Block, swiglu_width

IMAGE = "<image>"
"""The null token, in the exported tokenizer of captions."""
GGUF_FILE = "model.gguf"


@takes_options(ExportOptions)
def export_prior(options: ExportOptions) -> Path:
    """Export a raster-order prior as a Llama.

    Returns:
        The folder.

    Raises:
        ValueError: the prior is invalid or cannot be exported, or the folder holds other files.
    """
    output = Path(options.output_dir)
    check_replaceable(output, "export", "--output_dir ")
    prior = TransformerPrior.from_pretrained(options.prior)
    llama = to_llama(prior)
    transformers_logging.disable_progress_bar()
    with whole_folder(output, "export") as folder:
        llama.save_pretrained(folder)
        write_spec(prior.code_spec, folder)
        write_tokenizer(prior, folder)
        if options.gguf:
            write_gguf(llama, folder / GGUF_FILE)
    return output


def to_llama(prior: TransformerPrior) -> LlamaForCausalLM:
    """Convert a prior to transformers' Llama: the same function, in evaluation mode, on the CPU.

    Tokens keep their numbers: codes, then classes or the tokens of captions, then the null token. A
    sequence begins with a class, whose token is in `config.class_tokens` (by name), or with
    `config.null_token`, which also ends a caption (`caption_tokenizer`). The prior's head has rows
    for codes only, Llama's for all tokens: the rows of the others are the mean of the codes' rows,
    so that none of them ever has the largest logit, and by Jensen's inequality at most the mean
    probability of a code. `generate` suppresses them (`suppress_tokens`).

    Raises:
        ValueError: the prior has a part that Llama lacks.
    """
    check_exportable(prior)
    config, vocabulary = prior.config, prior.embedding.num_embeddings
    most_text = 0 if config.text is None else config.text["length"]
    class_names = prior.code_spec.class_names[: prior.num_classes]
    origin: dict[str, Any] = {
        "class_tokens": {name: prior.num_codes + i for i, name in enumerate(class_names)},
        "null_token": prior.null_token,
        "autoencoder_fingerprint": prior.code_spec.autoencoder_fingerprint,
        "prior_fingerprint": prior.fingerprint,
    }
    llama = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=vocabulary,
            hidden_size=config.width,
            intermediate_size=swiglu_width(config.width, config.mlp_ratio),
            num_hidden_layers=config.depth,
            num_attention_heads=config.heads,
            # The last code is never an input, but engines count its position.
            max_position_embeddings=prior.length + 1 + most_text,
            rms_norm_eps=NORM_EPSILON,
            rope_parameters={"rope_type": "default", "rope_theta": ROTARY_BASE},
            # Llama's defaults 1 and 2 are codes here; code 2 would end the image.
            bos_token_id=None,
            eos_token_id=None,
            pad_token_id=None,
            **origin,
        )
    )
    llama.load_state_dict(llama_weights(prior))
    llama.generation_config = GenerationConfig(
        do_sample=True,
        top_k=0,  # transformers' default is 50
        min_new_tokens=prior.length,
        max_new_tokens=prior.length,
        suppress_tokens=list(range(prior.num_codes, vocabulary)),
    )
    return llama.eval()


def check_exportable(prior: TransformerPrior) -> None:
    """Check that Llama can compute the prior.

    Raises:
        ValueError: naming the part that Llama lacks.
    """
    names = ", ".join(level.name for level in prior.levels)
    reasons = {
        "its head is a mixture of Gaussians over latents": prior.latents,
        "in masked order every code sees those after it": prior.masked,
        f"each position takes the codes of one of its maps {names}": len(prior.levels) > 1,
        "its positions are rows and columns": prior.config.positions == "2d",
        "each position takes a patch of codes": prior.slots > 1,
        "it reads the states of a text encoder": prior.text_projection is not None,
    }
    for reason, applies in reasons.items():
        if applies:
            raise ValueError(
                f"this prior cannot be exported as a Llama: {reason}; train one over a single "
                "code map with --model.order raster, --model.positions 1d and --model.patch 1, and "
                "without --text_encoder"
            )
    assert prior.position_embedding is None


def write_tokenizer(prior: TransformerPrior, folder: Path) -> None:
    """Write the tokenizer of an exported prior, in the format of transformers.

    A caption becomes the prompt of its image. Without captions, tokens are written as their
    numbers: `257 3 44`. Some engines start only with a tokenizer that has a word for every token
    and names the end of a sequence; the null token, which no image contains, takes that part.
    """
    if prior.tokenizer is None:
        null = str(prior.null_token)
        content = number_tokenizer(prior.embedding.num_embeddings)
    else:
        null = IMAGE
        content = caption_tokenizer(prior.tokenizer, prior.first_class, prior.null_token)
    (folder / TOKENIZER_FILE).write_text(content, encoding="utf-8")
    settings = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        **dict.fromkeys(("bos_token", "eos_token", "unk_token", "pad_token"), null),
        # Prompts of different lengths are padded in front, by a token that is not attended to.
        "padding_side": "left",
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(settings), encoding="utf-8")


def number_tokenizer(count: int) -> str:
    """`tokenizer.json` whose words are the numbers of `count` tokens, separated by spaces."""
    words = {str(token): token for token in range(count)}
    tokenizer = Tokenizer(models.WordLevel(words, unk_token=str(count - 1)))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return tokenizer.to_str()


def caption_tokenizer(tokenizer: CaptionTokenizer, first: int, null_token: int) -> str:
    """`tokenizer.json` that makes the prompt of its image of a caption.

    Args:
        tokenizer: of the prior.
        first: number of its first token in the prior; the codes come before.
        null_token: number of the token that ends a prompt.
    """
    content = json.loads(tokenizer.json)
    # No text contains the words of codes: in the tokenizer's alphabet a space is another letter.
    vocabulary = {f"code {code}": code for code in range(first)}
    vocabulary |= {word: number + first for word, number in content["model"]["vocab"].items()}
    content["model"]["vocab"] = vocabulary | {IMAGE: null_token}
    flags = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)
    content["added_tokens"] = [{"id": null_token, "content": IMAGE, "special": True, **flags}]
    content["post_processor"] = {
        "type": "TemplateProcessing",
        "single": [
            {"Sequence": {"id": "A", "type_id": 0}},
            {"SpecialToken": {"id": IMAGE, "type_id": 0}},
        ],
        "pair": [{"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 0}}],
        "special_tokens": {IMAGE: {"id": IMAGE, "ids": [null_token], "tokens": [IMAGE]}},
    }
    return json.dumps(content, ensure_ascii=False)


@torch.no_grad()
def llama_weights(prior: TransformerPrior) -> dict[str, Tensor]:
    """The prior's weights under Llama's names."""
    head = prior.head.weight
    classes = prior.embedding.num_embeddings - prior.num_codes
    weights = {
        "model.embed_tokens.weight": prior.embedding.weight,
        "model.norm.weight": prior.final_gain,
        "lm_head.weight": torch.cat((head, head.mean(0).expand(classes, -1))),
    }
    for index, block in enumerate(prior.blocks):
        assert isinstance(block, Block)
        query, key, value = block.qkv.weight.chunk(3)
        gate, up = block.gate_up.weight.chunk(2)
        layer = {
            "input_layernorm": block.attention_gain,
            "self_attn.q_proj": pairs_to_halves(query, block.heads),
            "self_attn.k_proj": pairs_to_halves(key, block.heads),
            "self_attn.v_proj": value,
            "self_attn.o_proj": block.attention_out.weight,
            "post_attention_layernorm": block.mlp_gain,
            "mlp.gate_proj": gate,
            "mlp.up_proj": up,
            "mlp.down_proj": block.mlp_out.weight,
        }
        weights |= {f"model.layers.{index}.{name}.weight": w for name, w in layer.items()}
    return weights


def pairs_to_halves(weight: Tensor, heads: int) -> Tensor:
    """Reorder the rows of a query or key matrix (W, W) to Llama's form of rotary positions.

    The prior rotates channels 2i and 2i + 1 of a head together (Su et al., 2021), Llama channels i
    and i + D / 2. Scores sum over a head's channels, so any order works if both matrices share it.
    """
    return weight.unflatten(0, (heads, -1, 2)).transpose(1, 2).flatten(0, 2)


def write_gguf(llama: LlamaForCausalLM, path: Path) -> None:
    """Write a Llama as a GGUF file for llama.cpp, in float32; tokens are written as their numbers.

    Its vocabulary is of SentencePiece's kind, which llama.cpp implements itself: the words `_0`,
    `_1` and so on, where _ stands for a space. Every number's first digits are a smaller number, so
    its letters are joined from left to right, and text is read as it was written: `257 3 44`.
    """
    from gguf import GGUFWriter, LlamaFileType, TokenType
    from gguf.constants import MODEL_ARCH
    from gguf.tensor_mapping import get_tensor_name_map

    config, size = llama.config, llama.config.vocab_size
    writer = GGUFWriter(path, "llama")
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_dimension_count(config.hidden_size // config.num_attention_heads)
    writer.add_rope_freq_base(ROTARY_BASE)
    writer.add_file_type(LlamaFileType.ALL_F32)
    writer.add_vocab_size(size)
    writer.add_tokenizer_model("llama")
    writer.add_token_list([f"\N{LOWER ONE EIGHTH BLOCK}{token}" for token in range(size)])
    writer.add_token_scores([0.0] * size)
    writer.add_token_types([TokenType.NORMAL] * size)
    for add_special in (writer.add_bos_token_id, writer.add_eos_token_id, writer.add_unk_token_id):
        add_special(config.null_token)
    writer.add_add_bos_token(False)
    names = get_tensor_name_map(MODEL_ARCH.LLAMA, config.num_hidden_layers)
    for name, weight in llama.state_dict().items():
        if name.endswith(("q_proj.weight", "k_proj.weight")):
            weight = halves_to_pairs(weight, config.num_attention_heads)
        its_name = names.get_name(name, (".weight",))
        assert its_name is not None
        writer.add_tensor(its_name, weight.numpy())
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def halves_to_pairs(weight: Tensor, heads: int) -> Tensor:
    """The inverse of `pairs_to_halves`: llama.cpp rotates neighbouring channels, as the prior."""
    return weight.unflatten(0, (heads, 2, -1)).transpose(1, 2).flatten(0, 2)


def main(argv: Sequence[str] | None = None) -> None:
    """Entry point."""
    print(f"llama: {export_prior(options=parse_config(ExportOptions, argv))}")


if __name__ == "__main__":
    run(main)
