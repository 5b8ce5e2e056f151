"""Feature networks: images of any size -> one vector each.

Every network gets its images through clean-fid's resizer and sees grey images as RGB with equal channels, so two
scores differ only where the images do. Only features of clean-fid's Inception give a number that may be called
FID; each other network has a column name of its own. Weights that have to be downloaded go into the user's cache
folder ($LATENT_PRIOR_CACHE, else ~/.cache/latent-prior) and appear there only when they are complete.
"""

from __future__ import annotations

import hashlib
import http.client
import os
import urllib.error
import urllib.request
import warnings
import zipfile
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from common.checkpoint import whole_file
from common.efficientnet import load_efficientnet_lite0
from evaluation import fid

CLIP_REPOSITORY = "openai/clip-vit-base-patch32"  # the network of clean-fid's CLIP features
CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
CLIP_STD = (0.26862954, 0.26130258, 0.27577711)


@dataclass(frozen=True, eq=False)
class FeatureNetwork:
    """A network in evaluation mode behind clean-fid's resizer.

    Attributes:
        name: as given to `--features`.
        column: key of its distance in scores.json.
        title: heading of that column.
        size: height and width in pixels that images are resized to.
        dimension: length of a feature vector.
        weights: where the weights come from, as recorded in the protocol.
        forward: float32 (N, 3, size, size) in [0, 255] -> (N, dimension), on `device`.
        device: where the network is.
    """

    name: str
    column: str
    title: str
    size: int
    dimension: int
    weights: str
    forward: Callable[[Tensor], Tensor]
    device: torch.device

    @property
    def resizer(self) -> str:
        """The resizing, in words, as recorded in the protocol."""
        return f"clean-fid clean: PIL bicubic, antialiased, float32, {self.size} x {self.size}"

    def __call__(self, images: Sequence[NDArray[np.uint8]] | Tensor) -> NDArray[np.float32]:
        """Features (N, dimension) of N images.

        Args:
            images: uint8 arrays (H, W, C) of any size with C 1 or 3, or one uint8 tensor (N, C, H, W).
        """
        if isinstance(images, Tensor):
            images = list(images.permute(0, 2, 3, 1).cpu().numpy())
        resize = fid.clean_resizer(self.size)
        # PIL resizes outside the interpreter's lock.
        with ThreadPoolExecutor(min(16, os.cpu_count() or 1)) as pool:
            resized = np.stack(list(pool.map(lambda image: resize(_as_rgb(image)), images)))
        batch = torch.from_numpy(resized).permute(0, 3, 1, 2).contiguous()  # (N, 3, size, size)
        with torch.inference_mode():
            features = self.forward(batch.to(self.device))
        return features.float().cpu().numpy()


def load_network(features: str, device: torch.device | str = "cpu") -> FeatureNetwork:
    """The network that `--features` names.

    Args:
        features: `inception`, `clip`, `efficientnet_lite0`, or the path of a TorchScript file. A scripted module
            is called like clean-fid's Inception: float32 (N, 3, 299, 299) in [0, 255] -> (N, D).
        device: where it computes.

    Raises:
        ValueError: one sentence on what is missing (network, package, file) and what to do.
    """
    device = torch.device(device)
    if features == "inception":
        return _inception(device)
    if features == "clip":
        return _clip(device)
    if features == "efficientnet_lite0":
        return _efficientnet_lite0(device)
    return _torchscript(Path(features), device)


def cache_folder() -> Path:
    """Where downloaded weights are kept; $LATENT_PRIOR_CACHE and $XDG_CACHE_HOME move it."""
    own = os.environ.get("LATENT_PRIOR_CACHE")
    if own:
        return Path(own).expanduser()
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "latent-prior"


def download(url: str, target: Path) -> None:
    """Fetch a zip archive (TorchScript files are zip archives) to `target`, complete or not at all.

    Raises:
        ValueError: no network, or the transfer broke off, or what arrived is not the file.
    """
    way_out = (
        f"connect to the network, put the file at {target}, or choose --features efficientnet_lite0"
    )
    with whole_file(target) as temporary:
        with temporary.open("wb") as file:
            for chunk in _chunks(url, way_out):
                file.write(chunk)
        if not zipfile.is_zipfile(temporary):
            raise ValueError(f"what {url} sent is no weights file: {way_out}")


def _chunks(url: str, way_out: str) -> Iterator[bytes]:
    """The body of `url`; errors of the network only, so that those of the disk keep their own message."""
    received = 0
    try:
        with urllib.request.urlopen(url, timeout=60) as response:
            expected = response.headers.get("Content-Length")
            while chunk := response.read(1 << 20):
                received += len(chunk)
                yield chunk
    except (
        urllib.error.URLError,
        http.client.HTTPException,
        TimeoutError,
        ConnectionError,
    ) as error:
        reason = getattr(error, "reason", error)
        raise ValueError(f"{url} could not be downloaded ({reason}): {way_out}") from error
    if expected is not None and received != int(expected):
        raise ValueError(
            f"the download of {url} broke off after {received} of {expected} bytes: {way_out}"
        )


def _inception(device: torch.device) -> FeatureNetwork:
    path = cache_folder() / fid.INCEPTION_FILE
    if not path.exists():
        download(fid.inception_url(), path)
    try:
        network = fid.inception(path.parent).to(device).eval()
    except RuntimeError as error:
        raise ValueError(
            f"{path} is no readable Inception: delete it, it will be downloaded again"
        ) from error
    return _probed("inception", "fid", "FID", 299, fid.inception_url(), network, device)


def _clip(device: torch.device, repository: str = CLIP_REPOSITORY) -> FeatureNetwork:
    """CLIP's image embeddings before normalisation, as clean-fid takes them."""
    from transformers import CLIPVisionModelWithProjection
    from transformers.utils import logging

    verbosity = logging.get_verbosity()
    logging.set_verbosity_error()  # the text half of the checkpoint is unused, on purpose
    try:
        loaded: Any = CLIPVisionModelWithProjection.from_pretrained(
            repository, use_safetensors=True, dtype=torch.float32, output_loading_info=True
        )
    except OSError as error:
        raise ValueError(
            f"the CLIP weights {repository} could not be loaded from the Hugging Face hub: connect to the network "
            "once, or choose --features efficientnet_lite0"
        ) from error
    finally:
        logging.set_verbosity(verbosity)
    network, report = loaded
    if report["missing_keys"]:
        raise ValueError(
            f"{repository} lacks weights of CLIP's image encoder: {sorted(report['missing_keys'])[:3]}"
        )
    network = network.to(device).eval()
    mean = torch.tensor(CLIP_MEAN, device=device).view(1, 3, 1, 1)
    std = torch.tensor(CLIP_STD, device=device).view(1, 3, 1, 1)

    def forward(images: Tensor) -> Tensor:
        return network(pixel_values=(images / 255 - mean) / std).image_embeds

    return _probed(
        "clip", "fd_clip", "FD-CLIP", network.config.image_size, repository, forward, device
    )


def _efficientnet_lite0(device: torch.device) -> FeatureNetwork:
    """Weights come with their package; 64 pixels keep scoring small images quick on a CPU."""
    network, weights = load_efficientnet_lite0("--features")
    network.to(device, memory_format=torch.channels_last)

    def forward(images: Tensor) -> Tensor:
        pixels = ((images - 127) / 128).contiguous(memory_format=torch.channels_last)
        return network.extract_features(pixels).mean((2, 3))

    return _probed(
        "efficientnet_lite0", "fd_effnet_lite0", "FD-EffNet-Lite0", 64, weights, forward, device
    )


def _torchscript(path: Path, device: torch.device) -> FeatureNetwork:
    try:
        with warnings.catch_warnings():
            # torch 2.14 calls TorchScript deprecated; it is still the one format that carries its own code.
            warnings.filterwarnings("ignore", message=".*torch.jit", category=FutureWarning)
            warnings.filterwarnings("ignore", message=".*torch.jit", category=DeprecationWarning)
            network = torch.jit.load(path, map_location=device).eval()
        digest = hashlib.sha256(path.read_bytes()).hexdigest()
        weights = f"{path.name} sha256:{digest}"
        return _probed(path.name, "fd_custom", "FD-custom", 299, weights, network, device)
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
    forward: Callable[[Tensor], Tensor] | nn.Module,
    device: torch.device,
) -> FeatureNetwork:
    """Complete a network with its dimension, measured on a grey image."""
    with torch.inference_mode():
        features = forward(torch.full((1, 3, size, size), 127.0, device=device))
    if not isinstance(features, Tensor) or features.ndim != 2 or len(features) != 1:
        shape = tuple(features.shape) if isinstance(features, Tensor) else type(features).__name__
        raise ValueError(f"one image gave {shape} instead of (1, D)")
    return FeatureNetwork(name, column, title, size, features.shape[1], weights, forward, device)


def _as_rgb(image: NDArray[np.uint8]) -> NDArray[np.uint8]:
    assert image.ndim == 3, f"expected uint8 (H, W, C), got {image.shape}"
    assert image.shape[2] in (1, 3), f"expected 1 or 3 channels, got {image.shape[2]}"
    return image if image.shape[2] == 3 else np.repeat(image, 3, axis=2)
