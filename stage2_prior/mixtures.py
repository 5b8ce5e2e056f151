"""The head over latents: a mixture of Gaussians with diagonal covariance for every vector of the sequence.

Tschannen, Eastwood and Mentzer, GIVT: generative infinite-vocabulary transformers, 2023, https://arxiv.org/abs/2312.02116.

Shapes: ... rows and positions, K Gaussians, D latent numbers drawn at a time.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from latent_prior.stage2_prior.sampling import choose

# The latents are stored as float16; below its resolution a density would reward knowing how numbers are rounded.
SMALLEST_DEVIATION = 1e-3
CANDIDATES = 32  # of a guided draw
_TINY = 2.0**-60  # draws are multiples of 2^-53, and 0 has no quantile


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
        """Log of the density in nats at values (..., D): (...)."""
        z = (values.unsqueeze(-2) - self.means) / self.deviations
        normaliser = (
            self.deviations.log().sum(-1) + self.means.shape[-1] * math.log(2 * math.pi) / 2
        )
        return torch.logsumexp(self.log_weights - z.square().sum(-1) / 2 - normaliser, dim=-1)


def mixture_outputs(mixtures: int, chunk: int) -> int:
    """Numbers that a head must give for K Gaussians over D numbers each."""
    return mixtures * (1 + 2 * chunk)


def mixture_of(outputs: Tensor, mixtures: int) -> Mixture:
    """The distribution that a head's outputs (..., K (1 + 2 D)) stand for, in float32."""
    weights, rest = outputs.float().split((mixtures, outputs.shape[-1] - mixtures), dim=-1)
    means, raw = rest.unflatten(-1, (2, mixtures, -1)).unbind(-3)
    return Mixture(weights.log_softmax(-1), means, F.softplus(raw) + SMALLEST_DEVIATION)


def numbers_per_draw(chunk: int, *, guided: bool) -> int:
    """Random numbers that drawing one vector takes."""
    return CANDIDATES * (1 + chunk) + 1 if guided else 1 + chunk


def draw(mixture: Mixture, uniforms: Tensor, temperature: float) -> Tensor:
    """Draw vectors: a Gaussian by its weight, then a value from it.

    Args:
        mixture: of rows (R, K) and (R, K, D).
        uniforms: (R, N, 1 + D) in [0, 1), the first for the choice.
        temperature: multiplies the deviations (the paper's variance scaling, section 4.3); 0 gives the Gaussian's mean.

    Returns:
        float32 (R, N, D), N draws per row.
    """
    chosen = choose(
        mixture.log_weights.unsqueeze(1).expand(-1, uniforms.shape[1], -1), uniforms[..., 0]
    )
    index = chosen.unsqueeze(-1).expand(-1, -1, mixture.means.shape[-1])
    normals = torch.special.ndtri(uniforms[..., 1:].clamp(min=_TINY)).to(mixture.means.dtype)
    return mixture.means.gather(1, index) + temperature * normals * mixture.deviations.gather(
        1, index
    )


def draw_guided(
    conditional: Mixture, unconditional: Mixture, uniforms: Tensor, temperature: float, scale: float
) -> Tensor:
    """Draw from p(z | class)^s p(z)^(1 - s), the density that guidance means (the paper's density-based guidance).

    No mixture is that density. So candidates are drawn given the class, and one is chosen with weights
    (p(z | class) / p(z))^(s - 1): sampling by importance, exact in the limit of many candidates, and without the open
    end of the paper's rejection sampling. A scale nearer to 0 than to 1 starts from p(z) instead, with the weights
    (p(z | class) / p(z))^s, so that 0 ignores the class altogether. The temperature is for the candidates; their weights
    are of the densities as they are.

    Args:
        conditional: given the class, of rows (R, K) and (R, K, D).
        unconditional: without it, likewise.
        uniforms: (R, numbers_per_draw(D, guided=True)) in [0, 1).
        temperature: see `draw`.
        scale: s; 1 is the conditional mixture, 0 the unconditional one.

    Returns:
        float32 (R, D)
    """
    nearest, power = (conditional, scale - 1) if scale > 0.5 else (unconditional, scale)
    candidates = draw(nearest, uniforms[:, :-1].unflatten(1, (CANDIDATES, -1)), temperature)
    along = Mixture(*(each.unsqueeze(1) for each in conditional))
    without = Mixture(*(each.unsqueeze(1) for each in unconditional))
    evidence = along.log_density(candidates) - without.log_density(candidates)  # (R, CANDIDATES)
    chosen = choose(power * evidence, uniforms[:, -1])
    return candidates[torch.arange(len(candidates), device=chosen.device), chosen]
