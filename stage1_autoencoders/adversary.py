"""The critic's side of training VAE-GAN and VQGAN: losses, optimizer, health, perceptual network.

Nothing here is part of the saved model. The training step is in `train.py`.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor

from latent_prior.losses.adversarial import (
    LeCam,
    adaptive_weight,
    critic_loss,
    generator_loss,
    gradient_penalty,
)
from latent_prior.losses.critic_augmentation import augment
from latent_prior.losses.perceptual import make_perceptual
from latent_prior.stage1_autoencoders.critics import CriticOutput, feature_distance, make_critic
from latent_prior.stage1_autoencoders.meters import CriticHealth, critic_warning
from latent_prior.stage1_autoencoders.options import TrainOptions
from latent_prior.training.checkpoint import Stateful
from latent_prior.training.metrics import Figures
from latent_prior.training.optim import make_optimizer, update


class Adversary:
    """A critic of the autoencoder's images, with its optimizer.

    Args:
        options: with image size and channels.
        accelerator: of the run.

    Raises:
        ValueError: images too small for the critic, or missing weights of the perceptual network.
    """

    def __init__(self, options: TrainOptions, accelerator: Accelerator) -> None:
        assert options.image_size is not None
        assert options.channels is not None
        self.options, self.accelerator = options.critic, accelerator
        self.critic = make_critic(options.critic, options.image_size, options.channels)
        # The autoencoder's schedule with the critic's learning rate and momentum.
        self.run_options = dataclasses.replace(
            options,
            learning_rate=options.critic.learning_rate or options.learning_rate,
            beta1=options.critic.beta1,
        )
        optimizer = make_optimizer(self.critic, self.run_options)
        self.wrapped, self.optimizer = accelerator.prepare(self.critic, optimizer)
        self.lecam = LeCam().to(accelerator.device)
        self.health = CriticHealth(options.critic.loss).to(accelerator.device)
        self.perceptual = make_perceptual(
            options.critic.perceptual, accelerator.device, "--critic.perceptual"
        )

    @property
    def parts(self) -> dict[str, Stateful]:
        """The critic's part of a checkpoint."""
        return {
            "critic": self.critic,
            "critic_optimizer": self.optimizer,
            "lecam": self.lecam,
            "critic_health": self.health,
        }

    def is_active(self, step: int) -> bool:
        """Whether the critic is active at this step."""
        return step >= self.options.start_step

    def decoder_losses(
        self, images: Tensor, output: Any, losses: dict[str, Tensor], last_layer: Tensor, step: int
    ) -> dict[str, Tensor]:
        """Add the perceptual and adversarial losses to the autoencoder's; freeze the critic first.

        Args:
            images: originals (B, C, H, W) in [-1, 1].
            output: the autoencoder's output; `fakes` are the critic's input.
            losses: the autoencoder's losses, with `reconstruction` and `total`.
            last_layer: weight of the decoder's last layer, for the adaptive weight.
            step: completed optimizer steps.

        Returns:
            The added terms before weighting, `adversarial_weight`, and the new `total`.
        """
        options, added = self.options, {}
        reconstruction = losses["reconstruction"]
        if self.perceptual is not None:
            added["perceptual"] = self.perceptual(images, output.images)
            reconstruction = reconstruction + options.perceptual_weight * added["perceptual"]
        if self.is_active(step) and options.feature_matching:
            # No augmentation: it would shift originals and reconstructions differently.
            fake: CriticOutput = self.critic(_clamped(output.images))
            with torch.no_grad():
                real: CriticOutput = self.critic(images)
            added["feature_matching"] = feature_distance(real.features, fake.features)
            reconstruction = reconstruction + options.feature_matching * added["feature_matching"]
        total = losses["total"] - losses["reconstruction"] + reconstruction
        if self.is_active(step):
            added["adversarial"] = self._generator_loss(images, output.fakes)
            weight = torch.full((), options.weight, device=images.device)
            if options.adaptive:
                weight = weight * adaptive_weight(
                    reconstruction, added["adversarial"], last_layer, self.accelerator
                )
            added["adversarial_weight"] = weight
            total = total + weight * added["adversarial"]
        return {**added, "total": total}

    def critic_losses(self, images: Tensor, output: Any, step: int) -> dict[str, Tensor]:
        """The critic's loss, `critic`, and its terms; no gradient reaches the autoencoder."""
        options = self.options
        # One pass over both, because DDP needs one per backward.
        both = torch.cat([images, _clamped(output.fakes.detach())])
        logits = self.wrapped(augment(both, options.augment, len(both) // len(images))).logits
        real, fake = logits[: len(images)], logits[len(images) :]
        real_per_fake = _one_per_fake(real, fake)
        self.health.update(real_per_fake, fake)
        loss = critic_loss(options.loss, real_per_fake, fake)
        terms = {}
        if options.lecam:
            terms["lecam"] = self.lecam(real, fake)
            loss = loss + options.lecam * terms["lecam"]
        if options.r1 and step % options.r1_every == 0:
            augmented = augment(images, options.augment)
            terms["r1"] = gradient_penalty(self.critic.logits, augmented)
            loss = loss + options.r1 * options.r1_every * terms["r1"]
        return {**terms, "critic": loss}

    def update(self, loss: Tensor, step: int) -> dict[str, Tensor]:
        """Step the critic's optimizer, see `latent_prior.training.optim.update`."""
        updated = update(
            self.accelerator,
            self.optimizer,
            self.wrapped,
            loss=loss,
            step=step,
            options=self.run_options,
        )
        return {f"critic_{name}": value for name, value in updated.items()}

    def figures(self, prefix: str, step: int) -> Figures:
        """The critic's health since the last call, and a `critic_warning` if there is a problem.

        Args:
            prefix: of every name.
            step: completed optimizer steps.
        """
        health = self.health.compute(self.accelerator)
        # In its first epoch it is normal that a critic sees no difference.
        first_steps = 2 * (self.run_options.evaluate_every or 0)
        in_first_epoch = step < self.options.start_step + first_steps
        warning = None if in_first_epoch else critic_warning(health)
        figures: Figures = {**health} if warning is None else {**health, "critic_warning": warning}
        return {prefix + name: value for name, value in figures.items()}

    def _generator_loss(self, images: Tensor, fakes: Tensor) -> Tensor:
        """The adversarial loss of the decoder."""
        options = self.options
        groups = len(fakes) // len(images)
        fake: CriticOutput = self.critic(augment(_clamped(fakes), options.augment, groups))
        if options.loss != "relativistic":
            return generator_loss(options.loss, fake.logits)
        with torch.no_grad():  # constants for the decoder
            real: CriticOutput = self.critic(augment(images, options.augment))
        return generator_loss(options.loss, fake.logits, _one_per_fake(real.logits, fake.logits))


def _clamped(fakes: Tensor) -> Tensor:
    """Float32 in [-1, 1], or a critic would recognise fakes by values that originals never have."""
    return fakes.float().clamp(-1, 1)


def _one_per_fake(real_logits: Tensor, fake_logits: Tensor) -> Tensor:
    """Repeat the logits of the originals until there is one for every fake."""
    times = len(fake_logits) // len(real_logits)
    return real_logits.repeat(times, *[1] * (real_logits.ndim - 1))
