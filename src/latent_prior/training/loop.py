"""The training loop shared by all scripts, each of which defines its own `step`.

Data order, learning rate, augmentation and dropout are pure functions of (seed, step). Repeating a
command resumes the run from its newest checkpoint; on a CPU the result is the same bit for bit.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import yaml
from accelerate import Accelerator
from accelerate.utils import DistributedType, broadcast_object_list
from tqdm import tqdm

from latent_prior.cli import command_line, dotted, dump_config
from latent_prior.data.batch_order import Batch, prefetch
from latent_prior.files import check_same_settings, whole_file
from latent_prior.models import Budget
from latent_prior.options import RunOptions, changeable
from latent_prior.seeds import derive_seed
from latent_prior.training.checkpoint import Stateful, checkpoints, load_checkpoint, save_checkpoint
from latent_prior.training.metrics import Figures, Metrics, MetricsLog, Window, check_finite


@dataclass
class TrainState:
    """Everything a checkpoint holds.

    Attributes:
        parts: objects with a `state_dict`, by name.
        step: completed optimizer steps.
        seconds: wall-clock time of the steps, without evaluations and checkpoints.
        cpu_seconds: processor time of the steps, summed over the threads of this process.
    """

    parts: dict[str, Stateful]
    step: int = 0
    seconds: float = 0.0
    cpu_seconds: float = 0.0

    def state_dict(self) -> dict[str, Any]:
        """The counters; the parts are stored in files of their own."""
        return {"step": self.step, "seconds": self.seconds, "cpu_seconds": self.cpu_seconds}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """The inverse of `state_dict`."""
        self.step, self.seconds = state["step"], state["seconds"]
        self.cpu_seconds = state["cpu_seconds"]

    def budget(self, options: RunOptions, accelerator: Accelerator) -> Budget:
        """The cost of the training so far, for the config of the exported model."""
        device = accelerator.device
        return Budget(
            steps=self.step,
            images_seen=self.step * options.batch_size,
            seconds=round(self.seconds, 1),
            cpu_seconds=round(self.cpu_seconds, 1),
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
        evaluate: called every `evaluate_every` steps and at the end, by all processes; returns
            metrics.
        export: called after every checkpoint, by all processes.

    Raises:
        ValueError: the folder holds a run with other options, or a metric is not finite; the
            weights are then those before the bad step.
    """
    assert options.evaluate_every is not None
    run = Path(options.output_dir)
    resume(accelerator, run, state, options)
    log = MetricsLog(accelerator, run, options, start=state.step)
    start, finished = state.step, _out_of_time(state, options)
    window = Window()
    # On a CPU the step uses all cores, so a second thread of tensor work would only compete.
    stream = prefetch(batches(start), depth=0 if accelerator.device.type == "cpu" else 2)
    hidden = not accelerator.is_main_process
    with (
        contextlib.closing(stream),
        tqdm(total=options.max_steps, initial=start, unit="step", disable=hidden) as bar,
    ):
        while state.step < options.max_steps and not finished:
            started, cpu_started = time.monotonic(), time.process_time()
            for micro in range(options.accumulation_steps):
                torch.manual_seed(
                    derive_seed(options.seed, state.step, micro, accelerator.process_index)
                )
                window.add(step(next(stream)))
            state.step += 1
            bar.update()
            # Reading metrics on a GPU synchronises, so they are checked when they are logged.
            logging = state.step % options.log_every == 0 or state.step == options.max_steps
            if logging or accelerator.device.type == "cpu":
                check_finite(window.sums, state.step)
            state.seconds += time.monotonic() - started
            state.cpu_seconds += time.process_time() - cpu_started
            if logging:
                log.write(state.step, state.seconds, window.means(accelerator))
                window = Window()
            if logging or accelerator.num_processes == 1:
                finished = _out_of_time(state, options)
            finished = finished or state.step == options.max_steps
            if evaluate is not None and (finished or state.step % options.evaluate_every == 0):
                log.write(state.step, state.seconds, evaluate())
            if finished or state.step % options.checkpoint_every == 0:
                check_finite(window.sums, state.step)
                save(accelerator, run, state, options, export)
    if state.step == start and export is not None:
        export()  # the run may have been stopped between its last checkpoint and the export
        accelerator.wait_for_everyone()
    log.close()


def save(
    accelerator: Accelerator,
    run: Path,
    state: TrainState,
    options: RunOptions,
    export: Callable[[], None] | None,
) -> None:
    """Write a checkpoint and export; every process waits for both."""
    main = accelerator.is_main_process
    if main or accelerator.distributed_type == DistributedType.FSDP:
        parts = {"state": state, **state.parts}
        save_checkpoint(run, state.step, parts, keep=options.checkpoints_to_keep, writes=main)
    if export is not None:
        export()
    accelerator.wait_for_everyone()


def resume(accelerator: Accelerator, run: Path, state: TrainState, options: RunOptions) -> None:
    """Restore the newest checkpoint of the same run, if any, and write `config.yaml`.

    Raises:
        ValueError: the folder holds a run with other options, or its checkpoint is damaged.
    """
    config = run / "config.yaml"
    resolved = dump_config(options)
    found = checkpoints(run)
    if found:
        stored = dict(dotted(yaml.safe_load(config.read_text()))) if config.is_file() else {}
        check_same_settings(
            stored,
            dict(dotted(resolved)),
            f"--output_dir {run} holds a run",
            "choose another folder, or repeat the command with the same options to resume",
            may_change=changeable(options),
        )
        load_checkpoint(found[-1], {"state": state, **state.parts})
        if accelerator.is_main_process:
            print(f"resuming {run} at step {state.step}")
    if accelerator.is_main_process:
        with whole_file(config) as path:
            path.write_text(yaml.safe_dump(resolved, sort_keys=False))
    accelerator.wait_for_everyone()


def _out_of_time(state: TrainState, options: RunOptions) -> bool:
    """Whether a time limit is reached; the main process's clocks decide for all processes."""
    limits = ((state.seconds, options.max_seconds), (state.cpu_seconds, options.max_cpu_seconds))
    if all(limit is None for _, limit in limits):
        return False
    decision = [any(limit is not None and spent >= limit for spent, limit in limits)]
    return bool(broadcast_object_list(decision)[0])
