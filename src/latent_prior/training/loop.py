"""The training loop shared by all scripts, each of which defines its own `step`.

Data order, learning rate and every random number are pure functions of (seed, step), on any number
of processes. Repeating a command resumes the run from its newest checkpoint; on a CPU the result is
the same bit for bit.
"""

from __future__ import annotations

import contextlib
import logging
import os
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import yaml
from accelerate import Accelerator
from accelerate.utils import DistributedType

from latent_prior.cli import command_line, dotted, dump_config, flags
from latent_prior.data.batch_order import Batch, Reader
from latent_prior.files import whole_file
from latent_prior.folders import check_replaceable
from latent_prior.models import Budget
from latent_prior.options import RunOptions, changeable
from latent_prior.processes import from_main
from latent_prior.progress import Limit, Progress
from latent_prior.records import check_same_settings, read_yaml
from latent_prior.seeds import draws_of_step
from latent_prior.stopping import Request, Stopped, postponed
from latent_prior.training.checkpoint import (
    Stateful,
    checkpoints,
    clear_leftovers,
    prune_checkpoints,
    restore_newest,
    save_checkpoint,
)
from latent_prior.training.metrics import Figures, Metrics, MetricsLog, Window, check_finite

_log = logging.getLogger("latent_prior")
_TIME_IS_UP = 1  # beside the numbers of SIGINT (2) and SIGTERM (15)


@dataclass
class TrainState:
    """Everything a checkpoint holds.

    Attributes:
        parts: objects with a `state_dict`, by name.
        inputs: fingerprints of what the run learns from, by name, such as `training images`.
        step: completed optimizer steps.
        seconds: wall-clock time of the steps, without evaluations and checkpoints.
        cpu_seconds: processor time of the steps, summed over the threads of this process.
        window: metrics since the last line of the log.
    """

    parts: dict[str, Stateful]
    inputs: dict[str, str] = field(default_factory=dict)
    step: int = 0
    seconds: float = 0.0
    cpu_seconds: float = 0.0
    window: Window = field(default_factory=Window)

    def state_dict(self) -> dict[str, Any]:
        """All but the parts, which are stored in files of their own."""
        return {
            "step": self.step,
            "seconds": self.seconds,
            "cpu_seconds": self.cpu_seconds,
            "window": self.window.state_dict(),
            "inputs": self.inputs,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """The inverse of `state_dict`; older checkpoints have neither window nor inputs."""
        self.step, self.seconds = state["step"], state["seconds"]
        self.cpu_seconds = state["cpu_seconds"]
        self.window.load_state_dict(state.get("window", {"sums": {}, "counts": {}}))
        self.inputs = self.inputs | state.get("inputs", {})

    def budget(self, options: RunOptions, accelerator: Accelerator) -> Budget:
        """The cost of the training so far, for the config of the exported model."""
        device = accelerator.device
        return Budget(
            steps=self.step,
            images_seen=self.step * options.batch_size,
            seconds=round(self.seconds, 3),
            cpu_seconds=round(self.cpu_seconds, 3),
            device=torch.cuda.get_device_name(device) if device.type == "cuda" else device.type,
            num_processes=accelerator.num_processes,
            command=command_line(),
        )


def train(
    accelerator: Accelerator,
    step: Callable[[Batch], Metrics],
    batches: Callable[[int], Iterator[Batch]],
    state: TrainState,
    options: RunOptions,
    *,
    what: str,
    loss: str,
    evaluate: Callable[[], Figures] | None = None,
    export: Callable[[], None] | None = None,
) -> None:
    """Train from the run's newest checkpoint, or from the start, to `options.max_steps`.

    Args:
        accelerator: from `latent_prior.processes.start_processes`.
        step: forward, losses, backward and optimizer step on a micro-batch; returns scalars.
        batches: micro-batches from a given step on, `options.accumulation_steps` per step.
        state: the parts to save and restore.
        options: options of the run; `evaluate_every` must be set.
        what: is trained, for the line of progress.
        loss: the metric that this line shows, as it was last logged.
        evaluate: called every `evaluate_every` steps and at `max_steps`, by all processes; returns
            metrics.
        export: called after every checkpoint, by all processes.

    A signal or a time limit ends the run after a step with a checkpoint, from which it goes on to
    the same results. Several processes agree on it where they wait for each other anyway: on a
    CPU after every step, on accelerators when metrics are logged.

    Raises:
        ValueError: the folder holds a run with other options, or a metric is not finite; the
            weights are then those before the bad step.
        Stopped: a signal ended the run.
    """
    assert options.evaluate_every is not None
    run = Path(options.output_dir)
    resume(accelerator, run, state, options)
    log = MetricsLog(accelerator, run, options, start=state.step)
    start, alone = state.step, accelerator.num_processes == 1
    parts = options.accumulation_steps * accelerator.num_processes
    on_cpu = accelerator.device.type == "cpu"
    # On a CPU the step uses all cores, so a second thread of tensor work would only compete.
    stream = Reader(batches(start), 0 if on_cpu else 2, state.seconds)
    logged = start
    line = Progress(
        f"training {what}",
        options.max_steps,
        shown=accelerator.is_main_process,
        start=start,
        images=options.batch_size,
        limits=_limits(state, options),
    )
    with postponed() as request, contextlib.closing(stream), line:
        stop = _stop(accelerator, state, options, request)
        while state.step < options.max_steps and not stop:
            started, cpu_started = time.monotonic(), time.process_time()
            for micro in range(options.accumulation_steps):
                part = micro * accelerator.num_processes + accelerator.process_index
                with draws_of_step(options.seed, state.step, part, parts):
                    state.window.add(step(next(stream)))
            state.step += 1
            complete = state.step == options.max_steps
            logging = complete or state.step % options.log_every == 0
            evaluating = complete or state.step % options.evaluate_every == 0
            # Reading metrics on a GPU synchronises, so they are checked when they are logged.
            if logging or on_cpu:
                check_finite(state.window.sums, state.step)
            seconds = time.monotonic() - started
            state.seconds += seconds
            state.cpu_seconds += time.process_time() - cpu_started
            if logging:
                images = (state.step - logged) * options.batch_size
                means = state.window.means(accelerator) | stream.rates(images, state.seconds)
                log.write(state.step, state.seconds, means)
                logged = state.step
                state.window.clear()
                line.detail = f"{loss} {means[loss]:.4g}"
            line.advance(seconds=seconds, limits=_limits(state, options))
            if evaluating and evaluate is not None:
                log.write(state.step, state.seconds, evaluate())
            if logging or evaluating or on_cpu or alone:
                stop = _stop(accelerator, state, options, request)
            if stop or complete or state.step % options.checkpoint_every == 0:
                check_finite(state.window.sums, state.step)
                save(accelerator, run, state, options, export)
                stop = stop or _stop(accelerator, state, options, request)
        if state.step == start and stop in (0, _TIME_IS_UP) and export is not None:
            export()  # the run may have been stopped between its last checkpoint and the export
            accelerator.wait_for_everyone()
    log.close()
    if (number := stop or request.number) > _TIME_IS_UP:
        raise Stopped(number, f"after step {state.step} of {options.max_steps}")


def save(
    accelerator: Accelerator,
    run: Path,
    state: TrainState,
    options: RunOptions,
    export: Callable[[], None] | None,
) -> None:
    """Write a checkpoint and export; every process waits for both."""
    main = accelerator.is_main_process
    state.window.share(accelerator)
    if main or accelerator.distributed_type == DistributedType.FSDP:
        parts = {"state": state, **state.parts}
        save_checkpoint(run, state.step, parts, writes=main)
    if main:
        _prune(run, options)
    if export is not None:
        export()
    accelerator.wait_for_everyone()


def resume(accelerator: Accelerator, run: Path, state: TrainState, options: RunOptions) -> None:
    """Restore the newest intact checkpoint of the same run, if any, and write `config.yaml`.

    Raises:
        ValueError: the folder holds a run with other options, that learnt from something else, or
            without an intact checkpoint; or it cannot be written to.
    """
    resolved, inputs = dump_config(options), state.inputs
    from_main(accelerator, lambda: _check_run(run, resolved, options))
    restored = restore_newest(accelerator, run, {"state": state, **state.parts})
    for name, fingerprint in inputs.items():
        if state.inputs[name] != fingerprint:
            raise ValueError(
                f"the {name} are not those that the run in {run} has learnt from; restore them, or "
                "choose another --output_dir"
            )
    if accelerator.is_main_process:
        if restored is not None:
            _log.info("resuming %s at step %d", run, state.step)
            _prune(run, options)
        if restored is None or state.step < options.max_steps:  # else nothing is trained with them
            with whole_file(run / "config.yaml") as path:
                path.write_text(yaml.safe_dump(resolved, sort_keys=False))
    accelerator.wait_for_everyone()


def _check_run(run: Path, resolved: dict[str, Any], options: RunOptions) -> None:
    """Check that a folder is a run with these options, or can become one; clear leftovers away."""
    check_replaceable(run / "model", "model")
    clear_leftovers(run)
    if not checkpoints(run):
        return
    config, way_out = run / "config.yaml", "restore it, or choose another folder"
    if not os.path.lexists(config):
        raise ValueError(f"{config} of the checkpoints in {run} is missing; {way_out}")
    given = dict(dotted(resolved))
    # A run that began before there was an option did what the option's default does.
    defaults = {flag.name: flag.default for flag in flags(type(options), given)}
    check_same_settings(
        defaults | dict(dotted(read_yaml(config, way_out))),
        given,
        f"--output_dir {run} holds a run",
        "choose another folder, or repeat the command with the options in its config.yaml to resume",
        may_change=changeable(options),
    )


def _prune(run: Path, options: RunOptions) -> None:
    prune_checkpoints(run, keep=options.checkpoints_to_keep, every=options.checkpoint_every)


def _stop(
    accelerator: Accelerator, state: TrainState, options: RunOptions, request: Request
) -> int:
    """Why to stop: the number of a signal to any process, a time limit, or 0.

    The main process's clocks decide for all processes.
    """
    is_up = any(limit.spent >= limit.budget for limit in _limits(state, options))
    reason = request.number or (_TIME_IS_UP if is_up and accelerator.is_main_process else 0)
    if accelerator.num_processes == 1:
        return reason
    reasons = accelerator.gather(torch.tensor([reason], device=accelerator.device))
    return int(reasons.max())


def _limits(state: TrainState, options: RunOptions) -> list[Limit]:
    """The budgets of time that were set."""
    spent = ((state.seconds, options.max_seconds), (state.cpu_seconds, options.max_cpu_seconds))
    return [Limit(seconds, budget) for seconds, budget in spent if budget is not None]
