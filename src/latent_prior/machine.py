"""This machine: its cores and threads, the process that reports, and the installed package versions."""

from __future__ import annotations

import importlib.metadata
import os
import platform
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from tqdm import tqdm


def available_cores() -> int:
    """Cores that this process may use; macOS and Windows know no such limit and report all."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def in_threads(function: Callable[[int], Any], count: int) -> None:
    """Call `function` for 0 .. count - 1 in threads; PIL decodes outside Python's lock."""
    hidden = count < 20_000 or not is_main_process()
    with tqdm(total=count, desc="decoding", unit="image", disable=hidden) as bar:
        for start in range(0, count, 1024):  # in blocks: the pool takes in all it is given at once
            block = range(start, min(start + 1024, count))
            bar.update(len(list(thread_pool().map(function, block))))


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
