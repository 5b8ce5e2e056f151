"""Scripts as functions: the same files, objects back, nothing printed, errors without dashes."""

import inspect
import json
import logging
import os
import random
import re
import signal
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from accelerate.state import AcceleratorState, GradientState

import latent_prior
from latent_prior import (
    Pipeline,
    assemble,
    encode,
    generate,
    generate_gan,
    open_codes,
    train_autoencoder,
    train_gan,
    train_prior,
)
from latent_prior.data.batch_order import RATES
from latent_prior.pipelines import assemble as assemble_script
from latent_prior.pipelines import generate as generate_script
from latent_prior.stage1_autoencoders import encode as encode_script
from latent_prior.stage1_autoencoders import train as autoencoder_script
from latent_prior.stage2_prior import train as prior_script
from latent_prior.stage2_prior.prior import TransformerPrior
from latent_prior.training import loop

SHORT = {
    "batch_size": 8, "max_steps": 6, "warmup_steps": 2, "learning_rate": 1e-3, "log_every": 3,
    "evaluate_every": 4, "checkpoint_every": 3, "cpu_threads": 1,
}  # fmt: skip
PART_OF_A_RUN = {
    *RATES, "seconds", "cpu_seconds", "seconds_per_image", "sealed_xxh3", "output_dir", "_fingerprint",
}  # fmt: skip


def nested(flags):
    """Options as somebody writes them in Python: those of a part as a dictionary."""
    values = {}
    for name, value in flags.items():
        first, _, rest = name.partition(".")
        if rest:
            values.setdefault(first, {})[rest] = value
        else:
            values[name] = value
    return values


@pytest.fixture(scope="module")
def flags(images, parts):
    return {**parts["vqvae_flags"], "dataset": images, "image_size": 16, **SHORT}


@pytest.fixture(scope="module")
def prior_flags(parts):
    return {**parts["prior_flags"], **SHORT}


@pytest.fixture(scope="module")
def made(call, flags, prior_flags, images, tmp_path_factory):
    """What the functions return; each script has then made the same from the same inputs."""
    root, other = tmp_path_factory.mktemp("python"), tmp_path_factory.mktemp("script")
    run = train_autoencoder(output_dir=root / "vqvae", **nested(flags))
    call(autoencoder_script, output_dir=other / "vqvae", **flags)

    inputs = {"autoencoder": run.model, "dataset": images, "flip": True, "cpu_threads": 1}
    codes = encode(output_dir=root / "codes", **inputs)
    call(encode_script, output_dir=other / "codes", **inputs)

    inputs = {"codes": codes.folder, "autoencoder": run.model}
    prior = train_prior(output_dir=root / "prior", **inputs, **nested(prior_flags))
    call(prior_script, output_dir=other / "prior", **inputs, **prior_flags)

    inputs = {"autoencoder": run.model, "prior": prior.model, "temperature": 0.9}
    pipe = assemble(output_dir=root / "pipeline", **inputs)
    call(assemble_script, output_dir=other / "pipeline", **inputs)

    inputs = {"pipeline": root / "pipeline", "num_images": 5, "cpu_threads": 1}
    drawn = generate(output_dir=root / "samples", **inputs)
    call(generate_script, output_dir=other / "samples", **inputs)
    return {
        "root": root, "other": other,
        "run": run, "codes": codes, "prior": prior, "pipe": pipe, "drawn": drawn,
    }  # fmt: skip


def contents(root):
    """Every file by its path, without clocks and the names of the folders."""
    found = {}
    for path in sorted(root.rglob("*")):
        if path.is_dir():
            continue
        if path.suffix == ".jsonl":
            content = [json.loads(line) for line in path.read_text().splitlines()]
        elif path.suffix == ".yaml":
            content = yaml.safe_load(path.read_text())
        elif path.name == "manifest.json" or path.suffix in (".pt", ".md"):
            continue  # they hold clocks, or digests of files with clocks
        elif path.suffix == ".json":
            content = json.loads(path.read_text())
        else:
            content = path.read_bytes()
        found[str(path.relative_to(root))] = without_clocks(content)
    return found


def without_clocks(content):
    if isinstance(content, dict):
        kept = {name: value for name, value in content.items() if name not in PART_OF_A_RUN}
        return {name: without_clocks(value) for name, value in kept.items()}
    if isinstance(content, list):
        return [without_clocks(value) for value in content]
    # Folders stand in some files; those of pytest have numbers.
    return re.sub(r"\S*/(python|script)\d+/", "", content) if isinstance(content, str) else content


def test_function_and_script_make_the_same_files(made):
    by_python, by_script = contents(made["root"]), contents(made["other"])
    assert by_python.keys() == by_script.keys()
    assert any(path.endswith(".arrow") for path in by_python)
    for path, content in by_script.items():
        assert by_python[path] == content, path


def test_a_training_returns_its_model_and_figures(made):
    run, prior = made["run"], made["prior"]
    assert run.folder == made["root"] / "vqvae"
    assert run.load().code_spec.image_size == 16
    assert run.figures["step"] == prior.figures["step"] == 6
    assert 0 < run.figures["epoch_usage"] <= 1
    assert prior.figures["validation_nats_per_code"] > 0
    best = TransformerPrior.from_pretrained(prior.best)
    assert prior.load().code_spec == best.code_spec


def test_codes_and_images_stand_for_their_folders(made):
    splits, _ = open_codes(made["codes"])
    assert {name: len(split) for name, split in splits.items()} == {
        name: count * (2 if name == "train" else 1) for name, count in made["codes"].splits.items()
    }
    drawn = made["drawn"]
    assert Path(drawn) == drawn.folder == made["root"] / "samples"
    assert len(drawn.paths) == len(drawn.labels) == 5
    assert all(path.is_file() for path in [*drawn.paths, drawn.grid])


def test_the_pipeline_is_that_of_its_folder(made):
    stored = Pipeline.from_pretrained(made["root"] / "pipeline")
    assert made["pipe"].sampler == stored.sampler
    assert stored.sampler.temperature == 0.9
    both = [
        pipe(2, generator=torch.Generator().manual_seed(0), output_type="pt").images
        for pipe in (made["pipe"], stored)
    ]
    assert torch.equal(*both)


def test_what_is_complete_is_returned(made, flags, images):
    root = made["root"]
    before = contents(root)
    again = train_autoencoder(output_dir=root / "vqvae", **nested(flags))
    assert again == made["run"]
    codes = encode(
        autoencoder=again.model, dataset=images, output_dir=root / "codes", flip=True, cpu_threads=1
    )
    assert codes == made["codes"]
    assert contents(root) == before


def test_python_is_silent_until_the_logger_is_turned_on(made, flags, images, tmp_path, capfd):
    run = train_autoencoder(output_dir=tmp_path / "run", **nested(flags))
    encode(autoencoder=run.model, dataset=images, output_dir=tmp_path / "codes")
    generate(pipeline=made["root"] / "pipeline", num_images=2, output_dir=tmp_path / "samples")
    assert capfd.readouterr() == ("", "")
    log = logging.getLogger("latent_prior")
    log.setLevel(logging.INFO)
    try:
        train_autoencoder(output_dir=tmp_path / "run", **nested({**flags, "max_steps": 7}))
    finally:
        log.setLevel(logging.NOTSET)
    assert "7/7" in capfd.readouterr().err


def test_what_is_logged_is_what_a_script_prints(flags, call, tmp_path, caplog, capfd):
    values = nested({**flags, "max_steps": 0})
    with caplog.at_level(logging.INFO, "latent_prior"):
        train_autoencoder(output_dir=tmp_path / "run", **values)
    logged = list(caplog.messages)
    capfd.readouterr()
    call(autoencoder_script, output_dir=tmp_path / "other", **{**flags, "max_steps": 0})
    printed = capfd.readouterr().out.splitlines()
    assert logged[0].startswith("train: 40 images")
    assert printed == [*logged, f"autoencoder: {tmp_path / 'other' / 'model'}"]


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({}, "output_dir is required"),
        ({"output_dir": "x", "bach_size": 3}, "unknown option bach_size (did you mean batch_size?)"),
        ({"output_dir": "x", "colour": 3}, "unknown option colour; help(train_autoencoder) lists them all"),
        ({"output_dir": "x", "model": {"codebok_size": 3}}, "unknown option model.codebok_size (did you mean model.codebook_size?)"),
        ({"output_dir": "x", "batch_size": "8"}, "batch_size takes a whole number, not '8'"),
        ({"output_dir": "x", "schedule": "step"}, "schedule takes one of constant, cosine, linear, not 'step'"),
        ({"output_dir": "x", "batch_size": 0}, "batch_size must be at least 1, not 0"),
        ({"output_dir": "x", "model": {"type": "vqvae3"}}, "model.type takes one of vae, vqvae, vqvae2, vaegan, vqgan, not 'vqvae3'"),
        ({"output_dir": "x", "resize": 8}, "resize needs image_size, the size of the crop from the resized image"),
        ({"output_dir": "x", "critic": {"width": 8}}, "critic.*: model.type vqvae is trained without a critic"),
        ({"output_dir": "x", "model": {"width": 8}, "model.width": 9}, "model.width is given twice, in a dictionary and under its dotted name"),
        ({"output_dir": "x", "config": "mnist_vqvea"}, "config: there is no file mnist_vqvea and no preset of that name (did you mean mnist_vqvae"),
    ],
)  # fmt: skip
def test_a_mistake_is_a_sentence_without_dashes(values, said, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError) as error:  # noqa: PT011  # the whole sentence is compared
        train_autoencoder(**values)
    assert str(error.value).startswith(said)
    assert not list(tmp_path.iterdir())


def test_mistakes_found_later_name_options_without_dashes_too(made, tmp_path):
    inputs = {"pipeline": made["root"] / "pipeline", "output_dir": made["root"] / "samples"}
    with pytest.raises(ValueError, match=r"^output_dir .* holds more than num_images 2 images"):
        generate(num_images=2, **inputs)
    with pytest.raises(ValueError, match=r"^codes .*there is no codes dataset"):
        train_prior(codes=tmp_path, output_dir=tmp_path / "prior")


def test_positional_arguments_are_refused():
    with pytest.raises(TypeError, match="positional"):
        train_autoencoder("mnist_vqvae")


@pytest.mark.parametrize(
    "function",
    [train_autoencoder, encode, train_prior, assemble, generate, train_gan, generate_gan],
    ids=lambda function: function.__name__,
)
def test_the_signature_lists_the_options(function):
    parameters = inspect.signature(function).parameters
    assert parameters["output_dir"].default is inspect.Parameter.empty
    assert parameters["output_dir"].annotation is str
    assert all(each.kind is inspect.Parameter.KEYWORD_ONLY for each in parameters.values())
    assert "    output_dir (str): " in function.__doc__
    assert function.__name__ in dir(latent_prior)


def test_the_signature_has_the_defaults_and_the_parts():
    signature = inspect.signature(train_autoencoder)
    assert signature.parameters["batch_size"].default == 64
    assert signature.parameters["label_column"].annotation == str | None
    assert signature.parameters["model"].annotation == dict[str, Any]
    assert signature.return_annotation is autoencoder_script.AutoencoderRun
    assert "model.codebook_size (int): Number of codes" in train_autoencoder.__doc__


def test_dotted_names_presets_tuples_and_paths(flags, tmp_path):
    preset = tmp_path / "preset.yaml"
    preset.write_text(yaml.safe_dump({**flags, "dataset": str(flags["dataset"]), "max_steps": 1}))
    dotted = {"model.multipliers": (1, 2), "model.codebook_size": 4}
    run = train_autoencoder(config=preset, output_dir=tmp_path / "run", **dotted)
    resolved = yaml.safe_load((run.folder / "config.yaml").read_text())
    assert resolved["model"]["codebook_size"] == 4
    assert resolved["model"]["multipliers"] == [1, 2]
    assert resolved["max_steps"] == 1


def test_the_callers_state_is_left_alone(flags, tmp_path):
    torch.manual_seed(3)
    np.random.seed(3)  # noqa: NPY002
    random.seed(3)
    expected = torch.rand(1), np.random.rand(), random.random()  # noqa: NPY002
    torch.manual_seed(3)
    np.random.seed(3)  # noqa: NPY002
    random.seed(3)
    AcceleratorState._shared_state["of"] = "the caller"
    threads = torch.get_num_threads()
    handlers = signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)
    try:
        train_autoencoder(
            output_dir=tmp_path / "run",
            **nested({**flags, "max_steps": 1, "cpu_threads": threads + 1}),
        )
        assert AcceleratorState._shared_state["of"] == "the caller"
    finally:
        AcceleratorState._shared_state.pop("of", None)
    assert (torch.rand(1), np.random.rand(), random.random()) == expected  # noqa: NPY002
    assert torch.get_num_threads() == threads
    assert (signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)) == handlers


def test_trainings_of_other_precision_and_accumulation_follow_each_other(flags, tmp_path):
    before = dict(AcceleratorState._shared_state), dict(GradientState._shared_state)
    first = train_autoencoder(output_dir=tmp_path / "a", **nested({**flags, "max_steps": 2}))
    half = {**flags, "max_steps": 1, "mixed_precision": "bf16", "accumulation_steps": 2}
    train_autoencoder(output_dir=tmp_path / "b", **nested(half))
    second = train_autoencoder(output_dir=tmp_path / "c", **nested({**flags, "max_steps": 2}))
    weights = [(run.model / "model.safetensors").read_bytes() for run in (first, second)]
    assert weights[0] == weights[1]
    assert before == (dict(AcceleratorState._shared_state), dict(GradientState._shared_state))


def test_interrupted_and_resumed_equals_straight(flags, tmp_path, monkeypatch):
    straight = train_autoencoder(output_dir=tmp_path / "straight", **nested(flags))
    add, calls = loop.Window.add, iter(range(100))

    def interrupted(window, metrics):
        add(window, metrics)
        if next(calls) == 1:
            signal.raise_signal(signal.SIGINT)

    handler = signal.signal(signal.SIGINT, signal.default_int_handler)
    monkeypatch.setattr(loop.Window, "add", interrupted)
    try:
        with pytest.raises(KeyboardInterrupt, match=r"after step 2 of 6; repeat the call"):
            train_autoencoder(output_dir=tmp_path / "vqvae", **nested(flags))
    finally:
        signal.signal(signal.SIGINT, handler)
    monkeypatch.undo()
    assert [path.name for path in (tmp_path / "vqvae" / "checkpoints").iterdir()] == [
        "step-000000002"
    ]
    run = train_autoencoder(output_dir=tmp_path / "vqvae", **nested(flags))
    assert {**run.figures, "seconds": 0} == {**straight.figures, "seconds": 0}
    assert contents(run.folder) == contents(straight.folder)


def test_a_thread_of_the_caller_may_train(made, flags, tmp_path):
    """Only the main thread can set handlers of signals."""
    done = []
    thread = threading.Thread(
        target=lambda: done.append(train_autoencoder(output_dir=tmp_path / "run", **nested(flags)))
    )
    thread.start()
    thread.join()
    assert done[0].figures.keys() == made["run"].figures.keys()


INTERRUPTED_TWICE = """
import os, signal, sys, time
from latent_prior.stopping import postponed
try:
    with postponed():
        os.kill(os.getpid(), signal.SIGINT)
        print("goes on", flush=True)
        os.kill(os.getpid(), signal.SIGINT)
        time.sleep(60)
except KeyboardInterrupt:
    print("and lives")
"""


def test_a_second_interrupt_ends_the_call_but_not_a_notebook():
    done = subprocess.run(
        [sys.executable, "-c", "import signal; signal.signal(signal.SIGINT, signal.default_int_handler)\n" + INTERRUPTED_TWICE],
        capture_output=True, text=True, timeout=60, check=False, env=os.environ | {"WORLD_SIZE": "1"},
    )  # fmt: skip
    assert done.stdout.splitlines() == ["goes on", "and lives"]
    assert done.returncode == 0
