"""Feature networks: images of any size -> one vector each.

All images are resized as clean-fid does and grey ones become RGB with equal channels, so scores
differ only where the images do. Only features of clean-fid's Inception give a number that may be
called FID; every other network has its own column name. Downloaded weights are kept in the user's
cache folder.

No other file imports clean-fid: by itself it expects a GPU, keeps its weights in the global
temporary folder and writes statistics into its own installation.
"""

from __future__ import annotations

import hashlib
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional

from latent_prior.evaluation.features.downloads import download, file_digest
from latent_prior.evaluation.features.resizing import resize_clean, resize_for_clip
from latent_prior.files import cache_folder
from latent_prior.losses.perceptual import EFFICIENTNET_SHA256, load_efficientnet_lite0
from latent_prior.models import quiet

CLIP_REPOSITORY = "openai/clip-vit-base-patch32"  # the network of clean-fid's CLIP features
CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
CLIP_STD = (0.26862954, 0.26130258, 0.27577711)
INCEPTION_FILE = "inception-2015-12-05.pt"  # the name that clean-fid's wrapper looks for
INCEPTION_SHA256 = "f58cb9b6ec323ed63459aa4fb441fe750cfe39fafad6da5cb504a16f19e958f4"
OFFLINE = "choose --features efficientnet_lite0"


@dataclass(frozen=True, eq=False)
class FeatureNetwork:
    """A network in evaluation mode behind clean-fid's resizer.

    Attributes:
        name: as given to `--features`.
        column: key of its distance in scores.json.
        title: heading of that column.
        size: height and width in pixels that images are resized to.
        dimension: length of a feature vector.
        weights: origin of the weights, as recorded in the protocol.
        digest: sha256 of the weights.
        forward: float32 (N, 3, size, size) in [0, 255] -> (N, dimension), on `device`.
        device: of the network.
        resizer: description of the resizing, as recorded in the protocol.
        resize: N uint8 arrays (H, W, C) and `size` -> float32 (N, 3, size, size) in [0, 255].
        probabilities: features (N, dimension) -> float32 (N, K), probabilities of the network's K
            classes; None for a network without classes.
    """

    name: str
    column: str
    title: str
    size: int
    dimension: int
    weights: str
    digest: str
    forward: Callable[[Tensor], Tensor]
    device: torch.device
    resizer: str
    resize: Callable[[Sequence[NDArray[np.uint8]], int], NDArray[np.float32]]
    probabilities: Callable[[NDArray[np.float32]], NDArray[np.float32]] | None = None

    def __call__(self, images: Sequence[NDArray[np.uint8]] | Tensor) -> NDArray[np.float32]:
        """Features (N, dimension) of N uint8 images.

        They are arrays (H, W, C) of any size, C 1 or 3, or one tensor (N, C, H, W).
        """
        if isinstance(images, Tensor):
            images = list(images.permute(0, 2, 3, 1).cpu().numpy())
        return self.features(self.prepare(images))

    def prepare(self, images: Sequence[NDArray[np.uint8]]) -> Tensor:
        """Resize images to float32 (N, 3, size, size) in [0, 255] on the CPU; thread-safe."""
        return torch.from_numpy(self.resize(images, self.size))

    def features(self, batch: Tensor) -> NDArray[np.float32]:
        """Features (N, dimension) of N resized images."""
        with torch.inference_mode():
            return self.forward(batch.to(self.device)).float().cpu().numpy()


def load_network(features: str, device: torch.device | str = "cpu") -> FeatureNetwork:
    """The network that `--features` names: one of `NETWORKS`, or the path of a TorchScript module.

    The latter is called as clean-fid's Inception: float32 (N, 3, 299, 299) in [0, 255] -> (N, D).

    Raises:
        ValueError: the network, its package or a file is missing.
    """
    device = torch.device(device)
    load = {"inception": _inception, "clip": _clip, "efficientnet_lite0": _efficientnet_lite0}
    return load[features](device) if features in load else _torchscript(Path(features), device)


def load_inception(folder: Path) -> nn.Module:
    """clean-fid's network in `folder/INCEPTION_FILE`: (N, 3, 299, 299) in [0, 255] -> (N, 2048).

    Raises:
        RuntimeError: the file is not TorchScript.
    """
    from cleanfid.inception_torchscript import InceptionV3W

    with warnings.catch_warnings():
        # torch 2.14 deprecates TorchScript; clean-fid's network exists in no other form.
        warnings.filterwarnings("ignore", message=".*torch.jit")
        return InceptionV3W(str(folder), download=False)


def _inception(device: torch.device) -> FeatureNetwork:
    from cleanfid.downloads_helper import inception_url as url

    path = cache_folder() / INCEPTION_FILE
    if not path.exists():
        try:
            download(url, path, OFFLINE)
        except FileNotFoundError as error:
            raise ValueError(f"{url} is gone: put the file at {path}, or {OFFLINE}") from error
    digest = file_digest(path)
    if digest != INCEPTION_SHA256:  # TorchScript is code: only the published file is opened
        raise ValueError(
            f"{path} is not the published Inception (sha256 {INCEPTION_SHA256[:12]}...): delete it, and it will "
            "be downloaded again"
        )
    network = load_inception(path.parent).to(device).eval()
    probed = _probed("inception", "fid", "FID", 299, url, digest, network, device)
    last = getattr(network.base, "output", None)
    if last is None:
        return probed

    def probabilities(features: NDArray[np.float32]) -> NDArray[np.float32]:
        # Without the bias, as in the original code of the Inception Score.
        with torch.inference_mode():
            logits = functional.linear(torch.from_numpy(features).to(device), last.weight)
            return logits.softmax(1).cpu().numpy()

    return replace(probed, probabilities=probabilities)


def _clip(device: torch.device, repository: str = CLIP_REPOSITORY) -> FeatureNetwork:
    """CLIP's image embeddings before normalisation, with clean-fid's resizing for CLIP."""
    from transformers import CLIPVisionModelWithProjection

    try:
        with quiet():  # the text encoder is unused on purpose
            loaded: Any = CLIPVisionModelWithProjection.from_pretrained(
                repository, use_safetensors=True, dtype=torch.float32, output_loading_info=True
            )
    except OSError as error:
        raise ValueError(
            f"the CLIP weights {repository} could not be loaded from the Hugging Face hub: connect to the network once, "
            f"or {OFFLINE}"
        ) from error
    network, report = loaded
    if report["missing_keys"]:
        raise ValueError(
            f"{repository} lacks weights of CLIP's image encoder: {sorted(report['missing_keys'])[:3]}"
        )
    digest = hashlib.sha256()
    for name, tensor in sorted(network.state_dict().items()):
        digest.update(name.encode())
        digest.update(tensor.numpy().tobytes())
    network = network.to(device).eval()
    mean = torch.tensor(CLIP_MEAN, device=device).view(1, 3, 1, 1)
    std = torch.tensor(CLIP_STD, device=device).view(1, 3, 1, 1)

    def forward(images: Tensor) -> Tensor:
        return network(pixel_values=(images / 255 - mean) / std).image_embeds

    size = network.config.image_size
    weights = repository, digest.hexdigest()
    probed = _probed("clip", "fd_clip", "FD-CLIP", size, *weights, forward, device)
    resizer = f"clean-fid CLIP: PIL bicubic, antialiased, uint8, shorter side {size}, centre"
    return replace(probed, resizer=resizer, resize=resize_for_clip)


def _efficientnet_lite0(device: torch.device) -> FeatureNetwork:
    """The weights come with their package; 64 pixels keep scoring fast on a CPU."""
    network, weights = load_efficientnet_lite0("--features")
    network.to(device, memory_format=torch.channels_last)

    def forward(images: Tensor) -> Tensor:
        pixels = ((images - 127) / 128).contiguous(memory_format=torch.channels_last)
        return network.extract_features(pixels).mean((2, 3))

    names = "efficientnet_lite0", "fd_effnet_lite0", "FD-EffNet-Lite0"
    return _probed(*names, 64, weights, EFFICIENTNET_SHA256, forward, device)


def _torchscript(path: Path, device: torch.device) -> FeatureNetwork:
    try:
        digest = file_digest(path)
        with warnings.catch_warnings():
            # torch 2.14 deprecates TorchScript, still the only format that contains its code.
            warnings.filterwarnings("ignore", message=".*torch.jit")
            network = torch.jit.load(path, map_location=device).eval()
        weights = f"{path.name} sha256:{digest}"
        return _probed(path.name, "fd_custom", "FD-custom", 299, weights, digest, network, device)
    except (RuntimeError, ValueError) as error:
        reason = str(error).strip().splitlines()[-1]
        raise ValueError(
            f"--features {path} is not a TorchScript module (N, 3, 299, 299) -> (N, D): {reason}"
        ) from error


def _probed(
    name: str,
    column: str,
    title: str,
    size: int,
    weights: str,
    digest: str,
    forward: Callable[[Tensor], Tensor] | nn.Module,
    device: torch.device,
) -> FeatureNetwork:
    """Complete a network with its dimension, measured on a grey image."""
    with torch.inference_mode():
        features = forward(torch.full((1, 3, size, size), 127.0, device=device))
    if not isinstance(features, Tensor) or features.ndim != 2 or len(features) != 1:
        shape = tuple(features.shape) if isinstance(features, Tensor) else type(features).__name__
        raise ValueError(f"one image gave {shape} instead of (1, D)")
    resizer = f"clean-fid clean: PIL bicubic, antialiased, float32, {size} x {size}"
    return FeatureNetwork(
        name, column, title, size, features.shape[1], weights, digest, forward, device, resizer, resize_clean
    )  # fmt: skip
