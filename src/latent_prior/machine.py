"""This machine: its cores and threads, the process that reports, and the installed package versions."""

from __future__ import annotations

import importlib.metadata
import os
import platform
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

from tqdm import tqdm

T = TypeVar("T")


def available_cores() -> int:
    """Cores that this process may use; macOS and Windows know no such limit and report all."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def in_threads(function: Callable[[int], T], numbers: Sequence[int]) -> list[T]:
    """The results of `function` for all numbers, computed in threads.

    Reading files and decoding with PIL release Python's lock.
    """
    hidden = len(numbers) < 20_000 or not is_main_process()
    results: list[T] = []
    with tqdm(total=len(numbers), desc="reading", unit="image", disable=hidden) as bar:
        for start in range(0, len(numbers), 8192):  # the pool queues all it is given at once
            block = numbers[start : start + 8192]
            # One small image is not worth a task.
            tasks = [block[first : first + 8] for first in range(0, len(block), 8)]
            for part in thread_pool().map(lambda task: [function(n) for n in task], tasks):
                results += part
                bar.update(len(part))
    return results


def is_main_process() -> bool:
    """Whether this is the process that speaks, as the launcher says; asked where there is no `Accelerator`."""
    return os.environ.get("RANK", "0") == "0"


_POOL: list[ThreadPoolExecutor] = []


def thread_pool() -> ThreadPoolExecutor:
    """One pool of decoding threads per process, started when first needed."""
    if not _POOL:
        _POOL.append(ThreadPoolExecutor(min(8, available_cores())))
    return _POOL[0]


PACKAGES = ("latent-prior", "clean-fid", "torch", "transformers", "numpy", "pillow")


def versions(packages: Sequence[str] = PACKAGES) -> dict[str, str]:
    """Package -> version, of Python too."""
    found = {"python": platform.python_version()}
    for package in packages:
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            found[package] = "not installed"
    return found
