"""Small codes datasets."""

import dataclasses
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from latent_prior.data.codes import CodeSpec, Level
from latent_prior.data.codes_dataset import join_shards, write_shard

SPEC = CodeSpec(
    kind="codes",
    levels=(Level("top", 2, 3, vocabulary=4), Level("bottom", 4, 6, vocabulary=300)),
    image_size=24,
    image_channels=3,
    autoencoder_type="latent_prior_vqvae",
    autoencoder_fingerprint="a" * 64,
    class_names=("ant", "bee"),
)
LATENTS = dataclasses.replace(
    SPEC, kind="latents", levels=(Level("latents", 4, 4, channels=2),), class_names=(),
    latent_shift=(0.5, -0.25), latent_scale=(1.0, 2.0),
)  # fmt: skip


def columns(count: int, start: int = 0) -> dict[str, NDArray]:
    """Rows of `SPEC`; the classes take turns."""
    random = np.random.default_rng(start)
    return {
        "top": random.integers(0, 4, (count, 2, 3)),
        "bottom": random.integers(0, 300, (count, 4, 6)),
        "label": np.arange(count) % 2,
        "view": np.zeros(count, np.uint16),
        "source_index": np.arange(start, start + count),
    }


def write_codes(
    folder: Path, *parts: dict[str, NDArray], spec: CodeSpec = SPEC, split: str = "train"
) -> Path:
    """A codes dataset of one split, made of a shard for every part."""
    shards = []
    for number, part in enumerate(parts):
        shards.append(folder.with_name(f"{folder.name}-{number}.arrow"))
        write_shard(shards[-1], spec, part)
    join_shards(folder, {split: shards}, spec, {"flip": True})
    return folder
