import dataclasses
import json
import math
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from latent_prior.data.images import open_images, to_float
from latent_prior.evaluation import likelihood
from latent_prior.evaluation.likelihood import LikelihoodOptions
from latent_prior.options import ImageOptions
from latent_prior.pipelines import Pipeline
from latent_prior.stage2_prior.prior import PriorConfig, TransformerPrior

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def data(parts, tmp_path_factory):
    """A data set with images to fit to and others to measure."""
    folder = tmp_path_factory.mktemp("data") / "shapes"
    parts["images"](folder / "train", 12)
    parts["images"](folder / "validation", 11, seed=1)
    return folder


@pytest.fixture(scope="module")
def pipelines(parts, tmp_path_factory):
    """Folders of pipelines by what they are made of."""
    root = tmp_path_factory.mktemp("pipelines")
    vqvae2, vae = parts["autoencoder"]("vqvae2"), parts["autoencoder"]("vae")
    measured = {"latent_shift": (0.1,) * 6, "latent_scale": (0.9,) * 6}
    latents = dataclasses.replace(vae.code_spec, **measured)
    codes = dataclasses.replace(vqvae2.code_spec, class_names=())
    torch.manual_seed(0)
    shape = {"width": 16, "depth": 1, "heads": 2}
    made = {
        "codes": Pipeline(vqvae2, parts["prior"](vqvae2)),
        "masked": Pipeline(
            vqvae2,
            TransformerPrior(PriorConfig(code_spec=codes.to_dict(), order="masked", **shape)),
        ),
        "latents": Pipeline(
            vae, TransformerPrior(PriorConfig(code_spec=latents.to_dict(), **shape))
        ),
        "vae": Pipeline(vae),
    }
    for name, pipe in made.items():
        pipe.save_pretrained(root / name)
    return root


@pytest.fixture
def measure(call, data, pipelines, tmp_path, capsys):
    """`measure(pipeline, ...)`: the content of likelihood.json and of likelihood.md."""

    def into(pipeline, **flags):
        folder = tmp_path / f"out{len(list(tmp_path.iterdir()))}"
        call(likelihood, pipeline=pipelines / pipeline, dataset=data, output_dir=folder, **flags)
        text = (folder / "likelihood.md").read_text()
        printed = capsys.readouterr().out
        assert (
            text.split("\n\n")[1].split()
            == printed.partition("\n\n")[2].split()[: len(text.split("\n\n")[1].split())]
        )
        assert str(folder / "likelihood.md") in printed
        return json.loads((folder / "likelihood.json").read_text()), text

    return into


def test_codes_are_measured_level_by_level_given_their_class(measure, pipelines, data):
    found, table = measure("codes")
    learned, uniform = found["rows"]
    assert [learned["name"], uniform["name"]] == ["learned prior", "uniform codes"]
    pipe = Pipeline.from_pretrained(pipelines / "codes")
    images = open_images(ImageOptions(dataset=str(data), image_size=16, channels=3), "validation")
    pixels = to_float(images.read(range(11)))
    with torch.no_grad():
        nats = pipe.prior.nats(pipe.encode(pixels), images.labels)
    total = sum(nats.values())
    assert learned["codes_bits_per_image"] == pytest.approx(float(total.mean()) / math.log(2))
    assert learned["nats_per_code"] == pytest.approx(float(total.mean()) / 80)
    assert list(learned["levels"]) == ["top", "bottom"]
    for level, length in (("top", 16), ("bottom", 64)):
        expected = float(nats[level].mean()) / length
        assert learned["levels"][level]["nats_per_code"] == pytest.approx(expected)
        assert uniform["levels"][level]["nats_per_code"] == pytest.approx(math.log(16))
        assert f"{expected:.4f}" in table
    for row in (learned, uniform):
        sum_of_parts = row["pixels_bits_per_dim"] + row["codes_bits_per_image"] / (3 * 16 * 16)
        assert row["bits_per_dim"] == pytest.approx(sum_of_parts)
        assert row["num_images"] == 11
        assert row["bits_per_dim_stderr"] > 0
    assert uniform["codes_bits_per_image"] == pytest.approx(80 * 4)


def test_the_protocol_says_how_the_numbers_came_about(measure, pipelines):
    found, table = measure("codes", seed=3, fit_images=7, num_images=5)
    protocol, pipe = found["protocol"], Pipeline.from_pretrained(pipelines / "codes")
    assert protocol["autoencoder_fingerprint"] == pipe.autoencoder.fingerprint
    assert protocol["prior_fingerprint"] == pipe.prior.fingerprint
    expected = {
        "split": "validation",
        "num_images": 5,
        "draws": 1,
        "seed": 3,
        "labels": "own class",
    }
    assert {name: protocol[name] for name in expected} == expected
    pixels = protocol["pixels"]
    assert (pixels["likelihood"], pixels["fit_split"], pixels["fit_images"]) == (
        "logistic",
        "train",
        7,
    )
    assert len(pixels["scale"]) == 3
    assert "-log p(x|c(x)) - log p(c(x))" in table
    assert "5 images" in table
    assert "given own class" in table
    assert "fitted to 7 images of split `train`" in table


def test_a_prior_of_any_class_is_measured_without_labels(measure):
    found, _ = measure("codes", conditional="false")
    assert found["protocol"]["labels"] == "any class"
    assert found["rows"][0]["bits_per_dim"] != measure("codes")[0]["rows"][0]["bits_per_dim"]
    assert measure("masked")[0]["protocol"]["labels"] == "any class"


@pytest.mark.parametrize("pipeline", ["codes", "latents"])
def test_numbers_do_not_depend_on_batches(measure, pipeline):
    small, large = (measure(pipeline, batch_size=size)[0]["rows"] for size in (3, 64))
    for one, other in zip(small, large, strict=True):
        for name in ("bits_per_dim", "bits_per_dim_stderr", "codes_bits_per_image"):
            assert one[name] == pytest.approx(other[name], rel=1e-4)


def test_latents_are_measured_against_the_standard_normal(measure):
    found, table = measure("latents", draws=3)
    learned, normal = found["rows"]
    assert [learned["name"], normal["name"]] == ["learned prior", "N(0, I)"]
    assert found["protocol"]["draws"] == 3
    assert learned["pixels_bits_per_dim"] == normal["pixels_bits_per_dim"]
    assert learned["nats_per_latent"] != normal["nats_per_latent"]
    assert "E_q[-log p(x|z) - log p(z) + log q(z|x)]" in table
    assert "a density times the distance of two grey levels" in table
    # Without the learned prior the other row stays what it was.
    (alone,) = measure("vae", draws=3)[0]["rows"]
    levels, its = alone.pop("levels"), normal.pop("levels")
    assert alone == pytest.approx(normal)  # sums of another stride
    assert levels["latents"] == pytest.approx(its["latents"])


def test_the_bits_of_latents_are_their_divergence_from_the_prior(measure, pipelines, data):
    (row,) = measure("vae", draws=200)[0]["rows"]
    vae = Pipeline.from_pretrained(pipelines / "vae").autoencoder
    images = open_images(ImageOptions(dataset=str(data), image_size=16, channels=3), "validation")
    with torch.no_grad():
        kl = vae.posterior(to_float(images.read(range(11)))).kl().sum() / 11
    assert row["codes_bits_per_image"] == pytest.approx(float(kl) / math.log(2), rel=0.05)
    bits = row["pixels_bits_per_dim"] + row["codes_bits_per_image"] / (3 * 16 * 16)
    assert row["bits_per_dim"] == pytest.approx(bits)


def test_more_draws_change_the_estimate_a_little(measure):
    few, more = (measure("latents", draws=draws)[0]["rows"][0]["bits_per_dim"] for draws in (1, 20))
    assert few != more
    assert few == pytest.approx(more, rel=0.05)


@pytest.mark.parametrize("pipeline", ["latents", "masked"])
def test_processes_share_the_images_whatever_their_number(
    measure, monkeypatch, pipelines, pipeline
):
    """Each of two processes measures its part of what one measures."""
    (whole, _), parts = measure(pipeline, batch_size=4, draws=2), []
    monkeypatch.setattr(
        likelihood, "gather_in_order", lambda batches, width, accelerator: np.concatenate(batches)
    )
    start = likelihood.start_processes
    for rank in range(2):

        def one_of_two(rank=rank, **settings):
            accelerator = start(**settings)
            return SimpleNamespace(
                device=accelerator.device,
                process_index=rank,
                num_processes=2,
                is_main_process=True,
                wait_for_everyone=accelerator.wait_for_everyone,
            )

        monkeypatch.setattr(likelihood, "start_processes", one_of_two)
        parts.append(measure(pipeline, batch_size=4, draws=2)[0]["rows"])
    assert [rows[0]["num_images"] for rows in parts] == [4, 7]
    for expected, first, second in zip(whole["rows"], *parts, strict=True):
        mean = (4 * first["bits_per_dim"] + 7 * second["bits_per_dim"]) / 11
        assert mean == pytest.approx(expected["bits_per_dim"], rel=1e-6)


def test_what_cannot_be_measured_is_refused(refused, data, pipelines, parts, tmp_path):
    out = {"output_dir": tmp_path / "out", "dataset": data, "pipeline": pipelines / "codes"}
    assert "leave the flag out" in refused(likelihood, **out, draws=2)
    assert "'test'" in refused(likelihood, **out, split="test")
    assert "'held'" in refused(likelihood, **out, fit_split="held")
    assert "11 readable images" in refused(likelihood, **out, num_images=12)
    shutil.copytree(data, tmp_path / "others")
    (tmp_path / "others" / "validation" / "bee").rename(
        tmp_path / "others" / "validation" / "zebra"
    )
    said = refused(likelihood, **out | {"dataset": tmp_path / "others"})
    assert "'zebra'" in said
    assert "--conditional false" in said


@pytest.mark.parametrize(
    ("wrong", "flag"),
    [
        ({"draws": 0}, "--draws"),
        ({"fit_images": 0}, "--fit_images"),
        ({"num_images": 1}, "--num_images"),
        ({"batch_size": 0}, "--batch_size"),
        ({"seed": -1}, "--seed"),
    ],
)
def test_impossible_options_are_named(wrong, flag):
    LikelihoodOptions(pipeline="p", output_dir="o")
    with pytest.raises(ValueError, match=flag):
        LikelihoodOptions(pipeline="p", output_dir="o", **wrong)


def test_mistakes_are_answered_before_torch_is_imported():
    code = (
        "import runpy, sys\nsys.argv = ['likelihood.py', '--pipeline', 'p', '--output_dir', 'o', '--draws', '0']\n"
        f"try: runpy.run_path({str(ROOT / 'evaluation' / 'likelihood.py')!r}, run_name='__main__')\n"
        "except SystemExit as stopped: print(stopped.code, 'torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT)
    assert done.stdout.split() == ["2", "False"]
    assert "--draws" in done.stderr
