"""clean-fid's Inception and where it is downloaded from.

No other file imports clean-fid: by itself it expects a GPU, keeps its weights in the global
temporary folder and writes statistics into its own installation.
"""

from __future__ import annotations

import warnings
from pathlib import Path

import torch

INCEPTION_FILE = "inception-2015-12-05.pt"  # the name that clean-fid's wrapper looks for


def inception_url() -> str:
    """The address of the weights."""
    from cleanfid import downloads_helper

    return downloads_helper.inception_url


def load_inception(folder: Path) -> torch.nn.Module:
    """Load `folder/INCEPTION_FILE`: float (N, 3, 299, 299) in [0, 255] -> (N, 2048).

    Raises:
        RuntimeError: the file is not TorchScript.
    """
    from cleanfid.inception_torchscript import InceptionV3W

    with warnings.catch_warnings():
        # torch 2.14 deprecates TorchScript; clean-fid's network exists in no other form.
        warnings.filterwarnings("ignore", message=".*torch.jit", category=FutureWarning)
        warnings.filterwarnings("ignore", message=".*torch.jit", category=DeprecationWarning)
        return InceptionV3W(str(folder), download=False)
