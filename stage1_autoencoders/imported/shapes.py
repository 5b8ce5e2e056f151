"""The shape of a network, read from its weights: they cannot contradict themselves."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

from latent_prior.models import ModelConfig
from latent_prior.stage1_autoencoders.imported.weight_files import Weights, shape_of

Config = TypeVar("Config", bound=ModelConfig)


def network_shape(weights: Weights, path: Path) -> dict[str, Any]:
    """The fields of `NetworkOptions`, and `image_channels`, from weights by our names.

    Args:
        weights: of encoder and decoder.
        path: of their file, for messages.

    Raises:
        ValueError: weights are missing, or images have neither one nor three channels.
    """
    levels = _count(weights, r"encoder\.levels\.(\d+)\.")
    found, given = (
        shape_of(weights, "encoder.conv_in.weight", path, 4)[1],
        shape_of(weights, "decoder.conv_out.weight", path, 4)[0],
    )
    if found != given or found not in (1, 3):
        raise ValueError(
            f"{path}: it takes images of {found} channels and gives {given}; only tokenizers of "
            "grey (1) or RGB (3) images can be imported"
        )
    attends = (re.match(r"encoder\.levels\.(\d+)\.attention\.", name) for name in weights)
    widths = {
        part: [
            shape_of(weights, f"{part}.levels.{level}.blocks.0.conv2.weight", path, 4)[0]
            for level in range(levels)
        ]
        for part in ("encoder", "decoder")
    }
    return {
        "image_channels": found,
        "width": shape_of(weights, "encoder.conv_in.weight", path, 4)[0],
        "encoder_widths": widths["encoder"],
        "decoder_widths": widths["decoder"],
        "blocks": _count(weights, r"encoder\.levels\.0\.blocks\.(\d+)\."),
        "attention_levels": sorted({int(match[1]) for match in attends if match}),
        "middle_attention": any(name.startswith("encoder.middle.1.") for name in weights),
        "resampling_convolutions": levels == 1 or any(".resample." in name for name in weights),
        "inner_channels": shape_of(weights, "decoder.conv_in.weight", path, 4)[1],
    }


def checked_config(
    config_class: Callable[..., Config], shape: dict[str, Any], path: Path
) -> Config:
    """A config of these fields.

    Raises:
        ValueError: naming the file and the field that is out of range.
    """
    try:
        return config_class(**shape)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error


def _count(weights: Weights, pattern: str) -> int:
    """How many different numbers stand in the names at the place of a group."""
    return len({match[1] for name in weights if (match := re.match(pattern, name))})
