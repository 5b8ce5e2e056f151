"""Quantizers without a codebook: each dimension is rounded; a code is a number in mixed radix.

Finite scalar quantization (FSQ, Mentzer et al., 2023, https://arxiv.org/abs/2309.15505),
lookup-free quantization (LFQ, Yu et al., 2023, https://arxiv.org/abs/2310.05737) and binary
spherical quantization (BSQ, Zhao et al., 2024, https://arxiv.org/abs/2406.07548).
"""

from __future__ import annotations

import math
from abc import abstractmethod

import torch
import torch.nn.functional as F
from torch import Tensor

from latent_prior.stage1_autoencoders.options import QuantizerOptions
from latent_prior.stage1_autoencoders.quantizers.base import (
    LossWeights,
    Quantizer,
    QuantizerOutput,
    straight_through,
)
from latent_prior.stage1_autoencoders.quantizers.entropy import sign_entropy

FEWEST_LEVELS, MOST_LEVELS = 3, 8
"""Values along a dimension of finite scalar quantization that `choose_levels` considers."""


class ScalarQuantizer(Quantizer):
    """Abstract: a code is a number in mixed radix with one digit per dimension.

    Args:
        levels: number of values L_i along each dimension.
        strides: increase of the code per step along each dimension.
    """

    levels: Tensor
    strides: Tensor

    def __init__(self, levels: list[int], strides: list[int]) -> None:
        super().__init__()
        self.dim = len(levels)
        self.vocabulary = math.prod(levels)
        # Broadcastable over (B, D, H, W). Float levels follow the dtype of the model's weights.
        self.register_buffer("levels", torch.tensor(levels, dtype=torch.float32).view(-1, 1, 1))
        self.register_buffer("strides", torch.tensor(strides).view(-1, 1, 1))

    def forward(self, inputs: Tensor) -> QuantizerOutput:
        """Quantize (B, D, H, W)."""
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
        """Values to round, float32 (B, D, H, W) in units of the vectors, with gradient."""

    @abstractmethod
    def _round(self, bounded: Tensor) -> Tensor:
        """Digits from 0 to L_i - 1, as floats (B, D, H, W), without gradient."""

    @abstractmethod
    def _values(self, digits: Tensor) -> Tensor:
        """Quantized vectors, float32 (B, D, H, W)."""

    @abstractmethod
    def _loss(self, bounded: Tensor, quantized: Tensor) -> Tensor:
        """Scalar loss of float32 (B, D, H, W) before and after rounding."""


class FiniteScalars(ScalarQuantizer):
    """FSQ: a tanh bounds each dimension to L_i integers (Mentzer et al., 2023).

    The first dimension is the least significant digit. There is no loss.
    """

    reads = ("fsq_levels",)

    def __init__(self, options: QuantizerOptions) -> None:
        levels = options.fsq_levels or choose_levels(options.codebook_size)
        super().__init__(levels, [math.prod(levels[:index]) for index in range(len(levels))])

    @classmethod
    def check(cls, options: QuantizerOptions) -> None:
        """Raise a ValueError for too few levels, or levels whose product is not codebook_size."""
        levels = options.fsq_levels or choose_levels(options.codebook_size)
        if min(levels) < FEWEST_LEVELS:
            raise ValueError(
                f"--model.fsq_levels must be at least {FEWEST_LEVELS} each, not {levels}"
            )
        if math.prod(levels) != options.codebook_size:
            raise ValueError(
                f"--model.codebook_size {options.codebook_size} is not {math.prod(levels)}, the product of "
                f"--model.fsq_levels {levels}"
            )

    def _bound(self, inputs: Tensor) -> Tensor:
        levels = self.levels.float()
        # Slightly more than the outermost integers, which a tanh would not reach.
        reach = (levels - 1) * (1 + 1e-3) / 2
        # An even number of integers has no middle: they run from -L/2 to L/2 - 1.
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
    """LFQ: a code is the signs of log2(codebook_size) numbers (Yu et al., 2023).

    The first dimension is the most significant bit. The loss is the commitment to -1 and 1 plus the
    entropy loss, without which all signs collapse to one code.
    """

    reads = LossWeights._fields
    default_weights = LossWeights(0.05, 0.02, 0.5)  # a strong commitment would drown the entropy
    scale = 1.0

    def __init__(self, options: QuantizerOptions) -> None:
        bits = options.codebook_size.bit_length() - 1
        super().__init__([2] * bits, [2**bit for bit in reversed(range(bits))])
        self.weights = self.loss_weights(options)

    @classmethod
    def check(cls, options: QuantizerOptions) -> None:
        """Raise a ValueError for a codebook size that is not a power of two."""
        bits = options.codebook_size.bit_length() - 1
        if options.codebook_size != 2**bits:
            raise ValueError(
                f"--model.codebook_size {options.codebook_size} is not a power of two, which "
                f"--model.quantizer {options.quantizer} needs; use {2**bits} or {2 ** (bits + 1)}"
            )

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
    """BSQ: the signs of unit vectors, scaled to length 1 (Zhao et al., 2024)."""

    default_weights = LossWeights(0.25, 0.01, 0.1)

    def __init__(self, options: QuantizerOptions) -> None:
        super().__init__(options)
        self.scale = self.dim**-0.5

    def _bound(self, inputs: Tensor) -> Tensor:
        return F.normalize(inputs, dim=1)


def choose_levels(codebook_size: int) -> list[int]:
    """Factorise a codebook size into levels from 3 to 8: as few, then as even as possible.

    They equal the paper's at its codebook sizes (240: 8 6 5; 1000: 8 5 5 5; 4375: 7 5 5 5 5; ...).

    Raises:
        ValueError: naming the flag, if there is no such factorisation.
    """
    factorisations = _factorisations(codebook_size, MOST_LEVELS)
    if not factorisations:
        raise ValueError(
            f"--model.codebook_size {codebook_size} is not a product of numbers from {FEWEST_LEVELS} to {MOST_LEVELS}, "
            "which --model.quantizer fsq needs; use a power of two, or set --model.fsq_levels"
        )
    return min(factorisations, key=lambda levels: (len(levels), -min(levels)))


def _factorisations(product: int, largest: int) -> list[list[int]]:
    """All factorisations into non-increasing levels of at most `largest`."""
    if product == 1:
        return [[]]
    return [
        [level, *rest]
        for level in range(largest, FEWEST_LEVELS - 1, -1)
        if product % level == 0
        for rest in _factorisations(product // level, level)
    ]
