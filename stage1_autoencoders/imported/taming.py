"""Checkpoints of taming-transformers and latent diffusion, with their YAML.

VQGAN and its Gumbel variant (Esser et al., 2021, https://arxiv.org/abs/2012.09841), VQ and KL first
stages (Rombach et al., 2022, https://arxiv.org/abs/2112.10752), also within the checkpoint of a
model over them, and FLUX's `ae.safetensors`. The shape is read from the weights; a YAML that says
otherwise is an error, because the projects themselves would leave such weights random.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any, TypedDict

import torch

from latent_prior.records import convert_record, read_yaml
from latent_prior.stage1_autoencoders.imported.models import (
    ImportedKL,
    ImportedKLConfig,
    ImportedVQ,
    ImportedVQConfig,
)
from latent_prior.stage1_autoencoders.imported.shapes import checked_config, network_shape
from latent_prior.stage1_autoencoders.imported.weight_files import (
    Weights,
    check_format,
    filled,
    read_file,
    renamed,
    shape_of,
    state_of,
)

NAMES = (
    (r"^encoder\.down\.", "encoder.levels."),
    (r"^decoder\.up\.", "decoder.levels."),
    (r"\.block\.(\d+)\.", r".blocks.\1."),
    (r"\.attn\.(\d+)\.", r".attention.\1."),
    (r"\.(?:down|up)sample\.conv\.", ".resample.conv."),
    (r"\.mid\.block_1\.", ".middle.0."),
    (r"\.mid\.attn_1\.", ".middle.1."),
    (r"\.mid\.block_2\.", ".middle.2."),
    (r"\.nin_shortcut\.", ".shortcut."),
    (r"\.proj_out\.", ".out."),
    (r"^quantize\.proj\.", "quantize.logits."),
    (r"^quantize\.embed\.", "quantize.embedding."),
)
# Of the training: losses with their networks, averages, a table of colours.
_NOT_READ = re.compile(r"(loss|model_ema)\.|colorize$")
_KINDS = {
    "VQModel": "VQModel",
    "VQModelInterface": "VQModel",
    "VQNoDiscModel": "VQModel",
    "VQSegmentationModel": "VQModel",
    "GumbelVQ": "GumbelVQ",
    "AutoencoderKL": "AutoencoderKL",
}
_WAY_OUT = "use the YAML that belongs to the checkpoint"


class _Network(TypedDict, total=False):
    """`ddconfig`, the shape of encoder and decoder; the projects ignore other keys, so do we."""

    ch: int
    ch_mult: list[int]
    num_res_blocks: int
    attn_resolutions: list[int]
    attn_type: str
    resolution: int
    z_channels: int
    in_channels: int
    out_ch: int
    double_z: bool
    resamp_with_conv: bool
    give_pre_end: bool


class _Parameters(TypedDict, total=False):
    ddconfig: _Network
    embed_dim: int
    n_embed: int
    remap: str | None


class _Model(TypedDict):
    target: str
    params: _Parameters


def read_taming(
    path: Path,
    yaml: Path | None,
    *,
    image_size: int | None,
    scaling_factor: float | None,
    shift_factor: float | None,
) -> ImportedVQ | ImportedKL:
    """The tokenizer in a checkpoint.

    Args:
        path: of the checkpoint.
        yaml: its config, if there is one.
        image_size: of the images; None takes the config's `resolution`.
        scaling_factor: factor of the latents; None takes the config's `scale_factor`, else 1.
        shift_factor: subtracted from the latents before; None: nothing.

    Raises:
        ValueError: a file is damaged or of another format, or config and weights contradict.
    """
    weights = state_of(read_file(path), ("state_dict", "model"), path)
    weights = {name: value for name, value in weights.items() if not _NOT_READ.match(name)}
    check_format(weights, "taming", path)
    weights = renamed(weights, NAMES)
    network = network_shape(weights, path)
    found = _described(weights, network, path)
    scale = None
    if yaml is not None:
        model, scale = _read_model(yaml)
        _compare(model, found, network, yaml)
        image_size = image_size or model["params"].get("ddconfig", {}).get("resolution")
    if image_size is None:
        raise ValueError(
            f"{path}: no YAML beside it says the resolution of the images: add --image_size"
        )
    network["image_size"] = image_size
    if found["kind"] == "AutoencoderKL":
        kl = checked_config(
            ImportedKLConfig,
            network
            | {
                "latent_channels": found["embed_dim"],
                "latent_convolutions": "quant_conv.weight" in weights,
                "scale": scaling_factor or scale or 1.0,
                "shift": shift_factor or 0.0,
            },
            path,
        )
        return filled(ImportedKL, kl, weights, path, _hint)
    weights = _used_only(weights, path)
    vq = checked_config(
        ImportedVQConfig,
        network
        | {
            "code_dim": found["embed_dim"],
            "codebook_size": shape_of(weights, "quantize.embedding.weight", path, 2)[0],
            "search": "logits" if found["kind"] == "GumbelVQ" else "euclidean",
        },
        path,
    )
    return filled(ImportedVQ, vq, weights, path, _hint)


def _described(weights: Weights, network: dict[str, Any], path: Path) -> dict[str, Any]:
    """The values of the YAML's keys that the weights imply, and their kind."""
    width, inner = network["width"], network["inner_channels"]
    rows = weights.get("quantize.embedding.weight")
    if rows is None:
        kind = "AutoencoderKL"
        post = weights.get("post_quant_conv.weight")
        dim = inner if post is None else shape_of(weights, "post_quant_conv.weight", path, 4)[1]
    else:
        kind = "GumbelVQ" if "quantize.logits.weight" in weights else "VQModel"
        dim = shape_of(weights, "quantize.embedding.weight", path, 2)[1]
    encoded = shape_of(weights, "encoder.conv_out.weight", path, 4)[0]
    return {
        "kind": kind,
        "ch": width,
        "ch_mult": [each / width for each in network["encoder_widths"]],
        "num_res_blocks": network["blocks"],
        "z_channels": inner,
        "in_channels": network["image_channels"],
        "out_ch": network["image_channels"],
        "double_z": encoded == 2 * inner,
        "resamp_with_conv": network["resampling_convolutions"],
        "embed_dim": dim,
        "n_embed": None if rows is None else len(rows),
        "used": "quantize.used" in weights,
    }


def _read_model(yaml: Path) -> tuple[_Model, float | None]:
    """The tokenizer's part of a YAML, and the factor of the diffusion model around it."""
    values = read_yaml(yaml, _WAY_OUT)
    model = convert_record(values.get("model"), dict[str, Any], f"{yaml}: model", _WAY_OUT)
    outer, scale = model.get("params"), None
    if isinstance(outer, dict) and "first_stage_config" in outer:
        model = outer["first_stage_config"]
        if outer.get("scale_factor") is not None:
            where = f"{yaml}: scale_factor"
            scale = convert_record(outer["scale_factor"], float, where, _WAY_OUT)
            if not 0 < scale < float("inf"):
                raise ValueError(f"{where} must be above 0, not {scale}; {_WAY_OUT}")
    return convert_record(model, _Model, f"{yaml}: model", _WAY_OUT), scale


def _compare(model: _Model, found: dict[str, Any], network: dict[str, Any], yaml: Path) -> None:
    """Compare a YAML with what the weights imply.

    Raises:
        ValueError: naming the key and both values.
    """
    target, parameters = model["target"].rpartition(".")[2], model["params"]
    if target not in _KINDS:
        raise ValueError(
            f"{yaml}: target {model['target']} is no tokenizer that can be imported "
            f"({', '.join(_KINDS)}); {_WAY_OUT}"
        )
    shape: _Network = parameters.get("ddconfig", {})
    if shape.get("give_pre_end"):
        raise ValueError(
            f"{yaml}: with give_pre_end the decoder gives features, not images: such a tokenizer "
            "cannot be imported"
        )
    stated: dict[str, Any] = {"resamp_with_conv": True, **shape, **parameters}
    pairs = [(key, stated[key], found[key]) for key in found if key in stated]
    if found["kind"] == "AutoencoderKL":
        pairs = [pair for pair in pairs if pair[0] != "n_embed"]
    pairs.insert(0, ("target", _KINDS[target], found["kind"]))
    pairs.append(("remap", bool(parameters.get("remap")), found["used"]))
    for key, said, held in pairs:
        if said != held:
            value = {"target": model["target"], "remap": parameters.get("remap")}.get(key, said)
            raise ValueError(
                f"{yaml}: {key} is {value}, but the weights have {_plain(held)}; {_WAY_OUT}"
            )
    _compare_attention(shape, network, yaml)


def _compare_attention(shape: _Network, network: dict[str, Any], yaml: Path) -> None:
    """Compare where attention is; the weights say the level, the YAML the resolution."""
    kind = shape.get("attn_type", "vanilla")
    if kind not in ("vanilla", "vanilla-xformers", "none"):
        raise ValueError(f"{yaml}: attn_type {kind} cannot be imported, only vanilla and none")
    middle = kind != "none"
    if network["middle_attention"] != middle:
        held = "have no attention in the middle" if middle else "have attention"
        raise ValueError(f"{yaml}: attn_type is {kind}, but the weights {held}; {_WAY_OUT}")
    if "attn_resolutions" not in shape or "resolution" not in shape:
        return
    resolution, named = shape["resolution"], shape["attn_resolutions"]
    levels = range(len(network["encoder_widths"]))
    said = [level for level in levels if middle and resolution >> level in named]
    if said != network["attention_levels"]:
        raise ValueError(
            f"{yaml}: attn_resolutions {named} with resolution {resolution} means attention at the "
            f"levels {said} (0 is the full resolution), but the weights have it at the levels "
            f"{network['attention_levels']}; {_WAY_OUT}"
        )


def _used_only(weights: Weights, path: Path) -> Weights:
    """With `remap`, the rows of the codes in use, in the order of their new numbers.

    The original gives other codes a random number. Here they do not exist, so the nearest one in
    use is chosen.
    """
    used = weights.pop("quantize.used", None)
    if used is None:
        return weights
    size = shape_of(weights, "quantize.embedding.weight", path, 2)[0]
    listed = used.ndim == 1 and len(used) > 0 and used.dtype == torch.int64
    if not listed or bool(((used < 0) | (used >= size)).any()):
        raise ValueError(f"{path}: quantize.used must list codes below {size}; download it again")
    of_codes = ("quantize.embedding.weight", "quantize.logits.weight", "quantize.logits.bias")
    return weights | {name: weights[name][used] for name in of_codes if name in weights}


def _plain(value: Any) -> Any:
    """Whole numbers without a decimal point."""
    if isinstance(value, list):
        return [_plain(each) for each in value]
    return int(value) if isinstance(value, float) and value.is_integer() else value


def _hint(name: str) -> str:
    """The shape was read from the weights, so one that does not fit is none of this network."""
    return (
        "the file is incomplete or of a changed network (names are those of this project); "
        "download it again or name another"
    )
