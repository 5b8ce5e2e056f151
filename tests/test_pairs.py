"""Every autoencoder with every sensible prior over its codes: through the scripts to a pipeline."""

import json

import pytest
import torch
import yaml

from latent_prior.cli import parse_config
from latent_prior.pipelines import Pipeline, assemble, generate, latents
from latent_prior.stage1_autoencoders import MODELS, encode
from latent_prior.stage2_prior import train
from latent_prior.stage2_prior.options import TrainOptions

SHORT = {"max_steps": 4, "batch_size": 8, "warmup_steps": 1, "log_every": 2}
DISCRETE = ("vqvae", "vqvae2", "vqgan")
PAIRS = [
    *((name, "raster") for name in MODELS),
    *((name, "masked") for name in DISCRETE),
]


@pytest.fixture(scope="module")
def codes(call, parts, images, tmp_path_factory):
    """`codes(name)`: folders of a member and of what it made of the images."""
    made = {}

    def of(name):
        if name not in made:
            folder = tmp_path_factory.mktemp(name)
            parts["autoencoder"](name).save_pretrained(folder / "model")
            written = {"autoencoder": folder / "model", "dataset": images}
            call(encode, output_dir=folder / "codes", **written)
            made[name] = folder
        return made[name]

    return of


@pytest.fixture
def pipeline(call, parts, codes, tmp_path):
    """`pipeline(name, order, ...)` trains a prior for a few steps and assembles; the folder."""

    def of(name, order, **sampler):
        folder = codes(name)
        flags = {**parts["prior_flags"], **SHORT, "model.order": order, "codes": folder / "codes"}
        call(train, **flags, autoencoder=folder / "model", output_dir=tmp_path / "prior")
        sources = {"autoencoder": folder / "model", "prior": tmp_path / "prior" / "model"}
        call(assemble, **sources, **sampler, output_dir=tmp_path / "pipeline")
        return tmp_path / "pipeline"

    return of


@pytest.mark.parametrize(("name", "order"), PAIRS)
def test_a_pair_goes_the_whole_way(call, pipeline, tmp_path, name, order):
    folder = pipeline(name, order, guidance_scale=2.0)
    run = tmp_path / "prior"
    assert {"model", "best", "curves.png", "samples"} <= {path.name for path in run.iterdir()}
    figures = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()][-1]
    unit = "latent" if name in ("vae", "vaegan") else "code"
    assert f"validation_nats_per_{unit}" in figures

    pipe = Pipeline.from_pretrained(folder)
    assert pipe.sampler.guidance_scale == 2.0
    generators = [torch.Generator().manual_seed(seed) for seed in range(3)]
    out = pipe(3, labels=[0, 1, 2], generator=generators, output_type="pt")
    assert out.images.shape == (3, 3, 16, 16)
    for level in pipe.code_spec.levels:
        assert out.codes[level.name].shape == (3, *level.shape)
    alone = pipe(
        1, labels=[2], generator=torch.Generator().manual_seed(2), output_type="pt", batch_size=1
    )
    torch.testing.assert_close(alone.images[0], out.images[2], rtol=1e-4, atol=1e-4)

    call(generate, pipeline=folder, num_images=5, output_dir=tmp_path / "drawn")
    settings = json.loads((tmp_path / "drawn" / "generation.json").read_text())
    assert settings["guidance_scale"] == 2.0
    assert (settings["steps"] is None) == (order == "raster")
    assert (settings["top_k"] is None) == (unit == "latent")


def test_several_maps_are_reported_each_by_itself(pipeline, tmp_path):
    pipeline("vqvae2", "raster")
    lines = (tmp_path / "prior" / "metrics.jsonl").read_text().splitlines()
    figures = json.loads(lines[-1])
    spec = Pipeline.from_pretrained(tmp_path / "pipeline").code_spec
    names = [f"validation_nats_per_code_{level.name}" for level in spec.levels]
    total = sum(
        figures[name] * level.length for name, level in zip(names, spec.levels, strict=True)
    )
    assert total / spec.length == pytest.approx(figures["validation_nats_per_code"], rel=1e-5)


def test_masked_completion_keeps_what_is_seen_and_looks_at_all_of_it(
    call, images, pipeline, tmp_path
):
    folder = pipeline("vqvae", "masked", steps=4)
    flags = {"dataset": images, "num_images": 2, "operation": "complete", "mask": "top"}
    call(latents, pipeline=folder, steps=3, output_dir=tmp_path / "completed", **flags)
    settings = json.loads((tmp_path / "completed" / "latents.json").read_text())
    assert settings["steps"] == 3
    pipe = Pipeline.from_pretrained(folder)
    with torch.no_grad():  # a prior of a few steps hardly listens
        for parameter in pipe.prior.parameters():
            parameter.mul_(8 if parameter.ndim > 1 else 1)
    shown = torch.rand(2, 3, 16, 16) * 2 - 1
    other = shown.clone()
    other[:, :, 8:] = -other[:, :, 8:]
    mask = torch.zeros(16, 16, dtype=torch.bool)
    mask[:8] = True
    out = [
        pipe.complete(x, mask, generator=torch.Generator().manual_seed(0), output_type="pt")
        for x in (shown, other)
    ]
    torch.testing.assert_close(out[0].images[:, :, 8:], shown[:, :, 8:])
    kept = pipe.encode(torch.where(mask, 0, shown))["codes"].shape[1] // 2
    # A raster prior could not: what is drawn at the top depends on what is seen below it.
    drawn = [each.codes["codes"][:, :kept] for each in out]
    assert not torch.equal(drawn[0], drawn[1])


def test_latents_in_masked_order_are_refused_before_anything_is_written(
    refused, parts, codes, tmp_path
):
    flags = {**parts["prior_flags"], **SHORT, "codes": codes("vae") / "codes"}
    said = refused(train, **flags, **{"model.order": "masked"}, output_dir=tmp_path / "run")
    assert "--model.order masked is for codes" in said
    assert not (tmp_path / "run").exists()


def test_every_preset_is_of_a_pair(pytestconfig):
    """Each preset parses, and every member has one for each of three data sets.

    The VAE for a prior is the one with a grid of latents.
    """
    presets = sorted((pytestconfig.rootpath / "stage2_prior" / "configs").glob("*.yaml"))
    for preset in presets:
        options = parse_config(
            TrainOptions, ["--config", str(preset), "--codes", "x", "--output_dir", "y"]
        )
        order = yaml.safe_load(preset.read_text()).get("model", {}).get("order", "raster")
        assert options.model.order == order
    names = {preset.stem for preset in presets}
    for member in ("vae_grid", *(set(MODELS) - {"vae"}), "masked"):
        assert {f"{data}_{member}" for data in ("mnist", "shapes", "cifar10")} <= names
