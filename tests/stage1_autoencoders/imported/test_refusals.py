"""What users get wrong with tokenizers of other projects: one sentence, exit code 2, no files."""

import json
import shutil
import subprocess
import sys
import warnings

import pytest
import torch
from safetensors.torch import load_file, save_file

from latent_prior.stage1_autoencoders import import_tokenizer
from tests.stage1_autoencoders.imported.conftest import (
    PICKLED,
    checkpoint_in,
    flags_of,
)


@pytest.fixture
def says(refused, tmp_path):
    """`says(name, folder, ...)`: why the importer refuses a folder's files."""

    def of(name, folder, **flags):
        if name.startswith("diffusers"):
            pytest.importorskip("diffusers")
        target = tmp_path / "out" / "model"
        target.parent.mkdir(exist_ok=True)
        return refused(import_tokenizer, **flags_of(name, folder) | flags, output_dir=target)

    return of


def edit(path, *pairs):
    text = path.read_text()
    for old, new in pairs:
        assert old in text
        text = text.replace(old, new)
    path.write_text(text)


def edit_state(folder, change, entry="state_dict"):
    """Change the weights of a checkpoint."""
    path = checkpoint_in(folder)
    content = torch.load(path, weights_only=True)
    change(content[entry])
    torch.save(content, path)


def set_config(folder, **values):
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


@pytest.mark.parametrize(("name", "holds"), PICKLED.items())
def test_a_checkpoint_with_objects_is_not_unpickled(says, source, name, holds):
    said = says(name, source(name))
    assert f"holds {holds} besides tensors" in said
    assert "convert it once in an environment where you trust it" in said
    assert "torch.save(" in said


def test_the_conversion_that_is_recommended_works(says, source, call, tmp_path):
    folder = source("llamagen_vq_trainer_ema")
    said = says("llamagen_vq_trainer_ema", folder)
    program = said.partition('python -c "')[2].rstrip('"')
    subprocess.run([sys.executable, "-c", program], cwd=folder, check=True)
    flags = flags_of("llamagen_vq_trainer_ema", folder)
    assert "say which one by --weights" in says("llamagen_vq_trainer_ema", folder)
    call(import_tokenizer, **flags, weights="converted.ckpt", output_dir=tmp_path / "done")


class Evil:
    """An object whose pickle would write a file."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return (open, (str(self.path), "w"))


@pytest.mark.parametrize("legacy", [False, True])
def test_nothing_in_a_pickle_is_executed(says, source, tmp_path, legacy):
    folder, trace = source("taming_vq_plain"), tmp_path / "trace"
    content = {"state_dict": {}, "callbacks": Evil(trace)}
    torch.save(content, checkpoint_in(folder), _use_new_zipfile_serialization=not legacy)
    said = says("taming_vq_plain", folder)
    assert "open besides tensors" in said
    assert not trace.exists()


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "is empty"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:00\n", "git-lfs pointer"),
        (b"\n<!DOCTYPE html><html>", "is a web page"),
        (b"\x93NUMPY\x01", "neither a safetensors file nor a checkpoint"),
        (b"PK\x03\x04 and no zip", "is damaged or no checkpoint of torch: download it again"),
        (b"\x80\x02no pickle", "is damaged or no checkpoint of torch: download it again"),
        (b"\x10\0\0\0\0\0\0\0{not a header    ", "is damaged"),
    ],
)
def test_files_that_are_no_checkpoints(says, source, content, reason):
    folder = source("taming_vq_plain")
    checkpoint_in(folder).write_bytes(content)
    said = says("taming_vq_plain", folder)
    assert reason in said
    assert "weights_only" not in said


@pytest.mark.parametrize("name", ["taming_vq_attention", "taming_vq_plain"])
def test_a_download_that_broke_off(says, source, name):
    """The one is a zip, the other the form of torch before 1.6."""
    folder = source(name)
    path = checkpoint_in(folder)
    path.write_bytes(path.read_bytes()[:-10_000])
    said = says(name, folder)
    assert f"{path} is damaged or no checkpoint of torch: download it again" in said


YAML = [
    ("taming_vq_attention", "- 16", "- 8", "attn_resolutions [8] with resolution 32 means attention at the levels [2] (0 is the full resolution), but the weights have it at the levels [1]"),
    ("taming_vq_attention", "resolution: 32", "resolution: 64", "attn_resolutions [16] with resolution 64 means attention at the levels [2]"),
    ("taming_vq_attention", "      - 1\n      - 2\n      - 2", "      - 1\n      - 1\n      - 2", "ch_mult is [1, 1, 2], but the weights have [1, 2, 2]"),
    ("taming_vq_attention", "n_embed: 64", "n_embed: 128", "n_embed is 128, but the weights have 64"),
    ("taming_vq_attention", "double_z: false", "double_z: true", "double_z is True, but the weights have False"),
    ("taming_vq_attention", "dropout: 0.0", "resamp_with_conv: false", "resamp_with_conv is False, but the weights have True"),
    ("taming_vq_plain", "resamp_with_conv: false\n      ", "", "resamp_with_conv is True, but the weights have False"),
    ("taming_vq_plain", "give_pre_end: false", "give_pre_end: true", "give_pre_end the decoder gives features"),
    ("taming_vq_plain", "num_res_blocks: 2", "num_res_blocks: 1", "num_res_blocks is 1, but the weights have 2"),
    ("taming_vq_plain", "in_channels: 1", "in_channels: 3", "in_channels is 3, but the weights have 1"),
    ("taming_vq_plain", "n_embed: 64", "n_embed: 64\n    remap: used.npy", "remap is used.npy, but the weights have False"),
    ("taming_vq_plain", "dropout: 0.1", "attn_type: none", "attn_type is none, but the weights have attention"),
    ("taming_vq_plain", "dropout: 0.1", "attn_type: linear", "attn_type linear cannot be imported"),
    ("taming_vq_plain", "ch: 32", "ch: wide", "Expected int, got str"),
    ("taming_vq_plain", "vqgan.VQModel", "vqgan.Transformer", "is no tokenizer that can be imported"),
    ("taming_gumbel", "GumbelVQ", "VQModel", "target is taming.models.vqgan.VQModel, but the weights have GumbelVQ"),
    ("taming_vq_plain", "vqgan.VQModel", "vqgan.GumbelVQ", "but the weights have VQModel"),
    ("ldm_kl", "embed_dim: 4", "embed_dim: 6", "embed_dim is 6, but the weights have 4"),
    ("ldm_kl", "double_z: true", "double_z: false", "double_z is False, but the weights have True"),
    ("ldm_kl", "model:", "modell:", "model"),
]  # fmt: skip


@pytest.mark.parametrize(("name", "old", "new", "reason"), YAML)
def test_a_yaml_that_contradicts_the_weights(says, source, name, old, new, reason):
    folder = source(name)
    (yaml,) = folder.glob("*.yaml")
    edit(yaml, (old, new))
    said = says(name, folder)
    assert reason in said
    assert str(yaml) in said


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda s: s.pop("encoder.mid.block_1.conv1.weight"), "the file misses encoder.middle.0.conv1.weight"),
        (lambda s: s.pop("encoder.conv_in.weight"), "the weight encoder.conv_in.weight is missing"),
        (lambda s: s.update({"encoder.extra": torch.zeros(2)}), "has no place for encoder.extra"),
        (lambda s: s.update({"quant_conv.bias": torch.zeros(3)}), "quant_conv.bias has the shape (3,), the config asks for"),
        (lambda s: s.update({"quant_conv.bias": torch.full((12,), torch.nan)}), "quant_conv.bias holds numbers that are not finite"),
        (lambda s: s.update({"quantize.used": torch.tensor([1, 99])}), "remap is None, but the weights have True"),
        (lambda s: s.clear(), "holds no tokenizer of a known format"),
    ],
)  # fmt: skip
def test_weights_that_are_missing_surplus_or_damaged(says, source, change, reason):
    folder = source("taming_vq_plain")
    edit_state(folder, change)
    assert reason in says("taming_vq_plain", folder)


def test_torchscript_is_not_run(says, source):
    folder = source("taming_vq_plain")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # TorchScript is deprecated since torch 2.14
        torch.jit.script(torch.nn.Linear(1, 1)).save(str(checkpoint_in(folder)))
    assert "is TorchScript, a program, and is not read" in says("taming_vq_plain", folder)


def test_a_list_of_codes_in_use_that_names_others(says, source):
    folder = source("taming_vq_plain")
    edit_state(folder, lambda s: s.update({"quantize.used": torch.tensor([1, 99])}))
    (folder / "model.yaml").unlink()
    said = says("taming_vq_plain", folder, image_size=32)
    assert "quantize.used must list codes below 64" in said


@pytest.mark.parametrize(
    ("name", "given", "suggested"),
    [
        ("taming_vq_plain", "llamagen", "taming"),
        ("llamagen_vq_no_l2", "taming", "llamagen"),
        ("ldm_kl", "llamagen", "taming"),
    ],
)
def test_another_format_is_named(says, source, name, given, suggested):
    said = says(name, source(name), format=given, image_size=32, l2_norm=None)
    assert f"holds a tokenizer in the format {suggested}, not {given}" in said


def test_a_file_of_diffusers_given_as_a_checkpoint(says, source):
    folder = source("diffusers_vq")
    (folder / "config.json").unlink()
    said = says("diffusers_vq", folder, format="taming", image_size=32)
    assert "say --format diffusers" in said


@pytest.mark.parametrize(
    ("name", "flags", "reason"),
    [
        ("llamagen_vq_no_l2", {"image_size": None}, "add --image_size"),
        ("llamagen_vq_no_l2", {"image_size": 30}, "--image_size 30 is not divisible by the tokenizer's downsampling 4"),
        ("llamagen_vq_no_l2", {"weights": "other.pt"}, "--weights other.pt: there is no such file"),
        ("llamagen_vq_no_l2", {"yaml": "x.yaml"}, "--yaml is for --format taming"),
        ("taming_vq_plain", {"l2_norm": "true"}, "--l2_norm is for --format llamagen"),
        ("taming_vq_plain", {"scaling_factor": 0.5}, "--scaling_factor 0.5 is for latents"),
        ("taming_vq_plain", {"yaml": "nothing.yaml"}, "--yaml nothing.yaml: there is no such file"),
        ("taming_vq_plain", {"subfolder": "vae"}, "--subfolder vae: there is no folder"),
        ("ldm_kl", {"scaling_factor": -1}, "--scaling_factor must be above 0"),
        ("ldm_kl", {"source": "/nowhere/at/all"}, "there is no folder /nowhere/at/all"),
    ],
)  # fmt: skip
def test_flags_that_do_not_fit(says, source, name, flags, reason):
    assert reason in says(name, source(name), **flags)


def test_several_files_are_not_guessed_at(says, source):
    folder = source("taming_vq_plain")
    (folder / "other.yaml").write_text("model: {}")
    assert "holds model.yaml, other.yaml: say which one by --yaml" in says(
        "taming_vq_plain", folder
    )
    (folder / "last.ckpt").rename(folder / "last.txt")
    assert "holds no weights" in says("taming_vq_plain", folder)


def test_a_config_of_llamagen_that_contradicts(says, source):
    folder = source("llamagen_vq_no_l2")
    config = folder / "config.json"
    config.write_text(json.dumps({"codebook_size": 128}))
    assert f"{config}: codebook_size is 128, but the weights have 64" in says(
        "llamagen_vq_no_l2", folder
    )
    config.write_text(json.dumps({"codebook_l2_norm": True}))
    said = says("llamagen_vq_no_l2", folder)
    assert "codebook_l2_norm is True, but --l2_norm says False" in said


DOWN = ["DownEncoderBlock2D"] * 3
DIFFUSERS = [
    ("diffusers_vq", {"down_block_types": DOWN}, "has no place for encoder.down_blocks.2.attentions.0.group_norm.bias and 9 others: correct down_block_types in config.json"),
    ("diffusers_vq", {"layers_per_block": 2}, "misses decoder.up_blocks.0.attentions.2.group_norm.bias and 67 others: correct"),
    ("diffusers_vq", {"norm_num_groups": 32}, "config.json: norm_num_groups 32 must divide block_out_channels [4, 8, 12]"),
    ("diffusers_vq", {"vq_embed_dim": None}, "asks for (4, 4, 1, 1): correct vq_embed_dim"),
    ("diffusers_vq", {"num_vq_embeddings": 65}, "correct num_vq_embeddings"),
    ("diffusers_vq", {"_class_name": "AutoencoderTiny"}, "_class_name is 'AutoencoderTiny', and only VQModel and AutoencoderKL"),
    ("diffusers_vq", {"down_block_types": ["CrossAttnDownBlock2D"] * 3}, "down_block_types"),
    ("diffusers_vq", {"in_channels": 4}, "images of 4 channels and gives 3"),
    ("diffusers_vq", {"sample_size": [32, 48]}, "has no single sample_size of square images: add --image_size"),
    ("diffusers_vq_amused", {"mid_block_add_attention": True}, "misses decoder.mid_block.attentions.0.group_norm.bias and 19 others: correct mid_block_add_attention"),
    ("diffusers_vq_spatial", {"norm_type": "group"}, "and 119 others: correct norm_type"),
    ("diffusers_kl", {"use_post_quant_conv": False}, "has no place for post_quant_conv.bias and 1 others"),
    ("diffusers_kl", {"shift_factor": float("nan")}, "config.json is not JSON (NaN is no number)"),
    ("diffusers_kl", {"latents_mean": [0.0]}, "latents_mean must have 4 numbers, not 1"),
    ("diffusers_kl", {"scaling_factor": "small"}, "scaling_factor: Expected float, got str"),
]  # fmt: skip


@pytest.mark.parametrize(("name", "values", "reason"), DIFFUSERS)
def test_a_config_of_diffusers_that_contradicts_the_weights(says, source, name, values, reason):
    folder = source(name)
    set_config(folder, **values)
    assert reason in says(name, folder)


def test_weights_of_diffusers_that_are_missing(says, source):
    folder = source("diffusers_kl")
    path = folder / "diffusion_pytorch_model.safetensors"
    weights = load_file(path)
    save_file({n: v for n, v in weights.items() if not n.startswith("post_quant")}, path)
    assert "the file misses post_quant_conv.bias and 1 others" in says("diffusers_kl", folder)
    path.unlink()
    (folder / "diffusion_pytorch_model.safetensors.index.json").write_text("{}")
    assert "weights in several files are not read" in says("diffusers_kl", folder)
    (folder / "config.json").unlink()
    (folder / "model_index.json").write_text("{}")
    assert "such as --subfolder vae" in says("diffusers_kl", folder)


def test_fields_of_other_versions_of_diffusers_are_no_errors(imported, source):
    pytest.importorskip("diffusers")
    folder = source("diffusers_kl")
    set_config(folder, final_decoder_activation=False)
    assert imported(**flags_of("diffusers_kl", folder)).config.scaling_factor == 0.18215


def test_without_the_package_the_extra_is_named(says, source, monkeypatch):
    folder = source("diffusers_kl")
    monkeypatch.setitem(sys.modules, "diffusers", None)
    said = says("taming", folder, format="diffusers")
    assert 'pip install "latent-prior[diffusers]"' in said


def test_an_older_autoencoder_stays_when_the_new_one_is_refused(refused, source, tmp_path, call):
    folder = source("taming_vq_plain")
    flags = flags_of("taming_vq_plain", folder) | {"output_dir": tmp_path / "kept" / "model"}
    call(import_tokenizer, **flags)
    before = (tmp_path / "kept/model/manifest.json").read_bytes()
    edit_state(folder, lambda state: state.pop("quant_conv.bias"))
    assert "misses quant_conv.bias" in refused(import_tokenizer, **flags)
    assert (tmp_path / "kept/model/manifest.json").read_bytes() == before


def test_no_other_model_is_replaced(call, refused, source, autoencoder_folder, tmp_path):
    """The same tokenizer may be imported again, into the folder that holds it."""
    folder = tmp_path / "out" / "model"
    flags = flags_of("taming_vq_plain", source("taming_vq_plain"))
    call(import_tokenizer, **flags, output_dir=folder)
    call(import_tokenizer, **flags, output_dir=folder)
    other = flags_of("llamagen_vq_l2", source("llamagen_vq_l2"))
    assert "holds another model" in refused(import_tokenizer, **other, output_dir=folder)
    trained = shutil.copytree(autoencoder_folder, tmp_path / "out" / "trained")
    assert "holds another model" in refused(import_tokenizer, **flags, output_dir=trained)
