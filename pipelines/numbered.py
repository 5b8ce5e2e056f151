"""Images by number: each has its own random numbers, so it depends on nothing but seed, number, label and settings."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from accelerate import Accelerator
from torch import Tensor

from latent_prior.data.images import to_uint8
from latent_prior.models import StrictModel
from latent_prior.pipelines import image_folder
from latent_prior.pipelines.pipeline import Pipeline
from latent_prior.seeds import generator


def draw(
    pipe: Pipeline, numbers: range, labels: Sequence[int], settings: Mapping[str, Any], seed: int
) -> Tensor:
    """The images with these numbers, uint8 (B, C, H, W).

    Args:
        pipe: draws them.
        numbers: of the images.
        labels: the class of each.
        settings: of the sampler, by name; those with an effect.
        seed: the same for all images.
    """
    output = pipe(
        len(numbers),
        labels=list(labels),
        **settings,
        generator=[generator(seed, "image", number) for number in numbers],
        batch_size=len(numbers),
        output_type="pt",
    )
    assert isinstance(output.images, Tensor)
    return to_uint8(output.images)


def fill_folder(
    folder: Path,
    pipe: Pipeline,
    labels: Sequence[int],
    settings: Mapping[str, Any],
    seed: int,
    batch_size: int,
    accelerator: Accelerator,
) -> None:
    """A folder as `generate.py` writes it; see `image_folder.fill_folder`.

    Args:
        folder: new, empty, or with images of the same settings.
        pipe: draws the images.
        labels: the class of every image.
        settings: of the sampler, by name; those with an effect.
        seed: the same for all images.
        batch_size: images drawn at a time.
        accelerator: of the command.

    Raises:
        ValueError: the folder holds something else.
    """
    image_folder.fill_folder(
        folder,
        described(pipe, settings, seed),
        lambda numbers: draw(pipe, numbers, [labels[n] for n in numbers], settings, seed),
        labels,
        class_names=pipe.class_names,
        components=components(pipe),
        batch_size=batch_size,
        accelerator=accelerator,
    )


def described(pipe: Pipeline, settings: Mapping[str, Any], seed: int) -> dict[str, Any]:
    """Everything an image depends on besides its number and label, for `generation.json`; null where without effect."""
    return {
        "random_codes": False,
        "autoencoder_fingerprint": pipe.autoencoder.fingerprint,
        "prior_fingerprint": None if pipe.prior is None else pipe.prior.fingerprint,
        **{name: settings.get(name) for name in pipe.sampler.to_dict()},
        "labels": [],
        "seed": seed,
    }


def components(pipe: Pipeline) -> list[StrictModel]:
    """All models that sampling needs."""
    return list(pipe.components.values())
