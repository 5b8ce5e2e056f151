"""From logits to codes: guidance, temperature, top-k, top-p and the draw, each a small pure function.

- Ho and Salimans, Classifier-free diffusion guidance, 2022, https://arxiv.org/abs/2207.12598
- Chang et al., Muse, ICML 2023, https://arxiv.org/abs/2301.00704 (linear schedule of the guidance)
- Gao et al., Masked diffusion Transformer, ICCV 2023, https://arxiv.org/abs/2303.14389 (cosine schedule)
- Kynkäänniemi et al., Applying guidance in a limited interval, NeurIPS 2024, https://arxiv.org/abs/2404.07724
- Holtzman et al., The curious case of neural text degeneration, ICLR 2020, https://arxiv.org/abs/1904.09751
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F
from torch import Generator, Tensor


def guidance_scales(
    num_steps: int, scale: float, schedule: str, interval: tuple[float, float]
) -> list[float]:
    """The guidance scale of every step: step i has come as far as i / (num_steps - 1), a lone step is the last one."""
    progress = [i / (num_steps - 1) for i in range(num_steps)] if num_steps > 1 else [1.0]
    return [guidance_at(share, scale, schedule, interval) for share in progress]


def guidance_at(
    progress: float, scale: float, schedule: str, interval: tuple[float, float]
) -> float:
    """The guidance scale of one step: 1 where there is none.

    What is decided first (where the sequence begins, or the surest codes of a masked map) fixes most of an image, so
    that full guidance there costs diversity. `linear` (Muse, section 2.7; also VAR's and MAR's) is
    1 + (scale - 1) progress, `cosine` (the power cosine of Gao et al., 2023, with power 1; also RAR's) is
    1 + (scale - 1) (1 - cos(pi progress)) / 2: both start at exactly 1 and end at exactly `scale`.

    Args:
        progress: 0 at the first step, 1 at the last.
        scale: at its full height.
        schedule: `constant`, `linear` or `cosine`.
        interval: first and last progress with guidance (both included), which is 1 outside whatever the schedule
            (Kynkäänniemi et al., 2024); it does not stretch the schedule.
    """
    if not interval[0] <= progress <= interval[1]:
        return 1.0
    if schedule == "constant":
        return scale
    ramp = progress if schedule == "linear" else (1 - math.cos(math.pi * progress)) / 2
    return (1 - ramp) + ramp * scale


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


def filter_logits(logits: Tensor, temperature: float, top_k: int, top_p: float) -> Tensor:
    """Temperature, then the `top_k` likeliest codes, then the nucleus of probability `top_p` among these.

    Args:
        logits: float32 or float64 (..., K).
        temperature: see `apply_temperature`.
        top_k: see `keep_top_k`.
        top_p: see `keep_top_p`.

    Returns:
        (..., K), -inf where a code is excluded; never everywhere.
    """
    logits = apply_temperature(logits, temperature)
    if temperature == 0:
        return logits
    return keep_top_k(logits, top_k) if top_p == 1 else keep_top_p(logits, top_p, top_k)


def keep_top_k(logits: Tensor, k: int) -> Tensor:
    """All but the k largest logits, float32 or float64 (..., K), become -inf; 0 keeps all, ties with the k-th stay."""
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
    """All codes outside the nucleus become -inf (Holtzman et al., 2020, section 3.1).

    The nucleus is the smallest set of the likeliest codes whose probabilities sum to at least p; of equally likely
    ones the lower number comes first. It is never empty.

    Only the values are sorted, not the codes: the nucleus is all that is larger than its smallest logit, and as many
    of those that equal it as are needed.

    Args:
        logits: float32 or float64 (..., K).
        p: in (0, 1]; 1 keeps all.
        top_k: the probabilities are those among what `keep_top_k` keeps; 0 means among all.
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
    # The sum of all falls short of 1 by rounding at times.
    last = torch.searchsorted(sums, target).clamp_(max=num_codes - 1)
    edge = ordered.gather(-1, last)
    kept = logits >= -edge
    past_edge = torch.searchsorted(ordered, edge, right=True)
    # Ties across the edge are rare. Looking costs nothing on a CPU, but would wait for an accelerator.
    if logits.device.type != "cpu" or bool((past_edge > last + 1).any()):
        tied = logits == -edge
        needed = last + 1 - torch.searchsorted(ordered, edge)
        kept &= ~tied | (tied.cumsum(dim=-1) <= needed)
    return _keep(logits, kept)


def _ascending(values: Tensor) -> Tensor:
    """Sorted along the last axis, in place on a CPU.

    There numpy sorts bare numbers with vector instructions, where torch moves pairs of number and place one by one.
    """
    if values.device.type != "cpu":
        return values.sort(dim=-1).values
    values.detach().numpy().sort(axis=-1)
    return values


def _keep(logits: Tensor, kept: Tensor) -> Tensor:
    """-inf where not kept.

    By arithmetic: on a CPU `masked_fill` branches on every value, which a processor mostly guesses wrong.
    """
    return logits - (1 / kept.to(logits.dtype)).sub_(1)


def sum_dtype(device: torch.device) -> torch.dtype:
    """The precision of sums of probabilities: float64, but for Apple's Metal, which has none."""
    return torch.float32 if device.type == "mps" else torch.float64


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
    num_images: int, count: int, generator: Generator | Sequence[Generator] | None
) -> Tensor:
    """All random numbers of a call: `count` of every image, image after image.

    Image-major order makes one call for 8 images the same as two calls for 4; a generator per image makes an image
    independent of all others (diffusers' convention). None draws from torch's global generator of the CPU.

    Returns:
        float64 (num_images, count) in [0, 1), on the generators' device.

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
        torch.rand(count, dtype=torch.float64, generator=each, device=each.device if each else None)
        for each in generators
    ]
    return torch.stack(rows)
