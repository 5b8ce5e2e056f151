"""Processes and threads: every script that computes calls this module once, at its start."""

from __future__ import annotations

import logging
import os
import warnings
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import TypeVar

import torch
from accelerate import Accelerator, DistributedDataParallelKwargs
from accelerate.utils import DistributedType, broadcast_object_list, set_seed
from torch.distributed.fsdp import MixedPrecisionPolicy
from transformers.utils import logging as transformers_logging

from latent_prior.files import check_folder_path
from latent_prior.machine import available_cores
from latent_prior.options import RunOptions
from latent_prior.stopping import left_to_the_system

_log = logging.getLogger("latent_prior")
T = TypeVar("T")


def start_processes(
    *,
    mixed_precision: str = "no",
    accumulation_steps: int = 1,
    cpu_threads: int | None = None,
    seed: int = 0,
) -> Accelerator:
    """Join the launcher's process group, set the seed and, on a CPU, the number of threads.

    `accelerate launch` sets one thread per process on a CPU, which leaves other cores idle.

    Args:
        mixed_precision: `no`, `fp16` or `bf16` autocast.
        accumulation_steps: micro-batches per optimizer step.
        cpu_threads: threads of this process; None divides the cores among the local processes.
        seed: of all global random generators, the same in all processes.

    Raises:
        ValueError: several processes that do not form a group, DeepSpeed, or fp16 on a CPU.
    """
    if os.environ.get("ACCELERATE_USE_DEEPSPEED", "false").lower() == "true":
        # Its engine steps before the learning rate is set and loads its checkpoints by unpickling.
        raise ValueError(
            "DeepSpeed is not supported; FSDP shards as much: use docs/accelerate/fsdp.yaml as the Accelerate config"
        )
    # accelerate always passes this argument, whose name torch deprecates since 2.14.
    warnings.filterwarnings("ignore", message=".*broadcast_buffers", category=FutureWarning)
    # The quantizer all-reduces its statistics; a broadcast would overwrite them with rank 0's.
    several = int(os.environ.get("WORLD_SIZE", "1")) > 1
    # They may wait for each other for half an hour.
    with left_to_the_system() if several else nullcontext():
        accelerator = Accelerator(
            mixed_precision=mixed_precision,
            gradient_accumulation_steps=accumulation_steps,
            kwargs_handlers=[
                DistributedDataParallelKwargs(broadcast_buffers=False, gradient_as_bucket_view=True)
            ],
            step_scheduler_with_optimizer=False,
        )
    if several and accelerator.num_processes == 1:
        raise ValueError(
            "several processes were started, but they do not form a group and would overwrite each other's files; on a CPU "
            "start them with: ACCELERATE_USE_CPU=true torchrun --standalone --nproc_per_node 2 SCRIPT ..."
        )
    if accelerator.device.type == "cpu":
        if mixed_precision == "fp16":
            raise ValueError("--mixed_precision fp16 is not computed on a CPU; use no")
        if mixed_precision == "bf16" and accelerator.is_main_process:
            _log.warning(
                "--mixed_precision bf16: most CPUs are many times slower with it than with no"
            )
        on_this_machine = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
        torch.set_num_threads(cpu_threads or max(1, available_cores() // on_this_machine))
    transformers_logging.disable_progress_bar()
    set_seed(seed)
    return accelerator


def start_training_processes(options: RunOptions, *, sharding: bool = False) -> Accelerator:
    """`start_processes` for a training run, which may support sharded weights (FSDP).

    Raises:
        ValueError: as `start_processes`, for unsupported sharding in the Accelerate config, or for
            a run folder that cannot be one.
    """
    check_folder_path(Path(options.output_dir), "--output_dir ")
    accelerator = start_processes(
        mixed_precision=options.mixed_precision,
        accumulation_steps=options.accumulation_steps,
        cpu_threads=options.cpu_threads,
        seed=options.seed,
    )
    if accelerator.distributed_type == DistributedType.FSDP:
        _check_sharding(accelerator, sharding)
    return accelerator


def _check_sharding(accelerator: Accelerator, sharding: bool) -> None:
    """Check and complete the sharding of the Accelerate config."""
    if not sharding:
        raise ValueError(
            "this training does not shard its weights: leave FSDP out of the Accelerate config"
        )
    plugin = accelerator.state.fsdp_plugin
    refused = {
        "fsdp_version 1 (take 2)": plugin.fsdp_version == 1,
        "--mixed_precision fp16 (take bf16)": accelerator.mixed_precision == "fp16",
        # It renames the parameters.
        "fsdp_activation_checkpointing (take --model.gradient_checkpointing)": plugin.activation_checkpointing,
        # It expects every tensor of the model to be sharded.
        "fsdp_cpu_ram_efficient_loading (leave it out)": plugin.cpu_ram_efficient_loading,
    }
    for setting, chosen in refused.items():
        if chosen:
            raise ValueError(f"sharded weights do not go with {setting}")
    # torch warns about in-place writes to outputs that are views; there are none here.
    warnings.filterwarnings("ignore", message="FSDP2-wrapped module", category=UserWarning)
    # Accelerate would cast weights and outputs, losses included; autocast is more selective.
    plugin.mixed_precision_policy = MixedPrecisionPolicy()


def from_main(accelerator: Accelerator, function: Callable[[], T]) -> T:
    """What a function returns on the main process, for all processes, which must all call it.

    Raises:
        ValueError: as the function; in all processes.
    """
    outcome: list[T | ValueError | None] = [None]
    if accelerator.is_main_process:
        try:
            outcome = [function()]
        except ValueError as error:
            outcome = [error]
    found: T | ValueError = broadcast_object_list(outcome)[0]
    if isinstance(found, ValueError):
        raise found
    return found


def share(count: int, size: int, accelerator: Accelerator) -> list[range]:
    """This process's consecutive batches of the numbers 0 .. count - 1.

    The batches of all processes, one process after the other, are those of a single process.
    """
    starts = range(0, count, size)
    rank, processes = accelerator.process_index, accelerator.num_processes
    first, last = (len(starts) * r // processes for r in (rank, rank + 1))
    return [range(start, min(start + size, count)) for start in starts[first:last]]
