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

class ImageUpload(gradio.Image):
    """A field for an image, whose value is its file; Gradio's own would decode it with PIL.

    Gradio checks before that the file is one that the visitor has uploaded.
    """

    is_template = True

    def preprocess(self, payload: ImageData | None) -> str | None:
        """The path of the uploaded file."""
        return None if payload is None else payload.path

    def example_payload(self) -> None:
        """No example: Gradio's would be one of its own files."""
    from typing import Callable, Literal, Sequence, Any, TYPE_CHECKING
    from gradio.blocks import Block
    if TYPE_CHECKING:
        from gradio.components import Timer
        from gradio.components.base import Component

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
