"""Images per second of an exported prior in engines, beside `Pipeline` and transformers.

    pip install -e ".[engines]" && python benchmarks/engines.py --output engines.json

Everybody draws the same number of images of all classes at guidance 1, the pipeline also in the two
passes of guidance 1.5, in float32, with the same number of threads, and one decoder turns the codes
into images. The prior is that of `throughput.py`, the decoder an untrained VQ-VAE of 64 x 64
images: what is drawn depends on neither. They take turns; ratios are medians over the rounds of the
engine's images per second to the pipeline's in the same round. llama.cpp answers requests over
HTTP, as its users' programs send them, with a slot for each image of a batch.
"""

from __future__ import annotations

import dataclasses
import json
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

from measuring import MeasuringOptions, clock, processor_name, write_json

from latent_prior.cli import answer_early, parse_config, run
from latent_prior.options import option


@dataclass(kw_only=True)
class EngineOptions(MeasuringOptions):
    """Measure engines."""

    batches: list[int] = option(factory=lambda: [1, 16, 64], at_least=1)
    """Images that are drawn together."""
    rounds: int = option(5, at_least=1)
    """How often everybody draws, after one round that is not timed."""
    threads: int | None = option(None, at_least=1)
    """Threads; null takes all cores."""


answer_early(__name__, EngineOptions)

import ctranslate2
import httpx
import numpy as np
import onnxruntime_genai
import prior
import torch
import xllamacpp
from torch import Tensor
from transformers import LlamaForCausalLM
from transformers.utils import logging as transformers_logging

from latent_prior import Pipeline
from latent_prior.machine import available_cores
from latent_prior.stage1_autoencoders.vqvae import VQVAE, VQVAEConfig
from latent_prior.stage2_prior.export import GGUF_FILE, to_llama, write_gguf, write_tokenizer
from latent_prior.stage2_prior.prior import PriorConfig, TransformerPrior

CODES, TOKENS = prior.VOCABULARY, prior.NULL_TOKEN + 1
Draw = Callable[[Sequence[int]], Sequence[Sequence[int]] | Tensor]
"""Tokens (B, L) of images that begin with these."""


@dataclass
class Line:
    """Images per second of an engine at a batch size, and its ratio to the pipeline's."""

    engine: str
    batch: int
    images_per_second: float
    ratio: float


def main() -> None:
    """Entry point."""
    options = parse_config(EngineOptions)
    threads = options.threads or available_cores()
    torch.set_num_threads(threads)
    transformers_logging.disable_progress_bar()
    print(f"{processor_name()}, {threads} threads, torch {torch.__version__}")
    lines = []
    for batch in options.batches:
        lines += measure(batch, threads, options.rounds)
    write_json(options.output, lines)


def measure(batch: int, threads: int, rounds: int) -> list[Line]:
    """Let everybody draw in turn."""
    torch.manual_seed(0)
    pipe = build_pipeline()
    assert pipe.prior is not None
    labels = [number % prior.NUM_CLASSES for number in range(batch)]
    starts = [CODES + label for label in labels]
    with tempfile.TemporaryDirectory() as folder, ExitStack() as stack:
        export(pipe.prior, Path(folder))
        engines: dict[str, Draw] = {
            f"transformers {version('transformers')}": transformers_draw(Path(folder)),
            f"CTranslate2 {version('ctranslate2')}": ctranslate2_draw(Path(folder), threads),
            f"onnxruntime-genai {version('onnxruntime-genai')}": onnx_draw(Path(folder), threads),
            f"xllamacpp {version('xllamacpp')}": stack.enter_context(
                llama_cpp_draw(Path(folder), threads, batch)
            ),
        }
        calls: dict[str, Callable[[], object]] = {
            "Pipeline": lambda: pipe(batch, labels=labels, guidance_scale=1.0, output_type="pt"),
            "Pipeline, guidance 1.5": lambda: pipe(
                batch, labels=labels, guidance_scale=1.5, output_type="pt"
            ),
            **{name: whole(pipe, draw, starts) for name, draw in engines.items()},
        }
        for call in calls.values():
            call()
        seconds = [{name: clock(call) for name, call in calls.items()} for _ in range(rounds)]
    lines = []
    for name in calls:
        ours = statistics.median(each["Pipeline"] / each[name] for each in seconds)
        speed = batch / statistics.median(each[name] for each in seconds)
        lines.append(Line(name, batch, speed, ours))
        print(f"batch {batch:3} {name:28} {speed:8.2f} images/s  {ours:5.2f}x", flush=True)
    return lines


def build_pipeline() -> Pipeline:
    """An untrained pipeline."""
    config = VQVAEConfig(
        image_size=4 * prior.SIDE, image_channels=3, multipliers=[1, 2, 2], codebook_size=CODES
    )
    autoencoder = VQVAE(config).eval()
    classes = tuple(map(str, range(prior.NUM_CLASSES)))
    spec = dataclasses.replace(autoencoder.code_spec, class_names=classes)
    return Pipeline(autoencoder, TransformerPrior(PriorConfig(code_spec=spec.to_dict())).eval())


def whole(pipe: Pipeline, draw: Draw, starts: Sequence[int]) -> Callable[[], object]:
    """Draw tokens and decode them."""
    return lambda: pipe.decode(draw(starts))


def export(model: TransformerPrior, folder: Path) -> None:
    """What `export.py` writes that the engines read."""
    llama = to_llama(model)
    llama.save_pretrained(folder)
    write_tokenizer(model, folder)
    write_gguf(llama, folder / GGUF_FILE)


def transformers_draw(folder: Path) -> Draw:
    """`generate`, with the export's own settings."""
    llama = LlamaForCausalLM.from_pretrained(folder)
    return lambda starts: llama.generate(torch.tensor(starts).unsqueeze(1))


def ctranslate2_draw(folder: Path, threads: int) -> Draw:
    """After its own converter."""
    converter = ctranslate2.converters.TransformersConverter(str(folder))
    converter.convert(str(folder / "ct2"))
    generator = ctranslate2.Generator(str(folder / "ct2"), intra_threads=threads)

    def draw(starts: Sequence[int]) -> Sequence[Sequence[int]]:
        results = generator.generate_batch(
            [[str(token)] for token in starts],
            sampling_topk=0,
            min_length=prior.LENGTH,
            max_length=prior.LENGTH,
            suppress_sequences=[[str(token)] for token in range(CODES, TOKENS)],
            include_prompt_in_result=False,
        )
        return [result.sequences_ids[0] for result in results]

    return draw


def onnx_draw(folder: Path, threads: int) -> Draw:
    """After its own builder; a batch has at most 32 images."""
    builder = [sys.executable, "-m", "onnxruntime_genai.models.builder", "-i", str(folder)]
    builder += ["-m", "", "-o", str(folder / "onnx"), "-p", "fp32", "-e", "cpu", "-c", str(folder)]
    subprocess.run(builder, check=True, capture_output=True)
    config = onnxruntime_genai.Config(str(folder / "onnx"))
    session = {"intra_op_num_threads": threads}
    config.overlay(
        json.dumps({"model": {"pad_token_id": TOKENS, "decoder": {"session_options": session}}})
    )
    model = onnxruntime_genai.Model(config)

    def draw_some(starts: Sequence[int]) -> list[Sequence[int]]:
        params, total = onnxruntime_genai.GeneratorParams(model), 1 + prior.LENGTH
        params.set_search_options(
            batch_size=len(starts), min_length=total, max_length=total, do_sample=True
        )
        generator = onnxruntime_genai.Generator(model, params)
        generator.append_tokens(np.array(starts, dtype=np.int32)[:, None])
        for _ in range(prior.LENGTH):
            logits = generator.get_logits()
            logits[..., CODES:] = -np.inf
            generator.set_logits(logits)
            generator.generate_next_token()
        return [generator.get_sequence(number)[1:].tolist() for number in range(len(starts))]

    return lambda starts: [
        row for first in range(0, len(starts), 32) for row in draw_some(starts[first : first + 32])
    ]


@contextmanager
def llama_cpp_draw(folder: Path, threads: int, slots: int) -> Iterator[Draw]:
    """Its own server."""
    params = xllamacpp.CommonParams()
    params.model.path = str(folder / GGUF_FILE)
    params.n_parallel, params.n_ctx, params.verbosity = slots, slots * 512, -1
    params.cpuparams.n_threads = params.cpuparams_batch.n_threads = threads
    params.cache_type_k = params.cache_type_v = xllamacpp.ggml_type.GGML_TYPE_F32
    params.flash_attn_type = xllamacpp.llama_flash_attn_type.LLAMA_FLASH_ATTN_TYPE_DISABLED
    params.n_threads_http = slots + 1
    server = xllamacpp.Server(params)  # stops when it is forgotten

    def draw_one(start: int) -> list[int]:
        wish = {
            "prompt": [start],
            "n_predict": prior.LENGTH,
            "ignore_eos": True,
            "logit_bias": [[token, False] for token in range(CODES, TOKENS)],
            "samplers": ["temperature"],
            "temperature": 1.0,
            "return_tokens": True,
        }
        answer = client.post("/completion", json=wish).raise_for_status()
        tokens: list[int] = answer.json()["tokens"]
        return tokens

    with (
        httpx.Client(base_url=server.listening_address, timeout=600) as client,
        ThreadPoolExecutor(slots) as threads_of_clients,
    ):
        yield lambda starts: list(threads_of_clients.map(draw_one, starts))
    del server


if __name__ == "__main__":
    run(main)
