"""Write a raster-order prior as a plain `LlamaForCausalLM` folder, which inference engines can serve (docs/serving.md).

python stage2_prior/export.py --prior runs/mnist/prior/model --output_dir runs/mnist/llama
"""

from __future__ import annotations

from latent_prior.cli import answer_early, parse_config, run
from latent_prior.stage2_prior.export_options import ExportOptions

answer_early(__name__, ExportOptions)

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import GenerationConfig, LlamaConfig, LlamaForCausalLM
from transformers.utils import logging as transformers_logging

from latent_prior.data.codes import write_spec
from latent_prior.files import read_json, whole_folder
from latent_prior.models import CONFIG_FILE
from latent_prior.stage2_prior.prior import TransformerPrior
from latent_prior.stage2_prior.transformer import NORM_EPSILON, ROTARY_BASE, Block, swiglu_width

# Where an export says whose it is; a config without it belongs to somebody else.
FINGERPRINT_KEY = "prior_fingerprint"


def main(argv: Sequence[str] | None = None) -> None:
    """Entry point.

    Raises:
        ValueError: the prior is at fault or cannot be exported, or the folder holds something else.
    """
    options = parse_config(ExportOptions, argv)
    output = Path(options.output_dir)
    check_replaceable(output)
    prior = TransformerPrior.from_pretrained(options.prior)
    llama = to_llama(prior)
    transformers_logging.disable_progress_bar()
    with whole_folder(output) as folder:
        llama.save_pretrained(folder)
        write_spec(prior.code_spec, folder)
    print(f"llama: {output}")


def to_llama(prior: TransformerPrior) -> LlamaForCausalLM:
    """The same function of the same tokens in transformers' own architecture, in evaluation mode, on the CPU.

    Tokens keep their numbers: codes, then classes, then the null class. A sequence begins with one of the latter;
    `config.class_tokens` (name -> token) and `config.null_token` say which is which. The prior's head knows codes only,
    Llama's has a row for every token: the rows of the classes are the mean of the codes' rows, so that a class never
    gets the largest logit, and by Jensen's inequality no more than the mean probability of a code. `generate` leaves
    them out altogether (`suppress_tokens` of the generation config).

    Raises:
        ValueError: Llama has nothing like this prior.
    """
    check_exportable(prior)
    config, vocabulary = prior.config, prior.embedding.num_embeddings
    class_names = prior.code_spec.class_names[: prior.num_classes]
    origin: dict[str, Any] = {
        "class_tokens": {name: prior.num_codes + i for i, name in enumerate(class_names)},
        "null_token": prior.null_token,
        "autoencoder_fingerprint": prior.code_spec.autoencoder_fingerprint,
        FINGERPRINT_KEY: prior.fingerprint,
    }
    llama = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=vocabulary,
            hidden_size=config.width,
            intermediate_size=swiglu_width(config.width, config.mlp_ratio),
            num_hidden_layers=config.depth,
            num_attention_heads=config.heads,
            # The last code is never read, but engines count it among the positions.
            max_position_embeddings=prior.length + 1,
            rms_norm_eps=NORM_EPSILON,
            rope_parameters={"rope_type": "default", "rope_theta": ROTARY_BASE},
            # Llama's defaults 1 and 2 are codes here, and code 2 would end the image.
            bos_token_id=None,
            eos_token_id=None,
            pad_token_id=None,
            **origin,
        )
    )
    llama.load_state_dict(llama_weights(prior))
    llama.generation_config = GenerationConfig(
        do_sample=True,
        top_k=0,  # transformers' default of 50 would leave out codes
        min_new_tokens=prior.length,
        max_new_tokens=prior.length,
        suppress_tokens=list(range(prior.num_codes, vocabulary)),
    )
    return llama.eval()


def check_exportable(prior: TransformerPrior) -> None:
    """Stop at what Llama cannot compute.

    Raises:
        ValueError: naming it.
    """
    if prior.latents:
        reason = "its head is a mixture of Gaussians over latents"
    elif prior.masked:
        reason = "in masked order every code sees those behind it"
    elif len(prior.levels) > 1:
        names = ", ".join(level.name for level in prior.levels)
        reason = f"of its maps {names} each place allows the codes of one only"
    elif prior.config.positions == "2d":
        reason = "its positions are rows and columns"
    else:
        assert prior.position_embedding is None
        return
    raise ValueError(
        f"this prior is no Llama and cannot be exported: {reason}; train one over a single code map "
        "with --model.order raster and --model.positions 1d"
    )


def check_replaceable(folder: Path) -> None:
    """Stop before anything but an earlier export is overwritten.

    Raises:
        ValueError: the folder holds something else.
    """
    if not folder.exists() or (folder.is_dir() and not any(folder.iterdir())):
        return
    if not (folder / CONFIG_FILE).is_file() or FINGERPRINT_KEY not in read_json(
        folder / CONFIG_FILE
    ):
        raise ValueError(
            f"--output_dir {folder} exists and holds no exported prior; choose another folder"
        )


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
        for name, weight in block_weights(block).items():
            weights[f"model.layers.{index}.{name}.weight"] = weight
    return weights


def block_weights(block: Block) -> dict[str, Tensor]:
    """One block's weights under the names of a Llama layer."""
    query, key, value = block.qkv.weight.chunk(3)
    gate, up = block.gate_up.weight.chunk(2)
    return {
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


def pairs_to_halves(weight: Tensor, heads: int) -> Tensor:
    """Reorder the rows of a query or key matrix (W, W) for the other form of rotary positions.

    The prior turns channels 2i and 2i + 1 of a head together, as Su et al. (2021) do, transformers' Llama channels i
    and i + D / 2. Scores are sums over a head's channels, so their order is free as long as both matrices agree.
    """
    return weight.unflatten(0, (heads, -1, 2)).transpose(1, 2).flatten(0, 2)


if __name__ == "__main__":
    run(main)
