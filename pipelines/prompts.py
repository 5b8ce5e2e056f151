"""What callers may ask for in words, and how a pipeline's prior reads it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from latent_prior.files import read_regular
from latent_prior.stage2_prior.prior import TransformerPrior
from latent_prior.stage2_prior.text.encoder import TextEncoder
from latent_prior.stage2_prior.text.reading import CaptionReader, Text

Prompts = str | Sequence[str | None]
LARGEST_FILE = 64 << 20  # bytes


def reader_of(prior: TransformerPrior | None, encoder: TextEncoder | None) -> CaptionReader | None:
    """What reads prompts for a prior; None if it reads none.

    Raises:
        ValueError: the prior was trained with another encoder, or needs one.
    """
    spec = None if prior is None else prior.config.text
    if spec is None or not spec["width"]:
        if encoder is not None:
            raise ValueError("the text encoder is for a prior that was trained with one")
        return None if prior is None else prior.tokenizer
    if encoder is None:
        raise ValueError(
            f"the prior reads captions through the text encoder {spec['encoder']}: pass it as "
            "text_encoder, or assemble the pipeline again where it is"
        )
    if encoder.spec["sha256"] != spec["sha256"]:
        raise ValueError(f"the prior was trained with another text encoder than {encoder.source}")
    return encoder


def prompt_for_each(prompt: Prompts, num_images: int) -> list[str | None]:
    """One prompt for each image; None asks for any image.

    Raises:
        ValueError: another number of prompts, or one that is empty or no text.
    """
    if not isinstance(prompt, str | list | tuple):
        raise ValueError(f"a prompt is a text or a list of texts, not {prompt!r}")
    listed: list[str | None] = [prompt] * num_images if isinstance(prompt, str) else [*prompt]
    if len(listed) != num_images:
        raise ValueError(
            f"{num_images} images need one text for all of them or a list of {num_images}, not a "
            f"list of {len(listed)}"
        )
    for number, each in enumerate(listed):
        if each is None:
            continue
        if not isinstance(each, str):
            raise ValueError(f"prompt {number} must be text, not {each!r}")
        if not each.strip():
            raise ValueError(f"prompt {number} is empty: say what the image shows")
        if any("\ud800" <= letter <= "\udfff" for letter in each):
            raise ValueError(f"prompt {number} is not Unicode text: {each[:40]!a}")
    return listed


def read_prompts(reader: CaptionReader | None, prompts: Sequence[str | None]) -> Text:
    """Prompts as the prior reads them.

    Raises:
        ValueError: the prior reads no captions, or one is too long.
    """
    if reader is None:
        raise ValueError(
            "this pipeline's prior was not trained on captions: leave the prompt out, or train a "
            "prior with --model.condition text"
        )
    return reader.read([prompt or "" for prompt in prompts])


def prompts_in(path: Path) -> list[str]:
    """The prompts in a text file, one on each line; empty lines do not count.

    Raises:
        ValueError: there is no such file, it is not UTF-8, or it holds none.
    """
    try:
        lines = read_regular(path, LARGEST_FILE).decode("utf-8-sig").splitlines()
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is not UTF-8 ({error.reason}); save it as UTF-8") from error
    prompts = [line.strip() for line in lines if line.strip()]
    if not prompts:
        raise ValueError(f"{path} holds no prompt; write one on each line")
    return prompts
