r"""Train a GAN on images.

accelerate launch evaluation/gan_baseline/train.py --output_dir runs/mnist/gan \
    --config evaluation/gan_baseline/configs/mnist_sngan.yaml
"""

from __future__ import annotations

from latent_prior.cli import answer_early, parse_config, run
from latent_prior.evaluation.gan_baseline.options import TrainOptions

answer_early(__name__, TrainOptions)

import dataclasses
from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from pathlib import Path

import torch
from accelerate import Accelerator
from torch import Tensor, nn

from latent_prior.calls import takes_options
from latent_prior.closing import say_next
from latent_prior.data.batch_order import Batch
from latent_prior.data.images import grid, save_png, to_float, to_uint8
from latent_prior.data.labels import classes_in_turn, seen_classes
from latent_prior.data.training_images import (
    Images,
    first_images,
    input_fingerprints,
    open_training_images,
    training_batches,
)
from latent_prior.evaluation.gan_baseline.gan import Critic, Generator, GeneratorConfig, make_critic
from latent_prior.losses.adversarial import (
    critic_loss,
    generator_loss,
    gradient_penalty,
    reversal,
)
from latent_prior.losses.critic_augmentation import augment
from latent_prior.machine import is_main_process
from latent_prior.processes import from_main, start_training_processes
from latent_prior.seeds import generator, own_rows, step_rows
from latent_prior.training import loop
from latent_prior.training.checkpoint import export_model
from latent_prior.training.curves import plot_curves
from latent_prior.training.ema import EMA
from latent_prior.training.metrics import Figures
from latent_prior.training.optim import make_optimizer, update
from latent_prior.training.runs import Run

GRID_ROWS, GRID_COLUMNS = 8, 10
CURVES = {"loss": {"critic": "critic", "generator": "generator"}}


class GANRun(Run):
    """A trained GAN."""

    def load(self) -> Generator:
        """The exported generator, with averaged weights."""
        return Generator.from_pretrained(self.model)


@takes_options(TrainOptions)
def train_gan(options: TrainOptions) -> GANRun:
    """Train a GAN, from the newest checkpoint in the run folder if there is one.

    Returns:
        The run. One that was complete is not trained again.

    Raises:
        ValueError: invalid options or images, or the run folder of another run.
    """
    accelerator = start_training_processes(options)
    images, options = open_training_images(options, classes=options.conditional is not False)
    run_folder = Path(options.output_dir)

    model = make_generator(options, *classes(images, options))
    critic = make_critic(model.config, options.critic.width)
    for network in (model, critic):  # 1x1 and 3x3 kernels are faster so, on a CPU and a GPU
        nn.Module.to(network, memory_format=torch.channels_last)
    rate = options.critic.learning_rate or options.learning_rate
    critic_options = dataclasses.replace(options, learning_rate=rate)
    wrapped, optimizer, wrapped_critic, critic_optimizer = accelerator.prepare(
        model, make_optimizer(model, options), critic, make_optimizer(critic, critic_options)
    )
    ema = EMA(model, options.ema_decay)
    inputs = input_fingerprints(images)
    state = loop.TrainState({"model": model, "optimizer": optimizer, "ema": ema}, inputs)
    state.parts |= {"critic": critic, "critic_optimizer": critic_optimizer}

    def step(batch: Batch) -> loop.Metrics:
        """Update both networks at once: one backward pass through the critic serves both."""
        originals, labels = prepare(batch, accelerator)
        shape = (step_rows(len(originals)), options.model.latent_dim)
        noise = own_rows(torch.randn(shape, device=accelerator.device))
        generator_learns = (state.step + 1) % options.critic.steps == 0
        for each in (optimizer, critic_optimizer):
            for group in each.param_groups:
                group["betas"] = options.beta1, options.beta2_at(state.step)
        with accelerator.accumulate(wrapped, wrapped_critic):
            with nullcontext() if generator_learns else torch.no_grad():
                fakes = wrapped(noise, labels)
            metrics = objective(
                critic, wrapped_critic, originals, fakes, labels, state.step, options
            )
            loss = metrics["critic"]
            accelerator.backward(loss)
            # With fp16 the scale may change between the updates: AdamW does not mind a gradient
            # twice or half as large once in 2,000 steps.
            updated = update(
                accelerator,
                critic_optimizer,
                wrapped_critic,
                loss=loss,
                step=state.step,
                options=critic_options,
            )
            metrics |= {f"critic_{name}": value for name, value in updated.items()}
            if generator_learns:
                metrics |= update(
                    accelerator, optimizer, wrapped, loss=loss, step=state.step, options=options
                )
        if generator_learns and accelerator.sync_gradients:
            ema.update(model)
        return metrics

    def evaluate() -> Figures:
        """Write a grid of images from fixed noise and, the first time, one of originals."""
        if accelerator.is_main_process:
            model.eval()
            with ema.applied_to(model):
                picture = save_samples(model, images, state.step, options)
            model.train()
            return {"samples": picture}
        return {}

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
        what="GAN",
        loss="critic",
        evaluate=evaluate,
        export=export,
    )
    return GANRun.open(run_folder)


def objective(
    critic: Critic,
    wrapped_critic: nn.Module,
    originals: Tensor,
    fakes: Tensor,
    labels: Tensor,
    step: int,
    options: TrainOptions,
) -> dict[str, Tensor]:
    """The critic's loss, `critic`, and its terms, from images (B, C, H, W) in [-1, 1].

    Its gradient is reversed on the way into `fakes`: what is before them learns by the generator's
    loss. The loss takes the critic as Accelerate wraps it, the penalty the network itself.
    """
    # One pass over both, because DDP needs one per backward.
    both = augment(torch.cat([originals, fakes]), options.augment, groups=2)
    real_logits, fake_logits = wrapped_critic(both, torch.cat([labels, labels])).chunk(2)
    loss = critic_loss("relativistic", real_logits, fake_logits)
    terms = {
        "generator": generator_loss("relativistic", fake_logits.detach(), real_logits.detach()),
        "real_logit": real_logits.mean(),
        "fake_logit": fake_logits.mean(),
    }
    if fakes.requires_grad:
        factor = reversal(real_logits, fake_logits)[:, None, None, None]
        fakes.register_hook(lambda gradient: gradient * factor)
    if gamma := options.gamma_at(step):
        # R1 + R2 (Huang et al., 2024, Eq. 3-4): the mean over originals plus that over the fakes,
        # which are equally many.
        some = torch.cat([half[:: options.critic.penalty_every] for half in both.chunk(2)])
        their_labels = labels[:: options.critic.penalty_every].repeat(2)
        penalty = 2 * gradient_penalty(lambda inputs: critic.logits(inputs, their_labels), some)
        loss = loss + gamma * penalty
        terms["penalty"] = penalty
    return {"critic": loss, **terms}


def save_samples(model: Generator, images: Images, step: int, options: TrainOptions) -> Path:
    """Write a grid of images from fixed noise, class by class, and one of originals if missing.

    Returns:
        The PNG file of the first.
    """
    folder = Path(options.output_dir, "progress")  # `samples` is where generate.py writes
    if not (folder / "originals.png").exists():
        originals = first_images(images, options, GRID_ROWS * GRID_COLUMNS)
        save_png(grid(originals, GRID_COLUMNS), folder / "originals.png")
    config = model.config
    count = GRID_ROWS * GRID_COLUMNS
    labels = classes_in_turn(count, max(1, len(config.class_names)), config.trained_classes)
    generators = [generator(options.seed, "sample", number) for number in range(len(labels))]
    samples = to_uint8(model.sample(labels, generators))
    path = folder / f"step-{step:09d}.png"
    save_png(grid(samples, GRID_COLUMNS), path)
    return path


def classes(images: Images, options: TrainOptions) -> tuple[list[str], list[int] | None]:
    """Class names, empty for an unconditional generator, and its `trained_classes`.

    Raises:
        ValueError: --conditional, but images without labels.
    """
    if options.conditional is False:
        return [], None
    split = f"split {options.split!r} of {options.dataset}"
    problem, labels = None, images.labels
    if labels is None:
        problem = f"{split} has no labels"
    elif int(labels.min()) < 0:
        problem = f"some images of {split} have no label"
    if problem and options.conditional:
        raise ValueError(f"--conditional: {problem}")
    if problem or labels is None:
        return [], None
    names = list(images.class_names)
    return names, seen_classes(labels.numpy(), len(names))


def make_generator(
    options: TrainOptions, names: list[str], trained: list[int] | None = None
) -> Generator:
    """Build the generator from its options, for classes with these names; see `classes`."""
    assert options.image_size is not None
    assert options.channels is not None
    config = GeneratorConfig(
        **dataclasses.asdict(options.model),
        image_size=options.image_size,
        image_channels=options.channels,
        class_names=names,
        trained_classes=trained,
    )
    return Generator(config)


def prepare(batch: Batch, accelerator: Accelerator) -> tuple[Tensor, Tensor]:
    """Originals in [-1, 1] and labels (zeros if there are none), on the device."""
    labels = batch.get("labels", torch.zeros(len(batch["images"]), dtype=torch.int64))
    images, labels = (
        values.to(accelerator.device, non_blocking=True) for values in (batch["images"], labels)
    )
    return to_float(images).contiguous(memory_format=torch.channels_last), labels


def main(argv: Sequence[str] | None = None) -> None:
    """Entry point."""
    trained = train_gan(options=parse_config(TrainOptions, argv))
    if is_main_process():
        print(f"generator: {trained.model}")
        images = trained.folder / "samples"
        flags = {"gan": trained.model, "num_images": 1000, "output_dir": images}
        say_next("evaluation/gan_baseline/generate.py", flags)


if __name__ == "__main__":
    run(main)
