"""Images as HTML: PNG files inside the page, so that the server keeps none."""

from __future__ import annotations

import base64
import html
import io
from collections.abc import Sequence

from PIL import Image
from torch import Tensor

from latent_prior.data.images import to_pil, to_uint8

LARGE = 192
"""From this size on images are shown as they are, smaller ones enlarged pixel by pixel."""


def text(words: str) -> str:
    """Words as HTML that neither the browser nor Gradio's templates read as anything else."""
    escaped = html.escape(words)
    return escaped.replace("{", "&#123;").replace("}", "&#125;").replace("$", "&#36;")


def png(image: Image.Image) -> str:
    """The address of an image that holds the image itself."""
    file = io.BytesIO()
    image.save(file, "PNG")
    return f"data:image/png;base64,{base64.b64encode(file.getvalue()).decode()}"


def as_pil(images: Tensor) -> list[Image.Image]:
    """Images (B, C, H, W) in [-1, 1], or uint8."""
    if images.is_floating_point():
        images = to_uint8(images)
    return [to_pil(image.cpu()) for image in images]


def gallery(images: Sequence[Image.Image], captions: Sequence[str], columns: int = 0) -> str:
    """Images in rows, each with its caption below; a click saves one.

    Args:
        images: of one size.
        captions: one each, shown and read aloud.
        columns: 0 as many as fit.
    """
    figures = "".join(
        _figure(
            f'<a href="{(source := png(image))}" download="{number:06d}.png" title="Save">'
            f"{_img(image, caption, source)}</a>",
            caption,
        )
        for number, (image, caption) in enumerate(zip(images, captions, strict=True))
    )
    style = f' style="grid-template-columns: repeat({columns}, minmax(0, 1fr))"' if columns else ""
    return f'<div class="pictures"{style}>{figures}</div>'


def picture(image: Image.Image, caption: str, overlay: str = "", around: str = "<div>") -> str:
    """One image with its caption; the overlay, if any, lies upon it.

    Args:
        image: the image.
        caption: shown and read aloud.
        overlay: an SVG element.
        around: the start of the div that holds both.
    """
    return _figure(f"{around}{_img(image, caption, png(image))}{overlay}</div>", caption)


def _figure(content: str, caption: str) -> str:
    return f"<figure>{content}<figcaption>{text(caption)}</figcaption></figure>"


def _img(image: Image.Image, caption: str, source: str) -> str:
    pixelated = ' class="pixelated"' if image.width < LARGE else ""
    return f'<img src="{source}" alt="{text(caption)}"{pixelated}>'
