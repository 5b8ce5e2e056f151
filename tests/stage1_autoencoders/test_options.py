"""The options of stage one: every impossible value is named by its flag."""

import subprocess
import sys

import pytest

import latent_prior.stage1_autoencoders
from latent_prior.stage1_autoencoders import MODELS, model_class
from latent_prior.stage1_autoencoders.options import (
    DEFAULT_MODEL,
    CriticOptions,
    EncodeOptions,
    ModelOptions,
    TrainOptions,
)
from latent_prior.stage1_autoencoders.vqvae import VQVAEConfig, VQVAEOptions


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("width", 0),
        ("blocks", -1),
        ("blocks", [1, 1]),
        ("blocks", [1, -1, 1]),
        ("code_dim", 0),
        ("multipliers", []),
        ("multipliers", [1, 0]),
        ("codebook_size", 1),
        ("commitment", -0.1),
        ("codebook_decay", 1.0),
        ("restart_below", -0.1),
        ("restart_below", 1.0),
        ("upsampling", "bicubic"),
        ("quantizer", "kmeans"),
        ("distance", "manhattan"),
        ("estimator", "gumbel"),
        ("initialisation", "zeros"),
        ("entropy_weight", -0.1),
        ("entropy_temperature", 0.0),
        ("residual_stages", 0),
        ("reconstruction", "l3"),
    ],
)
def test_an_impossible_value_is_named(field, value):
    """Also in a config.json, which nobody has checked against the types."""
    for options_class in (VQVAEOptions, VQVAEConfig):
        with pytest.raises(ValueError, match=f"--model.{field}"):
            options_class(**{field: value})


@pytest.mark.parametrize("member", MODELS)
def test_a_member_is_found_by_its_name_and_its_name_by_its_options(member):
    """Every entry of `MODELS` can be imported, with its options and its config."""
    options_class = ModelOptions.get_choice_class(member)
    assert issubclass(options_class, ModelOptions)
    assert ModelOptions.get_choice_name(options_class) == member
    assert issubclass(model_class(member).config_class, options_class)
    name = model_class(member).__name__
    assert MODELS[member] == (model_class(member).__module__, name)
    assert options_class.__name__ == f"{name}Options"
    assert getattr(latent_prior.stage1_autoencoders, name) is model_class(member)
    config_class = getattr(latent_prior.stage1_autoencoders, f"{name}Config")
    assert config_class is model_class(member).config_class
    assert options_class.adversarial == (member in ("vaegan", "vqgan"))
    options_class().check_image_size(32)


def test_model_types_are_distinct():
    types = [model_class(member).config_class.model_type for member in MODELS]
    assert len(set(types)) == len(MODELS)


def test_without_a_word_a_vqvae_is_trained():
    assert ModelOptions.default_choice_name() == DEFAULT_MODEL == "vqvae"
    assert ModelOptions.get_known_choices().keys() == MODELS.keys()
    assert TrainOptions(output_dir="x").model == VQVAEOptions()


def test_options_of_no_member_have_no_name():
    with pytest.raises(ValueError, match="CriticOptions are the options of no model in vae, vqvae"):
        ModelOptions.get_choice_name(CriticOptions)


def test_every_multiplier_after_the_first_halves_the_image():
    assert [VQVAEOptions(multipliers=[1] * number).downsampling for number in (1, 2, 4)] == [
        1,
        2,
        8,
    ]


@pytest.mark.parametrize("size", [30, 27, 0, -4])
def test_an_image_size_that_does_not_divide_names_both_numbers(size):
    with pytest.raises(ValueError, match=f"--image_size {size} .* downsampling 4 "):
        VQVAEOptions(multipliers=[1, 2, 2]).check_image_size(size)


def test_attention_at_a_resolution_that_does_not_occur_is_named():
    options = VQVAEOptions(multipliers=[1, 2, 2], attention=[8, 7])
    options_fit = VQVAEOptions(multipliers=[1, 2, 2], attention=[7])
    options_fit.check_image_size(28)
    with pytest.raises(ValueError, match=r"--model.attention 8 .*\[28, 14, 7\]"):
        options.check_image_size(28)


def test_one_number_of_blocks_stands_for_every_resolution():
    assert VQVAEOptions(blocks=2).blocks_per_resolution == [2, 2, 2]
    assert VQVAEOptions(blocks=[0, 1, 2]).blocks_per_resolution == [0, 1, 2]


def test_resizing_needs_the_size_that_is_cut_out():
    with pytest.raises(ValueError, match="--resize needs --image_size"):
        TrainOptions(output_dir="x", resize=32)
    # The autoencoder says it to the encoder.
    assert EncodeOptions(autoencoder="x", output_dir="y", resize=32, crops=1).image_size is None


def test_the_options_need_no_torch():
    code = (
        "import sys, latent_prior.stage1_autoencoders.options\n"
        "print(sorted({'torch', 'transformers'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
