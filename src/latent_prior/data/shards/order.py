"""The order of a stream: blocks in random order, images shuffled over a few blocks.

An epoch is a permutation of all blocks, cut into *lanes* that differ by one image at most, and not
by more over all epochs. A step takes the same number of images from each lane, and a process takes
the same lanes at every step, so it reads only what it needs. Within a lane the images of a few
neighbouring blocks, a *pool*, are shuffled. All of this depends on the data, the seed and the batch
size, never on the number of processes; and what stands at a step is computed without looking at the
steps before.
"""

from __future__ import annotations

import functools
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from latent_prior.data.image_source import Blocks
from latent_prior.seeds import generator

SHUFFLED = 10_000
"""Images that are shuffled together, over all lanes, if they fit into `_MEMORY`."""
_MEMORY = 2**29  # bytes of encoded images in the pools of all lanes
_MOST_LANES = 64


class Pool(NamedTuple):
    """Images of one lane that are shuffled together, in their order."""

    first: int
    """Place of the first of them in the lane, counted over all epochs."""
    blocks: NDArray[np.int64]
    """(N,)."""
    places: NDArray[np.int64]
    """(N,), in their block."""


class BlockOrder:
    """Which image stands where; see the top of this module.

    Args:
        blocks: of which at least one holds an image.
        batch_size: images of a step, over all processes.
        seed: of the order.

    Attributes:
        lanes: number of lanes, a divisor of the batch size.
        width: images that a step takes from a lane; lanes follow each other in the batch.
    """

    def __init__(self, blocks: Blocks, batch_size: int, seed: int) -> None:
        self._sizes, self._seed = blocks.sizes, seed
        filled, total = int((self._sizes > 0).sum()), int(self._sizes.sum())
        # Each lane has at least one block in memory.
        most = max(1, min(_MOST_LANES, filled, _MEMORY // max(1, blocks.largest)))
        self.lanes = next(lanes for lanes in range(most, 0, -1) if batch_size % lanes == 0)
        self.width = batch_size // self.lanes
        wanted = -(-SHUFFLED * filled // (self.lanes * total))
        fitting = _MEMORY // max(1, self.lanes * blocks.largest)
        self._together = max(1, min(wanted, fitting))
        self._total = total

    def pool(self, lane: int, place: int) -> Pool:
        """The pool of the image at a place of a lane, counted from 0 over all epochs."""
        epoch = ((place + 1) * self.lanes - lane - 1) // self._total  # inverse of `_before`
        order, starts, bounds = self._epoch(epoch)
        low, high = bounds[lane : lane + 2].tolist()
        offset = place - int(self._before(epoch)[lane])

        def block_of(rows: int | NDArray[np.int64]) -> NDArray[np.int64]:
            return np.searchsorted(starts, rows, side="right") - 1

        begin = int(block_of(low))
        number = (int(block_of(low + offset)) - begin) // self._together
        begin += number * self._together
        end = min(begin + self._together, len(order))
        first, last = max(int(starts[begin]), low), min(int(starts[end]), high)
        random = generator(self._seed, "pool", epoch, lane, number)
        rows = first + torch.randperm(last - first, generator=random).numpy()
        among = block_of(rows)
        return Pool(place - offset + first - low, order[among], rows - starts[among])

    def _before(self, epoch: int) -> NDArray[np.int64]:
        """Images of each lane before an epoch; together, the images of all epochs before it."""
        return (epoch * self._total + np.arange(self.lanes)) // self.lanes

    @functools.lru_cache(2)  # noqa: B019 (the order lives as long as its stream)
    def _epoch(self, epoch: int) -> tuple[NDArray[np.int64], ...]:
        """The blocks in their order, images before each and in all, and before each lane."""
        random = generator(self._seed, "blocks", epoch)
        order = torch.randperm(len(self._sizes), generator=random).numpy()
        lanes = self._before(epoch + 1) - self._before(epoch)
        starts, bounds = (np.concatenate([[0], np.cumsum(n)]) for n in (self._sizes[order], lanes))
        return order, starts, bounds
