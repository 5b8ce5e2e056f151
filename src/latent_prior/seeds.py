"""Seeds as pure functions of their purpose, so that no generator state has to be saved."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

Seed = torch.Generator | int | None
"""A generator, or the number that one is seeded with; None is torch's global generator."""
Generators = Seed | Sequence[Seed]
"""One generator for all images or one each."""


def derive_seed(*parts: int | str) -> int:
    """A seed in [0, 2^63) that depends on every part and on their order."""
    digest = hashlib.sha256("/".join(map(str, parts)).encode()).digest()
    return int.from_bytes(digest[:8], "big") >> 1


def generator(*parts: int | str) -> torch.Generator:
    """A CPU generator seeded with `derive_seed(*parts)`."""
    return torch.Generator().manual_seed(derive_seed(*parts))


def one_per_image(generators: Generators, num_images: int) -> list[torch.Generator | None]:
    """The generator of each image.

    Raises:
        ValueError: the list has another number of generators than there are images, or holds
            something else.
    """
    if not isinstance(generators, list | tuple):
        return [_as_generator(generators)] * num_images
    if len(generators) != num_images:
        raise ValueError(
            f"{num_images} images need one generator, or one each, not {len(generators)}"
        )
    return [_as_generator(each) for each in generators]


def _as_generator(seed: Any) -> torch.Generator | None:
    if seed is None or isinstance(seed, torch.Generator):
        return seed
    is_seed = isinstance(seed, int | np.integer) and not isinstance(seed, bool)
    if is_seed and -(2**63) <= int(seed) < 2**64:
        return torch.Generator().manual_seed(int(seed))
    raise ValueError(f"a generator must be a torch.Generator or a seed of 64 bits, not {seed!r}")
