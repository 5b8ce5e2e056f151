"""The Gaussian posterior of a VAE (Kingma & Welling, 2014, https://arxiv.org/abs/1312.6114), and how much it is used."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from accelerate import Accelerator
from torch import Generator, Tensor, nn

LOG_VARIANCE_RANGE = (-20.0, 10.0)
"""What an encoder can say: standard deviations from 0.00005 to 150."""

ACTIVE_VARIANCE = 0.01
"""A dimension is active if its posterior mean varies by more than this over the data (Burda et al., 2016, section 5.1)."""


@dataclass(frozen=True, eq=False)
class Gaussian:
    """A diagonal normal distribution over the latents of every image, float32 also under autocast.

    The log-variance is held in `LOG_VARIANCE_RANGE`. Its gradient is that at the bound, not zero, so that a value that
    got outside finds its way back.
    """

    mean: Tensor
    """(B, C, H, W); a flat vector is (B, D, 1, 1)."""
    log_variance: Tensor
    """In nats, the shape of the mean."""

    def __post_init__(self) -> None:
        """Convert to float32 and hold the log-variance in its range."""
        log_variance = self.log_variance.float()
        excess = log_variance - log_variance.clamp(*LOG_VARIANCE_RANGE)
        object.__setattr__(self, "mean", self.mean.float())
        object.__setattr__(self, "log_variance", log_variance - excess.detach())

    def sample(self, generator: Generator | None = None) -> Tensor:
        """Mean plus standard deviation times noise: the reparameterisation, through which gradients pass to both.

        Args:
            generator: source of the noise; None is torch's global generator of the mean's device.
        """
        device = generator.device if generator else self.mean.device
        noise = torch.randn(self.mean.shape, generator=generator, device=device)
        return self.mean + (self.log_variance / 2).exp() * noise.to(self.mean)

    def kl(self) -> Tensor:
        """KL divergence from N(0, 1) of every element in nats (appendix B of the paper), the shape of the mean."""
        excess = torch.expm1(self.log_variance) - self.log_variance
        return (self.mean.square() + excess) / 2


class PosteriorMeter(nn.Module):
    """What the posteriors seen since the last `compute` have told; part of a checkpoint, as `Meter` is.

    Args:
        dims: latent dimensions of an image, C * H * W.
    """

    images: Tensor
    kl: Tensor
    means: Tensor
    squared_means: Tensor

    def __init__(self, dims: int) -> None:
        super().__init__()
        self.register_buffer("images", torch.zeros((), dtype=torch.float64))
        for name in ("kl", "means", "squared_means"):
            self.register_buffer(name, torch.zeros(dims, dtype=torch.float64))

    @torch.no_grad()
    def update(self, posterior: Gaussian) -> None:
        """Count the posteriors of one batch."""
        means = posterior.mean.flatten(1).double()
        self.images += len(means)
        self.kl += posterior.kl().flatten(1).sum(0, dtype=torch.float64)
        self.means += means.sum(0)
        self.squared_means += means.square().sum(0)

    def compute(
        self, accelerator: Accelerator, prefix: str = ""
    ) -> tuple[dict[str, float], list[float]]:
        """Sum over all processes and reset.

        Returns:
            `kl` in nats per image and `active_units` (Burda et al., 2016, https://arxiv.org/abs/1509.00519), the number
            of dimensions whose posterior mean varies over the data; and the KL of every dimension in nats.
        """
        totals = {
            name: accelerator.reduce(buffer.clone(), "sum") for name, buffer in self.named_buffers()
        }
        for buffer in self.buffers():
            buffer.zero_()
        images = totals["images"].clamp(min=1)
        kl = totals["kl"] / images
        variance = totals["squared_means"] / images - (totals["means"] / images).square()
        active = (variance > ACTIVE_VARIANCE).sum()
        metrics = {f"{prefix}kl": float(kl.sum()), f"{prefix}active_units": float(active)}
        return metrics, kl.tolist()


def diagnose(kl: float, active_units: float, dims: int) -> str | None:
    """A sentence for the user if the posterior has collapsed to the prior, else None.

    It has if the latents tell less than one bit about an image, or if fewer than one in twenty is active.

    Args:
        kl: nats per image.
        active_units: of the `dims` latent dimensions.
        dims: latent dimensions of an image.
    """
    if kl >= math.log(2) and active_units >= max(1, dims / 20):
        return None
    return (
        f"the posterior has collapsed: {active_units:.0f} of {dims} latent dimensions are active and tell {kl:.2f} nats "
        "about an image, so the decoder ignores them; free bits, a warm-up of beta or a smaller beta cure this"
    )
