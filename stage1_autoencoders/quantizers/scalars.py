"""Quantizers without a table: each dimension is rounded by itself, and a code is the number that the roundings spell.

Finite scalar quantization (Mentzer et al., 2023, https://arxiv.org/abs/2309.15505), lookup-free quantization (Yu et al.,
2023, https://arxiv.org/abs/2310.05737) and binary spherical quantization (Zhao et al., 2024, https://arxiv.org/abs/2406.07548).
"""

from __future__ import annotations

import math
from abc import abstractmethod

import torch
import torch.nn.functional as F
from torch import Tensor

from latent_prior.stage1_autoencoders.quantizers.base import (
    Quantizer,
    QuantizerOutput,
    straight_through,
)
from latent_prior.stage1_autoencoders.quantizers.entropy import sign_entropy
from latent_prior.stage1_autoencoders.quantizers.options import QuantizerOptions


class ScalarQuantizer(Quantizer):
    """Abstract: numbers of a mixed radix, one digit a dimension.

    Args:
        levels: values L_i along each dimension.
        strides: what one step along each dimension adds to the code.
    """

    levels: Tensor
    strides: Tensor

    def __init__(self, levels: list[int], strides: list[int]) -> None:
        super().__init__()
        self.dim = len(levels)
        self.vocabulary = math.prod(levels)
        # Shaped to broadcast over (B, D, H, W). Floats, to follow the type of the weights around them.
        self.register_buffer("levels", torch.tensor(levels, dtype=torch.float32).view(-1, 1, 1))
        self.register_buffer("strides", torch.tensor(strides).view(-1, 1, 1))

    def forward(self, inputs: Tensor) -> QuantizerOutput:
        """Quantize (B, D, H, W); there is nothing to learn."""
        with torch.autocast(inputs.device.type, enabled=False):
            bounded = self._bound(inputs.float())
            digits = self._round(bounded)
            quantized = self._values(digits)
            vectors = straight_through(quantized, bounded).to(self.levels.dtype)
            return QuantizerOutput(vectors, self._codes(digits), self._loss(bounded, quantized))

    def vectors_to_codes(self, vectors: Tensor) -> Tensor:
        """(B, D, H, W) to int64 (B, 1, H, W)."""
        with torch.autocast(vectors.device.type, enabled=False):
            return self._codes(self._round(self._bound(vectors.float())))

    def codes_to_vectors(self, codes: Tensor) -> Tensor:
        """Int64 (B, 1, H, W) to (B, D, H, W)."""
        digits = codes // self.strides % self.levels.long()
        return self._values(digits.float()).to(self.levels.dtype)

    def _codes(self, digits: Tensor) -> Tensor:
        return (digits.long() * self.strides).sum(1, keepdim=True)

    @abstractmethod
    def _bound(self, inputs: Tensor) -> Tensor:
        """What is rounded, float32 (B, D, H, W) in the units of the quantized vectors, with gradient."""

    @abstractmethod
    def _round(self, bounded: Tensor) -> Tensor:
        """Digits from 0 to L_i - 1, as floats (B, D, H, W), without gradient."""

    @abstractmethod
    def _values(self, digits: Tensor) -> Tensor:
        """Quantized vectors, float32 (B, D, H, W)."""

    @abstractmethod
    def _loss(self, bounded: Tensor, quantized: Tensor) -> Tensor:
        """Scalar."""


class FiniteScalars(ScalarQuantizer):
    """Finite scalar quantization: a tanh bounds each dimension to L_i integers (Mentzer et al., 2023).

    The first dimension is the least significant digit. All codes are in reach by construction; there is no loss.
    """

    def __init__(self, options: QuantizerOptions) -> None:
        levels = options.levels_per_dimension
        super().__init__(levels, [math.prod(levels[:place]) for place in range(len(levels))])

    def _bound(self, inputs: Tensor) -> Tensor:
        levels = self.levels.float()
        # A little more than the outermost integers, which a tanh would not reach.
        reach = (levels - 1) * (1 + 1e-3) / 2
        # An even number of integers has no one in the middle: those from -L/2 to L/2 - 1.
        offset = (levels % 2 == 0) * 0.5
        return (torch.tanh(inputs + torch.atanh(offset / reach)) * reach - offset) / self._half()

    def _round(self, bounded: Tensor) -> Tensor:
        return (bounded.detach() * self._half()).round() + self._half()

    def _values(self, digits: Tensor) -> Tensor:
        return (digits - self._half()) / self._half()

    def _half(self) -> Tensor:
        return self.levels.float() // 2

    def _loss(self, bounded: Tensor, quantized: Tensor) -> Tensor:
        return bounded.new_zeros(())


class Signs(ScalarQuantizer):
    """Lookup-free quantization: a code is the signs of log2(codebook_size) numbers (Yu et al., 2023).

    The first dimension is the most significant bit. The loss is the commitment to -1 and 1, and the entropy term.
    """

    scale = 1.0

    def __init__(self, options: QuantizerOptions) -> None:
        bits = options.codebook_size.bit_length() - 1
        super().__init__([2] * bits, [2**place for place in reversed(range(bits))])
        self.weights = options.loss_weights

    def _bound(self, inputs: Tensor) -> Tensor:
        return inputs

    def _round(self, bounded: Tensor) -> Tensor:
        return (bounded.detach() > 0).float()

    def _values(self, digits: Tensor) -> Tensor:
        return (2 * digits - 1) * self.scale

    def _loss(self, bounded: Tensor, quantized: Tensor) -> Tensor:
        loss = self.weights.commitment * F.mse_loss(bounded, quantized)
        if not self.weights.entropy_weight:
            return loss
        rows = bounded.permute(0, 2, 3, 1).flatten(0, 2)
        entropy = sign_entropy(
            rows, self.scale, self.weights.entropy_temperature, joint=self.training
        )
        return loss + self.weights.entropy_weight * entropy


class SphericalSigns(Signs):
    """Binary spherical quantization: the signs of a vector of length 1, scaled to length 1 (Zhao et al., 2024)."""

    def __init__(self, options: QuantizerOptions) -> None:
        super().__init__(options)
        self.scale = self.dim**-0.5

    def _bound(self, inputs: Tensor) -> Tensor:
        return F.normalize(inputs, dim=1)
