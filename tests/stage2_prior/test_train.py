import dataclasses
import json
import math
import shutil

import fsspec
import numpy as np
import pytest
import torch
import yaml
from PIL import Image
from safetensors.torch import load_file

from latent_prior.data.codes_dataset import CodesSplit, open_codes
from latent_prior.manifests import MANIFEST
from latent_prior.pipelines import Pipeline
from latent_prior.stage1_autoencoders import encode, load_autoencoder
from latent_prior.stage2_prior import TransformerPrior, train
from latent_prior.stage2_prior.options import TrainOptions
from latent_prior.stage2_prior.validation import choose_splits


@pytest.fixture(scope="module")
def codes(call, images, autoencoder_folder, tmp_path_factory):
    """40 images in two views."""
    folder = tmp_path_factory.mktemp("codes") / "shapes"
    call(encode, autoencoder=autoencoder_folder, dataset=images, flip=True, output_dir=folder)
    return folder


@pytest.fixture(scope="module")
def flags(codes, parts):
    """A run of milliseconds with dropout and label dropout in it."""
    return {
        **parts["prior_flags"],
        "codes": codes,
        "batch_size": 8,
        "max_steps": 12,
        "learning_rate": 3e-3,
        "warmup_steps": 2,
        "log_every": 3,
        "evaluate_every": 5,
        "checkpoint_every": 4,
    }


@pytest.fixture
def fit(call, flags, tmp_path):
    """`fit(name, ...)` trains into a new folder and returns it."""

    def into(name="run", **others):
        call(train, output_dir=tmp_path / name, **{**flags, **others})
        return tmp_path / name

    return into


def weights(run):
    return (run / "model" / "model.safetensors").read_bytes()


def metrics(run):
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


def evaluations(run):
    """Validation figures, without the time they took."""
    lines = metrics(run)
    return [{**line, "seconds": 0} for line in lines if "validation_nats_per_code" in line]


def test_the_loss_falls_from_the_entropy_of_a_guess(fit):
    run = fit(max_steps=100, log_every=10, evaluate_every=50, **{"model.dropout": 0})
    losses = [line["nats_per_code"] for line in metrics(run) if "nats_per_code" in line]
    assert losses[0] < 1.1 * math.log(16)
    assert losses[-1] < losses[0] - 0.3
    found = [line for line in metrics(run) if "validation_nats_per_code" in line]
    assert [line["step"] for line in found] == [50, 100]
    assert found[-1]["validation_nats_per_code"] < math.log(16)
    for line in found:
        bits = line["validation_nats_per_code"] * 64 / math.log(2)  # 8 x 8 codes an image
        assert line["validation_bits_per_image"] == pytest.approx(bits)


def test_the_model_knows_whose_codes_it_speaks_about(fit, codes):
    run = fit()
    prior = TransformerPrior.from_pretrained(run / "model")
    assert prior.code_spec == open_codes(codes)[1]
    assert prior.num_classes == 3
    stored = torch.load(run / "checkpoints/step-000000012/ema.pt", weights_only=True)["weights"]
    for name, parameter in prior.named_parameters():
        assert torch.equal(parameter, stored[name])


def test_the_model_knows_which_classes_have_training_images(fit, call, parts, tmp_path, autoencoder_folder):  # fmt: skip
    """Of three names of classes, two are in the training split."""
    parts["images"](tmp_path / "data/train", 12)
    parts["images"](tmp_path / "data/test", 6)
    shutil.rmtree(sorted((tmp_path / "data/train").iterdir())[1])
    written = {"autoencoder": autoencoder_folder, "dataset": tmp_path / "data"}
    call(encode, **written, output_dir=tmp_path / "codes")
    run = fit(codes=tmp_path / "codes", max_steps=1)
    prior = TransformerPrior.from_pretrained(run / "model")
    assert prior.num_classes == 3
    assert prior.config.trained_classes == [0, 2]
    pipe = Pipeline(load_autoencoder(autoencoder_folder), prior)
    assert pipe.label_numbers(None, 3) == [0, 2, 0]
    assert pipe.label_numbers(1, 1) == [1]
    pipe.save_pretrained(tmp_path / "pipe")
    assert Pipeline.from_pretrained(tmp_path / "pipe").trained_classes == [0, 2]
    saved = tmp_path / "pipe" / "prior"  # as versions before wrote it
    values = json.loads((saved / "config.json").read_text())
    del values["trained_classes"]
    (saved / "config.json").write_text(json.dumps(values))
    (saved / MANIFEST).unlink()
    assert TransformerPrior.from_pretrained(saved).config.trained_classes is None


def test_an_unconditional_prior(fit):
    run = fit(**{"model.condition": "none"})
    assert TransformerPrior.from_pretrained(run / "model").num_classes == 0


def test_images_set_aside_take_all_their_views_with_them(codes):
    splits, _ = open_codes(codes)
    options = TrainOptions(codes=str(codes), output_dir="unused", validation_fraction=0.2)
    learned, held_out = choose_splits(splits, options)
    assert len(held_out) == 8
    assert set(held_out.view) == {0}
    assert not set(held_out.source_index) & set(learned.source_index)
    assert len(learned) == 2 * 32
    again, _ = choose_splits(splits, options)
    assert np.array_equal(again.source_index, learned.source_index)
    other, _ = choose_splits(splits, dataclasses.replace(options, seed=1))
    assert set(other.source_index) != set(learned.source_index)


def test_the_validation_loss_is_that_of_the_exported_model_on_plain_images(fit, codes):
    run = fit(validation_fraction=0.2)
    options = TrainOptions(codes=str(codes), output_dir="unused", validation_fraction=0.2)
    _, held_out = choose_splits(open_codes(codes)[0], options)
    prior = TransformerPrior.from_pretrained(run / "model")
    rows = held_out.batch(torch.arange(len(held_out)))
    labels = rows.pop("labels")
    with torch.no_grad():
        alone = [
            prior({"codes": rows["codes"][i : i + 1]}, labels[i : i + 1]).loss
            for i in range(len(labels))
        ]
    assert metrics(run)[-1]["validation_nats_per_code"] == pytest.approx(
        float(torch.stack(alone).mean()), rel=1e-5
    )


def test_strange_row_numbers_and_views_are_told_and_take_no_memory(codes, monkeypatch):
    options = TrainOptions(codes=str(codes), output_dir="unused", validation_fraction=0.2)
    splits = {"train": open_codes(codes)[0]["train"]}
    rows = splits["train"].source_index
    for numbers in (rows * 10**12, rows - 1):
        monkeypatch.setattr(CodesSplit, "source_index", property(lambda split, n=numbers: n))
        if numbers.min() < 0:
            with pytest.raises(ValueError, match="source_index is negative"):
                choose_splits(splits, options)
        else:
            assert len(choose_splits(splits, options)[0]) > 0
    monkeypatch.undo()
    monkeypatch.setattr(CodesSplit, "view", property(lambda split: np.full(len(split), 3)))
    with pytest.raises(ValueError, match=f"--codes {codes}: no image of .* without augmentation"):
        choose_splits(splits, options)


def test_a_split_of_its_own_is_used_for_validation(
    call, flags, parts, autoencoder_folder, tmp_path
):
    for split, count in (("train", 12), ("validation", 6)):
        parts["images"](tmp_path / "data" / split, count)
    written = {"autoencoder": autoencoder_folder, "dataset": tmp_path / "data", "flip": True}
    call(encode, output_dir=tmp_path / "codes", **written)
    splits, _ = open_codes(tmp_path / "codes")
    options = TrainOptions(codes="unused", output_dir="unused")
    learned, held_out = choose_splits(splits, options)
    assert (len(learned), len(held_out)) == (24, 6)
    same = dataclasses.replace(options, validation_split="train")
    learned, held_out = choose_splits(splits, same)
    assert not set(held_out.source_index) & set(learned.source_index)
    splits["test"] = splits.pop("validation")  # as `encode.py --split test` writes it
    learned, held_out = choose_splits(splits, options)
    assert len(learned) + 2 * len(held_out) == 24


def test_sample_grids_show_codes_or_images(fit, autoencoder_folder):
    without = sorted((fit("without") / "samples").iterdir())
    assert [path.name for path in without] == [
        f"step-{step:09d}.png" for step in (5, 10, 12)
    ]  # fmt: skip
    decoded = sorted((fit("with", autoencoder=autoencoder_folder) / "samples").iterdir())
    rows, columns = 6, 10
    for paths, side, mode in ((without, 4 * 8, "L"), (decoded, 16, "RGB")):
        with Image.open(paths[-1]) as picture:
            assert picture.mode == mode
            assert picture.size == (1 + columns * (side + 1), 1 + rows * (side + 1))
            assert len(np.unique(np.asarray(picture))) > 3


def test_looking_does_not_disturb(fit, autoencoder_folder):
    """Evaluating, sampling, logging and checkpointing leave training's random numbers alone."""
    often = {"evaluate_every": 1, "log_every": 1, "checkpoint_every": 1}
    looked_at = fit("often", autoencoder=autoencoder_folder, **often)
    alone = fit("seldom", autoencoder=autoencoder_folder, evaluate_every=100, checkpoint_every=100)
    assert weights(looked_at) == weights(alone)
    assert weights(fit("seed", seed=1)) != weights(alone)


def test_killed_again_and_again_it_ends_in_the_same_weights(
    fit, killed_until_done, flags, tmp_path
):
    often = {"max_steps": 60, "checkpoint_every": 2, "evaluate_every": 9}
    whole = fit("whole", **often)
    killed = tmp_path / "killed"
    kills = killed_until_done(train, output_dir=killed, **{**flags, **often})
    assert kills >= 3
    assert weights(killed) == weights(whole)
    assert [line["step"] for line in metrics(killed)] == [line["step"] for line in metrics(whole)]
    assert evaluations(killed) == evaluations(whole)


def test_a_run_from_before_an_option_goes_on_with_its_default(fit):
    straight, resumed = fit("straight"), fit("resumed")
    shutil.rmtree(resumed / "checkpoints" / "step-000000012")
    config = yaml.safe_load((resumed / "config.yaml").read_text())
    for name in ("condition", "patch", "trained_guidance"):
        del config["model"][name]
    del config["text_length"]
    (resumed / "config.yaml").write_text(yaml.safe_dump(config))
    fit("resumed")
    assert weights(resumed) == weights(straight)


def test_micro_batches_add_up_to_the_batch(fit):
    whole, parts = fit("whole"), fit("parts", accumulation_steps=4)
    one, four = (load_file(run / "model/model.safetensors") for run in (whole, parts))
    for name in one:
        torch.testing.assert_close(one[name], four[name], rtol=1e-3, atol=1e-4, msg=name)


def test_codes_of_another_autoencoder_are_refused_with_both_fingerprints(
    refused, flags, parts, tmp_path, codes
):
    other = parts["vqvae"](seed=9)
    other.save_pretrained(tmp_path / "other")
    said = refused(train, output_dir=tmp_path / "run", autoencoder=tmp_path / "other", **flags)
    assert other.fingerprint[:12] in said
    assert open_codes(codes)[1].autoencoder_fingerprint[:12] in said


@pytest.mark.parametrize("steps", [4, 8])
def test_codes_of_another_autoencoder_in_the_same_folder_are_refused(
    call, refused, flags, parts, images, tmp_path, steps
):
    """A complete run would otherwise be exported again, under the other one's fingerprint."""
    own = {**flags, "codes": tmp_path / "codes", "max_steps": 4}
    for seed in (1, 2):
        parts["vqvae"](seed=seed).save_pretrained(tmp_path / f"{seed}")
        encoding = {"autoencoder": tmp_path / f"{seed}", "dataset": images}
        shutil.rmtree(tmp_path / "codes", ignore_errors=True)
        call(encode, output_dir=tmp_path / "codes", **encoding)
        if seed == 1:
            call(train, output_dir=tmp_path / "run", **own)
    said = refused(train, output_dir=tmp_path / "run", **{**own, "max_steps": steps})
    assert "training codes" in said


def test_the_same_codes_written_again_are_the_same(
    call, flags, images, autoencoder_folder, tmp_path
):
    own = {**flags, "codes": tmp_path / "codes", "max_steps": 4}
    for threads in (1, 2):
        encoding = {"autoencoder": autoencoder_folder, "dataset": images, "cpu_threads": threads}
        shutil.rmtree(tmp_path / "codes", ignore_errors=True)
        call(encode, output_dir=tmp_path / "codes", **encoding)
        call(train, output_dir=tmp_path / "run", **own)


def test_codes_in_storage_are_the_same_codes(fit, codes, tmp_path, monkeypatch):
    """A run may begin with a folder and go on with its copy at an address."""
    monkeypatch.setenv("LATENT_PRIOR_CACHE", str(tmp_path / "cache"))
    storage = fsspec.filesystem("memory")
    storage.put(str(codes), "/codes", recursive=True)
    try:
        here, there = fit("here"), fit("there", codes="memory://codes")
        assert weights(here) == weights(there)
        assert open_codes("memory://codes")[1] == open_codes(codes)[1]
    finally:
        storage.rm("/codes", recursive=True)


def test_another_run_in_the_folder_is_refused(fit, refused, flags):
    run = fit()
    for other in ({"weight_decay": 0.3}, {"model.width": 32}):
        assert str(run) in refused(train, output_dir=run, **{**flags, **other})


@pytest.mark.parametrize(
    ("others", "culprit"),
    [
        ({"codes": "./nowhere"}, "nowhere"),
        ({"codes": None}, "--codes"),
        ({"split": "dev"}, "--split dev"),
        ({"validation_split": "dev"}, "--validation_split dev"),
        ({"validation_fraction": 1}, "--validation_fraction"),
        ({"autoencoder": "./nowhere"}, "nowhere"),
        ({"model.width": 15}, "width 15"),
        ({"model.heads": 0}, "heads"),
        ({"model.dropout": 2}, "dropout"),
        ({"model.widht": 8}, "did you mean model.width"),
        ({"batch_size": 7, "accumulation_steps": 2}, "--batch_size 7"),
        ({"guidance_scale": -1}, "--guidance_scale"),
        ({"max_steps": "ten"}, "--max_steps"),
        ({"dataset": "mnist5k"}, "--dataset"),
    ],
)
def test_wrong_input_is_one_sentence(refused, flags, tmp_path, others, culprit):
    said = refused(train, output_dir=tmp_path / "run", **{**flags, **others})
    assert culprit in said


def test_images_in_place_of_codes_are_one_sentence(refused, flags, images, tmp_path):
    said = refused(train, output_dir=tmp_path / "run", **{**flags, "codes": images})
    assert str(images) in said


def cut(path):
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


@pytest.mark.parametrize(
    "harm",
    [
        lambda folder: [cut(path) for path in folder.rglob("*.arrow")],
        lambda folder: [path.unlink() for path in folder.rglob("*.arrow")],
        lambda folder: (folder / "dataset_dict.json").unlink(),
        lambda folder: (folder / "train/dataset_info.json").unlink(),
        lambda folder: cut(folder / "train/state.json"),
    ],
    ids=["cut arrow", "no arrow", "no dict", "no info", "cut state"],
)
def test_a_damaged_codes_dataset_is_one_sentence(refused, flags, codes, tmp_path, harm):
    broken = shutil.copytree(codes, tmp_path / "broken")
    harm(broken)
    said = refused(train, output_dir=tmp_path / "run", **{**flags, "codes": broken})
    assert str(broken) in said
