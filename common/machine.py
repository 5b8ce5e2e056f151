"""What this machine lends us."""

from __future__ import annotations

import os


def available_cores() -> int:
    """Cores that this process may use; macOS and Windows know no such limit and report all."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1
