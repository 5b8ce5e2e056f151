"""What a second of this machine is worth: a fixed load, timed by the clock that trainings are.

    python benchmarks/reference_load.py --cpu_threads 1

The load is a matrix product and a convolution in float32, forward and backward, of the sizes in a
small training step. 40 loads are a reference second, about a processor second on one core of an
Intel Xeon with AVX-512. Another machine, or a busier one, takes more or fewer seconds for it, so
budgets in reference seconds can be compared between machines.
"""

from __future__ import annotations

from dataclasses import dataclass

from measuring import MeasuringOptions, write_json
from plans import LOADS_PER_SECOND

from latent_prior.cli import answer_early, parse_config, run
from latent_prior.options import ComputeOptions, option


@dataclass(kw_only=True)
class ReferenceLoadOptions(MeasuringOptions, ComputeOptions):
    """Time the reference load."""

    repetitions: int = option(60, at_least=1)
    """Loads that are timed; the result is their median."""


answer_early(__name__, ReferenceLoadOptions)

import statistics
import time

import torch
from torch.nn import functional

from latent_prior.processes import start_processes

WARM_UP = 5


def seconds_per_load(repetitions: int, device: torch.device) -> float:
    """Median of processor seconds (wall-clock seconds on an accelerator)."""
    generator = torch.Generator().manual_seed(0)

    def tensor(*shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=generator).to(device).requires_grad_()

    rows, matrix = tensor(1024, 256), tensor(256, 1024)
    images, kernel = tensor(16, 32, 28, 28), tensor(32, 32, 3, 3)
    clock = time.process_time if device.type == "cpu" else time.monotonic
    times = []
    for _ in range(WARM_UP + repetitions):
        started = clock()
        loss = (rows @ matrix).square().mean()
        loss = loss + functional.conv2d(images, kernel, padding=1).square().mean()
        loss.item()  # waits for an accelerator
        torch.autograd.grad(loss, (rows, matrix, images, kernel))[0].sum().item()
        times.append(clock() - started)
    return statistics.median(times[WARM_UP:])


def main() -> None:
    """Entry point."""
    options = parse_config(ReferenceLoadOptions)
    accelerator = start_processes(cpu_threads=options.cpu_threads, seed=0)
    seconds = seconds_per_load(options.repetitions, accelerator.device)
    print(
        f"{1000 * seconds:.2f} ms per load, {LOADS_PER_SECOND * seconds:.3f} s per reference second"
    )
    write_json(options.output, {"seconds_per_load": seconds})


if __name__ == "__main__":
    run(main)
