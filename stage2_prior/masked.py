"""Masked order: training hides random codes; sampling fills in all masks within a few rounds.

- Chang et al., MaskGIT, CVPR 2022, https://arxiv.org/abs/2202.04200
- Hoogeboom et al., Autoregressive diffusion models, ICLR 2022, https://arxiv.org/abs/2110.02037

Shapes: B images, L codes in the sequence, K codes in the vocabularies of all levels.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch
from torch import Tensor

from latent_prior.seeds import own_rows, step_rows
from latent_prior.stage2_prior.logits import apply_guidance, choose, filter_logits, guidance_scales
from latent_prior.stage2_prior.network import CodeTransformer, Prefix
from latent_prior.stage2_prior.sampler import Sampler


def hide_for_training(batch: int, length: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Choose codes to hide, at least one per row; uses torch's global generator.

    A share cos(pi u / 2), u uniform, of each sequence (Chang et al., 2022, section 3.2).

    Returns:
        bool (B, L), and how many are hidden; of a part of a training step's batch, how many are in
        every part on average, so that the loss is that of the whole batch.
    """
    rows = step_rows(batch)
    share = torch.cos(torch.rand(rows, device=device) * (math.pi / 2))
    counts = (share * length).ceil().clamp(min=1)
    scores = own_rows(torch.rand(rows, length, device=device))
    return _lowest(scores, own_rows(counts)), counts.sum() * (batch / rows)


def hide_for_bound(uniforms: Tensor) -> tuple[Tensor, Tensor]:
    """Choose the codes to hide for one sample of the likelihood's bound, and their weight.

    With m uniform in 1 .. L and m codes hidden at random, L / m times their nats is an unbiased
    sample of an upper bound of -log p (Hoogeboom et al., 2022, Eq. 6).

    Args:
        uniforms: (B, 1 + L) in [0, 1).

    Returns:
        bool (B, L) and the weight L / m (B, 1).
    """
    length = uniforms.shape[1] - 1
    counts = (uniforms[:, 0] * length).floor() + 1
    return _lowest(uniforms[:, 1:], counts), (length / counts).unsqueeze(1)


def uniforms_per_image(length: int, steps: int) -> int:
    """Random numbers per image: in each round, one per code to sample it and one to choose it."""
    return 2 * steps * length


def sample_codes(
    network: CodeTransformer,
    start: Prefix,
    known: Tensor | None,
    sampler: Sampler,
    uniforms: Tensor,
) -> Iterator[Tensor]:
    """Sample tokens int64 (B, L) in rounds (Chang et al., 2022, section 3.2).

    Every round samples all hidden codes, each given what is known, and keeps the most confident
    ones; a share cos(pi t / 2 T) of those hidden at first stays hidden after round t of T. The
    confidence is the log-probability of the sampled code plus Gumbel noise, which falls from
    `choice_temperature` to 0 in the last round.

    Args:
        network: of masked order.
        start: what stands in front of the codes of B images.
        known: int64 (B, L), known tokens, -1 where one is to be sampled; None samples all.
        sampler: the settings.
        uniforms: (B, uniforms_per_image(L, steps)) in [0, 1).

    Yields:
        After each round tokens (B, L), with -1 where one is still hidden.
    """
    if known is None:
        known = torch.full((len(start), network.length), -1, device=uniforms.device)
    null = start.without(network.null_token)
    guided = sampler.guidance_scale != 1 and not torch.equal(start.tokens, null.tokens)
    scales = guidance_scales(sampler, sampler.steps)
    hidden = known < 0
    sequence = torch.where(hidden, network.mask_token, known)
    num_masks = hidden.sum(1, keepdim=True)  # at first
    # (B, T, L) each
    to_sample, to_choose = uniforms.unflatten(1, (sampler.steps, 2, -1)).unbind(2)
    gumbel = -torch.log(-torch.log(to_choose.clamp(min=2.0**-60))).float()
    for step in range(sampler.steps):
        if guided and scales[step] != 1:
            both = network.logits_of(start.joined(null), sequence.repeat(2, 1))
            conditional, unconditional = both.chunk(2)
            logits = apply_guidance(conditional, unconditional, scales[step])
        else:
            logits = network.logits_of(start, sequence)
        tokens, log_probability = _sample_all(network, logits, to_sample[:, step], sampler)
        progress = (step + 1) / sampler.steps
        noise = sampler.choice_temperature * (1 - progress) * gumbel[:, step]
        confidence = torch.where(hidden, log_probability + noise, math.inf)
        num_hidden = (num_masks * math.cos(math.pi / 2 * progress) + 1e-6).floor()
        # Every round keeps at least one code, and the last round keeps all.
        num_hidden = num_hidden.minimum(hidden.sum(1, keepdim=True) - 1).clamp(min=0)
        still_hidden = _lowest(confidence, num_hidden.squeeze(1))
        sequence = torch.where(hidden & ~still_hidden, tokens, sequence)
        hidden = still_hidden
        yield sequence.masked_fill(hidden, -1)


def _sample_all(
    network: CodeTransformer, logits: Tensor, uniforms: Tensor, sampler: Sampler
) -> tuple[Tensor, Tensor]:
    """A token per position (B, L), and its log-probability before temperature, top-k and top-p."""
    tokens, log_probabilities = [], []
    for level in network.levels:
        of_level = logits[:, level.start : level.stop, level.first : level.last]
        filtered = filter_logits(of_level, sampler)
        codes = choose(filtered, uniforms[:, level.start : level.stop])
        tokens.append(codes + level.first)
        log_probability = of_level.log_softmax(-1).gather(-1, codes.unsqueeze(-1))
        log_probabilities.append(log_probability.squeeze(-1))
    return torch.cat(tokens, dim=1), torch.cat(log_probabilities, dim=1)


def _lowest(scores: Tensor, counts: Tensor) -> Tensor:
    """True at the `counts` (B,) lowest scores (B, L) of every row."""
    ranks = scores.argsort(dim=1, stable=True).argsort(dim=1, stable=True)
    return ranks < counts.unsqueeze(1)
