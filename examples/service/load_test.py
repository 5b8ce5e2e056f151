"""Many clients at once against the service, beside a service that samples one image at a time.

    python examples/service/load_test.py --pipeline runs/demo/pipeline

Each client asks for one image, waits for it and asks for the next. Both services run all the time
and are measured in turn, several times, so that other work on the machine meets both.
"""

from __future__ import annotations

from dataclasses import dataclass

from latent_prior.cli import answer_early, parse_config, run
from latent_prior.options import ComputeOptions, option


@dataclass(kw_only=True)
class LoadOptions(ComputeOptions):
    """Measure the service under load and compare its images with the pipeline's own."""

    pipeline: str = option(path=True)
    """Folder or hub id of the pipeline."""
    url: str | None = None
    """A service of this pipeline that is running; null starts two, of which one does not batch."""
    clients: int = option(16, at_least=1)
    """Requests that are under way at any time."""
    seconds: float = option(10.0, above=0)
    """Seconds that each service is measured in each round."""
    rounds: int = option(3, at_least=1)
    """How often each service is measured."""
    max_batch: int = option(16, at_least=1)
    """Images that the service samples at a time."""
    prompts: list[str] | None = None
    """What to ask of a pipeline that takes prompts."""
    checked: int = option(32, at_least=1)
    """Images that are sampled again by the pipeline itself."""


answer_early(__name__, LoadOptions)

import asyncio
import io
import itertools
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from statistics import median
from typing import Any

import httpx
import numpy as np
import torch
from PIL import Image

from latent_prior import Pipeline
from latent_prior.machine import available_cores


@dataclass
class Answer:
    """What was asked, the PNG file that came, and after how many seconds."""

    asked: dict[str, Any]
    png: bytes
    latency: float


async def load(
    client: httpx.AsyncClient, clients: int, seconds: float, wishes: Iterator[dict[str, Any]]
) -> list[Answer]:
    """Ask for `wishes` with `clients` requests at a time; the answers within these seconds."""
    start = time.monotonic()
    came: list[Answer] = []

    async def ask_on() -> None:
        while (begun := time.monotonic()) < start + seconds:
            asked = next(wishes)
            response = await client.post("/generate", json=asked)
            response.raise_for_status()
            ended = time.monotonic()
            if ended <= start + seconds:
                came.append(Answer(asked, response.content, ended - begun))

    await asyncio.gather(*(ask_on() for _ in range(clients)))
    return came


def health_of(url: str) -> dict[str, Any]:
    """What a service says of itself.

    Raises:
        ValueError: there is none.
    """
    try:
        health: dict[str, Any] = httpx.get(f"{url}/health").raise_for_status().json()
    except httpx.HTTPError as error:
        raise ValueError(
            f"no service answers at {url}: start one, or leave --url out ({error})"
        ) from error
    return health


def wishes_of(health: dict[str, Any], prompts: Sequence[str] | None) -> Iterator[dict[str, Any]]:
    """Requests with rising seeds, for all classes or prompts in turn.

    Raises:
        ValueError: the pipeline takes prompts and there are none, or the reverse.
    """
    if health["takes_prompts"] != bool(prompts):
        needs = "takes" if health["takes_prompts"] else "takes no"
        raise ValueError(f"this pipeline {needs} prompts: mend --prompts")
    kind, values = ("prompt", prompts) if prompts else ("label", health["classes"] or [-1])
    assert values is not None
    for seed, value in enumerate(itertools.cycle(values)):
        yield {kind: value, "seed": seed}


@contextmanager
def service(options: LoadOptions, max_batch: int) -> Iterator[str]:
    """The URL of a service of this pipeline in a process of its own."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    flags = {
        "pipeline": options.pipeline,
        "port": port,
        "max_batch": max_batch,
        "max_waiting": 2 * options.clients,
        "timeout": 600,
        "cpu_threads": options.cpu_threads or available_cores(),
    }
    words = [f"--{name}={value}" for name, value in flags.items()]
    command = [sys.executable, str(Path(__file__).with_name("app.py")), *words]
    url = f"http://127.0.0.1:{port}"
    with subprocess.Popen(command, stdout=subprocess.DEVNULL) as process:
        try:
            while process.poll() is None and not listens(port):
                time.sleep(0.2)
            yield url
        finally:
            process.terminate()


def listens(port: int) -> bool:
    """Whether a server of this machine takes connections."""
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


def differences(pipe: Pipeline, came: Sequence[Answer]) -> list[int]:
    """The largest difference, in grey levels, of each image from the pipeline's own."""
    found = []
    for answer in came:
        named = {"prompt": "prompt", "label": "labels"}
        wish = {named[key]: value for key, value in answer.asked.items() if key in named}
        own = np.asarray(pipe(generator=answer.asked["seed"], **wish).images[0], dtype=int)
        served = np.asarray(Image.open(io.BytesIO(answer.png)), dtype=int)
        found.append(int(np.abs(own - served).max()))
    return found


def report(name: str, came: Sequence[Answer], seconds: float) -> float:
    """Print latencies and images per second of one measurement; returns the latter."""
    p50, p95 = np.percentile([answer.latency for answer in came], (50, 95))
    rate = len(came) / seconds
    print(f"{name:14} p50 {p50:6.3f} s   p95 {p95:6.3f} s   {rate:7.1f} images/s", flush=True)
    return rate


async def measure(url: str, options: LoadOptions, wishes: Iterator[dict[str, Any]]) -> list[Answer]:
    """One measurement of one service."""
    async with httpx.AsyncClient(base_url=url, timeout=None) as client:
        return await load(client, options.clients, options.seconds, wishes)


def main(argv: Sequence[str] | None = None) -> None:
    """Entry point.

    Raises:
        ValueError: the options are wrong, the service does not start or its images differ from the
            pipeline's.
    """
    options = parse_config(LoadOptions, argv)
    torch.set_num_threads(options.cpu_threads or available_cores())
    with ExitStack() as services:
        if options.url is not None:
            urls = {"service": options.url}
        else:
            urls = {
                f"max_batch {batch}": services.enter_context(service(options, batch))
                for batch in (options.max_batch, 1)
            }
        wishes = wishes_of(health_of(next(iter(urls.values()))), options.prompts)
        measured: dict[str, list[Answer]] = {name: [] for name in urls}
        ratios = []
        for _ in range(options.rounds):
            rates = []
            for name, url in urls.items():
                came = asyncio.run(measure(url, options, wishes))
                rates.append(report(name, came, options.seconds))
                measured[name] += came
            ratios.append(rates[0] / rates[-1])
    print("all rounds:")
    for name, came in measured.items():
        report(name, came, options.seconds * options.rounds)
    if len(urls) > 1:
        print(f"ratio          {median(ratios):.1f} ({min(ratios):.1f} to {max(ratios):.1f})")
    every = [answer for came in measured.values() for answer in came]
    checked = every[:: max(1, len(every) // options.checked)][: options.checked]
    off = differences(Pipeline.from_pretrained(options.pipeline), checked)
    print(f"{off.count(0)} of {len(off)} images are the pipeline's own, bit for bit")
    if max(off) > 1:
        raise ValueError(f"an image differs from the pipeline's own by {max(off)} grey levels")


if __name__ == "__main__":
    run(main)
