"""Words in: from a folder with captions to images from prompts, for every kind of prior."""

import csv
import json
import shutil

import numpy as np
import pytest
import torch
from PIL import Image

from latent_prior.evaluation import likelihood
from latent_prior.pipelines import Pipeline, assemble, describe, generate, latents
from latent_prior.stage1_autoencoders import encode
from latent_prior.stage2_prior import TransformerPrior, train

SHORT = {"max_steps": 6, "batch_size": 8, "warmup_steps": 1, "log_every": 2, "checkpoint_every": 3}
COLOURS = {"red": (220, 30, 30), "green": (30, 200, 40), "blue": (40, 60, 230)}


@pytest.fixture(scope="module")
def captioned(tmp_path_factory):
    """36 plain pictures with two captions of each, one of several lengths."""
    folder = tmp_path_factory.mktemp("captioned") / "pictures"
    folder.mkdir()
    rows, random = [], np.random.default_rng(0)
    for number in range(36):
        name = list(COLOURS)[number % 3]
        noise = random.integers(-20, 20, (16, 16, 3))
        pixels = np.clip(np.array(COLOURS[name]) + noise, 0, 255).astype(np.uint8)
        Image.fromarray(pixels).save(folder / f"{number:02d}.png")
        rows += [{"file_name": f"{number:02d}.png", "text": [f"a {name} square", name]}]
    lines = "".join(json.dumps(row) + "\n" for row in rows)
    (folder / "metadata.jsonl").write_text(lines)
    return folder


@pytest.fixture(scope="module")
def codes(call, parts, captioned, tmp_path_factory):
    made = {}

    def of(name):
        if name not in made:
            folder = tmp_path_factory.mktemp(name)
            parts["autoencoder"](name).save_pretrained(folder / "model")
            written = {"autoencoder": folder / "model", "dataset": captioned}
            call(encode, output_dir=folder / "codes", **written)
            made[name] = folder
        return made[name]

    return of


@pytest.fixture
def pipeline(call, parts, codes, tmp_path):
    """`pipeline(name, **flags)` trains a prior for a few steps and assembles; the folder."""

    def of(name, **flags):
        folder = codes(name)
        of_prior = {**parts["prior_flags"], "model.condition": "text", **SHORT, **flags}
        call(train, **of_prior, codes=folder / "codes", autoencoder=folder / "model", output_dir=tmp_path / "prior")  # fmt: skip
        sources = {"autoencoder": folder / "model", "prior": tmp_path / "prior" / "model"}
        call(assemble, **sources, output_dir=tmp_path / "pipeline")
        return tmp_path / "pipeline"

    return of


KINDS = [
    ("vqvae", {}),
    ("vqvae", {"model.order": "masked"}),
    ("vqvae", {"model.patch": 2, "model.positions": "2d"}),
    ("vqvae2", {}),
    ("vae", {}),
]


@pytest.mark.parametrize(("name", "flags"), KINDS)
@pytest.mark.parametrize("reader", ["own", "encoder"])
def test_from_captions_to_images_from_prompts(
    call,
    pipeline,
    captioned,
    encoder_folder,
    tmp_path,
    name,
    flags,
    reader,
):
    if reader == "encoder":
        source = shutil.copytree(encoder_folder(), tmp_path / "encoder")
        flags = {**flags, "text_encoder": source}
    folder = pipeline(name, **flags)
    run = tmp_path / "prior"
    assert (run / "samples" / "prompts.txt").read_text().count("\n") == 6
    if reader == "encoder":
        shutil.rmtree(source)  # the pipeline has a copy
    pipe = Pipeline.from_pretrained(folder)
    drawn = pipe(prompt=["a red square", "green"], generator=[1, 2])
    assert len(drawn.images) == 2
    again = pipe(prompt="green", generator=[2], output_type="pt").images[0]
    whole = pipe(prompt=["a red square", "green"], generator=[1, 2], output_type="pt").images
    torch.testing.assert_close(again, whole[1], rtol=0, atol=1e-4)
    prompts = ["a red square", "blue"]
    call(generate, pipeline=folder, prompts=prompts, num_images=5, output_dir=tmp_path / "images")
    with (tmp_path / "images" / "prompts.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [row["prompt"] for row in rows] == [prompts[n % 2] for n in range(5)]
    assert rows[4]["file"] == "000004.png"
    describe.main(["--pipeline", str(folder), "--samples", str(tmp_path / "images")])
    assert "takes a prompt" in (folder / "README.md").read_text()
    given = {"pipeline": folder, "dataset": captioned, "split": "train", "num_images": 8}
    call(likelihood, **given, output_dir=tmp_path / "likelihood")
    assert "given their captions" in (tmp_path / "likelihood" / "likelihood.md").read_text()
    if name != "vae":
        asked = {"operation": "complete", "prompt": "a red square", "num_images": 2}
        call(latents, pipeline=folder, dataset=captioned, **asked, output_dir=tmp_path / "done")


@pytest.mark.parametrize("reader", ["own", "encoder"])
def test_a_resumed_training_equals_a_straight_one(
    call,
    parts,
    codes,
    encoder_folder,
    tmp_path,
    reader,
):
    """The captions that are drawn depend on seed and step alone."""
    flags = {**parts["prior_flags"], **SHORT, "model.condition": "text", "codes": codes("vqvae") / "codes"}  # fmt: skip
    if reader == "encoder":
        flags["text_encoder"] = encoder_folder()
    call(train, **flags, output_dir=tmp_path / "straight")
    call(train, **flags, output_dir=tmp_path / "resumed")
    shutil.rmtree(tmp_path / "resumed" / "checkpoints" / "step-000000006")
    shutil.rmtree(tmp_path / "resumed" / "model")
    call(train, **flags, output_dir=tmp_path / "resumed")
    straight, resumed = (
        TransformerPrior.from_pretrained(tmp_path / name / "model")
        for name in ("straight", "resumed")
    )
    assert straight.fingerprint == resumed.fingerprint


def test_a_run_does_not_go_on_with_another_encoder(
    call, refused, parts, codes, encoder_folder, tmp_path
):
    source = shutil.copytree(encoder_folder(), tmp_path / "encoder")
    flags = {**parts["prior_flags"], **SHORT, "model.condition": "text", "text_encoder": source}
    flags |= {"codes": codes("vqvae") / "codes", "output_dir": tmp_path / "runs" / "run"}
    call(train, **flags)
    shutil.rmtree(source)
    shutil.copytree(encoder_folder(seed=1), source)
    said = refused(train, **{**flags, "max_steps": 8})
    assert "the tokens or states of the captions are not those that the run" in said


def test_prompts_come_from_a_file_too(call, pipeline, tmp_path):
    folder = pipeline("vqvae")
    (tmp_path / "prompts.txt").write_text("a red square\n\ngrün\n", encoding="utf-8")
    flags = {"pipeline": folder, "prompts_file": tmp_path / "prompts.txt", "num_images": 2}
    call(generate, **{**flags, "num_images": 1}, output_dir=tmp_path / "images")
    with (tmp_path / "images" / "prompts.csv").open() as file:
        assert [row["prompt"] for row in csv.DictReader(file)] == ["a red square"]


def test_wrong_words_are_answered_in_one_sentence(
    call,
    refused,
    parts,
    codes,
    pipeline,
    pipeline_folder,
    images,
    encoder_folder,
    tmp_path,
):
    folder = pipeline("vqvae")
    out = {"output_dir": tmp_path / "out"}
    for flags, message in (
        ({"prompts": ["a red square", " "]}, "prompt 1 is empty: say what the image shows"),
        ({"prompts": ["a red square " * 30]}, "more than the 64 that are read: shorten it"),
        ({"labels": ["apple"]}, "--labels: this pipeline's prior reads captions and no labels"),
        ({"prompts": ["red"], "labels": ["-1"]}, "reads captions and no labels; use --prompts"),
        ({"prompts": ["red"], "prompts_file": "x"}, "give either --prompts or --prompts_file"),
        ({"prompts_file": tmp_path / "nothing.txt"}, "nothing.txt"),
        ({"prompts": ["red"], "random_codes": True}, "--random_codes belong to no prompt"),
    ):
        assert message in refused(generate, pipeline=folder, **flags, **out)
    said = refused(generate, pipeline=pipeline_folder, prompts=["red"], **out)
    assert "was not trained on captions" in said
    text = {**parts["prior_flags"], **SHORT, "model.condition": "text", **out}
    call(
        encode, autoencoder=codes("vqvae") / "model", dataset=images, output_dir=tmp_path / "plain"
    )
    said = refused(train, **text, codes=tmp_path / "plain")
    assert "the codes have no captions" in said
    measured = {"pipeline": folder, "dataset": images, "split": "train", "num_images": 4}
    said = refused(likelihood, **measured, **out)
    assert "has no captions, which the prior reads" in said
    with_captions = {**text, "codes": codes("vqvae") / "codes"}
    assert "shorten it" in refused(train, **with_captions, text_length=1)
    assert "holds no tokenizer" in refused(train, **with_captions, text_encoder=tmp_path / "plain")
    said = refused(train, **{**with_captions, "model.condition": "class"}, text_vocabulary=300)
    assert "--text_vocabulary is for --model.condition text" in said
    said = refused(
        assemble,
        autoencoder=codes("vqvae") / "model",
        prior=tmp_path / "prior" / "model",
        text_encoder=encoder_folder(),
        **out,
    )
    assert "--text_encoder is for a prior that was trained with one" in said


def test_a_pipeline_takes_no_other_encoder(pipeline, encoder_folder):
    from latent_prior.stage2_prior.text.encoder import TextEncoder

    pipe = Pipeline.from_pretrained(pipeline("vqvae", text_encoder=encoder_folder()))
    with pytest.raises(ValueError, match=r"through the text encoder .*: pass it as text_encoder"):
        Pipeline(pipe.autoencoder, pipe.prior)
    with pytest.raises(ValueError, match="trained with another text encoder"):
        Pipeline(
            pipe.autoencoder, pipe.prior, text_encoder=TextEncoder(str(encoder_folder(seed=1)))
        )
