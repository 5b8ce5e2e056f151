"""Train a Transformer prior on a codes dataset.

accelerate launch stage2_prior/train.py --config stage2_prior/configs/mnist_vqvae.yaml \
    --codes runs/mnist/codes --output_dir runs/mnist/prior
"""

from __future__ import annotations

from latent_prior.cli import answer_early, parse_config, run
from latent_prior.stage2_prior.options import TrainOptions

answer_early(__name__, TrainOptions)

import dataclasses
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import torch
from torch.distributed.fsdp import FSDPModule

from latent_prior.calls import takes_options
from latent_prior.closing import beside, entry, say_next
from latent_prior.data.batch_order import Batch, index_batches
from latent_prior.data.labels import seen_classes
from latent_prior.folders import fetch_folder
from latent_prior.machine import is_main_process
from latent_prior.processes import from_main, start_training_processes
from latent_prior.stage2_prior.prior import PriorConfig, TransformerPrior
from latent_prior.stage2_prior.progress import open_decoder, open_prompts, save_samples
from latent_prior.stage2_prior.text.captions import open_reader
from latent_prior.stage2_prior.text.tokenizer import CaptionTokenizer
from latent_prior.stage2_prior.validation import (
    Best,
    codes_and_conditions,
    open_splits,
    read_batch,
    validate,
)
from latent_prior.training import loop
from latent_prior.training.checkpoint import export_model, whole
from latent_prior.training.curves import plot_curves
from latent_prior.training.ema import EMA
from latent_prior.training.metrics import Figures
from latent_prior.training.optim import make_optimizer, update
from latent_prior.training.runs import Run


class PriorRun(Run):
    """A trained prior."""

    @property
    def best(self) -> Path:
        """Folder of the model with the lowest validation loss of all evaluations."""
        return self.folder / "best"

    def load(self) -> TransformerPrior:
        """The exported model, with averaged weights."""
        return TransformerPrior.from_pretrained(self.model)


@takes_options(TrainOptions)
def train_prior(options: TrainOptions) -> PriorRun:
    """Train a prior on codes, from the newest checkpoint in the run folder if there is one.

    Returns:
        The run. One that was complete is not trained again.

    Raises:
        ValueError: invalid options, codes, autoencoder or run folder.
    """
    accelerator = start_training_processes(options, sharding=True)
    train_codes, validation, spec, options = open_splits(options)
    decoder = open_decoder(spec, options, accelerator.device)
    run_folder = Path(options.output_dir)
    reader = open_reader(train_codes, validation, options, accelerator)

    model = TransformerPrior(
        PriorConfig(
            **dataclasses.asdict(options.model),
            code_spec=spec.to_dict(),
            trained_classes=seen_classes(train_codes.distinct_labels(), len(spec.class_names)),
            text=None if reader is None else reader.spec,
        )
    )
    model.tokenizer = reader if isinstance(reader, CaptionTokenizer) else None
    prompts = open_prompts(reader, validation)
    optimizer = make_optimizer(model, options)
    if options.compile:
        model.compile()
    wrapped, optimizer = accelerator.prepare(model, optimizer)
    ema, best = EMA(model, options.ema_decay), Best()
    inputs = {
        "training codes": train_codes.table.fingerprint,
        "validation codes": validation.table.fingerprint,
    }
    if reader is not None:
        inputs["tokens or states of the captions"] = reader.spec["sha256"]
    state = loop.TrainState(
        {"model": model, "optimizer": optimizer, "ema": ema, "best": best}, inputs=inputs
    )
    unit = model.unit
    held_out = f"validation_nats_per_{unit}"

    def step(batch: Batch) -> loop.Metrics:
        """One optimizer micro-step of the prior: loss, gradients, update, average."""
        codes, labels, text = codes_and_conditions(batch, accelerator.device)
        with accelerator.accumulate(wrapped):
            with accelerator.autocast():  # Accelerate does not wrap a sharded model in it
                loss = wrapped(codes, labels, text).loss
            accelerator.backward(loss)
            updated = update(
                accelerator, optimizer, wrapped, loss=loss, step=state.step, options=options
            )
        if accelerator.sync_gradients:
            ema.update(model)
        return {f"nats_per_{unit}": loss, **updated}

    @torch.no_grad()
    def evaluate() -> Figures:
        """Validate the averaged weights, sample a grid, and keep the best weights so far."""
        with averaged(model, ema) as average:
            figures = validate(average, validation, reader, options, accelerator)
            picture = None
            if accelerator.is_main_process:
                picture = save_samples(average, decoder, state.step, options, prompts)
        if best.improves(figures[held_out]):
            budget = state.budget(options, accelerator)
            export_model(run_folder / "best", model, ema, budget, accelerator)
        return {**figures, **({} if picture is None else {"samples": picture})}

    def export() -> None:
        budget = state.budget(options, accelerator)
        export_model(run_folder / "model", model, ema, budget, accelerator)
        # Where the two diverge, the prior begins to overfit.
        curves = {f"nats_per_{unit}": "training", held_out: "validation"}
        panels = {f"nats per {unit}": curves}
        from_main(accelerator, lambda: plot_curves(run_folder, panels, lowest=held_out))

    def batches(start: int) -> Iterator[Batch]:
        order = index_batches(
            start, size=len(train_codes), options=options, accelerator=accelerator
        )
        return (
            read_batch(train_codes, indices, reader, draw=(options.seed, step))
            for step, indices, _ in order
        )

    loop.train(
        accelerator,
        step,
        batches,
        state,
        options,
        what="prior",
        loss=f"nats_per_{unit}",
        evaluate=evaluate,
        export=export,
    )
    return PriorRun.open(run_folder)


@contextmanager
def averaged(model: TransformerPrior, ema: EMA) -> Iterator[TransformerPrior]:
    """The model with its averaged weights, in evaluation mode.

    A sharded model is copied whole into every process, which can then compute on its own.
    """
    if isinstance(model, FSDPModule):
        with model.device:
            copy = TransformerPrior(model.config).eval()
        copy.load_state_dict(whole(ema.state_for(model)))
        yield copy
        return
    model.eval()
    with ema.applied_to(model):
        yield model
    model.train()


def main(argv: Sequence[str] | None = None) -> None:
    """Entry point."""
    options = parse_config(TrainOptions, argv)
    trained = train_prior(options=options)
    if is_main_process():
        print(f"prior: {trained.model}, best on validation: {trained.best}")
        encoded = fetch_folder(options.codes, "codes") / "encode.json"
        autoencoder = options.autoencoder or entry(encoded, "autoencoder")
        flags = {
            "autoencoder": autoencoder,
            "prior": trained.model,
            "output_dir": beside(trained.folder, "pipeline"),
        }
        say_next("pipelines/assemble.py", flags if autoencoder else None)


if __name__ == "__main__":
    run(main)
