"""The opponent in training of VAE-GAN and VQGAN: a critic with its optimizer and its health, and a perceptual network.

Nothing here is part of the saved model. The step itself stands in `train.py`.
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
from latent_prior.stage1_autoencoders.critic_health import CriticHealth, diagnose
from latent_prior.stage1_autoencoders.critics import CriticOutput, feature_distance, make_critic
from latent_prior.stage1_autoencoders.options import TrainOptions
from latent_prior.training.checkpoint import Stateful
from latent_prior.training.metrics import Figures
from latent_prior.training.optim import make_optimizer, update


class Adversary:
    """A critic of the autoencoder's images, ready to be trained.

    Args:
        options: of the run; image size and channels are numbers here.
        accelerator: of the run.

    Raises:
        ValueError: images too small for the critic, or a perceptual network without its weights.
    """

    def __init__(self, options: TrainOptions, accelerator: Accelerator) -> None:
        assert options.image_size is not None
        assert options.channels is not None
        self.options, self.accelerator = options.critic, accelerator
        self.critic = make_critic(options.critic, options.image_size, options.channels)
        # The autoencoder's schedule, with the critic's own rate and momentum.
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
        """What a checkpoint must hold besides the autoencoder."""
        return {
            "critic": self.critic,
            "critic_optimizer": self.optimizer,
            "lecam": self.lecam,
            "critic_health": self.health,
        }

    def plays(self, step: int) -> bool:
        """Whether the critic has begun to learn and to be heard."""
        return step >= self.options.start_step

    def decoder_losses(
        self, images: Tensor, output: Any, losses: dict[str, Tensor], last_layer: Tensor, step: int
    ) -> dict[str, Tensor]:
        """What perceptual network and critic add to the autoencoder's losses; call it while the critic is frozen.

        Args:
            images: originals (B, C, H, W) in [-1, 1].
            output: the autoencoder's; its `images` are the reconstructions, its `fakes` all that the critic judges.
            losses: the autoencoder's own, among them `reconstruction` and `total`.
            last_layer: weight of the decoder's last layer, for the adaptive weight.
            step: optimizer steps done so far.

        Returns:
            The added terms, each without its weight, `adversarial_weight`, and the new `total`.
        """
        options, added = self.options, {}
        resemblance = losses["reconstruction"]
        if self.perceptual is not None:
            added["perceptual"] = self.perceptual(images, output.images)
            resemblance = resemblance + options.perceptual_weight * added["perceptual"]
        if self.plays(step) and options.feature_matching:
            # Not augmented: an image would be compared with another window of itself.
            own: CriticOutput = self.critic(_shown(output.images))
            with torch.no_grad():
                real: CriticOutput = self.critic(images)
            added["feature_matching"] = feature_distance(real.features, own.features)
            resemblance = resemblance + options.feature_matching * added["feature_matching"]
        total = losses["total"] - losses["reconstruction"] + resemblance
        if self.plays(step):
            added["adversarial"] = self._deceive(images, output.fakes)
            weight = torch.full((), options.weight, device=images.device)
            if options.adaptive:
                weight = weight * adaptive_weight(
                    resemblance, added["adversarial"], last_layer, self.accelerator
                )
            added["adversarial_weight"] = weight
            total = total + weight * added["adversarial"]
        return {**added, "total": total}

    def critic_losses(self, images: Tensor, output: Any, step: int) -> dict[str, Tensor]:
        """What the critic minimises, `critic`, and its parts; no gradient reaches the autoencoder."""
        options = self.options
        real, fake = self._judge(images, output.fakes.detach())
        partners = _paired(real.logits, fake.logits)
        self.health.update(partners, fake.logits)
        loss = critic_loss(options.loss, partners, fake.logits)
        terms = {}
        if options.lecam:
            terms["lecam"] = self.lecam(real.logits, fake.logits)
            loss = loss + options.lecam * terms["lecam"]
        if options.r1 and step % options.r1_every == 0:
            seen = augment(images, options.augment)
            terms["r1"] = gradient_penalty(self.critic.logits, seen)
            loss = loss + options.r1 * options.r1_every * terms["r1"]
        return {**terms, "critic": loss}

    def update(self, loss: Tensor, step: int) -> dict[str, Tensor]:
        """The critic's optimizer step; see `latent_prior.training.optim.update`."""
        updated = update(
            self.accelerator,
            self.optimizer,
            self.wrapped,
            loss=loss,
            step=step,
            options=self.run_options,
        )
        return {f"critic_{name}": value for name, value in updated.items()}

    def figures(self, prefix: str, *, first: bool) -> Figures:
        """The critic's health since the last call, and a `critic_warning` where something is wrong with it.

        Args:
            prefix: of every name.
            first: whether the critic is in its first epoch, in which it may well see no difference yet.
        """
        health = self.health.compute(self.accelerator, prefix)
        warning = None if first else diagnose(health, prefix)
        return {**health} if warning is None else {**health, f"{prefix}critic_warning": warning}

    def _deceive(self, images: Tensor, fakes: Tensor) -> Tensor:
        """The generator's loss of the fakes."""
        options = self.options
        fake: CriticOutput = self.critic(augment(_shown(fakes), options.augment))
        if options.loss != "relativistic":
            return generator_loss(options.loss, fake.logits)
        with torch.no_grad():  # what the critic says of the originals is given
            real: CriticOutput = self.critic(augment(images, options.augment))
        return generator_loss(options.loss, fake.logits, _paired(real.logits, fake.logits))

    def _judge(self, images: Tensor, fakes: Tensor) -> tuple[CriticOutput, CriticOutput]:
        """The critic's answers to originals and to fakes, from one pass over both: DDP wants one before a backward."""
        both = torch.cat([images, _shown(fakes)])
        judged = self.wrapped(augment(both, self.options.augment))
        count = len(images)
        return (
            CriticOutput(judged.logits[:count], [maps[:count] for maps in judged.features]),
            CriticOutput(judged.logits[count:], [maps[count:] for maps in judged.features]),
        )


def _shown(fakes: Tensor) -> Tensor:
    """Images as they are written, float32 in [-1, 1]: a critic would tell fakes by a black that is not quite black."""
    return fakes.float().clamp(-1, 1)


def _paired(real_logits: Tensor, fake_logits: Tensor) -> Tensor:
    """An original's logit for every fake: the originals in turn, as often as there are fakes."""
    times = len(fake_logits) // len(real_logits)
    return real_logits.repeat(times, *[1] * (real_logits.ndim - 1))
