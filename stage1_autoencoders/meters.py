"""What is counted over a whole epoch: reconstruction error, the use of the codebooks or what the posterior says.

Usage within one batch depends on the batch size (a codebook of 512 cannot be used up by 49 codes), so codes are counted
over all images and all processes before anything is divided.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor, nn

from latent_prior.data.codes import CodeMaps, CodeSpec
from latent_prior.stage1_autoencoders.objectives import perplexity, usage
from latent_prior.stage1_autoencoders.posteriors import PosteriorMeter, diagnose
from latent_prior.training.metrics import Figures


class Meter(nn.Module):
    """Sums over images seen since the last `compute`; part of a checkpoint, so that a resumed epoch counts on."""

    squared_error: Tensor
    pixels: Tensor

    def __init__(self, spec: CodeSpec) -> None:
        super().__init__()
        self.register_buffer("squared_error", torch.zeros((), dtype=torch.float64))
        self.register_buffer("pixels", torch.zeros((), dtype=torch.float64))
        self.dims = sum(math.prod(level.shape) for level in spec.levels)
        self.posterior = PosteriorMeter(self.dims) if spec.kind == "latents" else None
        self.names = [level.name for level in spec.levels if level.vocabulary is not None]
        for level in spec.levels:
            if level.vocabulary is not None:
                counts = torch.zeros(level.vocabulary, dtype=torch.int64)
                self.register_buffer(f"counts_{level.name}", counts)

    @torch.no_grad()
    def update(self, images: Tensor, output: Any) -> None:
        """Count one batch: images (B, C, H, W) in [-1, 1] and the autoencoder's output for them."""
        error = (
            (output.images.float().clamp(-1, 1) - images.float()).square().sum(dtype=torch.float64)
        )
        self.squared_error += error
        self.pixels += images.numel()
        if self.posterior is None:
            self._count(output.codes)
        else:
            self.posterior.update(output.posterior)

    def compute(self, accelerator: Accelerator, prefix: str = "") -> Figures:
        """Sum over all processes, reset, and return `mse` and `psnr` (dB), and what the codes or latents did.

        `mse` is per value in [-1, 1]; PSNR takes the range of 2. For every codebook `usage`, the share of codes that
        occurred at all, and `perplexity`. For a posterior `kl` (nats per image), `active_units`, `kl_per_dimension`,
        and a `warning` where it has collapsed.
        """
        figures: Figures = {}
        if self.posterior is not None:
            scalars, per_dimension = self.posterior.compute(accelerator)
            figures |= {**scalars, "kl_per_dimension": [round(value, 4) for value in per_dimension]}
            warning = diagnose(scalars["kl"], scalars["active_units"], self.dims)
            figures |= {} if warning is None else {"warning": warning}
        own = dict(self.named_buffers(recurse=False))
        totals = {name: accelerator.reduce(buffer.clone(), "sum") for name, buffer in own.items()}
        for buffer in own.values():
            buffer.zero_()
        mse = float(totals["squared_error"] / totals["pixels"].clamp(min=1))
        figures |= {"mse": mse, "psnr": 10 * math.log10(4 / max(mse, 1e-12))}
        for name in self.names:
            counts = totals[f"counts_{name}"]
            suffix = "" if len(self.names) == 1 else f"_{name}"
            figures[f"usage{suffix}"] = float(usage(counts))
            figures[f"perplexity{suffix}"] = float(perplexity(counts))
        return {prefix + name: value for name, value in figures.items()}

    def _count(self, codes: CodeMaps) -> None:
        for name in self.names:
            flat = codes[name].flatten()
            # bincount would wait for the device
            self.get_buffer(f"counts_{name}").scatter_add_(0, flat, torch.ones_like(flat))
