"""What a training run shows: a grid of samples, and its curves."""

from __future__ import annotations

import json
from importlib.metadata import entry_points
from pathlib import Path
from typing import Protocol

import torch
from torch import Tensor

from latent_prior.data.codes import CodeMaps, CodeSpec, check_same_codes
from latent_prior.data.images import grid, save_png, to_uint8
from latent_prior.files import whole_file
from latent_prior.seeds import generator
from latent_prior.stage2_prior.options import TrainOptions
from latent_prior.stage2_prior.prior import TransformerPrior

GRID_ROWS, GRID_COLUMNS = 6, 10


class ImageDecoder(Protocol):
    """What stage 2 may know of an autoencoder."""

    code_spec: CodeSpec

    def decode(self, codes: CodeMaps) -> Tensor:
        """Codes to images (B, C, H, W) in [-1, 1]."""


def open_decoder(
    spec: CodeSpec, options: TrainOptions, device: torch.device
) -> ImageDecoder | None:
    """The autoencoder for the sample grids, if there is to be one.

    Raises:
        ValueError: it is another one than wrote the codes.
    """
    if options.autoencoder is None:
        return None
    decoder = load_decoder(options.autoencoder)
    check_same_codes(
        spec, decoder.code_spec, f"--codes {options.codes}", f"--autoencoder {options.autoencoder}"
    )
    assert isinstance(decoder, torch.nn.Module)
    decoder.to(device)
    return decoder


def save_samples(
    model: TransformerPrior, decoder: ImageDecoder | None, step: int, options: TrainOptions
) -> None:
    """Write a grid of samples; latents cannot be looked at without their decoder."""
    if decoder is None and model.latents:
        return
    path = Path(options.output_dir, "samples", f"step-{step:09d}.png")
    save_png(sample_grid(model, decoder, options), path)


def draw_curves(run: Path, unit: str) -> None:
    """Write curves.png: negative log-likelihood in training and validation over the steps, from metrics.jsonl.

    Where the two part, the prior begins to learn the training images by heart.
    """
    log = run / "metrics.jsonl"
    if not log.is_file():  # nothing is logged yet
        return
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 4), layout="constrained")
    axes = figure.subplots()
    names = {f"nats_per_{unit}": "training", f"validation_nats_per_{unit}": "validation"}
    lines = [json.loads(line) for line in log.read_text().splitlines()]
    for name, label in names.items():
        points = [(line["step"], line[name]) for line in lines if name in line]
        if points:
            axes.plot(
                *zip(*points, strict=True), label=label, marker="." if len(points) < 50 else ""
            )
            if label == "validation":
                step, lowest = min(points, key=lambda point: point[1])
                axes.plot(
                    step, lowest, "o", fillstyle="none", label=f"best: {lowest:.3f}, step {step}"
                )
    axes.set(xlabel="step", ylabel=f"nats per {unit}")
    axes.legend()
    with whole_file(run / "curves.png") as path:
        figure.savefig(path, dpi=110)


def sample_grid(
    model: TransformerPrior, decoder: ImageDecoder | None, options: TrainOptions
) -> Tensor:
    """A picture of samples, class by class along the columns; without a decoder the codes themselves as grey levels."""
    count = GRID_ROWS * GRID_COLUMNS
    labels = [place % model.num_classes for place in range(count)] if model.num_classes else None
    codes = model.sample(
        count,
        labels,
        guidance_scale=options.guidance_scale,
        generator=generator(options.seed, "grid"),
    )
    if decoder is not None:
        return grid(to_uint8(decoder.decode(codes)), GRID_COLUMNS)
    level = model.code_spec.levels[-1]
    assert level.vocabulary is not None
    grey = codes[level.name].float() * (255 / (level.vocabulary - 1))
    return grid(
        grey.to(torch.uint8).unsqueeze(1).repeat_interleave(4, 2).repeat_interleave(4, 3),
        GRID_COLUMNS,
    )


def load_decoder(path_or_hub_id: str) -> ImageDecoder:
    """Open an autoencoder through the entry point that stage 1 declares, so that stage 2 need not know stage 1.

    Raises:
        ValueError: the project is not installed, or the folder is at fault.
    """
    found = entry_points(group="latent_prior", name="load_autoencoder")
    if not found:
        raise ValueError("the project is not installed: run pip install -e . in its folder")
    decoder: ImageDecoder = next(iter(found)).load()(path_or_hub_id)
    return decoder
