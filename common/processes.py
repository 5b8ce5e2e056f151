"""Processes and threads: one call at the start of every entry script that computes."""

from __future__ import annotations

import os
import warnings

import torch
from accelerate import Accelerator, DistributedDataParallelKwargs
from accelerate.utils import set_seed
from transformers.utils import logging as transformers_logging

from common.machine import available_cores
from common.options import RunOptions


def start_processes(
    *,
    mixed_precision: str = "no",
    accumulation_steps: int = 1,
    cpu_threads: int | None = None,
    seed: int = 0,
) -> Accelerator:
    """Join the process group that the launcher describes, seed it, and give a CPU process its share of the cores.

    `accelerate launch` sets one thread on a CPU machine, which would leave the other cores idle.

    Args:
        mixed_precision: `no`, `fp16` or `bf16` autocast.
        accumulation_steps: micro-batches per optimizer step.
        cpu_threads: threads of this process; None divides the machine's cores by its processes.
        seed: seed of every random generator, the same in all processes.

    Raises:
        ValueError: several processes were started, but not in a way that lets them find each other; or
            an autocast type that the device computes wrongly.
    """
    # accelerate passes this argument on in every case; torch calls its name deprecated since 2.14.
    warnings.filterwarnings("ignore", message=".*broadcast_buffers", category=FutureWarning)
    # Codebook statistics are all-reduced by the quantizer; DDP's broadcast would overwrite them with rank 0's.
    accelerator = Accelerator(
        mixed_precision=mixed_precision,
        gradient_accumulation_steps=accumulation_steps,
        kwargs_handlers=[DistributedDataParallelKwargs(broadcast_buffers=False)],
        step_scheduler_with_optimizer=False,
    )
    if int(os.environ.get("WORLD_SIZE", "1")) > 1 and accelerator.num_processes == 1:
        raise ValueError(
            "several processes were started, but each stands alone and would overwrite the others' files; on a CPU "
            "start them with: ACCELERATE_USE_CPU=true torchrun --standalone --nproc_per_node 2 SCRIPT ..."
        )
    if accelerator.device.type == "cpu":
        if mixed_precision == "fp16":
            raise ValueError("--mixed_precision fp16 is not computed on a CPU; use no")
        if mixed_precision == "bf16":
            accelerator.print(
                "--mixed_precision bf16: most CPUs are many times slower with it than with no"
            )
        on_this_machine = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
        torch.set_num_threads(cpu_threads or max(1, available_cores() // on_this_machine))
    transformers_logging.disable_progress_bar()
    set_seed(seed)
    return accelerator


def start_training_processes(options: RunOptions) -> Accelerator:
    """`start_processes` with what a training run's options say."""
    return start_processes(
        mixed_precision=options.mixed_precision,
        accumulation_steps=options.accumulation_steps,
        cpu_threads=options.cpu_threads,
        seed=options.seed,
    )
