"""What a pipeline is asked for and what it gives back."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from common.codes import CodeMaps
from common.images import to_pil, to_uint8

PRIOR_SETTINGS = ("guidance_scale", "top_k", "top_p")
"""Of the sampler: what means nothing without a prior."""
Images = list[Image.Image] | Tensor | NDArray[np.float32]


@dataclass(frozen=True)
class Sampler:
    """How codes are drawn from the prior; stored with the pipeline as its defaults.

    Attributes:
        guidance_scale: classifier-free guidance; 1 is none.
        temperature: divides the logits; 0 always takes the likeliest code.
        top_k: codes to choose from, the likeliest; 0 means all.
        top_p: probability of the set of likeliest codes to choose from; 1 means all.
    """

    guidance_scale: float = 1.0
    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0


@dataclass
class PipelineOutput:
    """What a call returns.

    Attributes:
        images: PIL images; or a float tensor (N, C, H, W) in [-1, 1] (`pt`); or a float array (N, H, W, C) in
            [0, 1] (`np`).
        codes: the sampled codes, level name -> int64 (N, height, width), or latents, float (N, channels, height, width).
        labels: the class of every image, -1 for none.
    """

    images: Images
    codes: CodeMaps
    labels: list[int]


def check_no_prior_settings(given: Mapping[str, Any], prefix: str = "") -> None:
    """Stop at a sampler setting that is a prior's where there is none; the temperature changes latents from N(0, I), too.

    Args:
        given: settings by name, None where nothing was said.
        prefix: put before the name in the error, as `--`.

    Raises:
        ValueError: naming the setting.
    """
    for name in PRIOR_SETTINGS:
        if given.get(name) is not None:
            raise ValueError(
                f"{prefix}{name} is for a prior, and this pipeline has none; leave it out"
            )


def check_output(output_type: str, num_images: int, batch_size: int) -> None:
    """Stop at an unknown form of the images, or no images.

    Raises:
        ValueError: naming the argument.
    """
    if output_type not in ("pil", "pt", "np"):
        raise ValueError(f"output_type must be pil, pt or np, not {output_type!r}")
    if num_images < 1 or batch_size < 1:
        raise ValueError(
            f"num_images and batch_size must be at least 1, not {num_images} and {batch_size}"
        )


def convert(images: Tensor, output_type: Literal["pil", "pt", "np"]) -> Images:
    """Images, float (N, C, H, W) in [-1, 1], in the form asked for; see `PipelineOutput`."""
    if output_type == "pt":
        return images
    if output_type == "np":
        return images.add(1).div(2).permute(0, 2, 3, 1).numpy()
    return [to_pil(image) for image in to_uint8(images)]
