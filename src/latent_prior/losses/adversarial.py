"""Adversarial losses, penalties and the balance between them, for any generator and any critic.

A critic gives logits: one for each image (B,) or one for each of its patches (B, 1, h, w). Everything here is a
mean over images and patches, computed in float32, and none of it waits for the device.

- Goodfellow et al., 2014: https://arxiv.org/abs/1406.2661
- Lim & Ye, 2017: https://arxiv.org/abs/1705.02894
- Jolicoeur-Martineau, 2018: https://arxiv.org/abs/1807.00734; as R3GAN has it, Huang et al., 2024: https://arxiv.org/abs/2501.05441
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
_LARGEST_WEIGHT = 1e4  # where the critic gives the decoder no gradient, as in their code


def critic_loss(kind: AdversarialLoss, real_logits: Tensor, fake_logits: Tensor) -> Tensor:
    """What the critic minimises.

    Args:
        kind: `hinge` is Lim & Ye, 2017; `non_saturating` the two cross-entropies of Goodfellow et al., 2014;
            `relativistic` compares pairs (Jolicoeur-Martineau, 2018; RpGAN of Huang et al., 2024).
        real_logits: answers to originals, any shape.
        fake_logits: answers to generated images; for `relativistic` each is the partner of the original at its place.
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
    """What the generator minimises: `critic_loss` with the labels exchanged, for `hinge` the mean of -fake.

    Args:
        kind: as for the critic.
        fake_logits: answers to generated images, any shape.
        real_logits: answers to the originals at the same places, which `relativistic` needs.
    """
    fake = fake_logits.float()
    if kind == "hinge":
        return -fake.mean()
    if kind == "non_saturating":
        return F.softplus(-fake).mean()
    assert real_logits is not None, "the relativistic loss compares pairs"
    assert real_logits.shape == fake.shape, "the relativistic loss compares pairs"
    return F.softplus(real_logits.float() - fake).mean()


def gradient_penalty(critic: Callable[[Tensor], Tensor], images: Tensor) -> Tensor:
    """Half the squared length of the critic's gradient, mean over images (Mescheder et al., 2018, Eq. 9 without gamma).

    At originals it is R1, at generated images R2. D(x) is the sum of an image's logits, so that with a critic of
    patches, each of which depends on few pixels, the penalty grows with their number.

    Computed outside autocast, because a squared derivative leaves the range of float16; `critic` must not go back into
    it, which a module prepared by accelerate does in its `forward`. Under DDP `critic` need not be the wrapped module
    as long as the penalty is added to a loss of the wrapped one's output and both go backward together: DDP then
    meets every parameter once.

    Args:
        critic: images -> logits, of any shape with the images first.
        images: what the critic sees (B, C, H, W); no gradient flows back into them.
    """
    with torch.autocast(images.device.type, enabled=False), torch.enable_grad():
        inputs = images.detach().float().requires_grad_()
        (gradient,) = torch.autograd.grad(critic(inputs).sum(), inputs, create_graph=True)
    return gradient.square().flatten(1).sum(1).mean() / 2


class LeCam(nn.Module):
    """LeCAM's regulariser (Tseng et al., 2021): keeps a critic with little data from becoming sure of itself.

    E (D(x) - a_F)^2 + E (D(G(z)) - a_R)^2: answers to originals are pulled to where those to generated images usually
    are, and the reverse. What is usual is a moving average over the batches of all processes, part of a checkpoint.
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
        """Take a batch of logits into the averages, then the penalty with respect to them, without its weight."""
        real, fake = real_logits.float(), fake_logits.float()
        means = torch.stack([real.detach().mean(), fake.detach().mean()])
        if dist.is_initialized():
            dist.all_reduce(means)
            means = means / dist.get_world_size()
        averages = torch.stack([self.real, self.fake])
        # The first batch is the first average: zeros would pull all answers to zero for a hundred steps.
        averages = torch.where(self.started, averages.lerp(means, 1 - self.decay), means)
        self.real.copy_(averages[0])
        self.fake.copy_(averages[1])
        self.started.fill_(True)
        return (real - averages[1]).square().mean() + (fake - averages[0]).square().mean()


def adaptive_weight(
    reconstruction: Tensor, adversarial: Tensor, last_layer: Tensor, accelerator: Accelerator
) -> Tensor:
    """Weight that gives the adversarial loss as much of the last layer's gradient as the reconstruction has.

    lambda = |grad reconstruction| / (|grad adversarial| + 1e-6), at most 1e4 (Esser et al., 2021, Eq. 7). The gradients
    are averaged over the processes before their lengths are taken, so all processes weigh alike, as one with the
    joint batch would. Both are scaled by fp16's scaler on their way through the network; where one overflows
    nevertheless, and the scaler will skip the step, the weight is still a number.

    Args:
        reconstruction: scalar loss with its graph, which is kept.
        adversarial: scalar loss with its graph, which is kept.
        last_layer: the weight of the decoder's last layer.
        accelerator: of the run.

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
    """Keep what is computed inside from having a gradient in the module's parameters; it still passes through them.

    The generator's half of a step must leave nothing in the critic's gradients, and the backward pass may come after.
    """
    parameters = list(module.parameters())
    before = [parameter.requires_grad for parameter in parameters]
    try:
        module.requires_grad_(False)
        yield
    finally:
        for parameter, required in zip(parameters, before, strict=True):
            parameter.requires_grad_(required)
