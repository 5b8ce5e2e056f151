"""Images from visitors, decoded by the project's own reader."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Literal

import gradio
import torch
from gradio.data_classes import ImageData
from torch import Tensor

from latent_prior.data.codes import CodeSpec
from latent_prior.data.image_files import read_image
from latent_prior.data.images import to_float
from latent_prior.files import read_regular

LARGEST = 20 << 20  # bytes
MOST_PIXELS = 1 << 24  # 4,096 x 4,096; a training reads larger ones


def image_field(label: str, height: int = 190) -> gradio.Image:
    """A field for an image, whose value is the path of its file: Gradio's would decode it with PIL.

    Gradio has checked that the file is one that the visitor has uploaded.
    """
    field = gradio.Image(
        label=label, height=height, min_width=120, sources=["upload", "clipboard"], format="png",
        type="filepath", buttons=[], elem_classes="upload",
    )  # fmt: skip
    # On the object: beside a class that inherits from its own, Gradio writes a file.
    field.preprocess = _path  # type: ignore[method-assign]
    return field


def _path(payload: ImageData | None) -> str | None:
    return None if payload is None else payload.path


def read_upload(path: str | os.PathLike[str] | None, spec: CodeSpec, what: str) -> Tensor:
    """An uploaded image as a pipeline takes it, float (1, C, H, W) in [-1, 1].

    Args:
        path: of the file; None if the visitor gave none.
        spec: its size and channels.
        what: what is missing without one.

    Raises:
        ValueError: there is none, or it is no image or too large.
    """
    if path is None:
        raise ValueError(f"{what} is missing: drop an image into its field")
    channels: Literal[1, 3] = 1 if spec.image_channels == 1 else 3
    try:
        data = read_regular(Path(path), LARGEST)
    except ValueError as error:
        raise ValueError(f"{what} is larger than {LARGEST >> 20} MB: make it smaller") from error
    try:
        pixels = read_image(data, channels, spec.image_size, MOST_PIXELS)
    except ValueError as error:
        reason = str(error).replace("--max_pixels", "this page's")
        raise ValueError(f"{what} cannot be read as an image: {reason}") from error
    return to_float(torch.from_numpy(pixels.copy()).permute(2, 0, 1)[None])
