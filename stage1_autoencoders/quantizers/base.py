"""The interface of every quantizer: vectors to codes and back."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import ClassVar, NamedTuple

from torch import Tensor, nn

from latent_prior.stage1_autoencoders.options import QuantizerOptions


@dataclass(frozen=True)
class QuantizerOutput:
    """What every quantizer returns in training.

    Attributes:
        vectors: the quantized vectors (B, D, H, W), with a gradient to the input.
        codes: int64 (B, S, H, W), one map for each of the S stages.
        loss: scalar to add to the reconstruction loss; independent of the batch size.
    """

    vectors: Tensor
    codes: Tensor
    loss: Tensor


class LossWeights(NamedTuple):
    """Weights of a quantizer's loss, under the names of the options."""

    commitment: float
    entropy_weight: float
    entropy_temperature: float


class Quantizer(nn.Module, ABC):
    """Abstract: everything is computed in float32, also inside autocast.

    Attributes:
        dim: channels D of input and output.
        stages: codes per vector S, 1 except for residual quantizers.
        vocabulary: number of codes at each stage.
        reads: the options, among those that only some quantizers read, that this one reads.
        default_weights: weights for options left at null; only for a quantizer with a loss.
    """

    dim: int
    stages: int = 1
    vocabulary: int
    reads: ClassVar[tuple[str, ...]] = ()
    default_weights: ClassVar[LossWeights]

    @classmethod
    def check(cls, options: QuantizerOptions) -> None:
        """Raise a ValueError that names the flag whose value this quantizer cannot take."""

    @classmethod
    def loss_weights(cls, options: QuantizerOptions) -> LossWeights:
        """The weights in the options, with this quantizer's defaults for those that are null."""
        given = {name: getattr(options, name) for name in LossWeights._fields}
        return cls.default_weights._replace(
            **{name: value for name, value in given.items() if value is not None}
        )

    @abstractmethod
    def forward(self, inputs: Tensor) -> QuantizerOutput:
        """Quantize (B, D, H, W); in training mode, update what is not learned by gradients."""

    @abstractmethod
    def vectors_to_codes(self, vectors: Tensor) -> Tensor:
        """(B, D, H, W) to int64 (B, S, H, W), without learning."""

    @abstractmethod
    def codes_to_vectors(self, codes: Tensor) -> Tensor:
        """Int64 (B, S, H, W) to (B, D, H, W), bit for bit the vectors that `forward` returns."""


def straight_through(quantized: Tensor, carrier: Tensor) -> Tensor:
    """Exactly the quantized values, with the gradient of the carrier."""
    # The zero in brackets carries the gradient; z + (e - z) would round e.
    return quantized.detach() + (carrier - carrier.detach())
