"""The KL term of a VAE's loss, and what keeps it from pulling the posterior into the prior.

Schedules are pure functions of the step, so that a resumed run goes on as if it had never stopped.
"""

from __future__ import annotations

from typing import Literal

import torch
import torch.distributed as dist
from torch import Tensor

Schedule = Literal["constant", "linear", "cyclical"]


def beta_at(step: int, *, beta: float, schedule: Schedule, warmup_steps: int, cycles: int) -> float:
    """Weight of the KL at a step, counted from 0.

    Args:
        step: optimizer steps done so far.
        beta: the weight in the end (Higgins et al., 2017; 1 is the ELBO).
        schedule: `constant`; `linear`, which rises from 0 over `warmup_steps` (Bowman et al., 2016,
            https://arxiv.org/abs/1511.06349); `cyclical`, which does so `cycles` times within `warmup_steps`, rising over
            the first half of every cycle and resting at beta over the second (Fu et al., 2019,
            https://arxiv.org/abs/1903.10145, with R = 0.5).
        warmup_steps: from here on the weight is beta.
        cycles: only for `cyclical`.
    """
    if schedule == "constant" or step >= warmup_steps:
        return beta
    if schedule == "linear":
        return beta * step / warmup_steps
    within_cycle = step * cycles % warmup_steps / warmup_steps  # in [0, 1)
    return beta * min(1.0, 2 * within_cycle)


def capacity_at(step: int, *, capacity: float, warmup_steps: int) -> float:
    """Target of the KL at a step, counted from 0: rises from 0 to `capacity` nats (Burgess et al., 2018, section 5)."""
    return capacity if step >= warmup_steps else capacity * step / warmup_steps


def kl_loss(
    kl: Tensor, *, beta: float, free_bits: float = 0.0, capacity: float | None = None
) -> Tensor:
    """The charge beta |sum_d max(free_bits, KL_d) - capacity|, a scalar in nats per image.

    KL_d is the mean over the batches of all processes, which must therefore call this together with batches of one
    size: their mean gradient is then that of the joint batch. Micro-batches of an accumulated step decide each for itself.

    Args:
        kl: of every element in nats (B, C, H, W); a dimension is one of the C * H * W.
        beta: weight.
        free_bits: nats that every dimension may have at no charge (Kingma et al., 2016,
            https://arxiv.org/abs/1606.04934, Eq. 15); below, its gradient is zero.
        capacity: nats per image that the KL is drawn to, from either side (Burgess et al., 2018,
            https://arxiv.org/abs/1804.03599, Eq. 8); None is the plain KL, as is 0.
    """
    own = kl.float().flatten(1).mean(0)  # (C * H * W,)
    if not free_bits and not capacity:  # nothing to decide, so nothing to wait for
        return beta * own.sum()
    everyone = _mean_of_processes(own.detach())
    total = torch.where(everyone < free_bits, free_bits, own).sum()  # a NaN stays one
    if capacity is None:
        return beta * total
    # The sign of the absolute value, too, is that of the joint batch.
    side = torch.sign(everyone.clamp(min=free_bits).sum() - capacity)
    return beta * side * (total - capacity)


def _mean_of_processes(values: Tensor) -> Tensor:
    if not dist.is_initialized():
        return values
    total = values.clone()
    dist.all_reduce(total)
    return total / dist.get_world_size()
