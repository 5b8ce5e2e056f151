"""Residual quantization: a vector is a sum of codes, each chosen for the residual of those before.

Lee et al., 2022, https://arxiv.org/abs/2203.01941; Zeghidour et al., 2021,
https://arxiv.org/abs/2107.03312, Algorithm 1.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from latent_prior.stage1_autoencoders.options import QuantizerOptions
from latent_prior.stage1_autoencoders.quantizers.base import Quantizer, QuantizerOutput
from latent_prior.stage1_autoencoders.quantizers.clustering import nearest_codes
from latent_prior.stage1_autoencoders.quantizers.codebooks import (
    EMACodebook,
    carry_gradient,
    maps_of,
    rows_of,
)


class ResidualCodebooks(Quantizer):
    """A sequence of EMA codebooks; the gradient passes once, from the sum of codes to the input.

    The loss is the mean of the codebooks' losses; each pulls the input towards the partial sum.
    """

    reads, default_weights = EMACodebook.reads, EMACodebook.default_weights

    @classmethod
    def check(cls, options: QuantizerOptions) -> None:
        """Raise a ValueError for the cosine distance."""
        if options.distance == "cosine":
            raise ValueError(
                "--model.distance cosine leaves no residual to quantize; use euclidean with "
                "--model.quantizer residual"
            )

    def __init__(self, options: QuantizerOptions) -> None:
        super().__init__()
        self.dim = options.code_dim
        self.stages = options.residual_stages
        self.vocabulary = options.codebook_size
        self.estimator = options.estimator
        self.codebooks = nn.ModuleList([EMACodebook(options) for _ in range(self.stages)])

    def forward(self, inputs: Tensor) -> QuantizerOutput:
        """Quantize (B, D, H, W); in training mode, update every codebook from its residuals."""
        B, _, H, W = inputs.shape
        with torch.autocast(inputs.device.type, enabled=False):
            vectors = residual = rows_of(inputs)  # (N, D)
            total, codes, losses = torch.zeros_like(vectors), [], []
            for codebook in self._codebooks():
                quantized, stage_codes, loss = codebook.quantize(residual)
                residual = residual - quantized.detach()
                total = total + quantized.detach()
                codes.append(stage_codes.view(B, H, W))
                losses.append(loss)
            carried = carry_gradient(vectors, total, self.estimator)
        return QuantizerOutput(
            maps_of(carried, B, H, W).to(self._dtype()),
            torch.stack(codes, 1),
            torch.stack(losses).mean(),
        )

    def vectors_to_codes(self, vectors: Tensor) -> Tensor:
        """(B, D, H, W) to int64 (B, S, H, W), coarsest code first, without learning."""
        B, _, H, W = vectors.shape
        codes = []
        with torch.autocast(vectors.device.type, enabled=False):
            residual = rows_of(vectors).detach()
            for codebook in self._codebooks():
                stage_codes = nearest_codes(residual, codebook.entries())
                residual = residual - F.embedding(stage_codes, codebook.entries())
                codes.append(stage_codes.view(B, H, W))
        return torch.stack(codes, 1)

    def codes_to_vectors(self, codes: Tensor) -> Tensor:
        """Int64 (B, S, H, W) to (B, D, H, W)."""
        B, _, H, W = codes.shape
        with torch.autocast(codes.device.type, enabled=False):
            # From zero and in this order, as in training, for the same rounding errors.
            total = torch.zeros((), device=codes.device)
            for codebook, stage in zip(self._codebooks(), codes.unbind(1), strict=True):
                total = total + F.embedding(stage.flatten(), codebook.entries())
            return maps_of(total, B, H, W).to(self._dtype())

    def _codebooks(self) -> list[EMACodebook]:
        return [codebook for codebook in self.codebooks if isinstance(codebook, EMACodebook)]

    def _dtype(self) -> torch.dtype:
        return self._codebooks()[0].codebook.dtype
