"""The rows of every training step on every process, and prefetching.

The order is a pure function of (seed, step).
"""

from __future__ import annotations

import functools
import itertools
import time
from collections import deque
from collections.abc import Generator, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

import torch
from accelerate import Accelerator
from torch import Tensor

from latent_prior.machine import thread_pool
from latent_prior.options import RunOptions
from latent_prior.seeds import generator, mixed

Batch = dict[str, Tensor]
T = TypeVar("T")
RATES = ("rate", "reader_rate", "step_rate")
"""Metrics in images per second; see `Reader.rates`."""
_LISTED = 2**24  # rows whose order is drawn at once and kept: 128 MiB
_ROUNDS = 6


def index_batches(
    start: int, *, size: int, options: RunOptions, accelerator: Accelerator
) -> Iterator[tuple[int, Tensor, slice]]:
    """This process's micro-batches: (step, indices, their slice of the step's whole batch).

    Every epoch is a permutation drawn from (seed, epoch). Batches continue across the ends of
    epochs, so every image is seen equally often. The whole batch of a step does not depend on the
    number of processes or micro-batches. Memory does not grow with the number of images: the order
    of more than 16 million is computed place by place.

    Raises:
        ValueError: the batch does not divide into equal parts.
    """
    share = even_share(options, accelerator)

    @functools.lru_cache(2)
    def listed(epoch: int) -> Tensor:
        return torch.randperm(size, generator=generator(options.seed, epoch))

    def order(epoch: int, places: Tensor) -> Tensor:
        if size <= _LISTED:
            return listed(epoch)[places]
        return scattered(places, size, generator(options.seed, epoch))

    for step in itertools.count(start):
        numbers = torch.arange(step * options.batch_size, (step + 1) * options.batch_size)
        epochs = range(int(numbers[0]) // size, int(numbers[-1]) // size + 1)
        # A piece of each epoch: joining whole permutations would copy all indices at every step.
        whole = torch.cat(
            [order(epoch, numbers[numbers // size == epoch] - epoch * size) for epoch in epochs]
        )
        for micro in range(options.accumulation_steps):
            begin = (micro * accelerator.num_processes + accelerator.process_index) * share
            part = slice(begin, begin + share)
            yield step, whole[part], part


def scattered(places: Tensor, size: int, generator: torch.Generator) -> Tensor:
    """What stands at some places of a random order of the numbers below `size`.

    Each is computed on its own: the bits of a place go through a Feistel network, which permutes
    all numbers of so many bits, until they are a number below `size` (cycle walking; Black and
    Rogaway, 2002, "Ciphers with arbitrary finite domains").

    Args:
        places: int64, below `size`.
        size: of the order.
        generator: draws the keys, which decide on the order.
    """
    half = (max(size - 1, 1).bit_length() + 1) // 2
    mask = (1 << half) - 1
    keys = torch.randint(2**62, (_ROUNDS,), generator=generator)

    def permuted(numbers: Tensor) -> Tensor:
        left, right = numbers >> half, numbers & mask
        for key in keys:
            left, right = right, left ^ (mixed(right + key) & mask)
        return left << half | right

    found = permuted(places)
    while (beyond := found >= size).any():
        found[beyond] = permuted(found[beyond])
    return found


def even_share(options: RunOptions, accelerator: Accelerator) -> int:
    """Images of a micro-batch on one process.

    Raises:
        ValueError: the batch does not divide into equal parts.
    """
    parts = accelerator.num_processes * options.accumulation_steps
    if options.batch_size % parts:
        raise ValueError(
            f"--batch_size {options.batch_size} cannot be divided evenly over "
            f"{accelerator.num_processes} processes and "
            f"--accumulation_steps {options.accumulation_steps}"
        )
    return options.batch_size // parts


def prefetch(items: Iterator[T], depth: int = 2) -> Generator[T, None, None]:
    """The same items, of which a thread prepares up to `depth` ahead; closing ends the thread.

    A depth of 0 prepares every item on demand, without a thread.
    """
    if depth == 0:
        yield from items
        return
    with ThreadPoolExecutor(1, thread_name_prefix="prefetch") as pool:

        def prepare() -> Future[list[T]]:
            return pool.submit(lambda: list(itertools.islice(items, 1)))

        ahead = deque(prepare() for _ in range(depth))
        try:
            while item := ahead.popleft().result():
                ahead.append(prepare())
                yield item[0]
        finally:
            for waiting in ahead:
                waiting.cancel()


class Reader(Iterator[T]):
    """Batches, prepared ahead by a thread, and how fast that goes.

    Args:
        items: the batches.
        depth: that are prepared ahead; 0 prepares each on demand.
        seconds: that the run has taken so far.
    """

    def __init__(self, items: Iterator[T], depth: int, seconds: float = 0.0) -> None:
        self._prepared = _Timed(items)
        self._prefetched = prefetch(self._prepared, depth)
        self._taken = _Timed(self._prefetched)
        self._before = self._clocks(seconds)

    def __next__(self) -> T:
        return next(self._taken)

    def rates(self, images: int, seconds: float) -> dict[str, float]:
        """Images per second since the last call.

        Args:
            images: that all processes have taken since then.
            seconds: that the run has taken so far.

        Returns:
            `rate` of the run, `reader_rate` of reading alone and `step_rate` of the steps alone.
        """
        now = self._clocks(seconds)
        spent, waited, prepared, ahead = (b - a for a, b in zip(self._before, now, strict=True))
        self._before = now
        # What is decoded ahead while the thread rests is not in its own time.
        parts = (spent, max(prepared, ahead), spent - waited)
        return {name: images / max(part, 1e-9) for name, part in zip(RATES, parts, strict=True)}

    def close(self) -> None:
        """End the thread."""
        self._prefetched.close()

    def _clocks(self, seconds: float) -> tuple[float, ...]:
        ahead = thread_pool().seconds_ahead
        return seconds, self._taken.seconds, self._prepared.seconds, ahead


class _Timed(Iterator[T]):
    """Counts the seconds that its items take."""

    def __init__(self, items: Iterator[T]) -> None:
        self._items, self.seconds = items, 0.0

    def __next__(self) -> T:
        asked = time.monotonic()
        try:
            return next(self._items)
        finally:
            self.seconds += time.monotonic() - asked
