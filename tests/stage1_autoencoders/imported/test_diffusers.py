"""Tokenizers in the format of diffusers against the package itself, in and out."""

import dataclasses
import json

import pytest
import torch
from safetensors.torch import save_file

from latent_prior.stage1_autoencoders import (
    export_tokenizer,
    import_tokenizer,
    load_autoencoder,
    train,
)
from tests.stage1_autoencoders.imported.conftest import checkpoint_in, flags_of

diffusers = pytest.importorskip("diffusers")

SMALL = {
    "block_out_channels": [8, 16],
    "down_block_types": ["AttnDownEncoderBlock2D", "DownEncoderBlock2D"],
    "up_block_types": ["UpDecoderBlock2D", "AttnUpDecoderBlock2D"],
    "layers_per_block": 2,
    "norm_num_groups": 4,
    "sample_size": 24,
}
VQ = {**SMALL, "num_vq_embeddings": 37, "latent_channels": 5, "vq_embed_dim": 3}
SPATIAL = {
    **VQ,
    "block_out_channels": [32, 64],
    "vq_embed_dim": 5,
    "norm_type": "spatial",
    "act_fn": "gelu",
    "mid_block_add_attention": False,
}
KL = {**SMALL, "latent_channels": 3, "scaling_factor": 0.3611, "shift_factor": 0.1159}
BARE = {**KL, "use_quant_conv": False, "use_post_quant_conv": False, "in_channels": 1, "out_channels": 1}  # fmt: skip
STATISTICS = {
    **KL,
    "shift_factor": None,
    "latents_mean": [0.1, -0.2, 0.3],
    "latents_std": [1.0, 2.0, 0.5],
}


def package(kind, shape, seed=0):
    """A model of the package with random weights that make every code count."""
    torch.manual_seed(seed)
    model = getattr(diffusers, kind)(**shape).eval()
    if kind == "VQModel":
        with torch.no_grad():  # spread the codes over what the encoder says
            vectors = model.encode(torch.rand(2, 3, 24, 24) * 2 - 1).latents
            rows = vectors.permute(0, 2, 3, 1).flatten(0, 2)
            model.quantize.embedding.weight.copy_(rows[torch.randperm(len(rows))[:37]])
    return model


def pictures(model, size=24):
    random = torch.Generator().manual_seed(1)
    return torch.rand(2, model.config.in_channels, size, size, generator=random) * 2 - 1


@pytest.mark.parametrize("shape", [VQ, SPATIAL], ids=["group", "spatial"])
def test_a_vq_model_is_the_same_bit_by_bit(call, tmp_path, shape):
    model = package("VQModel", shape)
    model.save_pretrained(tmp_path / "source")
    call(
        import_tokenizer, format="diffusers", source=tmp_path / "source", output_dir=tmp_path / "m"
    )
    ours, images = load_autoencoder(tmp_path / "m"), pictures(model)
    with torch.no_grad():
        latents = model.encode(images).latents
        indices = model.quantize(latents)[2][2].view(2, 12, 12)
        expected = model.decode(
            model.quantize.embedding(indices).permute(0, 3, 1, 2).contiguous(),
            force_not_quantize=True,
        )
        assert torch.equal(ours.before_quantization(images), latents)
        codes = ours.encode(images)
        assert torch.equal(codes["codes"], indices)
        assert len(indices.unique()) > 5
        assert torch.equal(ours.decode(codes), expected.sample.clamp(-1, 1))


@pytest.mark.parametrize("shape", [KL, BARE, STATISTICS], ids=["shift", "bare", "statistics"])
def test_an_autoencoder_kl_is_the_same(call, tmp_path, shape):
    """Bit by bit up to the scale of the latents, as the package's pipelines compute it."""
    model = package("AutoencoderKL", shape)
    model.save_pretrained(tmp_path / "source")
    call(
        import_tokenizer, format="diffusers", source=tmp_path / "source", output_dir=tmp_path / "m"
    )
    ours, images = load_autoencoder(tmp_path / "m"), pictures(model)
    with torch.no_grad():
        distribution = model.encode(images).latent_dist
        shift, std = model.config.shift_factor or 0, torch.ones(3, 1, 1)
        if model.config.latents_mean:
            shift = torch.tensor(model.config.latents_mean)[:, None, None]
            std = torch.tensor(model.config.latents_std)[:, None, None]
        factor = model.config.scaling_factor / std
        latents = ours.encode(images)
        torch.testing.assert_close(latents["latents"], (distribution.mean - shift) * factor)
        posterior = ours.posterior(images)
        torch.testing.assert_close((posterior.log_variance / 2).exp(), distribution.std * factor)
        decoded = model.decode(distribution.mean).sample.clamp(-1, 1)
        torch.testing.assert_close(ours.decode(latents), decoded, rtol=0, atol=1e-5)


def export(call, model_folder, folder):
    call(export_tokenizer, autoencoder=model_folder, output_dir=folder)
    kind = json.loads((folder / "config.json").read_text())["_class_name"]
    return getattr(diffusers, kind).from_pretrained(folder, low_cpu_mem_usage=False).eval()


@pytest.mark.parametrize(
    "name",
    ["diffusers_vq", "diffusers_vq_amused", "diffusers_vq_spatial", "diffusers_kl", "diffusers_kl_fp16", "diffusers_kl_legacy"],
)  # fmt: skip
def test_what_came_from_the_package_goes_back_bit_by_bit(call, tokenizer, tmp_path, name):
    back = export(call, tokenizer(name), tmp_path / "back")
    ours = load_autoencoder(tokenizer(name))
    weights = {name: value for name, value in ours.state_dict().items() if name != "choices"}
    assert back.state_dict().keys() == weights.keys()
    assert all(torch.equal(back.state_dict()[name], value) for name, value in weights.items())
    source = json.loads((tokenizer(name).parent / "source/config.json").read_text())
    for field, value in source.items():
        if field not in ("_class_name", "_diffusers_version"):
            found = getattr(back.config, field)
            assert (list(found) if isinstance(value, list) else found) == value, field


@pytest.mark.parametrize(
    "name", ["taming_vq_attention", "taming_vq_lightning108", "llamagen_vq_no_l2"]
)
def test_a_vqgan_becomes_a_vq_model_bit_by_bit(call, tokenizer, inputs, tmp_path, name):
    back, ours = export(call, tokenizer(name), tmp_path / "back"), load_autoencoder(tokenizer(name))
    with torch.no_grad():
        latents = back.encode(inputs["images"]).latents
        assert torch.equal(latents, ours.before_quantization(inputs["images"]))
        indices = back.quantize(latents)[2][2].view(1, 8, 8)
        assert torch.equal(indices, ours.encode(inputs["images"])["codes"])
        vectors = back.quantize.embedding(indices).permute(0, 3, 1, 2).contiguous()
        decoded = back.decode(vectors, force_not_quantize=True).sample
        assert torch.equal(decoded.clamp(-1, 1), ours.decode({"codes": indices}))
    flags = {"format": "diffusers", "source": tmp_path / "back"}
    call(import_tokenizer, **flags, output_dir=tmp_path / "again")
    again = load_autoencoder(tmp_path / "again")
    assert torch.equal(again.encode(inputs["images"])["codes"], indices)


def test_latents_without_convolutions_become_an_autoencoder_kl(call, source, inputs, tmp_path):
    """FLUX's form: bit by bit but for the scale, which the package leaves to its pipelines."""
    folder = source("ldm_kl")
    state = torch.load(checkpoint_in(folder), weights_only=True)["state_dict"]
    kept = {n: v.clone() for n, v in state.items() if n.startswith(("encoder", "decoder"))}
    save_file(kept, tmp_path / "ae.safetensors")
    flags = {"scaling_factor": 0.3611, "shift_factor": 0.1159, "image_size": 32}
    model = tmp_path / "model"
    call(
        import_tokenizer,
        format="taming",
        source=tmp_path / "ae.safetensors",
        output_dir=model,
        **flags,
    )
    back, ours = export(call, model, tmp_path / "back"), load_autoencoder(model)
    with torch.no_grad():
        mean = back.encode(inputs["images"]).latent_dist.mean
        assert torch.equal(mean, ours.encoder(inputs["images"]).chunk(2, 1)[0])
        assert torch.equal(back.decode(mean).sample, ours.decode_unbounded(mean))
        scaled = (mean - back.config.shift_factor) * back.config.scaling_factor
        torch.testing.assert_close(ours.encode(inputs["images"])["latents"], scaled)


def test_codes_of_length_one_are_stored_so(call, tokenizer, inputs, tmp_path):
    """The nearest row of length 1 is the one with the largest cosine, so codes stay the same."""
    folder = tokenizer("llamagen_vq_trainer_ema")
    back, ours = export(call, folder, tmp_path / "back"), load_autoencoder(folder)
    with torch.no_grad():
        indices = back.quantize(back.encode(inputs["images"]).latents)[2][2].view(1, 8, 8)
        assert torch.equal(indices, ours.encode(inputs["images"])["codes"])
        vectors = back.quantize.embedding(indices).permute(0, 3, 1, 2).contiguous()
        decoded = back.decode(vectors, force_not_quantize=True).sample
    assert torch.equal(decoded.clamp(-1, 1), ours.decode({"codes": indices}))


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("taming_vq_plain", "resolutions change without convolutions"),
        ("taming_gumbel", "logits choose its codes"),
        ("llamagen_vq_l2", "encoder and decoder differ in width"),
        ("ldm_kl", "the 1x1 convolutions change the number of channels"),
    ],
)
def test_what_the_package_lacks_is_named(refused, tokenizer, tmp_path, name, reason):
    (tmp_path / "out").mkdir()
    said = refused(export_tokenizer, autoencoder=tokenizer(name), output_dir=tmp_path / "out/back")
    assert f"cannot be a model of diffusers: {reason}" in said


def test_an_image_larger_than_the_sample_size_is_encoded_whole(imported, source):
    flags = flags_of("diffusers_vq", source("diffusers_vq"))
    model = imported(**flags, image_size=256)
    images = torch.zeros(2, 3, 256, 256)
    assert model.encode(images)["codes"].shape == (2, 64, 64)
    assert dataclasses.replace(model.code_spec).image_size == 256


@pytest.mark.parametrize(
    ("member", "others"),
    [
        ("vqvae", {}),
        ("vqgan", {"model.distance": "cosine", "critic.width": 4, "critic.layers": 2, "critic.adaptive": True}),
        ("vqvae", {"model.quantizer": "gradient", "model.multipliers": [1, 2, 2], "channels": 1}),
    ],
)  # fmt: skip
def test_a_model_trained_here_becomes_a_vq_model_bit_by_bit(call, images, tmp_path, member, others):
    flags = {
        "model.type": member, "model.network": "ddpm", "model.width": 32, "model.multipliers": [1, 2],
        "model.blocks": 1, "model.attention": 8, "model.codebook_size": 16, "model.code_dim": 4,
        "max_steps": 3, "batch_size": 8, "warmup_steps": 1, "image_size": 16, "dataset": images,
    } | others  # fmt: skip
    call(train, **flags, output_dir=tmp_path / "run")
    back = export(call, tmp_path / "run/model", tmp_path / "back")
    ours = load_autoencoder(tmp_path / "run/model")
    shown = pictures(back, 16)
    with torch.no_grad():
        latents = back.encode(shown).latents
        assert torch.equal(latents, ours.encoder(shown))
        codes = ours.encode(shown)["codes"]
        assert torch.equal(back.quantize(latents)[2][2].view(codes.shape), codes)
        vectors = back.quantize.embedding(codes).permute(0, 3, 1, 2)
        assert torch.equal(vectors, ours.embed(shown)["vectors"])
        decoded = back.decode(vectors, force_not_quantize=True).sample
        assert torch.equal(decoded.clamp(-1, 1), ours.decode({"codes": codes}))


@pytest.mark.parametrize(
    ("member", "shape", "reason"),
    [
        ("vqvae", {}, "train one with --model.network ddpm"),
        ("vae", {}, "a VAE cannot be a model of diffusers"),
        ("vqvae", {"network": "ddpm", "width": 32, "blocks": 1, "quantizer": "fsq"}, "whose codes are a table"),
    ],
)  # fmt: skip
def test_which_models_of_this_project_stay_here(refused, parts, tmp_path, member, shape, reason):
    parts["autoencoder"](member, **shape).save_pretrained(tmp_path / "model")
    (tmp_path / "out").mkdir()
    said = refused(
        export_tokenizer, autoencoder=tmp_path / "model", output_dir=tmp_path / "out/back"
    )
    assert reason in said


@pytest.mark.parametrize(
    ("member", "shape", "reason"),
    [
        ("vqvae", {"width": 24, "blocks": 1}, "divisible by 32, not 24 x 1"),
        ("vqvae", {"width": 32, "blocks": [1, 2]}, "--model.blocks to be one number above 0"),
        ("vqvae", {"width": 32, "blocks": 1, "upsampling": "transposed"}, "--model.upsampling nearest"),
        ("vqvae2", {"width": 32, "blocks": 1}, "is for one code map"),
    ],
)  # fmt: skip
def test_what_the_ddpm_network_cannot_have(parts, member, shape, reason):
    with pytest.raises(ValueError, match=reason):
        parts["autoencoder"](member, network="ddpm", **shape)
