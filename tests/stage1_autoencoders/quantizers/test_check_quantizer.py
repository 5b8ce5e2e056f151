"""Options of quantizers: defaults, combinations that do not fit, and one quantizer more."""

from typing import Literal

import pytest
import torch

from latent_prior import options as shared_options
from latent_prior.stage1_autoencoders import vqvae
from latent_prior.stage1_autoencoders.options import QuantizerOptions
from latent_prior.stage1_autoencoders.quantizers import (
    QUANTIZERS,
    check_quantizer,
    make_quantizer,
)
from latent_prior.stage1_autoencoders.quantizers.base import Quantizer, QuantizerOutput
from latent_prior.stage1_autoencoders.vqvae import VQVAE, VQVAEConfig, VQVAEOptions

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
def test_null_takes_the_default_of_the_quantizer(kind, expected):
    quantizer = make_quantizer(QuantizerOptions(quantizer=kind))
    assert QUANTIZERS[kind].loss_weights(QuantizerOptions(quantizer=kind)) == expected
    weighted = quantizer.codebooks if kind == "residual" else [quantizer]
    assert all(part.weights == expected for part in weighted)


def test_given_weights_replace_the_defaults_also_if_zero():
    options = QuantizerOptions(quantizer="lfq", entropy_weight=0.0, commitment=0.0)
    assert make_quantizer(options).weights == (0.0, 0.0, 0.5)


def test_the_saved_config_keeps_what_was_said(tmp_path):
    said = {"quantizer": "lfq", "entropy_weight": 0.3}
    VQVAE(VQVAEConfig(image_size=8, image_channels=1, width=4, **said)).save_pretrained(tmp_path)
    model = VQVAE.from_pretrained(tmp_path)
    assert (model.config.commitment, model.config.entropy_weight) == (None, 0.3)
    assert model.quantizer.weights == (0.05, 0.3, 0.5)


@pytest.mark.parametrize("kind", KINDS)
def test_every_quantizer_is_one_word_away(kind):
    VQVAEOptions(quantizer=kind, codebook_size=256)


def test_every_option_of_some_quantizers_is_tested_below():
    assert {name for quantizer in QUANTIZERS.values() for name in quantizer.reads} == set(OTHERS)


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
@pytest.mark.parametrize("name", OTHERS)
def test_an_option_that_would_do_nothing_is_refused(kind, name):
    if name in QUANTIZERS[kind].reads:
        if (kind, name) != ("residual", "distance"):
            VQVAEOptions(quantizer=kind, **{name: OTHERS[name]})
        return
    with pytest.raises(ValueError, match=f"^--model.{name} .* --model.quantizer {kind}; it is for"):
        VQVAEOptions(quantizer=kind, **{name: OTHERS[name]})


def test_a_size_that_is_no_power_of_two_has_no_signs():
    for kind in ("lfq", "bsq"):
        with pytest.raises(ValueError, match=rf"--model.codebook_size 500 .*{kind}.* 256 or 512"):
            VQVAEOptions(quantizer=kind, codebook_size=500)


def test_levels_must_multiply_to_the_codebook_size():
    with pytest.raises(
        ValueError, match=r"--model.codebook_size 32 is not 40.*fsq_levels \[8, 5\]"
    ):
        VQVAEOptions(quantizer="fsq", codebook_size=32, fsq_levels=[8, 5])
    with pytest.raises(ValueError, match=r"--model.fsq_levels must be at least 3"):
        VQVAEOptions(quantizer="fsq", codebook_size=32, fsq_levels=[16, 2])
    with pytest.raises(ValueError, match=r"--model.codebook_size 509 "):
        VQVAEOptions(quantizer="fsq", codebook_size=509)


def test_residuals_need_a_distance_that_leaves_some():
    with pytest.raises(ValueError, match=r"--model.distance cosine"):
        VQVAEOptions(quantizer="residual", distance="cosine")


def test_building_a_quantizer_checks_its_options():
    options = QuantizerOptions(quantizer="bsq", codebook_size=500)
    for check in (check_quantizer, make_quantizer):
        with pytest.raises(ValueError, match=r"--model.codebook_size 500"):
            check(options)


# A seventh quantizer: its class and a line in the table


class Thirds(Quantizer):
    """One channel, rounded to three values; `fsq_levels` means nothing to it, `commitment` does."""

    reads = ("commitment",)
    dim, vocabulary = 1, 3

    def __init__(self, options):
        super().__init__()

    @classmethod
    def check(cls, options):
        if options.codebook_size != 3:
            raise ValueError("--model.codebook_size must be 3")

    def forward(self, inputs):
        codes = self.vectors_to_codes(inputs)
        vectors = inputs + (self.codes_to_vectors(codes) - inputs).detach()
        return QuantizerOutput(vectors, codes, inputs.new_zeros(()))

    def vectors_to_codes(self, vectors):
        return vectors.round().clamp(-1, 1).long() + 1

    def codes_to_vectors(self, codes):
        return (codes - 1).float()


def test_a_seventh_quantizer_is_a_class_and_a_line(monkeypatch):
    monkeypatch.setitem(QUANTIZERS, "thirds", Thirds)
    # What importing `vqvae` after adding the line would do.
    monkeypatch.setattr(vqvae, "QuantizerName", Literal[tuple(QUANTIZERS)])
    shared_options._choices.cache_clear()
    try:
        shape = {"image_size": 8, "image_channels": 1, "width": 4, "quantizer": "thirds"}
        model = VQVAE(VQVAEConfig(codebook_size=3, **shape))
        with pytest.raises(ValueError, match=r"--model.codebook_size must be 3"):
            VQVAEConfig(**shape)
        with pytest.raises(
            ValueError, match=r"--model.fsq_levels .* --model.quantizer thirds; it is for fsq"
        ):
            VQVAEConfig(codebook_size=3, fsq_levels=[3], **shape)
        images = torch.zeros(2, 1, 8, 8)
        assert model(images).images.shape == images.shape
        assert model.decode(model.encode(images)).shape == images.shape
        assert model.levels[0].vocabulary == 3
    finally:
        shared_options._choices.cache_clear()
