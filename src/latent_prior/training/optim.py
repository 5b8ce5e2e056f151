"""Optimizer, its learning rate as a pure function of the step, and the one guarded update."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from latent_prior.options import RunOptions
from latent_prior.training.muon import Muon

if TYPE_CHECKING:
    from accelerate import Accelerator
    from accelerate.optimizer import AcceleratedOptimizer


def make_optimizer(
    model: nn.Module, options: RunOptions, *, orthogonal: Sequence[Tensor] = ()
) -> torch.optim.AdamW:
    """AdamW (Loshchilov & Hutter, 2019) with weight decay for linear and convolutional layers only.

    No decay for gains, biases, codebooks (they must stay near the encoder's outputs) or spectrally
    normalised weights. `Muon` updates the kernels in `orthogonal`.
    """
    layers = (nn.Linear, nn.Conv2d, nn.ConvTranspose2d)
    decayed = {
        id(parameter)
        for module in model.modules()
        if isinstance(module, layers)
        for name, parameter in module.named_parameters(recurse=False)
        if name == "weight"
    }
    kernels = {id(parameter) for parameter in orthogonal}
    parameters = [p for p in model.parameters() if p.requires_grad and id(p) not in kernels]
    weights = [p for p in parameters if id(p) in decayed]
    others = [p for p in parameters if id(p) not in decayed]
    decay, betas = options.weight_decay, (options.beta1, options.beta2)
    groups = [
        {"params": weights, "weight_decay": decay, "orthogonal": False},
        {"params": others, "weight_decay": 0.0, "orthogonal": False},
    ]
    if not orthogonal:
        return torch.optim.AdamW(groups, lr=options.learning_rate, betas=betas, fused=True)
    groups.append({"params": list(orthogonal), "weight_decay": decay, "orthogonal": True})
    return Muon(groups, lr=options.learning_rate, betas=betas, fused=True)


def learning_rate_at(step: int, options: RunOptions) -> float:
    """Learning rate of the update after `step` completed ones: warm-up, then the schedule.

    A pure function instead of a scheduler object: it has no state to save.
    """
    peak, final = options.learning_rate, options.final_learning_rate
    if step < options.warmup_steps:
        return peak * (step + 1) / options.warmup_steps
    if options.schedule == "constant":
        return peak
    length = max(1, options.max_steps - options.warmup_steps)
    progress = min(1.0, (step - options.warmup_steps) / length)
    linear = options.schedule == "linear"
    remaining = 1 - progress if linear else 0.5 * (1 + math.cos(math.pi * progress))
    return final + (peak - final) * remaining


def update(
    accelerator: Accelerator,
    optimizer: AcceleratedOptimizer,
    model: nn.Module,
    *,
    loss: Tensor,
    step: int,
    options: RunOptions,
) -> dict[str, Tensor]:
    """Clip, step with the learning rate of `step`, and clear the gradients.

    A loss or gradient that is not finite must not reach the weights: the optimizer's kernel skips
    the update where `found_inf` is set, without a host synchronisation. The training loop stops
    when it logs a norm that is not finite.

    Returns:
        `gradient_norm` before clipping and `learning_rate`; empty while gradients accumulate.
    """
    metrics = {}
    if accelerator.sync_gradients:
        largest = math.inf if options.gradient_clip is None else options.gradient_clip
        if accelerator.scaler is None or len(accelerator._optimizers) == 1:
            norm = accelerator.clip_grad_norm_(model.parameters(), largest)
        else:  # accelerate would unscale all optimizers' gradients, also those still accumulating in another model
            accelerator.unscale_gradients(optimizer)
            norm = nn.utils.clip_grad_norm_(model.parameters(), largest)
        norm = norm.full_tensor() if isinstance(norm, DTensor) else norm
        learning_rate = learning_rate_at(step, options)
        for group in optimizer.param_groups:
            group["lr"] = learning_rate
        finite = torch.isfinite(norm) & torch.isfinite(loss.detach())
        if accelerator.scaler is None:
            optimizer.optimizer.found_inf = (~finite).float()
        else:  # fp16's scaler sets the flag itself; its overflows are routine and no reason to stop
            norm = torch.where(finite, norm, 0.0)
        metrics = {"gradient_norm": norm, "learning_rate": torch.tensor(learning_rate)}
    optimizer.step()
    optimizer.zero_grad()
    return metrics
