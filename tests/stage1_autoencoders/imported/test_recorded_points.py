"""Imported tokenizers compute what their projects' own classes compute."""

import json

import pytest
import torch
from safetensors.torch import load_file, save_file

from latent_prior.stage1_autoencoders import load_autoencoder
from latent_prior.stage1_autoencoders.imported.tokenizer import DiscreteTokenizer
from tests.stage1_autoencoders.imported.conftest import (
    CHECKPOINTS,
    checkpoint_in,
    flags_of,
    read_trusted,
)

NAMES = sorted(path.name for path in CHECKPOINTS.iterdir() if path.is_dir())
TOLERANCE = 5e-5  # see checkpoints/README.md


def close(found, expected):
    torch.testing.assert_close(found, expected, rtol=0, atol=TOLERANCE)


@pytest.mark.parametrize("name", NAMES)
def test_every_recorded_point_agrees(tokenizer, inputs, name):
    model = load_autoencoder(tokenizer(name))
    expected = load_file(CHECKPOINTS / name / "expected.safetensors")
    images = inputs["images"][:, : model.config.image_channels]
    with torch.no_grad():
        close(model.encoder(images), expected.pop("encoder_output"))
        if isinstance(model, DiscreteTokenizer):
            codes = model.encode(images)["codes"]
            assert torch.equal(codes, expected.pop("indices").long())
            close(model.pixels_of(model.quantize.vectors(codes)), expected["decoded"])
            if (wide := expected.pop("wide_indices", None)) is not None:
                pixels = inputs["wide_images"][:, : model.config.image_channels]
                found = model.quantize.codes(model.before_quantization(pixels))
                assert torch.equal(found, wide.long())
        else:
            posterior, (shift, scale) = model.posterior(images), model.affine()
            close(posterior.mean / scale + shift, expected.pop("mean"))
            if "logvar" in expected:
                close(posterior.log_variance - 2 * scale.log(), expected.pop("logvar"))
            codes = model.encode(images)["latents"]
            close(codes, expected.pop("latents_scaled", codes))
            close(model.pixels_of(codes / scale + shift), expected["decoded"])
        decoded = model.decode({model.levels[0].name: codes})
    close(decoded, expected.pop("decoded").clamp(-1, 1))
    assert not expected


@pytest.mark.parametrize(
    "name",
    ["taming_vq_plain", "llamagen_vq_l2", "ldm_kl", "diffusers_vq_spatial", "diffusers_kl_legacy"],
)
def test_the_interface_of_the_family_holds(tokenizer, name, tmp_path):
    model = load_autoencoder(tokenizer(name))
    random = torch.Generator().manual_seed(0)
    images = torch.rand(3, model.config.image_channels, 32, 32, generator=random) * 2 - 1
    with torch.no_grad():
        output = model(images).images
        assert torch.equal(model.decode(model.encode(images)), output)
        assert torch.equal(model.decode_vectors(model.embed(images)), output)
    assert output.abs().max() <= 1
    model.save_pretrained(tmp_path)
    assert load_autoencoder(tmp_path).fingerprint == model.fingerprint
    half = load_autoencoder(tmp_path).to(torch.bfloat16)
    assert half(images.bfloat16()).images.isfinite().all()
    with pytest.raises(ValueError, match="takes images of shape"):
        model.encode(images[:, :, :16])


def test_the_averaged_weights_of_a_llamagen_training_are_taken(tokenizer):
    from tests.stage1_autoencoders.imported.conftest import unpack

    folder = unpack("llamagen_vq_trainer_ema", tokenizer("llamagen_vq_trainer_ema").parent / "raw")
    content = read_trusted(checkpoint_in(folder))
    weight = load_autoencoder(tokenizer("llamagen_vq_trainer_ema")).encoder.conv_in.weight
    assert torch.equal(weight, content["ema"]["encoder.conv_in.weight"])
    assert not torch.equal(weight, content["model"]["encoder.conv_in.weight"])


def test_codes_are_renumbered_by_the_list_of_those_in_use(source, imported, inputs):
    folder = source("taming_vq_plain")
    path = checkpoint_in(folder)
    plain = imported(**flags_of("taming_vq_plain", folder)).encode(inputs["images"][:, :1])["codes"]
    used = plain.unique().flip(0)
    content = torch.load(path, weights_only=True)
    content["state_dict"]["quantize.used"] = used
    torch.save(content, path)
    yaml = folder / "model.yaml"
    yaml.write_text(yaml.read_text().replace("n_embed: 64", "n_embed: 64\n    remap: used.npy"))
    model = imported(**flags_of("taming_vq_plain", folder))
    codes = model.encode(inputs["images"][:, :1])["codes"]
    assert model.levels[0].vocabulary == len(used)
    assert torch.equal(used[codes], plain)


def test_without_a_yaml_the_shape_is_read_from_the_weights(source, imported, inputs):
    folder = source("taming_vq_attention")
    (folder / "model.yaml").unlink()
    model = imported(**flags_of("taming_vq_attention", folder), image_size=64)
    assert model.config.attention_levels == [1]
    assert model.levels[0].height == 16
    assert model.encode(torch.zeros(1, 3, 64, 64))["codes"].shape == (1, 16, 16)


def test_a_network_without_attention_in_the_middle(source, imported, inputs):
    """An attention whose last layer is zero adds nothing, so leaving it out changes nothing."""
    folder = source("taming_vq_plain")
    path, yaml = checkpoint_in(folder), folder / "model.yaml"
    content = torch.load(path, weights_only=True)
    state = content["state_dict"]
    for name in state:
        if "mid.attn_1.proj_out" in name:
            state[name].zero_()
    torch.save(content, path)
    flags, images = flags_of("taming_vq_plain", folder), inputs["images"][:, :1]
    expected = imported(**flags)
    for name in [name for name in state if "mid.attn_1" in name]:
        del state[name]
    torch.save(content, path)
    yaml.write_text(yaml.read_text().replace("dropout: 0.1", "dropout: 0.1\n      attn_type: none"))
    found = imported(**flags)
    assert found.num_parameters() < expected.num_parameters()
    assert torch.equal(found.encode(images)["codes"], expected.encode(images)["codes"])
    with torch.no_grad():
        close(found(images).images, expected(images).images)


@pytest.mark.parametrize("wrapper", ["first_stage_model.", "module.", "_orig_mod.module."])
def test_prefixes_of_models_around_the_tokenizer_are_removed(source, imported, tokenizer, wrapper):
    folder = source("ldm_kl")
    path = checkpoint_in(folder)
    content = torch.load(path, weights_only=True)
    state = {f"{wrapper}{name}": value for name, value in content["state_dict"].items()}
    if wrapper.startswith("first"):
        state["model.diffusion_model.weight"] = torch.zeros(3)
        text = (folder / "config.yaml").read_text().replace("\n", "\n      ").rstrip()
        stage = text.removeprefix("model:").replace("base_learning_rate: 4.5e-06", "")
        (folder / "config.yaml").write_text(
            "model:\n  target: ldm.models.diffusion.ddpm.LatentDiffusion\n  params:\n"
            f"    scale_factor: 0.5\n    first_stage_config:{stage}\n"
        )
    torch.save({"state_dict": state}, path)
    model, plain = imported(**flags_of("ldm_kl", folder)), load_autoencoder(tokenizer("ldm_kl"))
    images = torch.zeros(1, 3, 32, 32)
    scale = 0.5 if wrapper.startswith("first") else 1
    assert model.config.scale == scale
    assert torch.equal(model.encode(images)["latents"], plain.encode(images)["latents"] * scale)


def test_flux_form_has_no_convolutions_around_the_posterior(source, imported, tokenizer):
    folder = source("ldm_kl")
    state = torch.load(checkpoint_in(folder), weights_only=True)["state_dict"]
    kept = {n: v.clone() for n, v in state.items() if n.startswith(("encoder", "decoder"))}
    save_file(kept, folder / "ae.safetensors")
    flags = {"format": "taming", "source": folder / "ae.safetensors", "image_size": 32}
    (folder / "config.yaml").unlink()
    model = imported(**flags, scaling_factor=0.3611, shift_factor=0.1159)
    images = torch.zeros(1, 3, 32, 32)
    with torch.no_grad():
        mean = load_autoencoder(tokenizer("ldm_kl")).encoder(images).chunk(2, 1)[0]
        latents = model.encode(images)["latents"]
        close(latents, 0.3611 * (mean - 0.1159))
        close(model.decode({"latents": latents}), model.decoder(mean).clamp(-1, 1))


def test_the_hub_form_of_llamagen_says_whether_lengths_are_one(source, imported, tokenizer):
    folder = source("llamagen_vq_no_l2")
    path = checkpoint_in(folder)
    save_file(torch.load(path, weights_only=True)["model"], folder / "model.safetensors")
    path.unlink()
    arguments = {
        "codebook_size": 64, "codebook_embed_dim": 8, "codebook_l2_norm": False,
        "z_channels": 8, "encoder_ch_mult": [1, 1, 1], "decoder_ch_mult": [1, 1, 1],
    }  # fmt: skip
    (folder / "config.json").write_text(json.dumps(arguments))
    model = imported(format="llamagen", source=folder, image_size=32)
    assert model.config.search == "euclidean"
    assert model.fingerprint == load_autoencoder(tokenizer("llamagen_vq_no_l2")).fingerprint


@pytest.mark.parametrize(("flag", "search"), [(None, "cosine"), ("false", "euclidean")])
def test_llamagen_scales_to_length_one_unless_told_otherwise(source, imported, flag, search):
    flags = flags_of("llamagen_vq_l2", source("llamagen_vq_l2"))
    assert imported(**flags, l2_norm=flag).config.search == search


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_weights_in_half_precision_are_computed_in_float32(source, imported, tokenizer, dtype):
    """The weights lie on a grid that float16 and bfloat16 hold exactly."""
    folder = source("taming_gumbel")
    path = checkpoint_in(folder)
    content = torch.load(path, weights_only=True)
    state = {n: v.to(dtype) for n, v in content["state_dict"].items() if v.is_floating_point()}
    torch.save({"state_dict": state}, path)
    model = imported(**flags_of("taming_gumbel", folder))
    assert model.fingerprint == load_autoencoder(tokenizer("taming_gumbel")).fingerprint


def test_pixels_between_zero_and_one(source, imported, inputs):
    pytest.importorskip("diffusers")
    flags = flags_of("diffusers_vq_amused", source("diffusers_vq_amused"))
    signed, unit = imported(**flags), imported(**flags, unit_pixels=True)
    images = inputs["images"]
    with torch.no_grad():
        codes = unit.encode(images)
        assert torch.equal(codes["codes"], signed.encode((images + 1) / 2)["codes"])
        vectors = unit.quantize.vectors(codes["codes"])
        close(unit.decode(codes), (2 * signed.pixels_of(vectors) - 1).clamp(-1, 1))


@pytest.mark.parametrize(
    ("name", "flag", "value"),
    [
        ("llamagen_vq_l2", "l2_norm", "false"),
        ("ldm_kl", "scaling_factor", 0.5),
        ("diffusers_vq_amused", "unit_pixels", True),
        ("diffusers_kl", "shift_factor", 0.1),
    ],
)
def test_one_file_read_in_two_ways_is_two_tokenizers(
    source, imported, tokenizer, name, flag, value
):
    """A prior must not take the codes of the other reading, so the fingerprints differ."""
    plain = load_autoencoder(tokenizer(name))
    other = imported(**flags_of(name, source(name)), **{flag: value})
    assert torch.equal(other.encoder.conv_in.weight, plain.encoder.conv_in.weight)
    assert other.code_spec.levels == plain.code_spec.levels
    assert other.fingerprint != plain.fingerprint
