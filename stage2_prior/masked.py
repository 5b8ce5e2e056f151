"""Masked order: training hides a random share of the codes; sampling fills in all masks within a few rounds.

- Chang et al., MaskGIT: masked generative image transformer, CVPR 2022, https://arxiv.org/abs/2202.04200
- Hoogeboom et al., Autoregressive diffusion models, ICLR 2022, https://arxiv.org/abs/2110.02037

Shapes: B images, L codes in the sequence, K codes in the vocabularies of all levels.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from latent_prior.stage2_prior.raster import scales_of
from latent_prior.stage2_prior.sampler import Sampler
from latent_prior.stage2_prior.sampling import apply_guidance, choose, filter_logits

if TYPE_CHECKING:
    from latent_prior.stage2_prior.prior import TransformerPrior


def hide_for_training(batch: int, length: int, device: torch.device) -> Tensor:
    """Which codes of a batch to hide: a share cos(pi u / 2), u uniform, of each sequence (Chang et al., section 3.2).

    Returns:
        bool (B, L), at least one True in each row; drawn from torch's global generator.
    """
    share = torch.cos(torch.rand(batch, device=device) * (math.pi / 2))
    counts = (share * length).ceil().clamp(min=1)
    return _lowest(torch.rand(batch, length, device=device), counts)


def hide_for_bound(uniforms: Tensor) -> tuple[Tensor, Tensor]:
    """Which codes to hide for one draw of the likelihood's bound, and how much each hidden code counts.

    With m uniform in 1 .. L and m codes hidden at random, L / m times their nats is an unbiased draw of an upper bound
    of -log p (Hoogeboom et al., 2022, Eq. 6).

    Args:
        uniforms: (B, 1 + L) in [0, 1).

    Returns:
        bool (B, L) and the weight L / m (B, 1).
    """
    length = uniforms.shape[1] - 1
    counts = (uniforms[:, 0] * length).floor() + 1
    return _lowest(uniforms[:, 1:], counts), (length / counts).unsqueeze(1)


def numbers_per_image(length: int, steps: int) -> int:
    """Random numbers that drawing one image takes: in each round one per code to draw it and one to choose it."""
    return 2 * steps * length


def draw_masked(
    prior: TransformerPrior,
    start: Tensor,
    given: Tensor,
    sampler: Sampler,
    uniforms: Tensor,
) -> Tensor:
    """Fill in masks in rounds (Chang et al., 2022, section 3.2).

    Every round draws all hidden codes, each given what is known, and keeps those it is surest of; a share
    cos(pi t / 2 T) of those hidden at first stays hidden after round t of T. How sure is the log-probability of the
    code that was drawn plus Gumbel noise, whose size falls from `choice_temperature` to 0 in the last round.

    Args:
        prior: of masked order.
        start: first tokens (B,).
        given: int64 (B, L), tokens that are known and -1 where one is to be drawn.
        sampler: the settings.
        uniforms: (B, numbers_per_image(L, steps)) in [0, 1).

    Returns:
        int64 (B, L), tokens.
    """
    scales = scales_of(prior, start, sampler, sampler.steps)
    null = torch.full_like(start, prior.null_token)
    hidden = given < 0
    sequence = torch.where(hidden, prior.mask_token, given)
    at_first = hidden.sum(1, keepdim=True)
    to_draw, to_choose = uniforms.unflatten(1, (sampler.steps, 2, -1)).unbind(2)  # (B, T, L) each
    gumbel = -torch.log(-torch.log(to_choose.clamp(min=2.0**-60))).float()
    for step in range(sampler.steps):
        if scales is None or scales[step] == 1:
            logits = prior.logits_of(start, sequence)
        else:
            both = prior.logits_of(torch.cat((start, null)), sequence.repeat(2, 1))
            along, without = both.chunk(2)
            logits = apply_guidance(along, without, scales[step])
        drawn, log_probability = _draw_all(prior, logits, to_draw[:, step], sampler)
        done = (step + 1) / sampler.steps
        noise = sampler.choice_temperature * (1 - done) * gumbel[:, step]
        sureness = torch.where(hidden, log_probability + noise, math.inf)
        left = (at_first * math.cos(math.pi / 2 * done) + 1e-6).floor()
        # Every round keeps at least one, and the last round keeps all.
        left = left.minimum(hidden.sum(1, keepdim=True) - 1).clamp(min=0)
        stays_hidden = _lowest(sureness, left.squeeze(1))
        sequence = torch.where(hidden & ~stays_hidden, drawn, sequence)
        hidden = stays_hidden
    return sequence


def _draw_all(
    prior: TransformerPrior, logits: Tensor, uniforms: Tensor, sampler: Sampler
) -> tuple[Tensor, Tensor]:
    """A token for every place (B, L), and its log-probability before temperature, top-k and top-p."""
    tokens, sureness = [], []
    for level in prior.levels:
        own = logits[:, level.start : level.stop, level.first : level.last]
        filtered = filter_logits(own, sampler.temperature, sampler.top_k, sampler.top_p)
        drawn = choose(filtered, uniforms[:, level.start : level.stop])
        tokens.append(drawn + level.first)
        sureness.append(own.log_softmax(-1).gather(-1, drawn.unsqueeze(-1)).squeeze(-1))
    return torch.cat(tokens, dim=1), torch.cat(sureness, dim=1)


def _lowest(scores: Tensor, counts: Tensor) -> Tensor:
    """True at the `counts` (B,) lowest scores (B, L) of every row."""
    ranks = scores.argsort(dim=1, stable=True).argsort(dim=1, stable=True)
    return ranks < counts.unsqueeze(1)
