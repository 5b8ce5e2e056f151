"""This machine: cores, threads, the process that reports, and the installed versions."""

from __future__ import annotations

import functools
import importlib.metadata
import os
import platform
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

from latent_prior.progress import Progress

S = TypeVar("S")
T = TypeVar("T")


def available_cores() -> int:
    """Cores that this process may use; macOS and Windows have no such limit and report all."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def in_threads(function: Callable[[int], T], numbers: Sequence[int]) -> list[T]:
    """The results of `function` for all numbers, computed in threads.

    Reading files and decoding with PIL release Python's lock.
    """
    return list(each_in_threads(function, numbers))


def each_in_threads(function: Callable[[int], T], numbers: Sequence[int]) -> Iterator[T]:
    """The same one by one in order, of which a few thousand are in memory at a time."""
    shown = len(numbers) >= 20_000 and is_main_process()
    with Progress("reading", len(numbers), shown=shown) as line:
        for start in range(0, len(numbers), 8192):  # the pool queues all it is given at once
            block = numbers[start : start + 8192]
            # One small image is not worth a task.
            tasks = [block[first : first + 8] for first in range(0, len(block), 8)]
            for part in thread_pool().map(lambda task: [function(n) for n in task], tasks):
                yield from part
                line.advance(len(part))


def is_main_process() -> bool:
    """Whether this process reports, by the launcher's rank; for code without an `Accelerator`."""
    return os.environ.get("RANK", "0") == "0"


@functools.cache
def thread_pool() -> Threads:
    """The process's pool of threads for reading and decoding, started on first use.

    At most 16; the processes of this machine share its cores.
    """
    on_this_machine = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    return Threads(max(1, min(16, available_cores() // on_this_machine)))


class Threads(ThreadPoolExecutor):
    """A pool that knows how long its threads have worked ahead."""

    def __init__(self, count: int) -> None:
        super().__init__(count)
        self._count, self._seconds, self._lock = count, 0.0, threading.Lock()

    def ahead(self, function: Callable[[S], T], argument: S) -> Future[T]:
        """Begin a task whose result is needed later; its time counts."""

        def timed() -> T:
            begun = time.monotonic()
            try:
                return function(argument)
            finally:
                with self._lock:
                    self._seconds += time.monotonic() - begun

        return self.submit(timed)

    @property
    def seconds_ahead(self) -> float:
        """Seconds that all threads together would have taken for these tasks alone."""
        return self._seconds / self._count


PACKAGES = ("latent-prior", "clean-fid", "torch", "transformers", "numpy", "pillow")


def versions(packages: Sequence[str] = PACKAGES) -> dict[str, str]:
    """Package -> installed version; `python` is included."""
    installed = {"python": platform.python_version()}
    for package in packages:
        try:
            installed[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            installed[package] = "not installed"
    return installed
