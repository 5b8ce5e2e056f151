"""The prior against `transformers.LlamaForCausalLM` of the same shape: training steps and sampling.

Every function builds both sides and returns `(ours, peer)`, two callables that do the same work.
Size: 256 codes of a vocabulary of 1024, 10 classes and the null class; width 256, 6 blocks,
4 heads, SwiGLU 688.

`generate()` needs these settings for images: no top_k (its default is 50), no end-of-sequence token
(Llama's default makes code 2 one), class tokens suppressed (its head contains them), and for
guidance the null class as `negative_prompt_ids` (without it, guidance silently does nothing).
"""

from __future__ import annotations

from typing import Literal

import torch
from stage1 import Pair, optimizer_step
from transformers import GenerationConfig, LlamaConfig, LlamaForCausalLM

from latent_prior.data.codes import CodeSpec, Level
from latent_prior.stage2_prior.options import PriorOptions
from latent_prior.stage2_prior.prior import PriorConfig, TransformerPrior
from latent_prior.stage2_prior.transformer import swiglu_width

SIDE, VOCABULARY, NUM_CLASSES = 16, 1024, 10
LENGTH = SIDE * SIDE
NULL_TOKEN = VOCABULARY + NUM_CLASSES
TRAIN_BATCH = 16
GUIDANCE_SCALE = 2.0
MASKED_STEPS = 8


def train_step() -> Pair:
    """Forward, backward, clipping and AdamW over 16 images."""
    torch.manual_seed(0)
    prior, llama = build_prior().train(), build_llama().train()
    codes = torch.randint(VOCABULARY, (TRAIN_BATCH, SIDE, SIDE))
    labels = torch.randint(NUM_CLASSES, (TRAIN_BATCH,))
    tokens = torch.cat(((labels + VOCABULARY).unsqueeze(1), codes.flatten(1)), dim=1)
    targets = codes.flatten(1)
    our_step = optimizer_step(prior, clip=1.0)
    peer_step = optimizer_step(llama, clip=1.0)
    return (
        lambda: our_step(prior({"codes": codes}, labels).loss),
        # The peer needs no logits after the last code.
        lambda: peer_step(
            llama(input_ids=tokens[:, :-1], labels=targets, shift_labels=targets).loss
        ),
    )


def matmul_flops(name: str) -> float:
    """Floating-point operations of the matrix products in one call, attention included."""
    options = PriorOptions()
    hidden = swiglu_width(options.width, options.mlp_ratio)
    block = options.width * (4 * options.width + 3 * hidden)
    weights = options.depth * block + options.width * VOCABULARY
    everywhere = options.depth * 2 * options.width * LENGTH
    attention = options.depth * options.width * (LENGTH + 1)  # causal: half of the positions
    forward = 2 * LENGTH * (weights + attention)  # one image
    if name == "prior_train_step":
        return 3 * TRAIN_BATCH * forward
    batch = int(name.rpartition("_b")[2])
    if "masked" in name:  # every round looks at all codes, and each sees all others
        return MASKED_STEPS * batch * 2 * LENGTH * (weights + everywhere)
    return forward * batch * (2 if "guided" in name else 1)


def code_spec(side: int, vocabulary: int = VOCABULARY, classes: int = 0) -> CodeSpec:
    """One square map of codes."""
    return CodeSpec(
        kind="codes",
        levels=(Level("codes", side, side, vocabulary=vocabulary),),
        image_size=4 * side,
        image_channels=3,
        autoencoder_type="benchmark",
        autoencoder_fingerprint="0" * 64,
        class_names=tuple(map(str, range(classes))),
    )


def build_prior(order: Literal["raster", "masked"] = "raster") -> TransformerPrior:
    spec = code_spec(SIDE, classes=NUM_CLASSES)
    config = PriorConfig(code_spec=spec.to_dict(), dropout=0.0, order=order)
    return TransformerPrior(config).eval()


def build_llama() -> LlamaForCausalLM:
    options = PriorOptions()
    config = LlamaConfig(
        vocab_size=NULL_TOKEN + 1,
        hidden_size=options.width,
        num_hidden_layers=options.depth,
        num_attention_heads=options.heads,
        intermediate_size=swiglu_width(options.width, options.mlp_ratio),
        max_position_embeddings=LENGTH + 1,
        bos_token_id=None,
        eos_token_id=None,
        pad_token_id=None,
    )
    return LlamaForCausalLM(config).eval()


def masked_against_raster(batch: int) -> Pair:
    torch.manual_seed(0)
    masked, raster = build_prior("masked"), build_prior()
    labels = torch.arange(batch) % NUM_CLASSES
    return (
        lambda: masked.sample(batch, labels, steps=MASKED_STEPS),
        lambda: raster.sample(batch, labels),
    )


def sampling(batch: int, guidance_scale: float) -> Pair:
    torch.manual_seed(0)
    prior, llama = build_prior(), build_llama()
    labels = torch.arange(batch) % NUM_CLASSES
    prompt = (labels + VOCABULARY).unsqueeze(1)
    guided = guidance_scale != 1
    settings = GenerationConfig(
        do_sample=True,
        top_k=0,
        max_new_tokens=LENGTH,
        min_new_tokens=None,
        suppress_tokens=list(range(VOCABULARY, NULL_TOKEN + 1)),
        guidance_scale=guidance_scale if guided else None,
    )
    negative = {"negative_prompt_ids": torch.full_like(prompt, NULL_TOKEN)} if guided else {}

    def generate() -> torch.Tensor:
        tokens = llama.generate(
            prompt, attention_mask=torch.ones_like(prompt), generation_config=settings, **negative
        )
        assert tokens.shape == (batch, LENGTH + 1)
        return tokens

    return lambda: prior.sample(batch, labels, guidance_scale=guidance_scale), generate
