"""From logits to codes: guidance, temperature, top-k, top-p and the random choice.

- Ho and Salimans, Classifier-free diffusion guidance, 2022, https://arxiv.org/abs/2207.12598
- Chang et al., Muse, ICML 2023, https://arxiv.org/abs/2301.00704 (linear guidance schedule)
- Gao et al., Masked diffusion Transformer, ICCV 2023, https://arxiv.org/abs/2303.14389 (cosine
  guidance schedule)
- Kynkäänniemi et al., Applying guidance in a limited interval, NeurIPS 2024,
  https://arxiv.org/abs/2404.07724
- Holtzman et al., The curious case of neural text degeneration, ICLR 2020,
  https://arxiv.org/abs/1904.09751
"""

from __future__ import annotations

import math

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from latent_prior.seeds import Generators, one_per_image
from latent_prior.stage2_prior.sampler import Sampler

_COLDEST = 1e-6


def guidance_scales(sampler: Sampler, num_steps: int) -> list[float]:
    """Guidance scale of every step: positions in raster order, rounds in masked order.

    Step i has progress p = i / (num_steps - 1), a single step has progress 1. The first codes (the
    start of the sequence, or the most confident codes of a masked map) fix most of an image, so
    full guidance there costs diversity. Two schedules rise from exactly 1 to exactly s, the
    `guidance_scale`: `linear` (Muse, section 2.7; also VAR, MAR) is 1 + (s - 1) p, `cosine` (the
    power cosine of Gao et al., 2023, with power 1; also RAR) is 1 + (s - 1) (1 - cos(pi p)) / 2.

    Outside `guidance_interval` (ends included) the scale is 1 (Kynkäänniemi et al., 2024); the
    interval does not stretch the schedule.
    """
    scale, (low, high) = sampler.guidance_scale, sampler.guidance_interval
    progress = [i / (num_steps - 1) for i in range(num_steps)] if num_steps > 1 else [1.0]
    ramps = {
        "constant": [1.0] * num_steps,
        "linear": progress,
        "cosine": [(1 - math.cos(math.pi * p)) / 2 for p in progress],
    }
    steps = zip(progress, ramps[sampler.guidance_schedule], strict=True)
    return [(1 - ramp) + ramp * scale if low <= p <= high else 1.0 for p, ramp in steps]


def apply_guidance(conditional: Tensor, unconditional: Tensor, scale: float) -> Tensor:
    """Classifier-free guidance: u + s (c - u) (Ho and Salimans, 2022, Eq. 6, where w = s - 1).

    Logits (..., K) may differ from log-probabilities by a constant per row. The scale s = 0 ignores
    the class, 1 changes nothing, more exaggerates the class.
    """
    return conditional if scale == 1 else torch.lerp(unconditional, conditional, scale)


def apply_temperature(logits: Tensor, temperature: float) -> Tensor:
    """Divide logits (..., K) by the temperature; 0 keeps only the (first) likeliest code.

    Temperatures below 1e-6, by which logits would overflow, are 0.
    """
    if temperature == 1:
        return logits
    if temperature >= _COLDEST:
        return logits / temperature
    likeliest = logits.argmax(dim=-1, keepdim=True)
    return torch.full_like(logits, -math.inf).scatter_(-1, likeliest, 0.0)


def filter_logits(logits: Tensor, sampler: Sampler) -> Tensor:
    """Apply temperature, top-k and then top-p to logits, float32 or float64 (..., K).

    Excluded codes become -inf; at least one code per row is kept.
    """
    logits = apply_temperature(logits, sampler.temperature)
    if sampler.temperature < _COLDEST:
        return logits
    if sampler.top_p == 1:
        return keep_top_k(logits, sampler.top_k)
    return keep_top_p(logits, sampler.top_p, sampler.top_k)


def keep_top_k(logits: Tensor, k: int) -> Tensor:
    """Set all but the k largest logits, float32 or float64 (..., K), to -inf.

    0 keeps all; codes tied with the k-th are kept.
    """
    num_codes = logits.shape[-1]
    if k == 0 or k >= num_codes:
        return logits
    if logits.device.type == "cpu":  # see `_ascending`
        rank = num_codes - k
        parted = np.partition(logits.detach().numpy(), rank, axis=-1)[..., rank : rank + 1]
        smallest_kept = torch.from_numpy(parted)
    else:
        smallest_kept = logits.topk(k, dim=-1).values[..., -1:]
    return _keep(logits, logits >= smallest_kept)


def keep_top_p(logits: Tensor, p: float, top_k: int = 0) -> Tensor:
    """Set all logits outside the nucleus to -inf (Holtzman et al., 2020, section 3.1).

    The nucleus is the smallest set of the likeliest codes whose probabilities sum to at least p; of
    equally likely codes the lower number comes first. It is never empty.

    Only the values are sorted, not the codes: the nucleus is all that is larger than its smallest
    logit, and as many of those equal to it as needed.

    Args:
        logits: float32 or float64 (..., K).
        p: in (0, 1]; 1 keeps all.
        top_k: probabilities are relative to the codes that `keep_top_k` keeps; 0 means all.
    """
    if p == 1:
        return keep_top_k(logits, top_k)
    num_codes = logits.shape[-1]
    ordered = _ascending(-logits)
    sums = F.softmin(ordered, dim=-1).cumsum(dim=-1, dtype=sum_dtype(logits.device))
    if 0 < top_k < num_codes:
        kth = ordered[..., top_k - 1 : top_k].contiguous()
        target = p * sums.gather(-1, torch.searchsorted(ordered, kth, right=True) - 1)
    else:
        target = sums.new_full((*sums.shape[:-1], 1), p)
    # Rounding can leave the total below 1.
    last = torch.searchsorted(sums, target).clamp_(max=num_codes - 1)
    edge = ordered.gather(-1, last)
    kept = logits >= -edge
    past_edge = torch.searchsorted(ordered, edge, right=True)
    # Ties across the edge are rare. Checking is free on a CPU, but waits for an accelerator.
    if logits.device.type != "cpu" or bool((past_edge > last + 1).any()):
        tied = logits == -edge
        needed = last + 1 - torch.searchsorted(ordered, edge)
        kept &= ~tied | (tied.cumsum(dim=-1) <= needed)
    return _keep(logits, kept)


def _ascending(values: Tensor) -> Tensor:
    """Sort along the last axis, in place on a CPU.

    There numpy sorts bare numbers with vector instructions; torch moves pairs of value and index.
    """
    if values.device.type != "cpu":
        return values.sort(dim=-1).values
    values.detach().numpy().sort(axis=-1)
    return values


def _keep(logits: Tensor, kept: Tensor) -> Tensor:
    """Set logits to -inf where not kept.

    By arithmetic: on a CPU `masked_fill` branches on every value, and mispredicts most branches.
    """
    return logits - (1 / kept.to(logits.dtype)).sub_(1)


def sum_dtype(device: torch.device) -> torch.dtype:
    """Precision of sums of probabilities: float64, except on Apple's Metal, which has none."""
    return torch.float32 if device.type == "mps" else torch.float64


def choose(logits: Tensor, uniforms: Tensor) -> Tensor:
    """Choose one code per row by the inverse of the cumulative distribution F.

    Code i is chosen when u falls into [F(i - 1), F(i)), which is empty for probability 0.

    Args:
        logits: (..., K); -inf excludes a code.
        uniforms: (...) in [0, 1); their type, float64 or float32, is the precision of the sums.

    Returns:
        int64 (...) in [0, K).
    """
    cumulative = logits.softmax(dim=-1).cumsum(dim=-1, dtype=uniforms.dtype)
    total = cumulative[..., -1:].contiguous()  # 1 up to rounding
    # A threshold rounded up to the total would run past the last code.
    below_total = torch.nextafter(total, torch.zeros_like(total))
    threshold = torch.minimum(uniforms.unsqueeze(-1) * total, below_total)
    return torch.searchsorted(cumulative, threshold, right=True).squeeze(-1)


def draw_uniforms(num_images: int, count: int, generators: Generators) -> Tensor:
    """Draw all random numbers of a call: `count` per image, image after image.

    Image-major order makes one call for 8 images the same as two calls for 4; a generator per image
    makes an image independent of the others (as in diffusers). None is torch's global generator.

    Returns:
        float64 (num_images, count) in [0, 1), on the generators' device.

    Raises:
        ValueError: the list has another number of generators than there are images.
    """
    rows = [
        torch.rand(count, dtype=torch.float64, generator=g, device=g.device if g else None)
        for g in one_per_image(generators, num_images)
    ]
    return torch.stack(rows)
