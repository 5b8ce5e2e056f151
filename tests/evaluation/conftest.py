import warnings

import pytest
import torch
from torch import nn


class TinyFeatures(nn.Module):
    """A small random network with the interface of a TorchScript feature network."""

    def __init__(self, dimension: int = 12):
        super().__init__()
        self.convolution = nn.Conv2d(3, dimension, 23, stride=12)

    def forward(self, images):
        return torch.relu(10 * self.convolution(images / 128 - 1)).mean((2, 3))


def save_scripted(module, path):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # TorchScript is deprecated since torch 2.14
        torch.jit.script(module.eval()).save(str(path))
    return path


@pytest.fixture(scope="session")
def scripted_features(tmp_path_factory):
    """Path of a TorchScript feature network."""
    torch.manual_seed(0)
    return save_scripted(TinyFeatures(), tmp_path_factory.mktemp("network") / "tiny.pt")
