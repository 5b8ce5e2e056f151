"""Folders of `diffusers`: `VQModel` and `AutoencoderKL` in and out.

In, also as older versions wrote them: fields that are not known are ignored, those that are missing
have their default, and the parts of attention had other names before version 0.17. Out, any
tokenizer that a model of the package can express without a change of its function.
"""

from __future__ import annotations

import re
import typing
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from latent_prior.records import convert_record
from latent_prior.stage1_autoencoders.autoencoder import Autoencoder
from latent_prior.stage1_autoencoders.imported.diffusers_models import (
    DiffusersKL,
    DiffusersKLConfig,
    DiffusersKLOptions,
    DiffusersOptions,
    DiffusersVQ,
    DiffusersVQConfig,
    DiffusersVQOptions,
    package_fields,
)
from latent_prior.stage1_autoencoders.imported.models import ImportedKL, ImportedVQ
from latent_prior.stage1_autoencoders.imported.network import GROUPS, NetworkOptions
from latent_prior.stage1_autoencoders.imported.shapes import checked_config
from latent_prior.stage1_autoencoders.imported.tokenizer import CHOICES
from latent_prior.stage1_autoencoders.imported.weight_files import (
    Weights,
    check_format,
    filled,
    find_weights,
    read_file,
    read_json,
    renamed,
    state_of,
)
from latent_prior.stage1_autoencoders.quantizers.codebooks import Codebook
from latent_prior.stage1_autoencoders.vqvae import VQVAE

CONFIG = "config.json"
WEIGHTS = "diffusion_pytorch_model"
PREFERRED = tuple(
    f"{WEIGHTS}{variant}.{ending}" for ending in ("safetensors", "bin") for variant in ("", ".fp16")
)
OPTIONS: dict[str, type[DiffusersOptions]] = {
    "VQModel": DiffusersVQOptions,
    "AutoencoderKL": DiffusersKLOptions,
}
# Before diffusers 0.17 (huggingface/diffusers#2697).
_OLD_NAMES = tuple(
    (rf"(\.attentions\.\d+)\.{old}\.", rf"\1.{new}.")
    for old, new in {
        "query": "to_q",
        "key": "to_k",
        "value": "to_v",
        "proj_attn": "to_out.0",
    }.items()
)
# Where a weight does not fit: what of the config may be wrong.
_HINTS = (
    (r"\.(conv_y|conv_b|norm_layer|spatial_norm)\b", "norm_type"),
    (r"\.mid_block\.attentions\.", "mid_block_add_attention"),
    (r"\.down_blocks\.\d+\.attentions\.", "down_block_types"),
    (r"\.up_blocks\.\d+\.attentions\.", "up_block_types"),
    (r"^quantize\.", "num_vq_embeddings or vq_embed_dim"),
    (r"^(post_)?quant_conv\.", "vq_embed_dim, use_quant_conv or use_post_quant_conv"),
    (r"\.resnets\.\d+\.(conv|norm)[12]\.", "layers_per_block, block_out_channels or norm_type"),
)
# Ours -> the package's; decoder levels are counted from the other end.
_NAMES = (
    (r"^encoder\.levels\.(\d+)\.resample\.conv\.", r"encoder.down_blocks.\1.downsamplers.0.conv."),
    (r"^decoder\.levels\.(\d+)\.resample\.conv\.", r"decoder.up_blocks.\1.upsamplers.0.conv."),
    (r"^encoder\.levels\.", "encoder.down_blocks."),
    (r"^decoder\.levels\.", "decoder.up_blocks."),
    (r"(\.attention\.\d+|\.middle\.1)\.norm\.", r"\1.group_norm."),
    (r"(\.attention\.\d+|\.middle\.1)\.([qkv])\.", r"\1.to_\2."),
    (r"(\.attention\.\d+|\.middle\.1)\.out\.", r"\1.to_out.0."),
    (r"\.blocks\.(\d+)\.", r".resnets.\1."),
    (r"\.attention\.(\d+)\.", r".attentions.\1."),
    (r"\.middle\.0\.", ".mid_block.resnets.0."),
    (r"\.middle\.1\.", ".mid_block.attentions.0."),
    (r"\.middle\.2\.", ".mid_block.resnets.1."),
    (r"\.shortcut\.", ".conv_shortcut."),
    (r"\.norm_out\.", ".conv_norm_out."),
)


def read_diffusers(
    folder: Path,
    *,
    weights_name: str | None,
    image_size: int | None,
    unit_pixels: bool,
    scaling_factor: float | None,
    shift_factor: float | None,
) -> DiffusersVQ | DiffusersKL:
    """The tokenizer in a folder that `save_pretrained` of the package wrote.

    Args:
        folder: with `config.json` and the weights.
        weights_name: of the file of weights; None takes the usual names, float32 first.
        image_size: of the images; None takes the config's `sample_size`.
        unit_pixels: whether the network's pixels lie in [0, 1].
        scaling_factor: factor of the latents; None takes the config's.
        shift_factor: subtracted from the latents before; None takes the config's.

    Raises:
        ValueError: a file is missing, damaged or of another format, config and weights contradict,
            or the package is not there.
    """
    path = folder / CONFIG
    if not path.is_file():
        if (folder / "model_index.json").is_file():
            raise ValueError(
                f"{folder} is a pipeline of diffusers: name the folder of its autoencoder, "
                "such as --subfolder vae"
            )
        raise ValueError(f"{path} is missing: name a folder that diffusers wrote")
    values = read_json(path)
    options = OPTIONS.get(str(values.get("_class_name")))
    if options is None:
        raise ValueError(
            f"{path}: _class_name is {str(values.get('_class_name'))[:60]!r}, and only "
            f"{' and '.join(OPTIONS)} can be imported"
        )
    way_out = "restore the file that belongs to the weights"
    hints = typing.get_type_hints(options)
    shape = {
        name: convert_record(values[name], hints[name], f"{path}: {name}", way_out)
        for name in package_fields(options)
        if name in values
    }
    channels = values.get("in_channels", 3), values.get("out_channels", 3)
    if channels not in ((1, 1), (3, 3)):
        raise ValueError(
            f"{path}: it takes images of {channels[0]} channels and gives {channels[1]}; only "
            "tokenizers of grey (1) or RGB (3) images can be imported"
        )
    if image_size is None:
        image_size = _sample_size(values.get("sample_size"), path)
    given = {"scaling_factor": scaling_factor, "shift_factor": shift_factor}
    if options is DiffusersKLOptions:
        shape |= {name: value for name, value in given.items() if value is not None}
    shape |= {
        "image_size": image_size,
        "image_channels": channels[0],
        "unit_pixels": unit_pixels,
    }
    whole = weights_name or any((folder / name).is_file() for name in PREFERRED)
    if not whole and (shards := sorted(folder.glob("*.index.json"))):
        raise ValueError(
            f"{shards[0]}: weights in several files are not read; save the model again as one, "
            'with max_shard_size="50GB"'
        )
    file = find_weights(folder, weights_name, PREFERRED)
    weights = state_of(read_file(file), (), file)
    check_format(weights, "diffusers", file)
    weights = renamed(weights, _OLD_NAMES)
    if options is DiffusersVQOptions:
        vq = checked_config(DiffusersVQConfig, shape, path)
        return filled(DiffusersVQ, vq, weights, file, _hint)
    kl = checked_config(DiffusersKLConfig, shape, path)
    return filled(DiffusersKL, kl, weights, file, _hint)


def to_diffusers(model: Autoencoder) -> tuple[dict[str, Any], Weights]:
    """The config and the weights of the same function as a model of diffusers.

    A tokenizer of the package keeps its weights. Those of taming, latent diffusion and LlamaGen,
    and VQ-VAEs of this project with `network` ddpm, have only other names; codes of length 1 are
    stored so, and the nearest code is then the same for vectors of any length. A VQ-VAE has no 1x1
    convolutions, so the package's are the identity.

    Raises:
        ValueError: naming the part that the package's models lack.
    """
    config: dict[str, Any]
    if isinstance(model, DiffusersVQ | DiffusersKL):
        kind: str = "VQModel" if isinstance(model, DiffusersVQ) else "AutoencoderKL"
        config = {name: getattr(model.config, name) for name in package_fields(OPTIONS[kind])}
        weights = dict(model.state_dict())
    elif isinstance(model, ImportedVQ | ImportedKL | VQVAE):
        _check_expressible(model)
        kind = "AutoencoderKL" if isinstance(model, ImportedKL) else "VQModel"
        shape = _shape_of(model)
        config = _network_config(shape) | _own_config(model)
        weights = _renamed_out(_own_weights(model), last=len(shape.decoder_widths) - 1)
    else:
        raise ValueError(
            f"a {type(model).__name__} cannot be a model of diffusers, which has one map of codes or "
            "a Gaussian posterior over a grid: export an imported tokenizer, or a vqvae or vqgan "
            "that was trained with --model.network ddpm"
        )
    weights.pop(CHOICES, None)
    channels, size = model.config.image_channels, model.config.image_size
    described = {"_class_name": kind, "in_channels": channels, "out_channels": channels}
    return described | config | {"sample_size": size}, weights


def _check_expressible(model: ImportedVQ | ImportedKL | VQVAE) -> None:
    """Check that the package can compute a model.

    Raises:
        ValueError: naming the part that it lacks.
    """
    if isinstance(model, VQVAE):
        config = model.config
        if config.network != "ddpm":
            raise ValueError(
                "this autoencoder cannot be a model of diffusers, which halves an image by 3x3 "
                "convolutions, not 4x4, and has other norms: train one with --model.network ddpm"
            )
        if not isinstance(model.quantizer, Codebook):
            raise ValueError(
                f"this autoencoder cannot be a model of diffusers, whose codes are a table: train "
                f"one with --model.quantizer ema or gradient, not {config.quantizer}"
            )
        return
    shape = model.config
    reasons = {
        "encoder and decoder differ in width": shape.encoder_widths != shape.decoder_widths,
        "the first convolution is not as wide as the first level": (
            shape.width != shape.encoder_widths[0]
        ),
        "resolutions change without convolutions": not shape.resampling_convolutions,
    }
    if isinstance(model, ImportedVQ):
        reasons["logits choose its codes"] = model.config.search == "logits"
    else:
        inner, latent = shape.inner_channels, model.config.latent_channels
        reasons["the 1x1 convolutions change the number of channels"] = inner != latent
    for reason, applies in reasons.items():
        if applies:
            raise ValueError(
                f"this tokenizer cannot be a model of diffusers: {reason}; it stays usable here"
            )


def _shape_of(model: ImportedVQ | ImportedKL | VQVAE) -> NetworkOptions:
    if isinstance(model, VQVAE):
        return model.config.ddpm_shape(model.config.image_size, model.quantizer.dim)
    return model.config


def _network_config(shape: NetworkOptions) -> dict[str, Any]:
    """The package's config of an encoder and decoder."""
    down = [
        f"{'Attn' if level in shape.attention_levels else ''}DownEncoderBlock2D"
        for level in range(len(shape.encoder_widths))
    ]
    return {
        "block_out_channels": shape.encoder_widths,
        "down_block_types": down,
        "up_block_types": [name.replace("DownEncoder", "UpDecoder") for name in reversed(down)],
        "layers_per_block": shape.blocks,
        "act_fn": "silu",
        "norm_num_groups": GROUPS,
        "mid_block_add_attention": shape.middle_attention,
        "latent_channels": shape.inner_channels,
    }


def _own_config(model: ImportedVQ | ImportedKL | VQVAE) -> dict[str, Any]:
    """The package's config of codes or latents."""
    if isinstance(model, ImportedKL):
        return {
            "use_quant_conv": model.config.latent_convolutions,
            "use_post_quant_conv": model.config.latent_convolutions,
            "scaling_factor": model.config.scale,
            "shift_factor": model.config.shift or None,
        }
    rows = _code_vectors(model)
    return {"num_vq_embeddings": rows.shape[0], "vq_embed_dim": rows.shape[1]}


def _own_weights(model: ImportedVQ | ImportedKL | VQVAE) -> Weights:
    """All weights, with the codes' vectors as they are compared and returned."""
    weights = dict(model.state_dict())
    if isinstance(model, ImportedKL):
        return weights
    if isinstance(model, VQVAE):
        dim = model.quantizer.dim
        weights = {
            name: value for name, value in weights.items() if not name.startswith("quantizer.")
        }
        for name in ("quant_conv", "post_quant_conv"):
            weights[f"{name}.weight"] = torch.eye(dim)[:, :, None, None].clone()
            weights[f"{name}.bias"] = torch.zeros(dim)
    return weights | {"quantize.embedding.weight": _code_vectors(model)}


def _code_vectors(model: ImportedVQ | VQVAE) -> Tensor:
    if isinstance(model, ImportedVQ):
        return model.quantize.rows().detach()
    assert isinstance(model.quantizer, Codebook)
    return model.quantizer.entries().detach()


def _renamed_out(weights: Weights, last: int) -> Weights:
    """Weights by the package's names; its decoder is counted from the lowest resolution."""
    turned: Weights = {}
    for name, value in weights.items():
        if match := re.match(r"decoder\.levels\.(\d+)", name):
            name = f"decoder.levels.{last - int(match[1])}{name[match.end() :]}"
        turned[name] = value
    return renamed(turned, _NAMES)


def _sample_size(value: object, path: Path) -> int:
    sides = value if isinstance(value, list) else [value]
    if not sides or not all(isinstance(side, int) and side == sides[0] for side in sides):
        raise ValueError(f"{path} has no single sample_size of square images: add --image_size")
    assert isinstance(sides[0], int)
    return sides[0]


def _hint(name: str) -> str:
    fields = next(
        (key for pattern, key in _HINTS if re.search(pattern, name)), "block_out_channels"
    )
    return f"correct {fields} in {CONFIG}, or restore the weights"
