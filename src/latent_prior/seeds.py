"""Seeds as pure functions of their purpose, so that no generator state has to be saved."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import torch

Generators = torch.Generator | Sequence[torch.Generator | None] | None
"""One generator for all images or one each; None is torch's global one."""


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
        ValueError: the list has another number of generators than there are images.
    """
    if generators is None or isinstance(generators, torch.Generator):
        return [generators] * num_images
    if len(generators) != num_images:
        raise ValueError(
            f"{num_images} images need one generator, or one each, not {len(generators)}"
        )
    return list(generators)
