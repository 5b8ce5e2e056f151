"""The head over latents: a mixture of diagonal Gaussians for every vector of the sequence.

Tschannen, Eastwood and Mentzer, GIVT: generative infinite-vocabulary transformers, 2023,
https://arxiv.org/abs/2312.02116.

Shapes: ... rows and positions, K Gaussians, D latent numbers sampled at a time.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from latent_prior.stage2_prior.logits import choose

# Latents are stored as float16; a smaller deviation would fit its rounding.
SMALLEST_DEVIATION = 1e-3
CANDIDATES = 32  # per guided sample
_TINY = 2.0**-60  # uniforms are multiples of 2^-53, and 0 has no finite quantile


class Mixture(NamedTuple):
    """A distribution over vectors of D numbers.

    Attributes:
        log_weights: (..., K), normalised.
        means: (..., K, D).
        deviations: (..., K, D), at least `SMALLEST_DEVIATION`.
    """

    log_weights: Tensor
    means: Tensor
    deviations: Tensor

    def log_density(self, values: Tensor) -> Tensor:
        """Log-density in nats (...) at values (..., D)."""
        z = (values.unsqueeze(-2) - self.means) / self.deviations
        dimensions = self.means.shape[-1]
        normaliser = self.deviations.log().sum(-1) + dimensions * math.log(2 * math.pi) / 2
        return torch.logsumexp(self.log_weights - z.square().sum(-1) / 2 - normaliser, dim=-1)


def num_outputs(mixtures: int, chunk: int) -> int:
    """Outputs that a head needs for K Gaussians over D numbers each."""
    return mixtures * (1 + 2 * chunk)


def mixture_of(outputs: Tensor, mixtures: int) -> Mixture:
    """The distribution that a head's outputs (..., K (1 + 2 D)) parametrise, in float32."""
    weights, rest = outputs.float().split((mixtures, outputs.shape[-1] - mixtures), dim=-1)
    means, raw = rest.unflatten(-1, (2, mixtures, -1)).unbind(-3)
    return Mixture(weights.log_softmax(-1), means, F.softplus(raw) + SMALLEST_DEVIATION)


def uniforms_per_vector(chunk: int, *, guided: bool) -> int:
    """Random numbers needed to sample one vector."""
    return CANDIDATES * (1 + chunk) + 1 if guided else 1 + chunk


def sample(mixture: Mixture, uniforms: Tensor, temperature: float) -> Tensor:
    """Choose a Gaussian by its weight, then sample from it.

    Args:
        mixture: of rows (R, K) and (R, K, D).
        uniforms: (R, N, 1 + D) in [0, 1), the first for the choice.
        temperature: multiplies the deviations (variance scaling, section 4.3 of the paper); 0 gives
            the Gaussian's mean.

    Returns:
        float32 (R, N, D), N samples per row.
    """
    weights = mixture.log_weights.unsqueeze(1).expand(-1, uniforms.shape[1], -1)
    chosen = choose(weights, uniforms[..., 0])
    index = chosen.unsqueeze(-1).expand(-1, -1, mixture.means.shape[-1])
    normals = torch.special.ndtri(uniforms[..., 1:].clamp(min=_TINY)).to(mixture.means.dtype)
    means, deviations = (values.gather(1, index) for values in mixture[1:])
    return means + temperature * normals * deviations


def sample_guided(
    conditional: Mixture, unconditional: Mixture, uniforms: Tensor, temperature: float, scale: float
) -> Tensor:
    """Sample from p(z | class)^s p(z)^(1 - s) (density-based guidance in the paper).

    This density is no mixture. Candidates are sampled given the class, and one is chosen with
    weights (p(z | class) / p(z))^(s - 1): importance sampling, exact in the limit of many
    candidates and, unlike the paper's rejection sampling, of bounded cost. A scale nearer to 0 than
    to 1 samples candidates from p(z) instead, with weights (p(z | class) / p(z))^s, so that 0
    ignores the class. The temperature applies to the candidates, not to their weights.

    Args as in `sample`, with uniforms (R, uniforms_per_vector(D, guided=True)) and the scale s.

    Returns:
        float32 (R, D)
    """
    proposal, power = (conditional, scale - 1) if scale > 0.5 else (unconditional, scale)
    candidates = sample(proposal, uniforms[:, :-1].unflatten(1, (CANDIDATES, -1)), temperature)
    # (R, CANDIDATES) each
    given_class, without_class = (
        Mixture(*(values.unsqueeze(1) for values in mixture)).log_density(candidates)
        for mixture in (conditional, unconditional)
    )
    chosen = choose(power * (given_class - without_class), uniforms[:, -1])
    return candidates[torch.arange(len(candidates), device=chosen.device), chosen]
