import dataclasses

import pytest

from latent_prior.options import ImageOptions, RunOptions


@pytest.mark.parametrize(
    ("flag", "value"),
    [
        ("batch_size", 0), ("accumulation_steps", 0), ("log_every", 0), ("checkpoint_every", 0),
        ("checkpoints_to_keep", 0), ("evaluate_every", 0), ("cpu_threads", 0), ("max_steps", -1), ("warmup_steps", -1),
        ("weight_decay", -0.1), ("weight_decay", float("nan")), ("final_learning_rate", -1.0), ("seed", -1),
        ("learning_rate", 0.0), ("learning_rate", float("nan")), ("gradient_clip", 0.0), ("max_seconds", 0.0),
        ("beta1", 1.0), ("beta2", -0.1), ("ema_decay", 1.0), ("accumulation_steps", 3),
    ],
)  # fmt: skip
def test_a_run_refuses_what_it_cannot_do(flag, value):
    with pytest.raises(ValueError, match=f"--{flag} "):
        RunOptions(**{"output_dir": "x", flag: value})


def test_a_tracker_that_is_not_installed_is_refused_before_any_work(monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ValueError, match=r"--report_to wandb needs: pip install"):
        RunOptions(output_dir="x", report_to="wandb")


def test_the_limits_themselves_are_allowed():
    RunOptions(
        output_dir="x", max_steps=0, warmup_steps=0, beta1=0.0, ema_decay=0.0, max_seconds=None
    )


@pytest.mark.parametrize(
    ("settings", "flag"),
    [
        ({"image_size": 0}, "image_size"),
        ({"resize": 0, "image_size": 8}, "resize"),
        ({"crop_padding": -1}, "crop_padding"),
        ({"resize": 8, "image_size": 9}, "resize"),
    ],
)
def test_images_refuse_impossible_sizes(settings, flag):
    with pytest.raises(ValueError, match=f"--{flag} "):
        ImageOptions(**settings)


def test_every_check_runs_again_on_a_changed_copy():
    with pytest.raises(ValueError, match="--image_size"):
        dataclasses.replace(ImageOptions(image_size=8), image_size=-1)
