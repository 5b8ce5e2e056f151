"""Terms that more than one autoencoder minimises, and the measures that are logged beside them.

Every value is a mean, so none depends on the size of the batch.
"""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from latent_prior.stage1_autoencoders.autoencoder import DiscreteOutput

Reconstruction = Literal["l1", "l2"]


def quantized_objective(
    images: Tensor, output: DiscreteOutput, reconstruction: Reconstruction
) -> dict[str, Tensor]:
    """The loss of the autoencoders with codebooks (van den Oord et al., 2017, Eq. 3).

    Args:
        images: originals (B, C, H, W) in [-1, 1].
        output: the model's output for them.
        reconstruction: mean absolute (`l1`) or mean squared (`l2`) difference.

    Returns:
        Scalars `reconstruction`, `quantizer` and their sum `total`.
    """
    error = reconstruction_error(images, output.images, reconstruction)
    return {
        "reconstruction": error,
        "quantizer": output.quantizer_loss,
        "total": error + output.quantizer_loss,
    }


def reconstruction_error(images: Tensor, reconstructions: Tensor, kind: Reconstruction) -> Tensor:
    """Mean absolute or squared difference over all pixels and channels, in float32."""
    difference = F.l1_loss if kind == "l1" else F.mse_loss
    return difference(reconstructions.float(), images.float())


def perplexity(counts: Tensor) -> Tensor:
    """Effective number of codes in use: the exponential of the entropy, in [1, K], of the usage counts (K,)."""
    shares = counts.double() / counts.sum()
    return torch.special.entr(shares).sum().exp().float()


def usage(counts: Tensor) -> Tensor:
    """Share of the codes that were used at all, from their usage counts (K,)."""
    return (counts > 0).float().mean()
