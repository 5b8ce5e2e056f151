"""The order of a stream: blocks in random order, images shuffled over a few blocks.

An epoch is a permutation of all blocks, cut between blocks into *lanes*. A step takes the same
number of images from each lane, and a process takes the same lanes at every step, so a block is
read by one process, once in an epoch. Within a lane the images of a few neighbouring blocks, a
*pool*, are shuffled.

A lane goes on to the next epoch when its blocks are used up. As a cut falls on the end of a block,
lanes differ in length; the cuts of the next epoch make up for it, so that the lanes never differ by
more than about one block, however many epochs have passed. All of this depends on the data, the
seed and the batch size, never on the number of processes; and what stands at a step is computed
without looking at the steps before.
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
_FEWEST = 4  # of the largest blocks that an epoch's part of a lane has room for


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
        self._filled = np.flatnonzero(self._sizes)
        self._total = int(self._sizes.sum())
        room = self._total // (_FEWEST * int(self._sizes.max()))
        # Each lane has at least one block in memory.
        most = max(1, min(_MOST_LANES, room, _MEMORY // max(1, blocks.largest)))
        # The more divisors it has, the more numbers of processes share no lane.
        self.lanes = max(_divisors(batch_size, most), key=lambda n: (len(_divisors(n, n)), n))
        self.width = batch_size // self.lanes
        wanted = -(-SHUFFLED * len(self._filled) // (self.lanes * self._total))
        fitting = _MEMORY // max(1, self.lanes * blocks.largest)
        self._together = max(1, min(wanted, fitting))
        self._passed = [np.zeros(self.lanes + 1, np.int64)]

    def pool(self, lane: int, place: int) -> Pool:
        """The pool of the image at a place of a lane, counted from 0 over all epochs."""
        epoch = place * self.lanes // self._total  # give or take one
        while epoch and place < self._before(lane, epoch):
            epoch -= 1
        while place >= self._before(lane, epoch + 1):
            epoch += 1
        order, starts, cuts = self._epoch(epoch)
        before, (begin, end) = self._before(lane, epoch), cuts[lane : lane + 2].tolist()
        row = int(starts[begin]) + place - before
        passed = (int(np.searchsorted(starts, row, side="right")) - 1 - begin) // self._together
        first = begin + passed * self._together
        last = min(first + self._together, end)
        random = generator(self._seed, "pool", epoch, lane, passed)
        count = int(starts[last] - starts[first])
        rows = starts[first] + torch.randperm(count, generator=random).numpy()
        among = np.searchsorted(starts, rows, side="right") - 1
        return Pool(before + int(starts[first] - starts[begin]), order[among], rows - starts[among])

    def _before(self, lane: int, epoch: int) -> int:
        """Images of a lane before an epoch."""
        ends = self._ends(epoch)
        return int(ends[lane + 1] - ends[lane])

    def _ends(self, epoch: int) -> NDArray[np.int64]:
        """(lanes + 1,), images before each lane and in all, of all epochs before this one."""
        while len(self._passed) <= epoch:
            _, starts, cuts = self._epoch(len(self._passed) - 1)
            self._passed.append(self._passed[-1] + starts[cuts])
        return self._passed[epoch]

    @functools.lru_cache(2)  # noqa: B019 (the order lives as long as its stream)
    def _epoch(self, epoch: int) -> tuple[NDArray[np.int64], ...]:
        """The blocks in their order, images before each and in all, and where lanes begin."""
        random = generator(self._seed, "blocks", epoch)
        order = self._filled[torch.randperm(len(self._filled), generator=random).numpy()]
        starts = np.concatenate([[0], np.cumsum(self._sizes[order])])
        # What makes all lanes equally long, counted from the first epoch on.
        wanted = np.arange(self.lanes + 1) * (epoch + 1) * self._total // self.lanes
        wanted -= self._ends(epoch)
        cuts = np.searchsorted((starts[:-1] + starts[1:]) / 2, wanted)  # to the nearest block
        return order, starts, cuts


def _divisors(number: int, most: int) -> list[int]:
    return [n for n in range(1, most + 1) if number % n == 0]
