"""Train a stage-1 autoencoder on images.

accelerate launch stage1_autoencoders/train.py --config stage1_autoencoders/configs/mnist_vqvae.yaml --output_dir runs/mnist/vqvae
"""

from __future__ import annotations

from latent_prior.cli import answer_early, parse_config, run
from latent_prior.stage1_autoencoders.options import ModelOptions, TrainOptions

answer_early(__name__, TrainOptions)

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.optimizer import AcceleratedOptimizer
from torch import Tensor, nn

from latent_prior.data.batch_order import Batch
from latent_prior.data.images import ImageSet, grid, open_images, save_png, to_float, to_uint8
from latent_prior.data.training_images import (
    first_images,
    open_training_images,
    plain,
    training_batches,
)
from latent_prior.losses.adversarial import frozen
from latent_prior.processes import share, start_training_processes
from latent_prior.stage1_autoencoders import model_class
from latent_prior.stage1_autoencoders.adversary import Adversary
from latent_prior.stage1_autoencoders.autoencoder import Autoencoder
from latent_prior.stage1_autoencoders.meters import Meter
from latent_prior.stage1_autoencoders.vae import VAE
from latent_prior.training import loop
from latent_prior.training.checkpoint import export_model
from latent_prior.training.ema import EMA
from latent_prior.training.metrics import Figures
from latent_prior.training.optim import make_optimizer, update


@dataclass
class Parts:
    """What a step works with; `wrapped` is the model as Accelerate runs it."""

    options: TrainOptions
    accelerator: Accelerator
    model: Autoencoder
    wrapped: nn.Module
    optimizer: AcceleratedOptimizer
    ema: EMA
    meter: Meter
    state: loop.TrainState


def step(parts: Parts, batch: Batch) -> loop.Metrics:
    """Everything that learns in a VAE, VQ-VAE or VQ-VAE-2."""
    accelerator, at = parts.accelerator, parts.state.step
    pixels = prepare(batch["images"], accelerator)
    with accelerator.accumulate(parts.wrapped):
        output = parts.wrapped(pixels)
        losses = parts.model.objective(pixels, output, at)
        total = losses["total"]
        accelerator.backward(total)
        updated = update(
            accelerator, parts.optimizer, parts.wrapped, loss=total, step=at, options=parts.options
        )
    if accelerator.sync_gradients:
        parts.ema.update(parts.model)
    parts.meter.update(pixels, output)
    return {**losses, **updated}


def adversarial_step(parts: Parts, adversary: Adversary, batch: Batch) -> loop.Metrics:
    """Everything that learns in a VAE-GAN or VQGAN: the autoencoder against the critic, then the critic."""
    accelerator, at = parts.accelerator, parts.state.step
    pixels = prepare(batch["images"], accelerator)
    with accelerator.accumulate(parts.wrapped, adversary.wrapped):
        output = parts.wrapped(pixels)
        losses = parts.model.objective(pixels, output, at)
        with frozen(adversary.critic):
            losses |= adversary.decoder_losses(pixels, output, losses, parts.model.last_layer, at)
        total = losses["total"]
        accelerator.backward(total)
        updated = update(
            accelerator, parts.optimizer, parts.wrapped, loss=total, step=at, options=parts.options
        )
        if adversary.plays(at):
            judged = adversary.critic_losses(pixels, output, at)
            accelerator.backward(judged["critic"])
            updated |= adversary.update(judged["critic"], at)
            losses |= judged
    if accelerator.sync_gradients:
        parts.ema.update(parts.model)
    parts.meter.update(pixels, output)
    return {**losses, **updated}


def main(argv: Sequence[str] | None = None) -> None:
    """Entry point.

    Raises:
        ValueError: options, images or the run folder are at fault.
    """
    options = parse_config(TrainOptions, argv)
    accelerator = start_training_processes(options)
    images, options = open_training_images(options)
    validation = (
        None if options.validation_split is None else open_images(options, options.validation_split)
    )

    model = make_model(options)
    optimizer = make_optimizer(model, options)
    wrapped, optimizer = accelerator.prepare(model, optimizer)
    ema = EMA(model, options.ema_decay)
    meter = Meter(model.code_spec).to(accelerator.device)
    state = loop.TrainState({"model": model, "optimizer": optimizer, "ema": ema, "meter": meter})
    parts = Parts(options, accelerator, model, wrapped, optimizer, ema, meter, state)
    adversary = None
    if options.model.adversarial:
        adversary = Adversary(options, accelerator)
        state.parts |= adversary.parts

    def evaluate() -> Figures:
        """Whole-epoch figures of training, figures of validation, and originals beside reconstructions."""
        figures = meter.compute(accelerator, "epoch_")
        if adversary is not None:
            first = state.step < options.critic.start_step + 2 * (options.evaluate_every or 0)
            figures |= adversary.figures("epoch_", first=first)
        model.eval()
        with ema.applied_to(model), torch.no_grad():
            if validation is not None:
                figures |= held_out(parts, validation)
            if accelerator.is_main_process:
                shown = prepare(first_images(validation or images, options), accelerator)
                pairs = torch.stack([shown, model(shown).images], dim=1).flatten(0, 1)
                save_png(
                    grid(to_uint8(pairs), 8),
                    Path(options.output_dir, "samples", f"step-{state.step:09d}.png"),
                )
        model.train()
        return figures

    def export() -> None:
        budget = state.budget(options, accelerator)
        export_model(Path(options.output_dir, "model"), model, ema, budget, accelerator)

    loop.train(
        accelerator,
        partial(step, parts) if adversary is None else partial(adversarial_step, parts, adversary),
        lambda start: training_batches(start, images, options, accelerator),
        state,
        options,
        evaluate=evaluate,
        export=export,
    )
    if accelerator.is_main_process:
        print(f"autoencoder: {Path(options.output_dir, 'model')}")


def make_model(options: TrainOptions) -> Autoencoder:
    """The family member that the options describe."""
    chosen = model_class(ModelOptions.get_choice_name(type(options.model)))
    values: dict[str, Any] = dataclasses.asdict(options.model)
    values |= {"image_size": options.image_size, "image_channels": options.channels}
    model = chosen(chosen.config_class(**values))
    nn.Module.to(model, memory_format=torch.channels_last)
    return model


def prepare(images: Tensor, accelerator: Accelerator) -> Tensor:
    """uint8 images (B, C, H, W) as the model takes them, on its device."""
    on_device = images.to(accelerator.device, non_blocking=True)
    return to_float(on_device).contiguous(memory_format=torch.channels_last)


def held_out(parts: Parts, images: ImageSet) -> Figures:
    """Figures of the validation images under the model's present weights."""
    meter = Meter(parts.model.code_spec).to(parts.accelerator.device)
    count = min(len(images), parts.options.validation_images)
    bound = torch.zeros((), dtype=torch.float64, device=parts.accelerator.device)
    for indices in share(count, 128, parts.accelerator):
        pixels = prepare(plain(images, parts.options, indices), parts.accelerator)
        meter.update(pixels, parts.model(pixels))
        if isinstance(parts.model, VAE):
            bound += parts.model.negative_elbo(pixels).double().sum()
    figures = meter.compute(parts.accelerator, "validation_")
    if isinstance(parts.model, VAE):
        nats = float(parts.accelerator.reduce(bound, "sum")) / count
        dims = parts.model.config.image_channels * parts.model.config.image_size**2
        bits = parts.model.likelihood.bits_per_dim(nats, dims)
        figures |= {"validation_elbo": -nats, "validation_bits_per_dim": bits}
    return figures


if __name__ == "__main__":
    run(main)
