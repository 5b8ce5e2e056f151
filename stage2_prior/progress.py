"""Sample grids of a training run."""

from __future__ import annotations

from importlib.metadata import entry_points
from pathlib import Path
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from latent_prior.data.codes import CodeMaps, CodeSpec, check_same_codes
from latent_prior.data.codes_dataset import CodesSplit
from latent_prior.data.images import grid, save_png, to_uint8
from latent_prior.data.labels import classes_in_turn
from latent_prior.files import whole_file
from latent_prior.seeds import generator
from latent_prior.stage2_prior.options import TrainOptions
from latent_prior.stage2_prior.prior import TransformerPrior
from latent_prior.stage2_prior.text.reading import CaptionReader, Text, captions_of

GRID_ROWS, GRID_COLUMNS = 6, 10


class Prompts(NamedTuple):
    """What the grids of a prior of captions show."""

    captions: list[str]
    text: Text


class ImageDecoder(Protocol):
    """The part of an autoencoder that stage 2 depends on."""

    code_spec: CodeSpec

    def decode(self, codes: CodeMaps) -> Tensor:
        """Decode codes to images (B, C, H, W) in [-1, 1]."""


def open_decoder(
    spec: CodeSpec, options: TrainOptions, device: torch.device
) -> ImageDecoder | None:
    """The autoencoder for the sample grids; None without `--autoencoder`.

    Stage 1's entry point loads it, so that stage 2 does not import stage 1.

    Raises:
        ValueError: another autoencoder wrote the codes, or the project is not installed.
    """
    if options.autoencoder is None:
        return None
    loaders = entry_points(group="latent_prior", name="load_autoencoder")
    if not loaders:
        raise ValueError("the project is not installed: run pip install -e . in its folder")
    decoder: ImageDecoder = next(iter(loaders)).load()(options.autoencoder)
    check_same_codes(
        spec, decoder.code_spec, f"--codes {options.codes}", f"--autoencoder {options.autoencoder}"
    )
    assert isinstance(decoder, torch.nn.Module)
    decoder.to(device)
    return decoder


def save_samples(
    model: TransformerPrior,
    decoder: ImageDecoder | None,
    step: int,
    options: TrainOptions,
    prompts: Prompts | None,
) -> Path | None:
    """Write a grid of samples, classes in turn or a row for each of `GRID_ROWS` prompts.

    `prompts.txt` beside it lists these.

    Without a decoder, codes are shown as grey levels, and latents not at all.

    Returns:
        The PNG file.
    """
    if decoder is None and model.latents:
        return None
    count = GRID_ROWS * GRID_COLUMNS
    labels = classes_in_turn(count, model.num_classes, model.config.trained_classes)
    folder, text = Path(options.output_dir, "samples"), None
    if prompts is not None:
        text = prompts.text.repeated(GRID_COLUMNS)
        folder.mkdir(parents=True, exist_ok=True)
        with whole_file(folder / "prompts.txt") as temporary:
            lines = [f"{' '.join(caption.split())}\n" for caption in prompts.captions]
            temporary.write_text("".join(lines), encoding="utf-8")
    noise = generator(options.seed, "grid")
    codes = model.sample(
        count, labels, text=text, generator=noise, guidance_scale=options.guidance_scale
    )
    if decoder is not None:
        images = to_uint8(decoder.decode(codes))
    else:
        level = model.code_spec.levels[-1]
        assert level.vocabulary is not None
        grey = (codes[level.name].float() * (255 / (level.vocabulary - 1))).to(torch.uint8)
        images = grey.unsqueeze(1).repeat_interleave(4, 2).repeat_interleave(4, 3)
    path = folder / f"step-{step:09d}.png"
    save_png(grid(images, GRID_COLUMNS), path)
    return path


def open_prompts(reader: CaptionReader | None, validation: CodesSplit) -> Prompts | None:
    """The captions that all grids show, those of the first validation images; None without any."""
    if reader is None:
        return None
    captions = captions_of(validation, torch.arange(GRID_ROWS) % len(validation))
    return Prompts(captions, reader.read(captions))
