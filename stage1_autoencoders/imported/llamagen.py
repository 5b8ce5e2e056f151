"""Tokenizers of LlamaGen (Sun et al., 2024, https://arxiv.org/abs/2406.06525).

Published files (`{"model": ...}`), those of its trainer, whose averaged weights are taken, and the
hub's form. The shape is read from the weights. Whether vectors are scaled to length 1 before the
nearest code is chosen stands in no weight: all that its trainer has trained do so.
"""

from __future__ import annotations

from pathlib import Path
from typing import TypedDict

from latent_prior.records import convert_record
from latent_prior.stage1_autoencoders.imported.models import ImportedVQ, ImportedVQConfig
from latent_prior.stage1_autoencoders.imported.shapes import checked_config, network_shape
from latent_prior.stage1_autoencoders.imported.weight_files import (
    Weights,
    check_format,
    filled,
    read_file,
    read_json,
    renamed,
    shape_of,
    state_of,
)

NAMES = (
    (r"^(encoder|decoder)\.conv_blocks\.", r"\1.levels."),
    (r"\.res\.(\d+)\.", r".blocks.\1."),
    (r"\.attn\.(\d+)\.", r".attention.\1."),
    (r"\.(?:down|up)sample\.conv\.", ".resample.conv."),
    (r"\.mid\.(\d+)\.", r".middle.\1."),
    (r"\.nin_shortcut\.", ".shortcut."),
    (r"\.proj_out\.", ".out."),
)
_USAGE = "quantize.codebook_used"  # recent indices, for the log of a training
CONFIG = "config.json"
_WAY_OUT = "use the file that belongs to the weights"


class _Arguments(TypedDict, total=False):
    """The hub form's `config.json`: arguments of the original's class."""

    codebook_size: int
    codebook_embed_dim: int
    codebook_l2_norm: bool
    encoder_ch_mult: list[int]
    decoder_ch_mult: list[int]
    z_channels: int


def read_llamagen(path: Path, *, image_size: int | None, l2_norm: bool | None) -> ImportedVQ:
    """The tokenizer in a file.

    Args:
        path: of the weights; a `config.json` of the hub's form beside it is read as well.
        image_size: of the images; no file says it.
        l2_norm: whether vectors and codes are scaled to length 1; None: as the config says,
            without one they are.

    Raises:
        ValueError: a file is damaged or of another format, config and weights contradict, or there
            is no image size.
    """
    weights = state_of(read_file(path), ("ema", "model", "state_dict"), path)
    check_format(weights, "llamagen", path)
    weights.pop(_USAGE, None)
    weights = _from_full_resolution(renamed(weights, NAMES))
    network = network_shape(weights, path)
    size, dim = shape_of(weights, "quantize.embedding.weight", path, 2)
    config = path.parent / CONFIG
    if config.is_file():
        arguments = convert_record(read_json(config), _Arguments, str(config), _WAY_OUT)
        width = network["width"]
        found = {
            "codebook_size": size,
            "codebook_embed_dim": dim,
            "z_channels": network["inner_channels"],
            "encoder_ch_mult": [each / width for each in network["encoder_widths"]],
            "decoder_ch_mult": [each / width for each in network["decoder_widths"]],
        }
        stated = arguments.get("codebook_l2_norm")
        if l2_norm is not None and stated is not None:
            found["codebook_l2_norm"] = l2_norm
        for key, value in found.items():
            if arguments.get(key, value) != value:
                held = "--l2_norm says" if key == "codebook_l2_norm" else "the weights have"
                raise ValueError(
                    f"{config}: {key} is {arguments[key]}, but {held} {value}; {_WAY_OUT}"  # type: ignore[literal-required]
                )
        l2_norm = stated if l2_norm is None else l2_norm
    if image_size is None:
        raise ValueError(
            f"{path}: no file of LlamaGen says the size of the images: add --image_size (256 for "
            "the published ones)"
        )
    network |= {
        "image_size": image_size,
        "code_dim": dim,
        "codebook_size": size,
        "search": "euclidean" if l2_norm is False else "cosine",
    }
    checked = checked_config(ImportedVQConfig, network, path)
    return filled(ImportedVQ, checked, weights, path, _hint)


def _from_full_resolution(weights: Weights) -> Weights:
    """The decoder's levels counted from the full resolution; the original begins at the lowest."""
    start = "decoder.levels."
    numbers = {name.split(".")[2] for name in weights if name.startswith(start)}
    last = len(numbers) - 1
    turned: Weights = {}
    for name, value in weights.items():
        if name.startswith(start):
            number, _, rest = name.removeprefix(start).partition(".")
            name = f"{start}{last - int(number)}.{rest}" if number.isdecimal() else name
        turned[name] = value
    return turned


def _hint(name: str) -> str:
    """The shape was read from the weights, so one that does not fit is none of this network."""
    return (
        "the file is incomplete or of a changed network (names are those of this project); "
        "download it again or name another"
    )
