"""PSNR, SSIM and LPIPS of reconstructions, on the uint8 images that would be saved."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from latent_prior.data.images import to_float, to_uint8
from latent_prior.evaluation.measures.inputs import MeasureInputs, Values
from latent_prior.losses.perceptual import PerceptualDistance
from latent_prior.pipelines import Pipeline

FIDELITY = "psnr", "ssim", "lpips"
SSIM_WINDOW = 11  # pixels
SSIM_SIGMA = 1.5  # pixels
PSNR_CAP = 100.0  # dB: one perfect reconstruction must not make the mean infinite


def reconstruct(pipeline: Pipeline, images: Tensor, device: torch.device) -> Tensor:
    """uint8 images (N, C, H, W) through the pipeline's autoencoder and back to uint8."""
    with torch.inference_mode():
        return to_uint8(pipeline.reconstruct(to_float(images).to(device))).cpu()


def measure_fidelity(inputs: MeasureInputs) -> Values:
    """Means over the images."""
    return {
        key: mean_psnr(values) if key == "psnr" else float(values.mean(dtype=np.float64))
        for key, values in inputs.fidelity.items()
    }


def psnr(images: Tensor, reconstructions: Tensor) -> Tensor:
    """Peak signal-to-noise ratio of each image in dB, float64 (N,); infinite for equal images.

    Both are uint8 (N, C, H, W); the peak is 255.
    """
    _check_pair(images, reconstructions)
    squared_error = (images.double() - reconstructions.double()).square().mean((1, 2, 3))
    return 10 * torch.log10(255**2 / squared_error)


def mean_psnr(values: NDArray[np.floating]) -> float:
    """Mean of `psnr` over images, each counted with at most `PSNR_CAP`."""
    return float(values.clip(max=PSNR_CAP).mean(dtype=np.float64))


def ssim(images: Tensor, reconstructions: Tensor) -> Tensor:
    """Structural similarity of each image, float64 (N,) in [-1, 1] (Wang et al., 2004, Eq. 13).

    Local statistics under a Gaussian window of 11 x 11 pixels and sigma 1.5 (section III-B), where
    the window fits into the image; K1 = 0.01, K2 = 0.03; mean over positions and channels. Both are
    uint8 (N, C, H, W) with H and W at least 11.
    """
    _check_pair(images, reconstructions)
    assert min(images.shape[2:]) >= SSIM_WINDOW, (
        "the window of 11 pixels does not fit into the image"
    )
    x, y = images.double(), reconstructions.double()
    mean_x, mean_y = _blur(x), _blur(y)
    variance_x = _blur(x * x) - mean_x * mean_x
    variance_y = _blur(y * y) - mean_y * mean_y
    covariance = _blur(x * y) - mean_x * mean_y
    c1, c2 = (0.01 * 255) ** 2, (0.03 * 255) ** 2
    similarity = ((2 * mean_x * mean_y + c1) * (2 * covariance + c2)) / (
        (mean_x * mean_x + mean_y * mean_y + c1) * (variance_x + variance_y + c2)
    )
    return similarity.mean((1, 2, 3))


def lpips(network: PerceptualDistance, images: Tensor, reconstructions: Tensor) -> Tensor:
    """LPIPS of each image, float32 (N,) on the CPU (Zhang et al., 2018, Eq. 1).

    Both are uint8 (N, C, H, W); it is computed on the network's device.
    """
    _check_pair(images, reconstructions)
    device = next(network.parameters()).device
    with torch.inference_mode():
        pairs = (to_float(one.to(device)) for one in (images, reconstructions))
        return network.each(*pairs).float().cpu()


def _blur(images: Tensor) -> Tensor:
    """Gaussian mean where the window fits: (N, C, H, W) -> (N, C, H - 10, W - 10)."""
    offsets = torch.arange(SSIM_WINDOW, dtype=images.dtype) - SSIM_WINDOW // 2
    weights = torch.exp(-offsets.square() / (2 * SSIM_SIGMA**2))
    weights = weights / weights.sum()
    height, width = images.shape[2:]
    flat = images.reshape(-1, 1, height, width)  # channels are independent
    rows = F.conv2d(flat, weights.view(1, 1, -1, 1))
    blurred = F.conv2d(rows, weights.view(1, 1, 1, -1))
    return blurred.view(*images.shape[:2], *blurred.shape[2:])


def _check_pair(images: Tensor, reconstructions: Tensor) -> None:
    assert images.dtype == reconstructions.dtype == torch.uint8, (
        "reconstructions are measured as uint8 images"
    )
    assert images.shape == reconstructions.shape, "images and reconstructions differ in shape"
