"""What this machine lends us: cores, threads, and one process that speaks."""

from __future__ import annotations

import os
from collections.abc import Callable
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
