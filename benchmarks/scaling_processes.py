"""Processes in which `scaling_check.py` measures: real trainings, a few steps at a time."""

from __future__ import annotations

import contextlib
import inspect
import os
import socket
import statistics
import struct
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing import get_context
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, NoReturn
from unittest.mock import patch

import torch
import torch.distributed as dist
from measuring import status
from stages import DRAWN
from torch import Tensor

from latent_prior import train_autoencoder, train_prior
from latent_prior.cli import parse_config
from latent_prior.data.images import to_float
from latent_prior.options import RunOptions
from latent_prior.stage1_autoencoders.options import TrainOptions as AutoencoderOptions
from latent_prior.stage2_prior.options import TrainOptions as PriorOptions
from latent_prior.stage2_prior.validation import codes_and_conditions
from latent_prior.training import loop
from latent_prior.training.checkpoint import save_checkpoint
from latent_prior.training.optim import update

STEPS = 3  # of a turn
REDUCED = 1 << 22  # numbers of an all-reduce
_ACKNOWLEDGED = 120  # place of tcpi_bytes_acked in Linux's tcp_info


@dataclass(frozen=True)
class Training:
    """A training that is not run from start to end.

    Attributes:
        name: by which a process is asked about it.
        kind: `autoencoder` or `prior`.
        words: its command line, without the run folder.
    """

    name: str
    kind: str
    words: list[str]


class _Captured(Exception):
    """Ends a training where its loop would begin."""


class _Taken:
    """The step of a training, its batches and its state."""

    def __init__(self, training: Training) -> None:
        self.kind = training.kind

        def take(
            accelerator: Any, step: Any, batches: Any, state: Any, options: Any, **_: Any
        ) -> NoReturn:
            self.accelerator, self.step, self.batches = accelerator, step, batches(0)
            self.state, self.options = state, options
            raise _Captured

        function: Any = train_prior
        options_class: type[RunOptions] = PriorOptions
        if training.kind == "autoencoder":
            function, options_class = train_autoencoder, AutoencoderOptions
        with (
            tempfile.TemporaryDirectory() as folder,
            patch.object(loop, "train", take),
            contextlib.suppress(_Captured),
        ):
            words = [*training.words, "--output_dir", f"{folder}/run"]
            inspect.unwrap(function)(
                parse_config(options_class, words)
            )  # leaves accelerate as it is
        self.step(next(self.batches))  # the first batch fills the codebook

    def train(self) -> float:
        """Processor seconds of a step."""
        self.state.parts["model"].train()
        return _seconds(lambda: self.step(next(self.batches)), STEPS)

    @torch.inference_mode()
    def encode(self) -> float:
        """Processor seconds of encoding a batch."""
        model, pixels = self.state.parts["model"].eval(), self._pixels()
        return _seconds(lambda: model.encode(pixels), STEPS)

    @torch.inference_mode()
    def decode(self) -> float:
        """Processor seconds of decoding a batch of codes."""
        model = self.state.parts["model"].eval()
        codes = model.encode(self._pixels())
        return _seconds(lambda: model.decode(codes), STEPS)

    def draw(self) -> float:
        """Processor seconds of drawing `DRAWN` images at guidance 1."""
        model = self.state.parts["model"].eval()
        return _seconds(lambda: model.sample(DRAWN), 1)

    def update(self) -> float:
        """Processor seconds of clipping, AdamW and the average."""
        model, ema = self.state.parts["model"], self.state.parts["ema"]
        optimizer = self.state.parts["optimizer"]
        loss = torch.zeros(())

        def step() -> None:
            update(self.accelerator, optimizer, model, loss=loss, step=1000, options=self.options)
            ema.update(model)

        seconds = []
        for _ in range(3 * STEPS):
            for parameter in model.parameters():
                parameter.grad = torch.ones_like(parameter)
            seconds.append(_seconds(step, 1))
        return statistics.median(seconds)

    def reduce(self) -> float:
        """Processor seconds of an all-reduce of `REDUCED` numbers."""
        numbers = torch.ones(REDUCED)
        return _seconds(lambda: dist.all_reduce(numbers), STEPS)

    def send(self) -> float:
        """Bytes that others have acknowledged, for a step."""
        before = _acknowledged()
        self.train()
        return (_acknowledged() - before) / STEPS

    def state_bytes(self) -> float:
        """Bytes of weights, gradients, moments and averages."""
        model = self.state.parts["model"]
        self._loss().backward()
        held = [*model.parameters(), *(p.grad for p in model.parameters() if p.grad is not None)]
        moments = self.state.parts["optimizer"].state_dict()["state"].values()
        held += [each for state in moments for each in state.values() if each.ndim > 0]
        held += self.state.parts["ema"].weights.values()
        return float(sum(each.nbytes for each in held))

    def checkpoint(self) -> float:
        """Bytes of the files of a checkpoint."""
        with tempfile.TemporaryDirectory() as folder:
            save_checkpoint(Path(folder), 1, {"state": self.state, **self.state.parts})
            return float(sum(each.stat().st_size for each in Path(folder).rglob("*.pt")))

    def forward(self) -> float:
        """Resident bytes that a forward pass leaves."""
        self._loss().backward()  # libraries' own buffers
        before = status("VmRSS")
        loss = self._loss()
        kept = status("VmRSS") - before
        loss.backward()
        return float(kept)

    def _loss(self) -> Tensor:
        model, batch = self.state.parts["model"], next(self.batches)
        if self.kind == "prior":
            codes, labels, text = codes_and_conditions(batch, torch.device("cpu"))
            loss: Tensor = model(codes, labels, text).loss
            return loss
        pixels = _as_float(batch)
        total: Tensor = model.objective(pixels, model(pixels), 1)["total"]
        return total

    def _pixels(self) -> Tensor:
        return _as_float(next(self.batches))


def _as_float(batch: Mapping[str, Tensor]) -> Tensor:
    """The images of a batch as a step sees them."""
    return to_float(batch["images"]).contiguous(memory_format=torch.channels_last)


_ANSWERS: Mapping[str, Callable[[_Taken], float]] = {
    "train": _Taken.train,
    "encode": _Taken.encode,
    "decode": _Taken.decode,
    "draw": _Taken.draw,
    "update": _Taken.update,
    "reduce": _Taken.reduce,
    "send": _Taken.send,
    "state": _Taken.state_bytes,
    "checkpoint": _Taken.checkpoint,
    "forward": _Taken.forward,
}


@contextmanager
def processes(
    number: int, trainings: Sequence[Training], environment: Mapping[str, str] | None = None
) -> Iterator[list[Connection]]:
    """Connections to so many processes that train together, as `torchrun` starts them."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        address = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(probe.getsockname()[1])}
    spawn, started, ours = get_context("spawn"), [], []
    common = {"ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1", **(environment or {})}
    for rank in range(number):
        here, there = spawn.Pipe()
        place = {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(number)}
        place |= {"LOCAL_WORLD_SIZE": str(number), **address} if number > 1 else {}
        process = spawn.Process(target=_serve, args=(there, list(trainings)), daemon=True)
        with patch.dict(os.environ, common | (place if number > 1 else {})):
            process.start()
        there.close()  # so that a process that dies is noticed
        started.append(process)
        ours.append(here)
    try:
        yield ours
    finally:
        for connection, process in zip(ours, started, strict=True):
            connection.send(None)
            process.join(30)
            process.kill()


def ask(connections: Sequence[Connection], what: str, name: str) -> float:
    """The mean of what processes answer, which work at the same time."""
    for connection in connections:
        connection.send((what, name))
    return statistics.mean(connection.recv() for connection in connections)


def _serve(connection: Connection, trainings: list[Training]) -> None:
    """Answer questions about trainings until there are no more."""
    taken = {training.name: _Taken(training) for training in trainings}
    while (asked := connection.recv()) is not None:
        what, name = asked
        connection.send(_ANSWERS[what](taken[name]))


def _seconds(call: Callable[[], object], times: int) -> float:
    """Processor seconds of a call, of all threads of this process."""
    started = time.process_time()
    for _ in range(times):
        call()
    return (time.process_time() - started) / times


def _acknowledged() -> int:
    """Bytes that the other ends of this process's TCP connections have acknowledged (Linux)."""
    total = 0
    for entry in list(Path("/proc/self/fd").iterdir()):
        try:
            number = os.dup(int(entry.name))
        except OSError:  # the listing's own
            continue
        try:
            with socket.socket(fileno=number) as found:
                info = found.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 256)
        except OSError:  # no socket, or one of another kind
            with contextlib.suppress(OSError):  # a socket has closed it
                os.close(number)
            continue
        total += struct.unpack_from("Q", info, _ACKNOWLEDGED)[0]
    return total
