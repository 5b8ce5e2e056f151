"""Which programs a result was computed with."""

from __future__ import annotations

import importlib.metadata
import platform
from collections.abc import Sequence

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
