"""Figures over a whole epoch: reconstruction error, codebook usage, posterior, critic.

Usage within one batch depends on its size (49 codes cannot use a codebook of 512), so everything is
summed over all images and processes before it is divided.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor, nn

from latent_prior.data.codes import CodeSpec
from latent_prior.losses.adversarial import AdversarialLoss
from latent_prior.stage1_autoencoders.gaussian import Gaussian
from latent_prior.training.metrics import Figures

ACTIVE_VARIANCE = 0.01
"""A latent dimension is active if its posterior mean varies more (Burda et al., 2016, sec. 5.1)."""

_ALWAYS_RIGHT = 0.98  # accuracy of a critic that has won
_CHANCE_MARGIN = 0.02  # distance of the mean accuracy from one half
_NO_GAP = 0.1  # logits


class EpochSums(nn.Module):
    """Abstract: sums since the last `totals`, in buffers, so that a checkpoint resumes them."""

    def totals(self, accelerator: Accelerator) -> dict[str, Tensor]:
        """Sum every buffer over all processes, and reset it."""
        buffers = dict(self.named_buffers(recurse=False))
        totals = {name: accelerator.reduce(sums.clone(), "sum") for name, sums in buffers.items()}
        for sums in buffers.values():
            sums.zero_()
        return totals


class Meter(EpochSums):
    """Reconstruction error, and the usage of the codes or the posterior.

    Args:
        spec: of the autoencoder.
    """

    squared_error: Tensor
    pixels: Tensor

    def __init__(self, spec: CodeSpec) -> None:
        super().__init__()
        self.register_buffer("squared_error", torch.zeros((), dtype=torch.float64))
        self.register_buffer("pixels", torch.zeros((), dtype=torch.float64))
        self.dims = sum(math.prod(level.shape) for level in spec.levels)
        self.posterior = PosteriorMeter(self.dims) if spec.kind == "latents" else None
        self.names = [level.name for level in spec.levels if level.vocabulary is not None]
        for level in spec.levels:
            if level.vocabulary is not None:
                counts = torch.zeros(level.vocabulary, dtype=torch.int64)
                self.register_buffer(f"counts_{level.name}", counts)

    @torch.no_grad()
    def update(self, images: Tensor, output: Any) -> None:
        """Add a batch: images (B, C, H, W) in [-1, 1] and the autoencoder's output for them."""
        error = output.images.float().clamp(-1, 1) - images.float()
        self.squared_error += error.square().sum(dtype=torch.float64)
        self.pixels += images.numel()
        if self.posterior is not None:
            self.posterior.update(output.posterior)
        for name in self.names:
            codes = output.codes[name].flatten()
            # bincount would wait for the device
            self.get_buffer(f"counts_{name}").scatter_add_(0, codes, torch.ones_like(codes))

    def compute(self, accelerator: Accelerator, prefix: str = "") -> Figures:
        """Sum over all processes, reset, and return the figures.

        Returns:
            `mse` per value in [-1, 1]; `psnr` in dB, for the range of 2. For every codebook
            `usage`, the share of codes that occurred, and `perplexity`. For a posterior `kl` (nats
            per image), `active_units`, `kl_per_dimension`, and `warning` if it has collapsed.
        """
        figures: Figures = {}
        if self.posterior is not None:
            scalars, per_dimension = self.posterior.compute(accelerator)
            figures |= {**scalars, "kl_per_dimension": [round(value, 4) for value in per_dimension]}
            warning = posterior_warning(scalars["kl"], scalars["active_units"], self.dims)
            figures |= {} if warning is None else {"warning": warning}
        totals = self.totals(accelerator)
        mse = float(totals["squared_error"] / totals["pixels"].clamp(min=1))
        figures |= {"mse": mse, "psnr": 10 * math.log10(4 / max(mse, 1e-12))}
        for name in self.names:
            counts = totals[f"counts_{name}"]
            suffix = "" if len(self.names) == 1 else f"_{name}"
            figures[f"usage{suffix}"] = float(usage(counts))
            figures[f"perplexity{suffix}"] = float(perplexity(counts))
        return {prefix + name: value for name, value in figures.items()}


def perplexity(counts: Tensor) -> Tensor:
    """Effective number of codes, the exponential of the entropy, in [1, K], of counts (K,)."""
    shares = counts.double() / counts.sum()
    return torch.special.entr(shares).sum().exp().float()


def usage(counts: Tensor) -> Tensor:
    """Share of the codes that occurred at all, from counts (K,)."""
    return (counts > 0).float().mean()


class PosteriorMeter(EpochSums):
    """KL divergence and active units of posteriors.

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
        """Add the posteriors of one batch."""
        means = posterior.mean.flatten(1).double()
        self.images += len(means)
        self.kl += posterior.kl().flatten(1).sum(0, dtype=torch.float64)
        self.means += means.sum(0)
        self.squared_means += means.square().sum(0)

    def compute(self, accelerator: Accelerator) -> tuple[dict[str, float], list[float]]:
        """Sum over all processes, and reset.

        Returns:
            `kl` in nats per image and `active_units`, the number of dimensions whose posterior mean
            varies over the data (Burda et al., 2016, https://arxiv.org/abs/1509.00519); and the KL
            of every dimension in nats.
        """
        totals = self.totals(accelerator)
        images = totals["images"].clamp(min=1)
        kl = totals["kl"] / images
        variance = totals["squared_means"] / images - (totals["means"] / images).square()
        active = (variance > ACTIVE_VARIANCE).sum()
        return {"kl": float(kl.sum()), "active_units": float(active)}, kl.tolist()


def posterior_warning(kl: float, active_units: float, dims: int) -> str | None:
    """A sentence if the posterior has collapsed to the prior, else None.

    It has if the latents hold less than one bit per image, or fewer than one in twenty is active.

    Args:
        kl: nats per image.
        active_units: number of active dimensions.
        dims: latent dimensions of an image.
    """
    if kl >= math.log(2) and active_units >= max(1, dims / 20):
        return None
    return (
        f"the posterior has collapsed: {active_units:.0f} of {dims} latent dimensions are active and hold {kl:.2f} nats "
        "per image, so the decoder ignores them; try free bits, a warm-up of beta or a smaller beta"
    )


class CriticHealth(EpochSums):
    """Accuracy of a critic and the gap between its logits."""

    right_real: Tensor
    right_fake: Tensor
    sum_real: Tensor
    sum_fake: Tensor
    count_real: Tensor
    count_fake: Tensor

    def __init__(self, kind: AdversarialLoss) -> None:
        super().__init__()
        self.kind = kind
        for side in ("real", "fake"):
            for name in ("right", "sum", "count"):
                self.register_buffer(f"{name}_{side}", torch.zeros((), dtype=torch.float64))

    @torch.no_grad()
    def update(self, real_logits: Tensor, fake_logits: Tensor) -> None:
        """Add the logits of one batch, any shape; every patch counts by itself.

        A logit is right if its sign is; with the relativistic loss, both of a pair are right if the
        original's is larger. An undecided logit is half right.
        """
        real, fake = real_logits.double(), fake_logits.double()
        margin_real, margin_fake = real, -fake
        if self.kind == "relativistic":
            assert real.shape == fake.shape, "the relativistic loss compares pairs"
            margin_real = margin_fake = real - fake
        half = torch.full((), 0.5, dtype=torch.float64, device=real.device)
        self.right_real += torch.heaviside(margin_real, half).sum()
        self.right_fake += torch.heaviside(margin_fake, half).sum()
        self.sum_real += real.sum()
        self.sum_fake += fake.sum()
        self.count_real += real.numel()
        self.count_fake += fake.numel()

    def compute(self, accelerator: Accelerator) -> dict[str, float]:
        """Sum over all processes, and reset.

        Returns:
            `critic_accuracy_real` and `critic_accuracy_fake` in [0, 1], and `critic_gap`, the mean
            logit of originals minus that of fakes; empty without any logits.
        """
        totals = {name: float(total) for name, total in self.totals(accelerator).items()}
        if not totals["count_real"] or not totals["count_fake"]:
            return {}
        return {
            "critic_accuracy_real": totals["right_real"] / totals["count_real"],
            "critic_accuracy_fake": totals["right_fake"] / totals["count_fake"],
            "critic_gap": totals["sum_real"] / totals["count_real"]
            - totals["sum_fake"] / totals["count_fake"],
        }


def critic_warning(health: Mapping[str, float]) -> str | None:
    """A sentence if the training of critic and decoder has gone wrong, else None.

    A critic in its first epoch sees no difference yet, so ask from the second one on.

    Args:
        health: the result of `CriticHealth.compute`.
    """
    if not health:
        return None
    real, fake = health["critic_accuracy_real"], health["critic_accuracy_fake"]
    gap = health["critic_gap"]
    if min(real, fake) > _ALWAYS_RIGHT:
        return (
            f"the critic has won: it is right about {real:.1%} of originals and {fake:.1%} of generated images, so "
            "the decoder learns little from it; lower --critic.learning_rate, or set --critic.r1, --critic.lecam or --critic.augment"
        )
    if abs((real + fake) / 2 - 0.5) < _CHANCE_MARGIN and abs(gap) < _NO_GAP:
        return (
            f"the critic sees no difference: it is right about {real:.1%} of originals and {fake:.1%} of generated images at a "
            f"logit gap of {gap:.2g}; raise --critic.learning_rate or --critic.width, or lower --critic.r1"
        )
    if max(real, fake) > _ALWAYS_RIGHT and min(real, fake) < 1 - _ALWAYS_RIGHT:
        answer = "an original" if real > fake else "generated"
        return (
            f"the critic calls everything {answer}: its logits have drifted; raise --critic.learning_rate "
            "or set --critic.lecam"
        )
    return None
