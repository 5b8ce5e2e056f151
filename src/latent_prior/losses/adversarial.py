"""Adversarial losses, penalties and their balance, for any generator and critic.

A critic returns logits, one per image (B,) or per patch (B, 1, h, w). Every loss is a mean over
images and patches, computed in float32 without synchronising the device.

- Goodfellow et al., 2014: https://arxiv.org/abs/1406.2661
- Lim & Ye, 2017: https://arxiv.org/abs/1705.02894
- Jolicoeur-Martineau, 2018: https://arxiv.org/abs/1807.00734
- Ganin & Lempitsky, 2015: https://arxiv.org/abs/1409.7495
- Huang et al., 2024 (R3GAN): https://arxiv.org/abs/2501.05441
- Mescheder et al., 2018: https://arxiv.org/abs/1801.04406
- Tseng et al., 2021: https://arxiv.org/abs/2104.03310
- Esser et al., 2021: https://arxiv.org/abs/2012.09841
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Literal

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn

if TYPE_CHECKING:
    from accelerate import Accelerator

AdversarialLoss = Literal["hinge", "non_saturating", "relativistic"]

_SMALLEST_GRADIENT = 1e-6  # delta of Esser et al., Eq. 7
_SUREST = 30.0  # exp(-30) times a gradient is a normal float32, and so is exp(30)
_LARGEST_WEIGHT = 1e4  # where the critic gives the decoder no gradient, as in their code


def critic_loss(kind: AdversarialLoss, real_logits: Tensor, fake_logits: Tensor) -> Tensor:
    """The critic's loss on logits, any shape, of originals and generated images.

    `hinge` (Lim & Ye, 2017), `non_saturating` (the cross-entropies of Goodfellow et al., 2014) or
    `relativistic` (RpGAN of Huang et al., 2024), which pairs originals and generated images.
    """
    real, fake = real_logits.float(), fake_logits.float()
    if kind == "hinge":
        return F.relu(1 - real).mean() + F.relu(1 + fake).mean()
    if kind == "non_saturating":
        return F.softplus(-real).mean() + F.softplus(fake).mean()
    assert real.shape == fake.shape, "the relativistic loss compares pairs"
    return F.softplus(fake - real).mean()


def generator_loss(
    kind: AdversarialLoss, fake_logits: Tensor, real_logits: Tensor | None = None
) -> Tensor:
    """The generator's loss: `critic_loss` with labels swapped; for `hinge`, the mean of -fake.

    Only `relativistic` needs the logits of the paired originals.
    """
    fake = fake_logits.float()
    if kind == "hinge":
        return -fake.mean()
    if kind == "non_saturating":
        return F.softplus(-fake).mean()
    assert real_logits is not None, "the relativistic loss compares pairs"
    assert real_logits.shape == fake.shape, "the relativistic loss compares pairs"
    return F.softplus(real_logits.float() - fake).mean()


def reversal(real_logits: Tensor, fake_logits: Tensor) -> Tensor:
    """What turns the relativistic critic's gradient at a generated image into the generator's.

    Both reach the image through its logit alone, if the critic judges every image by itself, and
    their ratio there is -exp(real - fake). One backward pass through the critic then serves both
    networks, as behind the gradient reversal of Ganin & Lempitsky, 2015.

    Args:
        real_logits: (B,), of the paired originals.
        fake_logits: (B,), of the generated images.

    Returns:
        (B,) without a graph, at most e^30 in size: beyond that the critic has hardly a gradient.
    """
    gap = real_logits.detach().float() - fake_logits.detach().float()
    return -gap.clamp(max=_SUREST).exp()


def gradient_penalty(critic: Callable[[Tensor], Tensor], images: Tensor) -> Tensor:
    """Half the mean squared gradient norm of the critic (Mescheder et al., 2018, Eq. 9).

    R1 on originals, R2 on generated images. D(x) is the sum of an image's logits, so for a critic
    of patches, each of which sees few pixels, the penalty grows with their number.

    Computed outside autocast, because squared gradients overflow float16. `critic` must not enter
    autocast, as a module prepared by accelerate does in `forward`. Under DDP it may be the
    unwrapped module if the penalty is added to a loss of the wrapped module's output before
    `backward`: DDP then averages the sum of both gradients.
    """
    with torch.autocast(images.device.type, enabled=False), torch.enable_grad():
        inputs = images.detach().float().requires_grad_()
        (gradient,) = torch.autograd.grad(critic(inputs).sum(), inputs, create_graph=True)
    return gradient.square().flatten(1).sum(1).mean() / 2


class LeCam(nn.Module):
    """LeCam regulariser for critics with little data (Tseng et al., 2021).

    E (D(x) - a_F)^2 + E (D(G(z)) - a_R)^2, where a_R and a_F are moving averages of the logits of
    originals and generated images over all processes. They are part of a checkpoint.
    """

    real: Tensor
    fake: Tensor
    started: Tensor

    def __init__(self, decay: float = 0.99) -> None:
        super().__init__()
        self.decay = decay
        self.register_buffer("real", torch.zeros(()))
        self.register_buffer("fake", torch.zeros(()))
        self.register_buffer("started", torch.zeros((), dtype=torch.bool))

    def forward(self, real_logits: Tensor, fake_logits: Tensor) -> Tensor:
        """Update the averages with a batch of logits and return the penalty, unweighted."""
        real, fake = real_logits.float(), fake_logits.float()
        means = torch.stack([real.detach().mean(), fake.detach().mean()])
        if dist.is_initialized():
            dist.all_reduce(means)
            means = means / dist.get_world_size()
        averages = torch.stack([self.real, self.fake])
        # Starting from zeros would pull all logits towards zero for a hundred steps.
        averages = torch.where(self.started, averages.lerp(means, 1 - self.decay), means)
        self.real.copy_(averages[0])
        self.fake.copy_(averages[1])
        self.started.fill_(True)
        return (real - averages[1]).square().mean() + (fake - averages[0]).square().mean()


def adaptive_weight(
    reconstruction: Tensor, adversarial: Tensor, last_layer: Tensor, accelerator: Accelerator
) -> Tensor:
    """Weight that equalises the adversarial and the reconstruction gradient at the last layer.

    |grad reconstruction| / (|grad adversarial| + 1e-6), at most 1e4 (Esser et al., 2021, Eq. 7).
    Gradients are averaged over processes before taking norms, so every process gets the weight of
    the joint batch. Both are scaled by fp16's scaler on their way through the network. If one
    overflows, so that the scaler skips the step, the weight is still finite.

    The graphs of both losses are kept. `last_layer` is the weight of the decoder's last layer.

    Returns:
        A scalar without a graph.
    """
    scaler = accelerator.scaler
    one = torch.ones((), device=last_layer.device)
    scale = one if scaler is None else scaler.scale(one)
    gradients = [
        torch.autograd.grad(loss * scale, last_layer, retain_graph=True)[0].float() / scale
        for loss in (reconstruction, adversarial)
    ]
    lengths = accelerator.reduce(torch.stack(gradients), "mean").flatten(1).norm(dim=1)
    weight = lengths[0] / (lengths[1] + _SMALLEST_GRADIENT)
    return weight.nan_to_num(nan=0.0).clamp(max=_LARGEST_WEIGHT)


@contextmanager
def frozen(module: nn.Module) -> Iterator[None]:
    """Give the module's parameters no gradient within the block; gradients still flow through it.

    The generator's half of a step must not add to the critic's gradients. Its backward pass may run
    after the block.
    """
    parameters = list(module.parameters())
    before = [parameter.requires_grad for parameter in parameters]
    try:
        module.requires_grad_(False)
        yield
    finally:
        for parameter, required in zip(parameters, before, strict=True):
            parameter.requires_grad_(required)
