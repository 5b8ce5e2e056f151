"""SIGINT and SIGTERM end a script with exit code 130 or 143, in one line without a traceback.

The first signal raises `Stopped`, or is noted by a training, which finishes its step and saves. The
second one ends the process at once.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import NoReturn

from latent_prior.machine import is_main_process

_SIGNALS = (signal.SIGINT, signal.SIGTERM)
_ECHO = 1.0  # seconds within which a launcher passes on a signal that the terminal sent to all


class Stopped(BaseException):
    """A signal asked the script to end; like SystemExit it is no Exception."""

    def __init__(self, number: int, done: str = "") -> None:
        """`done` says how far the script came, for the line that `end` prints."""
        self.number, self.done = number, done


class Request:
    """Whether a signal has come: its number, or 0."""

    number = 0


def end(program: str, number: int, done: str = "") -> int:
    """Say that a signal ended the program; returns its exit code."""
    if is_main_process():
        name = signal.Signals(number).name
        print(
            f"{program}: stopped by {name}{done and ' '}{done}; repeat the command to go on",
            file=sys.stderr,
            flush=True,
        )
    return 128 + number


def end_at_once(program: str) -> None:
    """From now on a signal ends the process; for imports, during which nothing is written."""

    def leave(number: int) -> NoReturn:
        os._exit(end(program, number))

    _handle(leave)


def exit_when_stopped(main: Callable[[], object], program: str) -> None:
    """Call `main`, in which the first signal raises `Stopped`.

    Raises:
        SystemExit: code 130 or 143, after one line, if a signal ended it.
    """
    request = Request()

    def stop(number: int) -> NoReturn:
        request.number = number
        raise Stopped(number)

    with _handled(stop):
        try:
            main()
        except Stopped as stopped:
            raise SystemExit(end(program, stopped.number, stopped.done)) from None
        except Exception:
            if request.number:  # a library has turned the interruption into an error
                raise SystemExit(end(program, request.number)) from None
            raise


@contextmanager
def postponed() -> Iterator[Request]:
    """Within the block the first signal only sets the request's number."""
    request = Request()

    def note(number: int) -> None:
        request.number = number

    with _handled(note):
        yield request


@contextmanager
def left_to_the_system() -> Iterator[None]:
    """Within the block a signal ends the process at once, even in a call that never returns."""
    handlers: dict[signal.Signals, signal._HANDLER] = {}
    if threading.current_thread() is threading.main_thread():
        for number in _SIGNALS:
            handler = signal.getsignal(number)
            if callable(handler):
                handlers[number] = handler
                signal.signal(number, signal.SIG_DFL)
    try:
        yield
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)


@contextmanager
def _handled(first: Callable[[int], object]) -> Iterator[None]:
    before = _handle(first)
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _handle(first: Callable[[int], object]) -> dict[signal.Signals, signal._HANDLER]:
    """Call `first` at the first signal and end at the second; returns the handlers before.

    An ignored signal, as under nohup, stays ignored. Only the main thread can set handlers. Outside
    of a script, as in a notebook, a second SIGINT raises KeyboardInterrupt.
    """
    if threading.current_thread() is not threading.main_thread():
        return {}
    before = {number: signal.getsignal(number) for number in _SIGNALS}
    handled: dict[signal.Signals, signal._HANDLER] = {
        n: h for n, h in before.items() if h not in (signal.SIG_IGN, None)
    }
    since: list[float] = []

    def handler(number: int, _: FrameType | None) -> None:
        launched = int(os.environ.get("WORLD_SIZE", "1")) > 1
        if since and launched and time.monotonic() - since[0] < _ECHO:
            return
        if since or not launched:
            # With the system's own handlers, the next signal ends even a call that never returns.
            for each, handler_before in handled.items():
                at_once = handler_before != signal.default_int_handler
                signal.signal(each, signal.SIG_DFL if at_once else handler_before)
        if since:
            os.kill(os.getpid(), number)
        since.append(time.monotonic())
        first(number)

    for number in handled:
        signal.signal(number, handler)
    return handled
