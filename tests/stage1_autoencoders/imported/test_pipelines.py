"""Every imported kind with every sensible prior: one pipeline that saves, generates and scores."""

import json

import numpy as np
import pytest
import torch
from PIL import Image

from latent_prior.data.codes_dataset import open_codes
from latent_prior.evaluation import likelihood, score
from latent_prior.pipelines import Pipeline, assemble, generate, latents
from latent_prior.stage1_autoencoders import encode, import_tokenizer, load_autoencoder
from latent_prior.stage2_prior import train
from tests.stage1_autoencoders.imported.conftest import flags_of, unpack

SHORT = {"max_steps": 2, "batch_size": 8, "warmup_steps": 1, "log_every": 1}
PAIRS = [
    ("taming_vq_attention", "raster"),
    ("taming_gumbel", "masked"),
    ("llamagen_vq_l2", "raster"),
    ("ldm_kl", "raster"),
    ("diffusers_vq_spatial", "masked"),
    ("diffusers_vq_amused", "raster"),
    ("diffusers_kl", "raster"),
]


@pytest.fixture(scope="module")
def pictures(parts, tmp_path_factory):
    """24 RGB images of 32 x 32 in three classes."""
    return parts["images"](tmp_path_factory.mktemp("images") / "shapes", 24, size=32)


@pytest.fixture(scope="module")
def codes(call, pictures, tokenizer, tmp_path_factory):
    """`codes(name)`: the folder of a tokenizer's codes of the pictures."""
    made = {}

    def of(name):
        if name not in made:
            folder = tmp_path_factory.mktemp("codes") / name
            call(encode, autoencoder=tokenizer(name), dataset=pictures, output_dir=folder)
            made[name] = folder
        return made[name]

    return of


@pytest.mark.parametrize(("name", "order"), PAIRS)
def test_a_pair_goes_the_whole_way(call, parts, pictures, tokenizer, codes, tmp_path, name, order):
    autoencoder = tokenizer(name)
    flags = {**parts["prior_flags"], **SHORT, "model.order": order, "codes": codes(name)}
    call(train, **flags, autoencoder=autoencoder, output_dir=tmp_path / "prior")
    assert list((tmp_path / "prior/samples").glob("*.png"))
    prior = tmp_path / "prior" / "model"
    call(assemble, autoencoder=autoencoder, prior=prior, output_dir=tmp_path / "pipeline")

    pipe = Pipeline.from_pretrained(tmp_path / "pipeline")
    out = pipe(2, generator=0, output_type="pt")
    assert out.images.shape == (2, 3, 32, 32)
    assert out.images.abs().max() <= 1
    images = torch.rand(2, 3, 32, 32) * 2 - 1
    with torch.no_grad():
        expected = load_autoencoder(autoencoder)(images).images
    assert torch.equal(pipe.reconstruct(images), expected)

    call(generate, pipeline=tmp_path / "pipeline", num_images=6, output_dir=tmp_path / "drawn")
    call(
        score,
        reference=pictures,
        reference_split="train",
        candidates=[f"drawn={tmp_path / 'drawn'}"],
        features="efficientnet_lite0",
        num_images=6,
        pipeline=tmp_path / "pipeline",
        output_dir=tmp_path / "scores",
    )
    rows = json.loads((tmp_path / "scores/scores.json").read_text())["rows"]
    figures = {row["name"]: row for row in rows}
    assert figures.keys() == {"drawn", "reconstructions"}
    assert np.isfinite(figures["reconstructions"]["psnr"])
    assert np.isfinite(figures["drawn"]["fd_effnet_lite0"])


@pytest.mark.parametrize("name", ["ldm_kl", "diffusers_kl", "taming_gumbel"])
def test_the_likelihood_of_pixels_is_fitted(call, pictures, tokenizer, tmp_path, name):
    """An imported tokenizer with latents has a posterior, but says nothing of the pixels' noise."""
    call(assemble, autoencoder=tokenizer(name), output_dir=tmp_path / "pipeline")
    call(
        likelihood,
        pipeline=tmp_path / "pipeline",
        dataset=pictures,
        split="train",
        num_images=6,
        fit_images=8,
        output_dir=tmp_path / "nats",
    )
    found = json.loads((tmp_path / "nats/likelihood.json").read_text())
    assert found["protocol"]["pixels"]["likelihood"] == "logistic"
    assert np.isfinite(found["rows"][0]["bits_per_dim"])


def test_a_prior_of_one_tokenizer_refuses_the_codes_of_another(
    refused, parts, codes, tokenizer, call, tmp_path
):
    """Two files with codes of one shape: only the weights differ, and with them the fingerprint."""
    flags = {**parts["prior_flags"], **SHORT, "codes": codes("taming_gumbel")}
    (tmp_path / "out").mkdir()
    other = tokenizer("taming_vq_attention")
    said = refused(train, **flags, autoencoder=other, output_dir=tmp_path / "out/prior")
    first, second = (load_autoencoder(tokenizer(n)).fingerprint[:12] for n in ("taming_gumbel", "taming_vq_attention"))  # fmt: skip
    assert first in said
    assert second in said
    call(train, **flags, output_dir=tmp_path / "prior")
    prior = tmp_path / "prior" / "model"
    said = refused(assemble, autoencoder=other, prior=prior, output_dir=tmp_path / "out/pipeline")
    assert "use parts made with one autoencoder" in said


def test_large_images_stream_through_the_encoder(call, tmp_path):
    """256 x 256, a batch at a time; the codes are those of each image alone."""
    folder = tmp_path / "images"
    folder.mkdir()
    random = np.random.default_rng(0)
    for number in range(3):
        small = Image.fromarray(random.integers(0, 256, (8, 8, 3), dtype=np.uint8))
        small.resize((300, 260), Image.Resampling.BICUBIC).save(folder / f"{number}.png")
    source = unpack("llamagen_vq_no_l2", tmp_path / "source")
    flags = flags_of("llamagen_vq_no_l2", source) | {"image_size": 256}
    call(import_tokenizer, **flags, output_dir=tmp_path / "model")
    call(
        encode,
        autoencoder=tmp_path / "model",
        dataset=folder,
        cache_mb=0,
        batch_size=2,
        shard_images=2,
        output_dir=tmp_path / "codes",
    )
    splits, spec = open_codes(tmp_path / "codes")
    assert spec.levels[0].shape == (64, 64)
    assert splits["train"].column("codes").shape == (3, 64, 64)
    call(assemble, autoencoder=tmp_path / "model", output_dir=tmp_path / "pipeline")
    call(
        latents,
        pipeline=tmp_path / "pipeline",
        dataset=folder,
        operation="reconstruct",
        split="train",
        output_dir=tmp_path / "again",
    )
    made = sorted(path for path in (tmp_path / "again").glob("*.png") if path.name != "grid.png")
    assert len(made) == 3
    with Image.open(made[0]) as image:
        assert image.size == (256, 256)
