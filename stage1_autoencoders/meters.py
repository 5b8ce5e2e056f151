"""What is counted over a whole epoch: reconstruction error and the use of the codebooks.

Usage within one batch depends on the batch size (a codebook of 512 cannot be used up by 49 codes), so codes are counted
over all images and all processes before anything is divided.
"""

from __future__ import annotations

import math

import torch
from accelerate import Accelerator
from torch import Tensor, nn

from common.codes import CodeMaps, CodeSpec
from stage1_autoencoders.objectives import perplexity, usage


class Meter(nn.Module):
    """Sums over images seen since the last `compute`; part of a checkpoint, so that a resumed epoch counts on."""

    squared_error: Tensor
    pixels: Tensor

    def __init__(self, spec: CodeSpec) -> None:
        super().__init__()
        self.register_buffer("squared_error", torch.zeros((), dtype=torch.float64))
        self.register_buffer("pixels", torch.zeros((), dtype=torch.float64))
        self.names = [level.name for level in spec.levels]
        for level in spec.levels:
            self.register_buffer(
                f"counts_{level.name}", torch.zeros(level.vocabulary or 0, dtype=torch.int64)
            )

    @torch.no_grad()
    def update(self, images: Tensor, reconstructions: Tensor, codes: CodeMaps) -> None:
        """Count one batch: images and reconstructions (B, C, H, W) in [-1, 1], codes by level."""
        error = (
            (reconstructions.float().clamp(-1, 1) - images.float())
            .square()
            .sum(dtype=torch.float64)
        )
        self.squared_error += error
        self.pixels += images.numel()
        for name in self.names:
            counts = self.get_buffer(f"counts_{name}")
            flat = codes[name].flatten()
            counts.scatter_add_(
                0, flat, torch.ones_like(flat)
            )  # bincount would wait for the device

    def compute(self, accelerator: Accelerator, prefix: str = "") -> dict[str, float]:
        """Sum over all processes, reset, and return `mse`, `psnr` (dB) and `usage`, `perplexity` of every codebook.

        `mse` is per value in [-1, 1]; PSNR takes the range of 2. `usage` is the share of codes that occurred at all.
        """
        totals = {
            name: accelerator.reduce(buffer.clone(), "sum") for name, buffer in self.named_buffers()
        }
        for buffer in self.buffers():
            buffer.zero_()
        mse = float(totals["squared_error"] / totals["pixels"].clamp(min=1))
        metrics = {"mse": mse, "psnr": 10 * math.log10(4 / max(mse, 1e-12))}
        for name in self.names:
            counts = totals[f"counts_{name}"]
            suffix = "" if len(self.names) == 1 else f"_{name}"
            metrics[f"usage{suffix}"] = float(usage(counts))
            metrics[f"perplexity{suffix}"] = float(perplexity(counts))
        return {prefix + name: value for name, value in metrics.items()}
