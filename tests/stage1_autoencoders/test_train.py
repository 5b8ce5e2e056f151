import json
import os
import subprocess
import sys

import numpy as np
import pytest
import torch
import yaml
from PIL import Image
from safetensors.torch import load_file

from latent_prior.stage1_autoencoders import load_autoencoder, train


@pytest.fixture(scope="session")
def flags(images, parts):
    """A run of milliseconds with everything random in it."""
    return {
        **parts["vqvae_flags"],
        "dataset": images,
        "image_size": 16,
        "batch_size": 8,
        "max_steps": 12,
        "learning_rate": 2e-3,
        "warmup_steps": 2,
        "random_crop": True,
        "crop_padding": 2,
        "random_flip": True,
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
    """Whole-epoch figures, without the time they took."""
    return [{**line, "seconds": 0} for line in metrics(run) if "epoch_mse" in line]


def test_the_loss_falls(fit):
    run = fit(max_steps=160, log_every=10, evaluate_every=80)
    losses = [line["total"] for line in metrics(run) if "total" in line]
    assert len(losses) == 16
    assert losses[-1] < 0.5 * losses[0]
    epochs = [line for line in metrics(run) if "epoch_mse" in line]
    assert [line["step"] for line in epochs] == [80, 160]
    assert epochs[-1]["epoch_mse"] < epochs[0]["epoch_mse"]
    assert epochs[-1]["epoch_psnr"] == pytest.approx(10 * np.log10(4 / epochs[-1]["epoch_mse"]))
    assert 0 < epochs[-1]["epoch_usage"] <= 1
    assert 1 <= epochs[-1]["epoch_perplexity"] <= 16


def test_what_lies_in_the_folder(fit):
    run = fit()
    assert {path.name for path in run.iterdir()} == {
        "config.yaml", "metrics.jsonl", "curves.png", "samples", "checkpoints", "model",
    }  # fmt: skip
    assert sorted(path.name for path in (run / "checkpoints").iterdir()) == [
        "step-000000008", "step-000000012",
    ]  # fmt: skip
    assert {path.name for path in (run / "model").iterdir()} == {
        "config.json", "model.safetensors", "code_spec.json", "manifest.json",
    }  # fmt: skip
    resolved = yaml.safe_load((run / "config.yaml").read_text())
    assert (resolved["image_size"], resolved["channels"], resolved["batch_size"]) == (16, 3, 8)
    lines = metrics(run)
    assert all({"step", "images_seen", "seconds"} <= set(line) for line in lines)
    assert all(line["images_seen"] == 8 * line["step"] for line in lines)
    assert {"total", "learning_rate", "gradient_norm"} <= set(lines[0])


def test_the_model_is_the_averaged_one_and_loads(fit):
    run = fit()
    model = load_autoencoder(run / "model")
    stored = torch.load(run / "checkpoints/step-000000012/ema.pt", weights_only=True)["weights"]
    present = torch.load(run / "checkpoints/step-000000012/model.pt", weights_only=True)
    for name, parameter in model.named_parameters():
        assert torch.equal(parameter, stored[name])
        assert not torch.equal(parameter, present[name])
    for name, buffer in model.named_buffers():
        assert torch.equal(buffer, present[name])  # the codebook is an average already


@pytest.mark.parametrize("kind", ["vqvae", "vqvae2"])
def test_the_average_of_a_restarted_code_is_where_the_code_is(fit, kind):
    """Without gradients codes move by restarts alone, and every average must move along."""
    restarting = {
        "model.type": kind, "model.quantizer": "gradient", "model.codebook_decay": 0.5,
        "model.restart_below": 0.9, "learning_rate": 1e-9, "ema_decay": 0.99, "max_steps": 8,
        "accumulation_steps": 2,
    }  # fmt: skip
    run = fit("whole", **restarting)
    averages = torch.load(run / "checkpoints/step-000000008/ema.pt", weights_only=True)["weights"]
    codes = {name: value for name, value in averages.items() if name.endswith("codebook")}
    assert len(codes) == (2 if kind == "vqvae2" else 1)
    present = torch.load(run / "checkpoints/step-000000008/model.pt", weights_only=True)
    before = torch.load(run / "checkpoints/step-000000004/model.pt", weights_only=True)
    for name, average in codes.items():
        assert (present[name] - before[name]).abs().max() > 1e-3  # codes did restart
        torch.testing.assert_close(average, present[name], rtol=0, atol=1e-6)
    fit("parts", **{**restarting, "max_steps": 4})
    assert weights(fit("parts", **restarting)) == weights(run)


def test_grids_show_originals_beside_reconstructions(fit, images):
    run = fit()
    grids = sorted((run / "samples").iterdir())
    assert [path.name for path in grids] == [
        f"step-{step:09d}.png" for step in (5, 10, 12)
    ]  # fmt: skip
    first = np.asarray(Image.open(sorted(images.rglob("*.png"))[0]))
    for path in grids:
        picture = np.asarray(Image.open(path))
        assert picture.shape == (1 + 4 * 17, 1 + 8 * 17, 3)  # 16 pairs in rows of 8 images
        assert np.array_equal(picture[1:17, 1:17], first)
        assert not np.array_equal(picture[1:17, 18:34], first)
    assert len({path.read_bytes() for path in grids}) == 3


def test_size_and_channels_are_those_of_the_images(fit):
    run = fit(image_size=None)
    resolved = yaml.safe_load((run / "config.yaml").read_text())
    assert (resolved["image_size"], resolved["channels"]) == (16, 3)
    grey = fit("grey", channels=1, image_size=8)
    assert load_autoencoder(grey / "model").code_spec.image_channels == 1
    assert load_autoencoder(grey / "model").code_spec.image_size == 8


def test_the_validation_split_is_measured_with_the_averaged_weights(call, flags, parts, tmp_path):
    for split, count in (("train", 16), ("validation", 5)):
        parts["images"](tmp_path / "data" / split, count, seed=count)
    settings = {**flags, "dataset": tmp_path / "data", "validation_split": "validation"}
    call(train, output_dir=tmp_path / "run", **settings)
    last = metrics(tmp_path / "run")[-1]
    model = load_autoencoder(tmp_path / "run" / "model")
    held_out = [
        np.asarray(Image.open(path))
        for path in sorted((tmp_path / "data/validation").rglob("*.png"))
    ]
    pixels = torch.from_numpy(np.stack(held_out)).permute(0, 3, 1, 2) / 127.5 - 1
    with torch.no_grad():
        error = (model(pixels).images.clamp(-1, 1) - pixels).square().mean()
    assert last["validation_mse"] == pytest.approx(float(error), rel=1e-4)
    picture = np.asarray(Image.open(sorted((tmp_path / "run/samples").iterdir())[-1]))
    assert np.array_equal(picture[1:17, 1:17], held_out[0])


@pytest.mark.parametrize("steps", [4, 8])
@pytest.mark.parametrize("split", ["train", "validation"])
def test_images_that_have_changed_are_refused(fit, refused, flags, parts, tmp_path, steps, split):
    for name, count in (("train", 16), ("validation", 5)):
        parts["images"](tmp_path / "data" / name, count, seed=count)
    own = {"dataset": tmp_path / "data", "validation_split": "validation", "max_steps": 4}
    run = fit(**own)
    sorted((tmp_path / "data" / split).rglob("*.png"))[0].unlink()
    again = {**flags, **own, "max_steps": steps}
    said = refused(train, output_dir=run, **again)
    assert {"train": "training images", "validation": "validation images"}[split] in said
    assert str(run) in said


def test_a_run_within_its_data_set_does_not_learn_from_its_own_pictures(call, refused, flags, parts, tmp_path, caplog):  # fmt: skip
    data = parts["images"](tmp_path / "data", 12)
    own = {**flags, "dataset": data, "max_steps": 2, "output_dir": data / "run"}
    for _ in range(2):
        call(train, **own)
        assert list((data / "run" / "samples").iterdir())
    assert "run: passed over" in caplog.text
    assert "is the data set" in refused(train, **{**flags, "dataset": data, "output_dir": data})


def test_a_finished_run_keeps_the_options_it_was_trained_with(fit):
    run = fit(max_steps=2)
    before = (run / "config.yaml").read_text()
    fit(max_steps=2, learning_rate=0.5)
    fit(max_steps=1)
    assert (run / "config.yaml").read_text() == before


def test_of_a_folder_without_splits_a_part_is_validated(call, flags, parts, tmp_path, capfd):
    """A preset asks for the split `validation`, which the user has not made."""
    folder = parts["images"](tmp_path / "data", 60)
    given = {**flags, "dataset": folder, "validation_split": "validation", "max_steps": 1}
    call(train, **given, output_dir=tmp_path / "run")
    line = next(line for line in capfd.readouterr().out.splitlines() if line.startswith("train: "))
    counts = [int(part.split()[1]) for part in line.split("; ")[:3]]
    assert sum(counts) == 60
    assert 1 <= counts[1] <= 15
    assert "validation_psnr" in evaluations(tmp_path / "run")[-1]


def test_a_folder_too_small_for_a_held_out_part_names_the_flag(refused, flags, images, tmp_path):
    given = {
        **flags,
        "dataset": images,
        "validation_split": "validation",
        "output_dir": tmp_path / "run",
    }
    message = refused(train, **given)
    assert "--validation_split validation (of the command or its --config)" in message
    assert "40 images are too few to hold some out); name another split, or null" in message


def test_other_seeds_other_weights(fit):
    assert weights(fit("a")) == weights(fit("b"))
    assert weights(fit("c", seed=1)) != weights(fit("a"))


def test_stopping_at_a_checkpoint_and_going_on_gives_the_same_bits(fit):
    whole = fit("whole")
    fit("parts", max_steps=4)
    fit("parts", max_steps=7)
    parts = fit("parts")
    assert weights(parts) == weights(whole)
    one, two = (json.loads((run / "model/config.json").read_text()) for run in (whole, parts))
    for config in (one, two):
        for clock in ("seconds", "cpu_seconds"):  # what differs from one run to the next
            del config["training"][clock]
    assert one == two


def test_nothing_but_the_result_depends_on_when_it_is_looked_at(fit):
    """Evaluating, logging and checkpointing must not move the random numbers of training."""
    often = fit("often", evaluate_every=1, log_every=1, checkpoint_every=1, cache_mb=0)
    assert weights(often) == weights(fit("seldom", evaluate_every=100, checkpoint_every=100))


def test_killed_again_and_again_it_ends_in_the_same_weights(
    fit, killed_until_done, flags, tmp_path
):
    often = {"max_steps": 60, "checkpoint_every": 2, "evaluate_every": 7}
    whole = fit("whole", **often)
    killed = tmp_path / "killed"
    kills = killed_until_done(train, output_dir=killed, **{**flags, **often})
    assert kills >= 3
    assert weights(killed) == weights(whole)
    assert evaluations(killed) == evaluations(whole)
    assert [line["step"] for line in metrics(killed)] == [line["step"] for line in metrics(whole)]
    assert {path.name for path in (killed / "samples").iterdir()} == {
        path.name for path in (whole / "samples").iterdir()
    }


def test_another_run_in_the_folder_is_refused(fit, refused, flags):
    run = fit()
    before = weights(run)
    for other in ({"weight_decay": 0.3}, {"seed": 1}, {"model.codebook_size": 8}):
        said = refused(train, output_dir=run, **{**flags, **other})
        assert str(run) in said
    assert weights(run) == before


def test_a_damaged_checkpoint_is_named_and_the_one_before_it_used(fit, caplog):
    run = fit()
    before = weights(run)
    part = run / "checkpoints/step-000000012/model.pt"
    part.write_bytes(part.read_bytes()[:100])
    fit()
    assert str(part) in caplog.text
    assert weights(run) == before


def test_a_loss_that_is_not_finite_stops_the_run(call, flags, tmp_path):
    hot = {**flags, "learning_rate": 1e30, "gradient_clip": None, "max_steps": 30}
    with pytest.raises(ValueError, match=r"step \d+.*(nan|inf)"):
        call(train, output_dir=tmp_path / "hot", **hot)
    for checkpoint in (tmp_path / "hot").glob("checkpoints/*/model.pt"):
        for tensor in torch.load(checkpoint, weights_only=True).values():
            assert torch.isfinite(tensor.float()).all()


def test_the_codebook_has_seen_the_data_of_both_processes(one_and_two):
    """The counts average vectors per step: 8 images of 64 codes, not the 4 of one process."""
    two = load_file(one_and_two["2"] / "ema/model/model.safetensors")
    assert float(two["quantizer.counts"].sum()) == pytest.approx(8 * 64, rel=1e-4)


def test_processes_that_do_not_know_of_each_other_are_refused(flags, tmp_path):
    """What a script gets from `torchrun` without an accelerator and without asking for the CPU."""
    words = [f"--{name}={value}" for name, value in flags.items() if not isinstance(value, list)]
    ours = ("WORLD_SIZE", "ACCELERATE_USE_CPU", "RANK", "LOCAL_RANK")
    alone = {name: value for name, value in os.environ.items() if name not in ours}
    done = subprocess.run(
        [sys.executable, train.__file__, *words, f"--output_dir={tmp_path / 'run'}"],
        env=alone | {"WORLD_SIZE": "2", "CUDA_VISIBLE_DEVICES": ""},
        capture_output=True,
        text=True,
        timeout=900,
        check=False,
    )
    assert done.returncode == 2
    assert len(done.stderr.splitlines()) == 1
    assert done.stderr.startswith("train.py: error: ")
    assert "ACCELERATE_USE_CPU=true torchrun --standalone --nproc_per_node 2" in done.stderr
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("others", "culprit"),
    [
        ({"dataset": "./nowhere"}, "nowhere"),
        ({"dataset": "/nowhere/at/all"}, "/nowhere/at/all"),
        ({"dataset": "no_such_dataset"}, "no_such_dataset"),
        ({"dataset": "nobody/nothing"}, "nobody/nothing"),
        ({"split": "dev"}, "'dev'"),
        ({"validation_split": "dev"}, "'dev'"),
        ({"label_column": "class"}, "--label_column class"),
        ({"image_column": "picture"}, "--image_column picture"),
        ({"image_size": 15}, "15 is not divisible by the downsampling 2"),
        ({"model.multipliers": [1, 1, 1, 1, 1, 1], "model.blocks": [0] * 6}, "downsampling 32"),
        ({"image_size": -1}, "--image_size"),
        ({"batch_size": 0}, "--batch_size"),
        ({"batch_size": 9, "accumulation_steps": 2}, "--batch_size 9"),
        ({"learning_rate": -1}, "--learning_rate"),
        ({"learning_rate": "fast"}, "--learning_rate"),
        ({"max_steps": "1.5"}, "--max_steps"),
        ({"model.codebook_size": 1}, "codebook_size"),
        ({"model.upsampling": "bilinear"}, "--model.upsampling"),
        ({"codebok_size": 5}, "--codebok_size"),
        ({"model.codebok_size": 5}, "did you mean model.codebook_size"),
        ({"learning_rat": 5}, "did you mean learning_rate"),
        ({"config": "missing.yaml"}, "missing.yaml"),
        ({"crop_padding": -1}, "--crop_padding"),
        ({"resize": 8}, "--resize 8"),
        ({"mixed_precision": "fp8"}, "--mixed_precision"),
        ({"report_to": "paper"}, "--report_to"),
        ({"seed": -1}, "--seed"),
        ({"streaming": True, "channels": None}, "--channels"),
    ],
)
def test_wrong_input_is_one_sentence(refused, flags, tmp_path, others, culprit):
    said = refused(train, output_dir=tmp_path / "run", **{**flags, **others})
    assert culprit in said


def test_an_unknown_key_in_a_preset_is_one_sentence(refused, flags, tmp_path):
    (tmp_path / "preset.yaml").write_text("model:\n  wdith: 8\n")
    said = refused(train, output_dir=tmp_path / "run", config=tmp_path / "preset.yaml", **flags)
    assert "model.wdith" in said
    assert "preset.yaml" in said


def test_an_empty_folder_and_a_file_are_one_sentence(refused, flags, tmp_path):
    (tmp_path / "empty").mkdir()
    (tmp_path / "notes.txt").write_text("no images")
    for culprit in ("empty", "notes.txt"):
        said = refused(
            train, output_dir=tmp_path / "run", **{**flags, "dataset": tmp_path / culprit}
        )
        assert culprit in said


def test_a_corrupt_image_is_named_or_left_out(refused, call, flags, parts, tmp_path, capfd):
    folder = parts["images"](tmp_path / "shapes", 10)
    path = folder / "bee" / "004.png"
    path.write_bytes(b"no image")
    said = refused(train, output_dir=tmp_path / "run", **{**flags, "dataset": folder})
    assert str(path) in said
    call(train, output_dir=tmp_path / "run", **{**flags, "dataset": folder}, on_corrupt="skip")
    assert "left out 1 of 10" in capfd.readouterr().out


def test_images_of_different_sizes_need_a_size(refused, flags, tmp_path):
    (tmp_path / "mixed").mkdir()
    for number, size in enumerate(((20, 10), (10, 20), (16, 16))):
        Image.new("RGB", size).save(tmp_path / "mixed" / f"{number}.png")
    settings = {**flags, "dataset": tmp_path / "mixed", "image_size": None}
    assert "--image_size" in refused(train, output_dir=tmp_path / "run", **settings)
