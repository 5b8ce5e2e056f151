"""Exported priors in the engines that install from the package index, each where it is there.

An engine takes prompts, lists of tokens, and gives the tokens that it draws after them.
"""

import json
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import httpx
import numpy as np
import pytest
import torch
from transformers import AutoTokenizer

from latent_prior import Pipeline
from latent_prior.stage2_prior import export
from latent_prior.stage2_prior.engine_tokens import codes_from_tokens
from latent_prior.stage2_prior.sampler import Sampler
from latent_prior.stage2_prior.text.tokenizer import CaptionTokenizer
from tests.stage2_prior.exact import raster_distribution
from tests.stage2_prior.samples import chance_of, counts_of

Draw = Callable[..., list[list[int]]]


@contextmanager
def ctranslate2(folder: Path) -> Iterator[Draw]:
    """Converted by its own converter."""
    engine = pytest.importorskip("ctranslate2")
    engine.converters.TransformersConverter(str(folder)).convert(str(folder.parent / "ct2"))
    generator = engine.Generator(str(folder.parent / "ct2"), intra_threads=1)
    words = json.loads((folder.parent / "ct2" / "vocabulary.json").read_text())
    engine.set_random_seed(0)

    def draw(prompts: Sequence[Sequence[int]], length: int, codes: int, *, greedy: bool = False):
        results = generator.generate_batch(
            [[words[token] for token in prompt] for prompt in prompts],
            sampling_topk=1 if greedy else 0,
            min_length=length,
            max_length=length,
            suppress_sequences=[[word] for word in words[codes:]],
            include_prompt_in_result=False,
        )
        return [result.sequences_ids[0] for result in results]

    yield draw


@contextmanager
def llama_cpp(folder: Path) -> Iterator[Draw]:
    """Its own server, of which xllamacpp starts a thread."""
    engine = pytest.importorskip("xllamacpp")
    params = engine.CommonParams()
    params.model.path = str(folder / "model.gguf")
    params.cache_type_k = params.cache_type_v = engine.ggml_type.GGML_TYPE_F32
    params.flash_attn_type = engine.llama_flash_attn_type.LLAMA_FLASH_ATTN_TYPE_DISABLED
    params.n_parallel, params.n_ctx, params.verbosity = 8, 8 * 256, -1
    params.cpuparams.n_threads = params.cpuparams_batch.n_threads = 1
    size = json.loads((folder / "config.json").read_text())["vocab_size"]
    server = engine.Server(params)  # stops when it is forgotten
    with httpx.Client(base_url=server.listening_address, timeout=60) as client:

        def draw_one(prompt: object, seed: int, length: int, codes: int, greedy: bool):
            wish = {
                "prompt": prompt,
                "n_predict": length,
                "ignore_eos": True,
                "logit_bias": [[token, False] for token in range(codes, size)],
                "temperature": 0.0 if greedy else 1.0,
                "samplers": ["temperature"],
                "seed": seed,
                "return_tokens": True,
            }
            answer = client.post("/completion", json=wish).raise_for_status().json()
            assert answer["content"].split() == list(map(str, answer["tokens"]))
            return answer["tokens"]

        def draw(prompts: Sequence[object], length: int, codes: int, *, greedy: bool = False):
            with ThreadPoolExecutor(8) as threads:
                jobs = [
                    threads.submit(draw_one, prompt, seed, length, codes, greedy)
                    for seed, prompt in enumerate(prompts)
                ]
                return [job.result() for job in jobs]

        yield draw
    del server, draw


@contextmanager
def onnx_runtime(folder: Path) -> Iterator[Draw]:
    """Converted by its own builder, which is a command."""
    engine = pytest.importorskip("onnxruntime_genai")
    pytest.importorskip("onnx_ir")
    onnx = folder.parent / "onnx"
    builder = [sys.executable, "-m", "onnxruntime_genai.models.builder", "-i", str(folder)]
    builder += ["-m", "", "-o", str(onnx), "-p", "fp32", "-e", "cpu", "-c", str(onnx.parent)]
    subprocess.run(builder, check=True, capture_output=True)
    size = json.loads((folder / "config.json").read_text())["vocab_size"]
    config = engine.Config(str(onnx))
    config.overlay(json.dumps({"model": {"pad_token_id": size}}))
    model = engine.Model(config)

    def draw_some(prompts: Sequence[Sequence[int]], length: int, codes: int, greedy: bool):
        params = engine.GeneratorParams(model)
        total = len(prompts[0]) + length
        params.set_search_options(
            batch_size=len(prompts), min_length=total, max_length=total, do_sample=not greedy
        )
        generator = engine.Generator(model, params)
        generator.append_tokens(np.array(prompts, dtype=np.int32))
        for _ in range(length):
            logits = generator.get_logits()
            logits[..., codes:] = -np.inf
            generator.set_logits(logits)
            generator.generate_next_token()
        return [generator.get_sequence(row)[-length:].tolist() for row in range(len(prompts))]

    def draw(prompts: Sequence[Sequence[int]], length: int, codes: int, *, greedy: bool = False):
        batches = [prompts[start : start + 32] for start in range(0, len(prompts), 32)]
        return [row for batch in batches for row in draw_some(batch, length, codes, greedy)]

    yield draw


ENGINES = pytest.mark.parametrize("engine", [ctranslate2, llama_cpp])


@pytest.fixture
def exported(call, tmp_path):
    """`exported(prior)`: the folder of its export."""
    pytest.importorskip("gguf")

    def write(prior):
        prior.save_pretrained(tmp_path / "prior")
        call(export, prior=tmp_path / "prior", output_dir=tmp_path / "llama", gguf="true")
        return tmp_path / "llama"

    return write


def prompts_of(prior, labels):
    return [[prior.null_token if label < 0 else label + prior.num_codes] for label in labels]


def assert_no_near_ties(prior, maps, labels):
    """Engines round differently: the largest logits must be apart by more than that."""
    with torch.no_grad():
        best = prior(maps, torch.tensor(labels)).logits.topk(2).values
    assert (best[..., 0] - best[..., 1]).min() > 1e-4


@ENGINES
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"width": 144, "heads": 3, "mlp_ratio": 3.0},
        {"condition": "none"},
        {"trained_guidance": 1.5, "label_dropout": 0.1},
    ],
)
def test_greedy_tokens_are_the_priors(make_prior, exported, engine, options):
    """Of every class and none; also with the presets' head width of 48, and guidance learnt."""
    prior = make_prior((4, 5, 50), **options)
    labels = [*range(prior.num_classes), -1]
    expected = prior.sample(len(labels), labels, temperature=0)
    assert len(expected["codes"].flatten().unique()) > 5
    assert_no_near_ties(prior, expected, labels)
    with engine(exported(prior)) as draw:
        found = draw(prompts_of(prior, labels), prior.length, prior.num_codes, greedy=True)
    assert torch.equal(codes_from_tokens(found, prior.code_spec)["codes"], expected["codes"])


@ENGINES
@pytest.mark.parametrize("label", [1, -1])
def test_sampled_frequencies_are_the_priors_probabilities(make_prior, exported, engine, label):
    """Of whole sequences, among 125; classes are never drawn, although they would be likely."""
    prior = make_prior((1, 3, 5), spread=3.0)
    with engine(exported(prior)) as draw:
        drawn = draw(prompts_of(prior, [label]) * 2000, prior.length, prior.num_codes)
    (start,) = prompts_of(prior, [label])
    probabilities = raster_distribution(prior, start[0], Sampler())
    assert chance_of(counts_of(torch.tensor(drawn), prior), probabilities) > 1e-4


@ENGINES
def test_images_are_those_of_the_pipeline(parts, exported, engine):
    autoencoder = parts["vqvae"]()
    prior = parts["prior"](autoencoder)
    pipe, labels = Pipeline(autoencoder, prior), list(range(prior.num_classes))
    expected = pipe(len(labels), labels=labels, temperature=0, guidance_scale=1, output_type="pt")
    assert_no_near_ties(prior, expected.codes, labels)
    with engine(exported(prior)) as draw:
        tokens = draw(prompts_of(prior, labels), prior.length, prior.num_codes, greedy=True)
    torch.testing.assert_close(pipe.decode(tokens), expected.images)


@ENGINES
def test_captions_are_prompts(make_prior, exported, engine):
    """Of different lengths, together."""
    captions = ["a red circle", "a blue square, top left", "ein grüner Kreis ⭐"]
    tokenizer = CaptionTokenizer.train(captions * 2, 300)
    prior = make_prior((4, 5, 50), condition="text", text=tokenizer.spec)
    prior.tokenizer = tokenizer
    expected = prior.sample(3, text=tokenizer.read(captions), temperature=0)["codes"]
    folder = exported(prior)
    prompts = AutoTokenizer.from_pretrained(folder)(captions)["input_ids"]
    with engine(folder) as draw:
        found = draw(prompts, prior.length, prior.num_codes, greedy=True)
    assert torch.equal(codes_from_tokens(found, prior.code_spec)["codes"], expected)


def test_onnx_runtime_draws_what_the_prior_draws(make_prior, exported):
    """As the tests above, in one: the conversion takes seconds."""
    prior = make_prior((1, 3, 5), spread=3.0)
    labels = [*range(prior.num_classes), -1]
    expected = prior.sample(len(labels), labels, temperature=0)
    assert_no_near_ties(prior, expected, labels)
    with onnx_runtime(exported(prior)) as draw:
        size = prior.length, prior.num_codes
        found = draw(prompts_of(prior, labels), *size, greedy=True)
        drawn = {label: draw(prompts_of(prior, [label]) * 2000, *size) for label in (1, -1)}
    assert torch.equal(codes_from_tokens(found, prior.code_spec)["codes"], expected["codes"])
    for label, tokens in drawn.items():
        probabilities = raster_distribution(prior, prompts_of(prior, [label])[0][0], Sampler())
        assert chance_of(counts_of(torch.tensor(tokens), prior), probabilities) > 1e-4


def test_llama_cpp_reads_prompts_as_text(make_prior, exported):
    prior = make_prior((2, 2, 250), num_classes=30)
    labels = [0, 9, 29, -1]
    with llama_cpp(exported(prior)) as draw:
        numbers = prompts_of(prior, labels)
        texts = [str(number) for (number,) in numbers]
        by_number, by_text = (
            draw(prompts, prior.length, prior.num_codes, greedy=True)
            for prompts in (numbers, texts)
        )
    assert by_text == by_number
