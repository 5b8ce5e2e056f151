"""Which rows a training step sees on which process, and batches prepared ahead of the step.

The order is a pure function of (seed, step).
"""

from __future__ import annotations

import contextlib
import itertools
import queue
import threading
from collections.abc import Generator, Iterator
from typing import TypeVar

import torch
from accelerate import Accelerator
from torch import Tensor

from latent_prior.options import RunOptions
from latent_prior.seeds import generator

Batch = dict[str, Tensor]
T = TypeVar("T")


def index_batches(
    start: int, *, size: int, options: RunOptions, accelerator: Accelerator
) -> Iterator[tuple[int, Tensor, slice]]:
    """Which images this process sees: (step, indices of its micro-batch, their place in the step's whole batch).

    Epoch after epoch is a new permutation, drawn from (seed, epoch); batches run on over the ends of epochs, so every
    image is seen equally often, whatever the batch size. The whole batch of a step does not depend on the number of
    processes or micro-batches.

    Raises:
        ValueError: the batch cannot be shared out evenly.
    """
    share = even_share(options, accelerator)
    epochs: dict[int, Tensor] = {}
    for step in itertools.count(start):
        numbers = torch.arange(step * options.batch_size, (step + 1) * options.batch_size)
        first, last = int(numbers[0]) // size, int(numbers[-1]) // size
        epochs = {
            epoch: epochs[epoch]
            if epoch in epochs
            else torch.randperm(size, generator=generator(options.seed, epoch))
            for epoch in range(first, last + 1)
        }
        # A piece of each epoch: joining whole permutations would copy a million numbers at every step.
        whole = torch.cat(
            [epochs[epoch][numbers[numbers // size == epoch] - epoch * size] for epoch in epochs]
        )
        for micro in range(options.accumulation_steps):
            begin = (micro * accelerator.num_processes + accelerator.process_index) * share
            place = slice(begin, begin + share)
            yield step, whole[place], place


def even_share(options: RunOptions, accelerator: Accelerator) -> int:
    """Images of a micro-batch on one process.

    Raises:
        ValueError: the batch cannot be shared out evenly.
    """
    parts = accelerator.num_processes * options.accumulation_steps
    if options.batch_size % parts:
        raise ValueError(
            f"--batch_size {options.batch_size} cannot be shared out evenly over {accelerator.num_processes} processes "
            f"and --accumulation_steps {options.accumulation_steps}"
        )
    return options.batch_size // parts


def prefetch(items: Iterator[T], depth: int = 2) -> Generator[T, None, None]:
    """The same items, prepared ahead by a thread while the caller computes; closing it ends the thread.

    A depth of 0 prepares each item when it is asked for, without a thread.
    """
    if depth == 0:
        yield from items
        return
    ready: queue.Queue[tuple[list[T], BaseException | None]] = queue.Queue(depth)
    stopped = threading.Event()

    def put(item: list[T], error: BaseException | None = None) -> None:
        while not stopped.is_set():
            with contextlib.suppress(queue.Full):
                ready.put((item, error), timeout=0.1)
                return

    def fill() -> None:
        try:
            for item in items:
                put([item])
                if stopped.is_set():
                    return
            put([])
        except BaseException as error:
            put([], error)

    thread = threading.Thread(target=fill, daemon=True)
    thread.start()
    try:
        while True:
            item, error = ready.get()
            if error is not None:
                raise error
            if not item:
                return
            yield item[0]
    finally:
        stopped.set()
        thread.join()
