"""The one training loop: it owns *when*; the script that calls it owns *what*, in its visible `step`.

Data order, learning rate, augmentation and dropout are pure functions of (seed, step), so resuming is running the
same command again: the run continues from its newest checkpoint and, on a CPU, gives the same bits.
"""

from __future__ import annotations

import contextlib
import itertools
import queue
import threading
import time
from collections.abc import Callable, Generator, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import torch
import yaml
from accelerate import Accelerator
from accelerate.utils import DistributedType, broadcast_object_list
from torch import Tensor
from tqdm import tqdm

from common.checkpoint import Stateful, checkpoints, load_checkpoint, save_checkpoint, whole_file
from common.cli import dotted, dump_config
from common.metrics import Figures, Metrics, MetricsLog, Window, check_finite
from common.options import RunOptions
from common.pretrained import Budget
from common.seeds import derive_seed, generator

Batch = dict[str, Tensor]
T = TypeVar("T")

# What may change between two calls of the same run: when it ends, what it reports, and how fast it is.
_MAY_CHANGE = {
    "output_dir", "max_steps", "max_seconds", "max_cpu_seconds", "log_every", "evaluate_every", "checkpoint_every",
    "checkpoints_to_keep", "report_to", "cpu_threads", "cache_mb", "accumulation_steps",
}  # fmt: skip


@dataclass
class TrainState:
    """What a checkpoint holds: the counter, the time spent, and every part that learns or counts.

    Attributes:
        parts: what has a `state_dict`, by name.
        step: completed optimizer steps.
        seconds: spent on steps by the clock; evaluation and checkpoints are not training.
        cpu_seconds: processor time of the same, over the threads of this process.
    """

    parts: dict[str, Stateful]
    step: int = 0
    seconds: float = 0.0
    cpu_seconds: float = 0.0

    def state_dict(self) -> dict[str, Any]:
        """The counters; the parts are stored beside them."""
        return {"step": self.step, "seconds": self.seconds, "cpu_seconds": self.cpu_seconds}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """The inverse of `state_dict`."""
        self.step, self.seconds = state["step"], state["seconds"]
        self.cpu_seconds = state["cpu_seconds"]

    def budget(self, options: RunOptions, accelerator: Accelerator) -> Budget:
        """What the training has cost so far, for the config of the model it exports."""
        gpu = accelerator.device.type == "cuda"
        return Budget(
            steps=self.step,
            images_seen=self.step * options.batch_size,
            seconds=round(self.seconds, 1),
            cpu_seconds=round(self.cpu_seconds, 1),
            device=torch.cuda.get_device_name(accelerator.device)
            if gpu
            else accelerator.device.type,
            num_processes=accelerator.num_processes,
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
        accelerator: from `common.processes.start_processes`.
        step: forward, losses, backward and optimizer step on one micro-batch; returns scalar tensors.
        batches: micro-batches from a given step on, `options.accumulation_steps` of them per step.
        state: the parts to save and restore.
        options: `evaluate_every` must be a number here.
        evaluate: called every `evaluate_every` steps and at the end; returns metrics. All processes call it.
        export: called after every checkpoint. All processes call it.

    Raises:
        ValueError: the folder holds a run with other options, or a metric is not finite; the weights are then those
            before the bad step.
    """
    assert options.evaluate_every is not None
    run = Path(options.output_dir)
    resume(accelerator, run, state, options)
    log = MetricsLog(accelerator, run, options, start=state.step)
    start, finished = state.step, _out_of_time(accelerator, state, options)
    window = Window()
    # A CPU's cores are all busy with the step: a second thread of tensor work would only fight for them.
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
            # A CPU has nothing to wait for, so a bad step is noticed at once; elsewhere when the log is written.
            logging = state.step % options.log_every == 0 or state.step == options.max_steps
            if logging or accelerator.device.type == "cpu":
                check_finite(window.sums, state.step)
            state.seconds += time.monotonic() - started
            state.cpu_seconds += time.process_time() - cpu_started
            if logging:
                log.write(state.step, state.seconds, window.means(accelerator))
                window = Window()
            if logging or accelerator.num_processes == 1:
                finished = _out_of_time(accelerator, state, options)
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
    """Checkpoint and export; every process waits until both are on disk."""
    main = accelerator.is_main_process
    if main or accelerator.distributed_type == DistributedType.FSDP:
        parts = {"state": state, **state.parts}
        save_checkpoint(run, state.step, parts, keep=options.checkpoints_to_keep, writes=main)
    if export is not None:
        export()
    accelerator.wait_for_everyone()


def resume(accelerator: Accelerator, run: Path, state: TrainState, options: RunOptions) -> None:
    """Check that the folder belongs to this run, restore its newest checkpoint, and write `config.yaml`.

    Raises:
        ValueError: the folder holds a run with other options, or its checkpoint is damaged.
    """
    config = run / "config.yaml"
    resolved = dump_config(options)
    found = checkpoints(run)
    if found:
        before = dict(dotted(yaml.safe_load(config.read_text()))) if config.is_file() else {}
        for name, value in dotted(resolved):
            if name not in _MAY_CHANGE and before.get(name) != value:
                raise ValueError(
                    f"{run} holds a run with {name} = {before.get(name)!r}, this command says {value!r}: "
                    "choose another --output_dir, or the same options to resume"
                )
        load_checkpoint(found[-1], {"state": state, **state.parts})
        if accelerator.is_main_process:
            print(f"resuming {run} at step {state.step}")
    if accelerator.is_main_process:
        with whole_file(config) as path:
            path.write_text(yaml.safe_dump(resolved, sort_keys=False))
    accelerator.wait_for_everyone()


def index_batches(
    start: int, *, size: int, options: RunOptions, accelerator: Accelerator
) -> Iterator[tuple[int, Tensor, slice]]:
    """Which images this process sees: (step, indices of its micro-batch, their place in the step's whole batch).

    Epoch after epoch is a new permutation, drawn from (seed, epoch); batches run on over the ends of epochs, so every
    image is seen equally often, whatever the batch size. The whole batch of a step does not depend on the number of
    processes or micro-batches.

    Raises:
        ValueError: the batch cannot be shared out evenly.
    """
    share = even_share(options, accelerator)
    epochs: dict[int, Tensor] = {}
    for step in itertools.count(start):
        numbers = torch.arange(step * options.batch_size, (step + 1) * options.batch_size)
        first, last = int(numbers[0]) // size, int(numbers[-1]) // size
        epochs = {
            epoch: epochs[epoch]
            if epoch in epochs
            else torch.randperm(size, generator=generator(options.seed, epoch))
            for epoch in range(first, last + 1)
        }
        # A piece of each epoch: joining whole permutations would copy a million numbers at every step.
        whole = torch.cat(
            [epochs[epoch][numbers[numbers // size == epoch] - epoch * size] for epoch in epochs]
        )
        for micro in range(options.accumulation_steps):
            begin = (micro * accelerator.num_processes + accelerator.process_index) * share
            place = slice(begin, begin + share)
            yield step, whole[place], place


def even_share(options: RunOptions, accelerator: Accelerator) -> int:
    """Images of a micro-batch on one process.

    Raises:
        ValueError: the batch cannot be shared out evenly.
    """
    parts = accelerator.num_processes * options.accumulation_steps
    if options.batch_size % parts:
        raise ValueError(
            f"--batch_size {options.batch_size} cannot be shared out evenly over {accelerator.num_processes} processes "
            f"and --accumulation_steps {options.accumulation_steps}"
        )
    return options.batch_size // parts


def shares(count: int, accelerator: Accelerator, size: int = 128) -> Iterator[Tensor]:
    """This process's share of the indices 0 .. count - 1, in batches that do not depend on the number of processes."""
    yield from torch.arange(count).split(size)[
        accelerator.process_index :: accelerator.num_processes
    ]


def prefetch(items: Iterator[T], depth: int = 2) -> Generator[T, None, None]:
    """The same items, prepared ahead by a thread while the caller computes; closing it ends the thread.

    A depth of 0 prepares each item when it is asked for, without a thread.
    """
    if depth == 0:
        yield from items
        return
    ready: queue.Queue[tuple[list[T], BaseException | None]] = queue.Queue(depth)
    stopped = threading.Event()

    def put(item: list[T], error: BaseException | None = None) -> None:
        while not stopped.is_set():
            with contextlib.suppress(queue.Full):
                ready.put((item, error), timeout=0.1)
                return

    def fill() -> None:
        try:
            for item in items:
                put([item])
                if stopped.is_set():
                    return
            put([])
        except BaseException as error:
            put([], error)

    thread = threading.Thread(target=fill, daemon=True)
    thread.start()
    try:
        while True:
            item, error = ready.get()
            if error is not None:
                raise error
            if not item:
                return
            yield item[0]
    finally:
        stopped.set()
        thread.join()


def _out_of_time(accelerator: Accelerator, state: TrainState, options: RunOptions) -> bool:
    """The main process' clocks decide for all."""
    limits = ((state.seconds, options.max_seconds), (state.cpu_seconds, options.max_cpu_seconds))
    if all(limit is None for _, limit in limits):
        return False
    decision = [any(limit is not None and spent >= limit for spent, limit in limits)]
    return (
        bool(broadcast_object_list(decision)[0]) if accelerator.num_processes > 1 else decision[0]
    )
