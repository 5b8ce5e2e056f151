"""A check before pyproject.toml is used: most of the package is reached by symbolic links."""

import sys
from pathlib import Path

if not all(path.is_dir() for path in Path("src/latent_prior").iterdir() if not path.suffix):
    sys.exit(
        "latent-prior needs symbolic links, which this clone lacks: "
        "clone it again with `git clone -c core.symlinks=true URL`"
    )

from setuptools import setup

setup()
