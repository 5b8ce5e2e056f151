"""What every quantizer is: a map of vectors to codes and back, chosen by one word in the options."""

from __future__ import annotations

import importlib
from abc import ABC, abstractmethod
from dataclasses import dataclass

from torch import Tensor, nn

from latent_prior.stage1_autoencoders.quantizers.options import QuantizerOptions

# Imported when chosen: the files below import this one.
QUANTIZERS = {
    "ema": ("latent_prior.stage1_autoencoders.quantizers.codebooks", "EMACodebook"),
    "gradient": ("latent_prior.stage1_autoencoders.quantizers.codebooks", "GradientCodebook"),
    "fsq": ("latent_prior.stage1_autoencoders.quantizers.scalars", "FiniteScalars"),
    "lfq": ("latent_prior.stage1_autoencoders.quantizers.scalars", "Signs"),
    "bsq": ("latent_prior.stage1_autoencoders.quantizers.scalars", "SphericalSigns"),
    "residual": ("latent_prior.stage1_autoencoders.quantizers.residual", "ResidualCodebooks"),
}


@dataclass(frozen=True)
class QuantizerOutput:
    """What every quantizer returns in training.

    Attributes:
        vectors: the quantized vectors (B, D, H, W), with a gradient to the input.
        codes: int64 (B, S, H, W), one map for each of the S stages.
        loss: scalar to add to the reconstruction loss; its value does not depend on the batch size.
    """

    vectors: Tensor
    codes: Tensor
    loss: Tensor


class Quantizer(nn.Module, ABC):
    """Abstract: everything is computed in float32, also inside autocast.

    Attributes:
        dim: channels D that it takes and returns.
        stages: codes per vector S, 1 for all but residual quantizers.
        vocabulary: codes to choose from at each stage.
    """

    dim: int
    stages: int = 1
    vocabulary: int

    @abstractmethod
    def forward(self, inputs: Tensor) -> QuantizerOutput:
        """Quantize (B, D, H, W), and in training mode learn from it what is not learned by gradients."""

    @abstractmethod
    def vectors_to_codes(self, vectors: Tensor) -> Tensor:
        """(B, D, H, W) to int64 (B, S, H, W); learns nothing."""

    @abstractmethod
    def codes_to_vectors(self, codes: Tensor) -> Tensor:
        """Int64 (B, S, H, W) to (B, D, H, W): of the codes of some vectors, exactly what `forward` makes of these."""


def make_quantizer(options: QuantizerOptions) -> Quantizer:
    """The quantizer that the options name."""
    module, name = QUANTIZERS[options.quantizer]
    quantizer: Quantizer = getattr(importlib.import_module(module), name)(options)
    return quantizer


def straight_through(quantized: Tensor, carrier: Tensor) -> Tensor:
    """Exactly the quantized values, with the gradient of the carrier."""
    # The zero in brackets carries the gradient; z + (e - z) would round e.
    return quantized.detach() + (carrier - carrier.detach())
