"""How a critic fares over a whole epoch, and its collapses by their names."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from accelerate import Accelerator
from torch import Tensor, nn

from latent_prior.losses.adversarial import AdversarialLoss

_SURE = 0.98  # accuracy
_GUESSING = 0.02  # distance of the mean accuracy from one half
_NO_GAP = 0.1  # logits


class CriticHealth(nn.Module):
    """Sums over logits seen since the last `compute`; part of a checkpoint, so that a resumed epoch counts on."""

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
        """Count the critic's answers to one batch, any shape; every patch is an answer of its own.

        An answer is right where its sign is; for the relativistic loss, where the original's logit is above that of the
        generated image at its place, which is then right for both. An undecided answer is half right.
        """
        real, fake = real_logits.double(), fake_logits.double()
        decided_real, decided_fake = real, -fake
        if self.kind == "relativistic":
            assert real.shape == fake.shape, "the relativistic loss compares pairs"
            decided_real = decided_fake = real - fake
        half = torch.full((), 0.5, dtype=torch.float64, device=real.device)
        self.right_real += torch.heaviside(decided_real, half).sum()
        self.right_fake += torch.heaviside(decided_fake, half).sum()
        self.sum_real += real.sum()
        self.sum_fake += fake.sum()
        self.count_real += real.numel()
        self.count_fake += fake.numel()

    def compute(self, accelerator: Accelerator, prefix: str = "") -> dict[str, float]:
        """Sum over all processes, reset, and return the accuracies in [0, 1] and the logit gap; nothing without answers.

        `critic_gap` is the mean logit of originals minus that of generated images.
        """
        total = {
            name: float(accelerator.reduce(buffer.clone(), "sum"))
            for name, buffer in self.named_buffers()
        }
        for buffer in self.buffers():
            buffer.zero_()
        if not total["count_real"] or not total["count_fake"]:
            return {}
        metrics = {
            "critic_accuracy_real": total["right_real"] / total["count_real"],
            "critic_accuracy_fake": total["right_fake"] / total["count_fake"],
            "critic_gap": total["sum_real"] / total["count_real"]
            - total["sum_fake"] / total["count_fake"],
        }
        return {prefix + name: value for name, value in metrics.items()}


def diagnose(metrics: Mapping[str, float], prefix: str = "") -> str | None:
    """One sentence on what has gone wrong between critic and decoder, or None where nothing has.

    A critic that has just begun sees no difference yet: ask from its second epoch on.

    Args:
        metrics: what `CriticHealth.compute` returned, perhaps among others.
        prefix: that it was given.
    """
    if prefix + "critic_gap" not in metrics:
        return None
    real, fake = (metrics[f"{prefix}critic_accuracy_{side}"] for side in ("real", "fake"))
    gap = metrics[prefix + "critic_gap"]
    if min(real, fake) > _SURE:
        return (
            f"the critic has won: it is right about {real:.1%} of originals and {fake:.1%} of generated images, which leaves "
            "the decoder little to learn from; lower --critic.learning_rate, or set --critic.r1, --critic.lecam or --critic.augment"
        )
    if abs((real + fake) / 2 - 0.5) < _GUESSING and abs(gap) < _NO_GAP:
        return (
            f"the critic sees no difference: it is right about {real:.1%} of originals and {fake:.1%} of generated images at a "
            f"logit gap of {gap:.2g}; raise --critic.learning_rate or --critic.width, or lower --critic.r1"
        )
    if max(real, fake) > _SURE and min(real, fake) < 1 - _SURE:
        answer = "an original" if real > fake else "generated"
        return (
            f"the critic calls everything {answer}: its answers have drifted off; raise --critic.learning_rate "
            "or set --critic.lecam"
        )
    return None
