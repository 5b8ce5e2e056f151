"""Shared by the benchmarks of time and memory: clocks, peaks, processes of their own, results."""

from __future__ import annotations

import json
import os
import platform
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from latent_prior.files import whole_file


@dataclass(kw_only=True)
class MeasuringOptions:
    """Options of every benchmark of time or memory."""

    output: str | None = None
    """JSON file for the results; null only prints them."""


def clock(call: Callable[[], object]) -> float:
    """Seconds of one call."""
    started = time.perf_counter()
    call()
    return time.perf_counter() - started


def extra_memory(call: Callable[[], object]) -> int:
    """Bytes that a call needs at its peak beyond what was resident before (Linux)."""
    Path("/proc/self/clear_refs").write_text("5")  # resets the high-water mark
    before = status("VmRSS")
    call()
    return max(status("VmHWM") - before, 4096)


def status(key: str) -> int:
    """A figure of /proc/self/status in bytes, such as `VmRSS` (Linux)."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * next(int(line.split()[1]) for line in lines if line.startswith(f"{key}:"))


def processor_name() -> str:
    """The processor's name, and whether it has AVX-512."""
    info = Path("/proc/cpuinfo")
    if not info.is_file():
        return platform.processor()
    entries = (line.partition(":") for line in info.read_text().splitlines())
    lines = {key.strip(): value.strip() for key, _, value in entries}
    wide = "with" if "avx512f" in lines.get("flags", "").split() else "without"
    return f"{lines.get('model name', platform.machine())} {wide} AVX-512"


def in_own_process(options: MeasuringOptions, **environment: str) -> Iterator[dict[str, Any]]:
    """Start this script again with other options; yields the JSON objects that it prints."""
    flags = [f"--{name}={value}" for name, value in asdict(options).items() if value is not None]
    command, variables = [sys.executable, sys.argv[0], *flags], os.environ | environment
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=variables) as process:
        assert process.stdout is not None
        yield from map(json.loads, process.stdout)
    if process.returncode:
        raise SystemExit(process.returncode)


def write_json(output: str | None, results: object) -> None:
    """Write one measurement or a list of them, dataclasses, if a file is given."""
    if output is not None:
        with whole_file(Path(output)) as path:
            path.write_text(json.dumps(results, indent=2, default=asdict) + "\n")
