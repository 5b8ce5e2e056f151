"""The Gaussian posterior of a VAE, the KL loss, and its schedules.

The posterior and its KL divergence: Kingma & Welling, 2014, https://arxiv.org/abs/1312.6114.
Schedules are pure functions of the step, so a resumed run continues them exactly.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
import torch.distributed as dist
from torch import Generator, Tensor

from latent_prior.seeds import own_rows, step_rows

Schedule = Literal["constant", "linear", "cyclical"]

LOG_VARIANCE_RANGE = (-20.0, 10.0)
"""Range of the log-variance: standard deviations from 0.00005 to 150."""


@dataclass(frozen=True, eq=False)
class Gaussian:
    """A diagonal normal distribution over the latents of each image, float32 also under autocast.

    The log-variance is clamped to `bounds`, but keeps the gradient at the bound, so that a value
    outside can return.
    """

    mean: Tensor
    """(B, C, H, W); a flat vector is (B, D, 1, 1)."""
    log_variance: Tensor
    """In nats, same shape as the mean."""
    bounds: tuple[float, float] | None = LOG_VARIANCE_RANGE
    """Of the log-variance; None leaves it as it is."""

    def __post_init__(self) -> None:
        """Convert to float32 and clamp the log-variance."""
        object.__setattr__(self, "mean", self.mean.float())
        log_variance = self.log_variance.float()
        if self.bounds is None:
            object.__setattr__(self, "log_variance", log_variance)
            return
        excess = log_variance - log_variance.clamp(*self.bounds)
        object.__setattr__(self, "log_variance", log_variance - excess.detach())

    def sample(self, generator: Generator | None = None) -> Tensor:
        """One sample per image.

        Args:
            generator: source of the noise. Default: torch's global generator; in a training step a
                sample depends on the image's place in the whole batch.
        """
        if generator is not None:
            noise = torch.randn(self.mean.shape, generator=generator, device=generator.device)
            return self.from_noise(noise)
        return self.from_noise(standard_normal(self.mean))

    def from_noise(self, noise: Tensor) -> Tensor:
        """Reparameterise standard normal noise as a sample, with gradient to mean and variance."""
        return self.mean + (self.log_variance / 2).exp() * noise.to(self.mean)

    def kl(self) -> Tensor:
        """KL divergence of each element from N(0, 1) in nats (appendix B), shaped as the mean."""
        excess = torch.expm1(self.log_variance) - self.log_variance
        return (self.mean.square() + excess) / 2


def standard_normal(like: Tensor) -> Tensor:
    """Noise for a training batch, of the shape of `like` (B, ...) and on its device."""
    rows = step_rows(len(like))
    return own_rows(torch.randn(rows, *like.shape[1:], device=like.device, dtype=like.dtype))


def beta_at(step: int, *, beta: float, schedule: Schedule, warmup_steps: int, cycles: int) -> float:
    """Weight of the KL at a step, counted from 0.

    Args:
        step: completed optimizer steps.
        beta: the final weight (Higgins et al., 2017; 1 is the ELBO).
        schedule: `constant`; `linear`, from 0 over `warmup_steps` (Bowman et al., 2016,
            https://arxiv.org/abs/1511.06349); `cyclical`, `cycles` times within `warmup_steps`,
            rising in the first half of each and constant in the second (Fu et al., 2019,
            https://arxiv.org/abs/1903.10145, with R = 0.5).
        warmup_steps: the weight is beta from this step on.
        cycles: only for `cyclical`.
    """
    if schedule == "constant" or step >= warmup_steps:
        return beta
    if schedule == "linear":
        return beta * step / warmup_steps
    within_cycle = step * cycles % warmup_steps / warmup_steps  # in [0, 1)
    return beta * min(1.0, 2 * within_cycle)


def capacity_at(step: int, *, capacity: float, warmup_steps: int) -> float:
    """Target of the KL at a step, from 0 to `capacity` nats (Burgess et al., 2018, sec. 5)."""
    return capacity if step >= warmup_steps else capacity * step / warmup_steps


def kl_loss(
    kl: Tensor, *, beta: float, free_bits: float = 0.0, capacity: float | None = None
) -> Tensor:
    """The loss beta |sum_d max(free_bits, KL_d) - capacity|, a scalar in nats per image.

    KL_d is the mean over the batches of all processes, which must call this together with batches
    of one size; their mean gradient is then that of the joint batch. Each micro-batch of an
    accumulated step is treated on its own.

    Args:
        kl: of every element in nats (B, C, H, W); d is one of the C * H * W dimensions.
        beta: weight.
        free_bits: nats per dimension without loss or gradient (Kingma et al., 2016,
            https://arxiv.org/abs/1606.04934, Eq. 15).
        capacity: target of the KL in nats per image, approached from either side (Burgess et al.,
            2018, https://arxiv.org/abs/1804.03599, Eq. 8); None and 0 are the plain KL.
    """
    local = kl.float().flatten(1).mean(0)  # (C * H * W,)
    if not free_bits and not capacity:  # linear, so the processes need not communicate
        return beta * local.sum()
    joint = _mean_over_processes(local.detach())
    total = torch.where(joint < free_bits, free_bits, local).sum()  # a NaN stays one
    if capacity is None:
        return beta * total
    # The sign of the absolute value is also that of the joint batch.
    sign = torch.sign(joint.clamp(min=free_bits).sum() - capacity)
    return beta * sign * (total - capacity)


def _mean_over_processes(values: Tensor) -> Tensor:
    if not dist.is_initialized():
        return values
    total = values.clone()
    dist.all_reduce(total)
    return total / dist.get_world_size()
