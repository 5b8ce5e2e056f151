"""What a pipeline is asked for and what it gives back."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from latent_prior.data.codes import CodeMaps
from latent_prior.data.images import to_pil, to_uint8

Images = list[Image.Image] | Tensor | NDArray[np.float32]


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
