"""Seeds as pure functions of their purpose, so that no generator state has to be saved.

What a training step draws is a function of (seed, step, row of the step's whole batch), so a run is
the same on any number of processes and micro-batches. Every part of a batch draws for all of it,
from torch's global generators, and takes its own rows; dropout, which draws most, computes them.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor

Seed = torch.Generator | int | None
"""A generator, or the number that one is seeded with; None is torch's global generator."""
Generators = Seed | Sequence[Seed]
"""One generator for all images or one each."""

_part, _parts = 0, 1  # of the batch of the step that is being computed
_GOLDEN = 0x9E3779B97F4A7C15 - 2**64
_FIRST_FACTOR, _SECOND_FACTOR = 0xBF58476D1CE4E5B9 - 2**64, 0x94D049BB133111EB - 2**64


def derive_seed(*parts: int | str) -> int:
    """A seed in [0, 2^63) that depends on every part and on their order."""
    digest = hashlib.sha256("/".join(map(str, parts)).encode()).digest()
    return int.from_bytes(digest[:8], "big") >> 1


def generator(*parts: int | str) -> torch.Generator:
    """A CPU generator seeded with `derive_seed(*parts)`."""
    return torch.Generator().manual_seed(derive_seed(*parts))


@contextmanager
def draws_of_step(seed: int, step: int, part: int, parts: int) -> Iterator[None]:
    """Seed torch's global generators for one of the equal parts of a step's batch.

    Args:
        seed: of the run.
        step: of the run.
        part: from 0; the rows of the parts, one after the other, are those of the batch.
        parts: how many there are, over all processes and micro-batches.
    """
    global _part, _parts
    torch.manual_seed(derive_seed(seed, "step", step))
    _part, _parts = part, parts
    try:
        yield
    finally:
        _part, _parts = 0, 1


def step_rows(count: int) -> int:
    """Rows of the step's whole batch, of which `count` are in this part of it.

    Outside `draws_of_step` every batch is a whole one.
    """
    return count * _parts


def own_rows(drawn: Tensor, dim: int = 0) -> Tensor:
    """This part's share of what was drawn for the whole batch, `step_rows(count)` along `dim`."""
    return drawn.chunk(_parts, dim)[_part]


def draw_kept(shape: torch.Size, dropped: float, device: torch.device) -> Tensor:
    """Choose the elements of a batch that dropout keeps.

    Each row's bits are computed from its place in the whole batch, so that the cost does not grow
    with the number of processes: the numbers of SplitMix64 (Steele et al., 2014), each of which
    serves four elements. Elements count from the end of a row, in front of which there may be more
    padding in one part of a batch than in another.

    Args:
        shape: (B, ...).
        dropped: probability in (0, 1], rounded to 1 / 65536.
        device: of the result.

    Returns:
        Bool, of this shape.
    """
    count, size = shape[0], shape[1:].numel()
    seed = torch.randint(2**62, (), device=device)
    rows = torch.arange(_part * count, (_part + 1) * count, device=device)
    places = torch.arange(-(-size // 4), 0, -1, device=device)
    # The sum comes first: torch.compile computes products of an `arange` without overflow.
    keys = mixed((seed + rows) * _GOLDEN).unsqueeze(1)
    bits = mixed((keys + places) * _GOLDEN).view(torch.int16)
    return (bits[:, -size:] > dropped_of_65536(dropped) - 32769).view(shape)


def dropped_of_65536(share: float) -> int:
    """The probability of `draw_kept` as a whole number."""
    return max(1, round(share * 65536))


def mixed(numbers: Tensor) -> Tensor:
    """Int64 numbers, every bit of which depends on all bits (the last steps of SplitMix64)."""
    numbers = (numbers ^ numbers >> 30 & 2**34 - 1) * _FIRST_FACTOR
    numbers = (numbers ^ numbers >> 27 & 2**37 - 1) * _SECOND_FACTOR
    return numbers ^ numbers >> 31 & 2**33 - 1


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
