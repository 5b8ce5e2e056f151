"""Train a GAN on images.

accelerate launch evaluation/gan_baseline/train.py --config evaluation/gan_baseline/configs/mnist_sngan.yaml --output_dir runs/mnist/gan
"""

from __future__ import annotations

from latent_prior.cli import answer_early, parse_config, run
from latent_prior.evaluation.gan_baseline.options import TrainOptions

answer_early(__name__, TrainOptions)

import dataclasses
from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
from accelerate import Accelerator
from accelerate.optimizer import AcceleratedOptimizer
from torch import Tensor, nn

from latent_prior.data.batch_order import Batch
from latent_prior.data.images import ImageSet, grid, save_png, to_float, to_uint8
from latent_prior.data.training_images import first_images, open_training_images, training_batches
from latent_prior.evaluation.gan_baseline.gan import Critic, Generator, GeneratorConfig, make_critic
from latent_prior.losses.adversarial import (
    AdversarialLoss,
    critic_loss,
    frozen,
    generator_loss,
    gradient_penalty,
)
from latent_prior.losses.critic_augmentation import augment
from latent_prior.processes import start_training_processes
from latent_prior.seeds import generator
from latent_prior.training import loop
from latent_prior.training.checkpoint import export_model
from latent_prior.training.ema import EMA
from latent_prior.training.metrics import Figures
from latent_prior.training.optim import make_optimizer, update

LOSSES: dict[str, AdversarialLoss] = {"sngan": "hinge", "r3gan": "relativistic"}
GRID_ROWS, GRID_COLUMNS = 8, 10


@dataclass
class Parts:
    """What a step works with; the wrapped networks are those that Accelerate runs."""

    options: TrainOptions
    critic_options: TrainOptions
    accelerator: Accelerator
    generator: Generator
    wrapped: nn.Module
    optimizer: AcceleratedOptimizer
    critic: Critic
    wrapped_critic: nn.Module
    critic_optimizer: AcceleratedOptimizer
    ema: EMA
    state: loop.TrainState


def step(parts: Parts, batch: Batch) -> loop.Metrics:
    """Everything that learns in a GAN: the generator against the critic, then the critic against the same images."""
    options, accelerator, at = parts.options, parts.accelerator, parts.state.step
    images, labels, noise = prepare(batch, accelerator)
    plays = (at + 1) % options.critic.steps == 0
    metrics = {}
    with accelerator.accumulate(parts.wrapped, parts.wrapped_critic):
        with nullcontext() if plays else torch.no_grad():
            fakes = parts.wrapped(noise, labels)
        if plays:
            with frozen(parts.critic):
                loss = deceive(parts, images, fakes, labels)
            accelerator.backward(loss)
            metrics = update(
                accelerator, parts.optimizer, parts.wrapped, loss=loss, step=at, options=options
            )
            metrics["generator"] = loss
        losses = judge(parts, images, fakes.detach(), labels)
        accelerator.backward(losses["critic"])
        updated = update(
            accelerator,
            parts.critic_optimizer,
            parts.wrapped_critic,
            loss=losses["critic"],
            step=at,
            options=parts.critic_options,
        )
    if plays and accelerator.sync_gradients:
        parts.ema.update(parts.generator)
    return {**metrics, **losses, **{f"critic_{name}": value for name, value in updated.items()}}


def deceive(parts: Parts, images: Tensor, fakes: Tensor, labels: Tensor) -> Tensor:
    """What the generator minimises; call it while the critic is frozen."""
    options = parts.options
    fake_logits = parts.critic(augment(fakes, options.augment), labels)
    real_logits = None
    if LOSSES[options.model.type] == "relativistic":
        with torch.no_grad():  # what the critic says of the originals is given
            real_logits = parts.critic(augment(images, options.augment), labels)
    return generator_loss(LOSSES[options.model.type], fake_logits, real_logits)


def judge(parts: Parts, images: Tensor, fakes: Tensor, labels: Tensor) -> dict[str, Tensor]:
    """What the critic minimises, `critic`, and what it is made of; no gradient reaches the generator."""
    options = parts.options
    # One pass over both, because DDP wants one before a backward.
    seen = augment(torch.cat([images, fakes]), options.augment)
    twice = torch.cat([labels, labels])
    real_logits, fake_logits = parts.wrapped_critic(seen, twice).chunk(2)
    loss = critic_loss(LOSSES[options.model.type], real_logits, fake_logits)
    metrics = {"real_logit": real_logits.mean(), "fake_logit": fake_logits.mean()}
    if options.gamma and parts.state.step % options.critic.penalty_every == 0:
        # R1 + R2 (Huang et al., 2024, Eq. 3-4): the mean over originals plus that over fakes, which are equally many.
        penalty = 2 * gradient_penalty(lambda inputs: parts.critic.logits(inputs, twice), seen)
        loss = loss + options.gamma * options.critic.penalty_every * penalty
        metrics["penalty"] = penalty
    return {"critic": loss, **metrics}


def main(argv: Sequence[str] | None = None) -> None:
    """Entry point.

    Raises:
        ValueError: options, images or the run folder are at fault.
    """
    options = parse_config(TrainOptions, argv)
    accelerator = start_training_processes(options)
    images, options = open_training_images(options)
    model = make_generator(options, class_names(images, options))
    critic = make_critic(model.config, options.critic.width)
    rate = options.critic.learning_rate or options.learning_rate
    critic_options = dataclasses.replace(options, learning_rate=rate)
    wrapped, optimizer, wrapped_critic, critic_optimizer = accelerator.prepare(
        model, make_optimizer(model, options), critic, make_optimizer(critic, critic_options)
    )
    ema = EMA(model, options.ema_decay)
    state = loop.TrainState(
        {
            "model": model,
            "optimizer": optimizer,
            "critic": critic,
            "critic_optimizer": critic_optimizer,
            "ema": ema,
        }
    )
    parts = Parts(
        options, critic_options, accelerator, model, wrapped, optimizer,
        critic, wrapped_critic, critic_optimizer, ema, state,
    )  # fmt: skip

    def evaluate() -> Figures:
        """A grid of generated images, always of the same noise; once, one of originals."""
        if accelerator.is_main_process:
            progress = Path(options.output_dir, "progress")  # `samples` is where generate.py writes
            if not (progress / "originals.png").exists():
                originals = first_images(images, options, GRID_ROWS * GRID_COLUMNS)
                save_png(grid(originals, GRID_COLUMNS), progress / "originals.png")
            count = max(1, len(model.config.class_names))
            labels = [place % count for place in range(GRID_ROWS * GRID_COLUMNS)]
            own = [generator(options.seed, "sample", place) for place in range(len(labels))]
            model.eval()
            with ema.applied_to(model):
                shown = to_uint8(model.sample(labels, own))
            model.train()
            save_png(grid(shown, GRID_COLUMNS), progress / f"step-{state.step:09d}.png")
        return {}

    def export() -> None:
        budget = state.budget(options, accelerator)
        export_model(Path(options.output_dir, "model"), model, ema, budget, accelerator)

    loop.train(
        accelerator,
        partial(step, parts),
        lambda start: batches_with_noise(start, images, options, accelerator),
        state,
        options,
        evaluate=evaluate,
        export=export,
    )
    if accelerator.is_main_process:
        print(f"generator: {Path(options.output_dir, 'model')}")


def class_names(images: ImageSet | None, options: TrainOptions) -> list[str]:
    """Names of the classes that the generator learns to tell apart; none for an unconditional one.

    Raises:
        ValueError: classes are asked for, and there are none.
    """
    labels = None if images is None else images.labels
    if labels is None or options.conditional is False:
        if options.conditional:
            raise ValueError(
                f"--conditional: split {options.split!r} of {options.dataset} has no labels"
            )
        return []
    assert images is not None
    if int(labels.min()) < 0:
        if options.conditional is None:
            return []
        raise ValueError(
            f"--conditional: some images of split {options.split!r} of {options.dataset} have no label"
        )
    return list(images.class_names)


def make_generator(options: TrainOptions, names: list[str]) -> Generator:
    """The generator that the options describe, for classes of these names."""
    assert options.image_size is not None
    assert options.channels is not None
    config = GeneratorConfig(
        **dataclasses.asdict(options.model),
        image_size=options.image_size,
        image_channels=options.channels,
        class_names=names,
    )
    return Generator(config)


def batches_with_noise(
    start: int, images: ImageSet | None, options: TrainOptions, accelerator: Accelerator
) -> Iterator[Batch]:
    """Batches with the noise of their fakes, which is drawn for a step's whole batch, however that is shared out."""
    per_step, rank = options.accumulation_steps, accelerator.process_index
    for number, batch in enumerate(training_batches(start, images, options, accelerator)):
        step, micro = divmod(number, per_step)
        share = len(batch["images"])
        begin = (micro * accelerator.num_processes + rank) * share
        random = generator(options.seed, "noise", start + step)
        noise = torch.randn(options.batch_size, options.model.latent_dim, generator=random)
        yield {**batch, "noise": noise[begin : begin + share]}


def prepare(batch: Batch, accelerator: Accelerator) -> tuple[Tensor, Tensor, Tensor]:
    """Originals in [-1, 1], labels (zeros where there are none) and noise, on the device."""
    device = accelerator.device
    images = to_float(batch["images"].to(device, non_blocking=True))
    labels = batch.get("labels", torch.zeros(len(images), dtype=torch.int64))
    return (
        images,
        labels.to(device, non_blocking=True),
        batch["noise"].to(device, non_blocking=True),
    )


if __name__ == "__main__":
    run(main)
