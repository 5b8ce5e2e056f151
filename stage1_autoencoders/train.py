r"""Train a stage-1 autoencoder on images.

accelerate launch stage1_autoencoders/train.py --output_dir runs/mnist/vqvae \
    --config stage1_autoencoders/configs/mnist_vqvae.yaml
"""

from __future__ import annotations

from latent_prior.cli import answer_early, parse_config, run
from latent_prior.stage1_autoencoders.options import ModelOptions, TrainOptions

answer_early(__name__, TrainOptions)

import dataclasses
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor, nn

from latent_prior.calls import takes_options
from latent_prior.closing import beside, reading_flags, say_next
from latent_prior.data.batch_order import Batch
from latent_prior.data.images import ImageSet, grid, open_images, save_png, to_float, to_uint8
from latent_prior.data.training_images import (
    first_images,
    input_fingerprints,
    open_training_images,
    training_batches,
)
from latent_prior.losses.adversarial import frozen
from latent_prior.machine import is_main_process
from latent_prior.processes import from_main, share, start_training_processes
from latent_prior.seeds import generator
from latent_prior.stage1_autoencoders import load_autoencoder, model_class
from latent_prior.stage1_autoencoders.adversary import Adversary
from latent_prior.stage1_autoencoders.autoencoder import Autoencoder
from latent_prior.stage1_autoencoders.blocks import inner_kernels
from latent_prior.stage1_autoencoders.meters import Meter
from latent_prior.stage1_autoencoders.quantizers.codebooks import take_moved_codes
from latent_prior.training import loop
from latent_prior.training.checkpoint import export_model
from latent_prior.training.curves import plot_curves
from latent_prior.training.ema import EMA
from latent_prior.training.metrics import Figures
from latent_prior.training.optim import make_optimizer, update
from latent_prior.training.runs import Run

CURVES = {
    "loss": {"total": "training"},
    "PSNR (dB)": {"epoch_psnr": "training", "validation_psnr": "validation"},
}


class AutoencoderRun(Run):
    """A trained autoencoder."""

    def load(self) -> Autoencoder:
        """The exported model, with averaged weights."""
        return load_autoencoder(self.model)


@takes_options(TrainOptions)
def train_autoencoder(options: TrainOptions) -> AutoencoderRun:
    """Train an autoencoder, from the newest checkpoint in the run folder if there is one.

    Returns:
        The run. One that was complete is not trained again.

    Raises:
        ValueError: invalid options or images, or the run folder of another run.
    """
    accelerator = start_training_processes(options)
    images, options = open_training_images(options)
    validation = open_validation(options)
    run_folder = Path(options.output_dir)

    model = make_model(options)
    wrapped, optimizer = accelerator.prepare(
        model, make_optimizer(model, options, orthogonal=inner_kernels(model))
    )
    ema = EMA(model, options.ema_decay)
    meter = Meter(model.code_spec).to(accelerator.device)
    state = loop.TrainState(
        {"model": model, "optimizer": optimizer, "ema": ema, "meter": meter},
        inputs=input_fingerprints(images, validation),
    )
    adversary = Adversary(options, accelerator) if options.model.adversarial else None
    networks = [wrapped] if adversary is None else [wrapped, adversary.wrapped]
    state.parts |= {} if adversary is None else adversary.parts

    def step(batch: Batch) -> loop.Metrics:
        """Update the autoencoder, then its critic if it has one."""
        pixels = prepare(batch["images"], accelerator)
        with accelerator.accumulate(*networks):
            output = wrapped(pixels)
            losses = model.objective(pixels, output, state.step)
            if adversary is not None:
                with frozen(adversary.critic):
                    losses |= adversary.decoder_losses(
                        pixels, output, losses, model.last_layer, state.step
                    )
            total = losses["total"]
            accelerator.backward(total)
            updated = update(
                accelerator, optimizer, wrapped, loss=total, step=state.step, options=options
            )
            if adversary is not None and adversary.is_active(state.step):
                critic_losses = adversary.critic_losses(pixels, output, state.step)
                accelerator.backward(critic_losses["critic"])
                updated |= adversary.update(critic_losses["critic"], state.step)
                losses |= critic_losses
        if accelerator.sync_gradients:
            ema.update(model, take_moved_codes(model))
        meter.update(pixels, output)
        return {**losses, **updated}

    @torch.no_grad()
    def evaluate() -> Figures:
        """Figures of the epoch and of the validation split; a grid of reconstructions."""
        figures = meter.compute(accelerator, "epoch_")
        if adversary is not None:
            figures |= adversary.figures("epoch_", state.step)
        model.eval()
        with ema.applied_to(model):
            if validation is not None:
                figures |= validate(model, validation, options, accelerator)
            if accelerator.is_main_process:
                originals = prepare(first_images(validation or images, options), accelerator)
                path = run_folder / "samples" / f"step-{state.step:09d}.png"
                save_reconstructions(path, originals, model(originals).images)
                figures["reconstructions"] = path
        model.train()
        return figures

    def export() -> None:
        budget = state.budget(options, accelerator)
        export_model(run_folder / "model", model, ema, budget, accelerator)
        from_main(accelerator, lambda: plot_curves(run_folder, CURVES))

    def batches(start: int) -> Iterator[Batch]:
        return training_batches(start, images, options, accelerator)

    loop.train(
        accelerator,
        step,
        batches,
        state,
        options,
        what=ModelOptions.get_choice_name(type(options.model)),
        loss="total",
        evaluate=evaluate,
        export=export,
    )
    return AutoencoderRun.open(run_folder)


def open_validation(options: TrainOptions) -> ImageSet | None:
    """The images of the validation split, if there is one.

    Raises:
        ValueError: there is no such split, or its images cannot be read.
    """
    if options.validation_split is None:
        return None
    try:
        return open_images(options, options.validation_split)
    except ValueError as error:
        raise ValueError(
            f"--validation_split {options.validation_split} (of the command or its --config): "
            f"{error}; name another split, or null for none"
        ) from error


def make_model(options: TrainOptions) -> Autoencoder:
    """Build the autoencoder from its options."""
    chosen = model_class(ModelOptions.get_choice_name(type(options.model)))
    values: dict[str, Any] = dataclasses.asdict(options.model)
    values |= {"image_size": options.image_size, "image_channels": options.channels}
    model = chosen(chosen.config_class(**values))
    nn.Module.to(model, memory_format=torch.channels_last)
    return model


def prepare(images: Tensor, accelerator: Accelerator) -> Tensor:
    """Convert uint8 images (B, C, H, W) to the model's input, on its device."""
    on_device = images.to(accelerator.device, non_blocking=True)
    return to_float(on_device).contiguous(memory_format=torch.channels_last)


def validate(
    model: Autoencoder, images: ImageSet, options: TrainOptions, accelerator: Accelerator
) -> Figures:
    """Figures of the validation images; with latents also ELBO and bits per dimension."""
    meter = Meter(model.code_spec).to(accelerator.device)
    count = min(len(images), options.validation_images)
    negative_elbo = torch.zeros((), dtype=torch.float64, device=accelerator.device)
    for indices in share(count, 128, accelerator):
        pixels = prepare(images.crops(indices), accelerator)
        meter.update(pixels, model(pixels))
        if model.likelihood is not None:
            noise = generator(options.seed, "validation noise", indices.start)
            negative_elbo += model.negative_elbo(pixels, noise).double().sum()
    figures = meter.compute(accelerator, "validation_")
    if model.likelihood is not None:
        nats = float(accelerator.reduce(negative_elbo, "sum")) / count
        dims = model.config.image_channels * model.config.image_size**2
        bits = model.likelihood.bits_per_dim(nats, dims)
        figures |= {"validation_elbo": -nats, "validation_bits_per_dim": bits}
    return figures


def save_reconstructions(path: Path, originals: Tensor, reconstructions: Tensor) -> None:
    """Write a grid of pairs, each an original beside its reconstruction."""
    pairs = torch.stack([originals, reconstructions], dim=1).flatten(0, 1)
    save_png(grid(to_uint8(pairs), 8), path)


def main(argv: Sequence[str] | None = None) -> None:
    """Entry point."""
    options = parse_config(TrainOptions, argv)
    trained = train_autoencoder(options=options)
    if is_main_process():
        print(f"autoencoder: {trained.model}")
        codes = beside(trained.folder, "codes")
        flags = {"autoencoder": trained.model, **reading_flags(options), "output_dir": codes}
        say_next("stage1_autoencoders/encode.py", flags)


if __name__ == "__main__":
    run(main)
