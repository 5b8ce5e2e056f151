"""Options of quantizers: what null takes, and combinations that do not fit."""

import subprocess
import sys

import pytest

from latent_prior.stage1_autoencoders.quantizers.options import (
    READERS,
    QuantizerOptions,
    choose_levels,
)
from latent_prior.stage1_autoencoders.vqvae import VQVAE, VQVAEConfig

KINDS = ["ema", "gradient", "residual", "lfq", "bsq", "fsq"]


@pytest.mark.parametrize(
    ("kind", "expected"),
    [
        ("ema", (0.25, 0, 0.01)),
        ("gradient", (0.25, 0, 0.01)),
        ("residual", (0.25, 0, 0.01)),
        ("lfq", (0.05, 0.02, 0.5)),
        ("bsq", (0.25, 0.01, 0.1)),
    ],
)
def test_null_takes_what_suits_the_quantizer(kind, expected):
    assert QuantizerOptions(quantizer=kind).loss_weights == expected


def test_what_is_given_counts_and_zero_is_given():
    options = QuantizerOptions(quantizer="lfq", entropy_weight=0.0, commitment=0.0)
    assert options.loss_weights == (0.0, 0.0, 0.5)


def test_the_saved_config_keeps_what_was_said(tmp_path):
    said = {"quantizer": "lfq", "entropy_weight": 0.3}
    VQVAE(VQVAEConfig(image_size=8, image_channels=1, width=4, **said)).save_pretrained(tmp_path)
    config = VQVAE.from_pretrained(tmp_path).config
    assert (config.commitment, config.entropy_weight) == (None, 0.3)
    assert config.loss_weights == (0.05, 0.3, 0.5)


@pytest.mark.parametrize("kind", KINDS)
def test_every_quantizer_is_one_word_away(kind):
    QuantizerOptions(quantizer=kind, codebook_size=256)


# Options that do not fit


OTHERS = {
    "commitment": 0.25,
    "entropy_weight": 0.0,
    "entropy_temperature": 0.5,
    "distance": "cosine",
    "estimator": "rotation",
    "initialisation": "data",
    "fsq_levels": [8, 8, 8],
}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", READERS)
def test_an_option_that_would_do_nothing_is_refused(kind, name):
    if kind in READERS[name]:
        if (kind, name) != ("residual", "distance"):
            QuantizerOptions(quantizer=kind, **{name: OTHERS[name]})
        return
    with pytest.raises(ValueError, match=f"^--model.{name} .* --model.quantizer {kind}; it is for"):
        QuantizerOptions(quantizer=kind, **{name: OTHERS[name]})


def test_a_size_that_is_no_power_of_two_has_no_signs():
    for kind in ("lfq", "bsq"):
        with pytest.raises(ValueError, match=rf"--model.codebook_size 500 .*{kind}.* 256 or 512"):
            QuantizerOptions(quantizer=kind, codebook_size=500)


def test_levels_must_multiply_to_the_codebook_size():
    with pytest.raises(
        ValueError, match=r"--model.codebook_size 32 is not 40.*fsq_levels \[8, 5\]"
    ):
        QuantizerOptions(quantizer="fsq", codebook_size=32, fsq_levels=[8, 5])
    with pytest.raises(ValueError, match=r"--model.fsq_levels must be at least 3"):
        QuantizerOptions(quantizer="fsq", codebook_size=32, fsq_levels=[16, 2])
    with pytest.raises(ValueError, match=r"--model.codebook_size 509 "):
        QuantizerOptions(quantizer="fsq", codebook_size=509)


def test_residuals_need_a_distance_that_leaves_some():
    with pytest.raises(ValueError, match=r"--model.distance cosine"):
        QuantizerOptions(quantizer="residual", distance="cosine")


@pytest.mark.parametrize(
    ("size", "levels"),
    [
        (240, [8, 6, 5]),
        (1000, [8, 5, 5, 5]),
        (4375, [7, 5, 5, 5, 5]),
        (15360, [8, 8, 8, 6, 5]),
        (64000, [8, 8, 8, 5, 5, 5]),
        (512, [8, 8, 8]),
        (1024, [8, 8, 4, 4]),
        (4096, [8, 8, 8, 8]),
    ],
)
def test_levels_are_the_papers_or_near(size, levels):
    assert choose_levels(size) == levels
    options = QuantizerOptions(quantizer="fsq", codebook_size=size)
    assert options.levels_per_dimension == levels


def test_the_options_need_no_torch():
    code = (
        "import sys, latent_prior.stage1_autoencoders.quantizers.options\n"
        "print(sorted({'torch', 'transformers'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
