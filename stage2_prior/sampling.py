"""From logits to codes: guidance, temperature, top-k, top-p and the draw, each a small pure function.

- Ho and Salimans, Classifier-free diffusion guidance, 2022, https://arxiv.org/abs/2207.12598
- Holtzman et al., The curious case of neural text degeneration, ICLR 2020, https://arxiv.org/abs/1904.09751
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Generator, Tensor


def check_settings(*, guidance_scale: float, temperature: float, top_k: int, top_p: float) -> None:
    """Check a sampler's settings, once before any work.

    Raises:
        ValueError: naming the setting and its range.
    """
    if not (guidance_scale >= 0 and math.isfinite(guidance_scale)):
        raise ValueError(
            f"guidance_scale must be a number from 0 up (1 means none), not {guidance_scale}"
        )
    if not (temperature >= 0 and math.isfinite(temperature)):
        raise ValueError(
            f"temperature must be a number from 0 (always the likeliest code) up, not {temperature}"
        )
    if top_k < 0:
        raise ValueError(f"top_k must be 0 (all codes) or a number of codes, not {top_k}")
    if not 0 < top_p <= 1:
        raise ValueError(f"top_p must lie in (0, 1] (1 means all codes), not {top_p}")


def apply_guidance(conditional: Tensor, unconditional: Tensor, scale: float) -> Tensor:
    """Away from what the model would draw without the class: u + scale (c - u) (Ho and Salimans, 2022, Eq. 6).

    The paper's weight w is scale - 1. Logits may differ from log-probabilities by a constant per row.

    Args:
        conditional: logits (..., K) given the class.
        unconditional: logits (..., K) without it.
        scale: 0 ignores the class, 1 changes nothing, more exaggerates it.
    """
    return conditional if scale == 1 else torch.lerp(unconditional, conditional, scale)


def apply_temperature(logits: Tensor, temperature: float) -> Tensor:
    """Logits (..., K) divided by the temperature; 0 leaves only the likeliest code, the first of several."""
    if temperature == 1:
        return logits
    if temperature > 0:
        return logits / temperature
    likeliest = logits.argmax(dim=-1, keepdim=True)
    return torch.full_like(logits, -math.inf).scatter_(-1, likeliest, 0.0)


def keep_top_k(logits: Tensor, k: int) -> Tensor:
    """All but the k largest logits (..., K) become -inf; 0 keeps all, ties with the k-th stay."""
    if k == 0 or k >= logits.shape[-1]:
        return logits
    smallest_kept = logits.topk(k, dim=-1).values[..., -1:]
    return logits.masked_fill(logits < smallest_kept, -math.inf)


def keep_top_p(logits: Tensor, p: float) -> Tensor:
    """All codes outside the nucleus become -inf (Holtzman et al., 2020, section 3.1).

    The nucleus is the smallest set of the likeliest codes whose probabilities sum to at least p; of equally likely
    ones the lower number comes first. It is never empty.

    Args:
        logits: (..., K).
        p: in (0, 1]; 1 keeps all.
    """
    if p == 1:
        return logits
    descending, order = logits.sort(dim=-1, descending=True, stable=True)
    probabilities = descending.softmax(dim=-1)
    mass_before = probabilities.cumsum(dim=-1) - probabilities
    outside = torch.empty_like(mass_before, dtype=torch.bool).scatter_(-1, order, mass_before >= p)
    return logits.masked_fill(outside, -math.inf)


def choose(logits: Tensor, uniforms: Tensor) -> Tensor:
    """Draw one code per row by the inverse of the cumulative distribution.

    Code i is chosen when u falls into [F(i - 1), F(i)), an empty interval for a code of probability 0.

    Args:
        logits: (..., K); -inf excludes a code.
        uniforms: (...) in [0, 1); their type, float64 or float32, is the precision of the sums.

    Returns:
        int64 (...) in [0, K).
    """
    cumulative = logits.softmax(dim=-1).cumsum(dim=-1, dtype=uniforms.dtype)
    total = cumulative[..., -1:].contiguous()  # 1 up to rounding
    # Rounding up to the total itself would run past the last code.
    below_total = torch.nextafter(total, torch.zeros_like(total))
    threshold = torch.minimum(uniforms.unsqueeze(-1) * total, below_total)
    return torch.searchsorted(cumulative, threshold, right=True).squeeze(-1)


def draw_uniforms(
    num_images: int, length: int, generator: Generator | Sequence[Generator] | None
) -> Tensor:
    """All random numbers of a call, image after image.

    Image-major order makes one call for 8 images the same as two calls for 4; a generator per image makes an image
    independent of all others (diffusers' convention). None draws from torch's global generator of the CPU.

    Returns:
        float64 (num_images, length) in [0, 1), on the generators' device.

    Raises:
        ValueError: when a list has another number of generators than there are images.
    """
    if generator is None or isinstance(generator, Generator):
        generators: list[Generator | None] = [generator] * num_images
    else:
        generators = list(generator)
    if len(generators) != num_images:
        raise ValueError(
            f"{num_images} images need one generator, or one each, not {len(generators)}"
        )
    rows = [
        torch.rand(
            length, dtype=torch.float64, generator=each, device=each.device if each else None
        )
        for each in generators
    ]
    return torch.stack(rows)
