"""The line on stderr that says what a command does, how far it is, how fast, and the time left."""

from __future__ import annotations

import logging
import os
import sys
import time
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from types import TracebackType
from typing import NamedTuple, Self

from tqdm import tqdm

WINDOW = 20.0
"""Seconds of work over which the rate is measured."""
REDRAWN, REPEATED = 0.1, 30.0
"""Seconds between two forms of the line on a terminal, and between two lines elsewhere."""


class Limit(NamedTuple):
    """A budget besides the count, such as seconds."""

    spent: float
    budget: float


class Progress:
    """`training vqvae  412/1,400  29 %  1,180 images/s  0:01:23 left  total 0.0523`.

    A terminal shows one line that is redrawn; elsewhere a line is printed every `REPEATED` seconds
    and at the end. The end shows the time taken and the mean rate. Used as a context.

    Attributes:
        detail: the end of the line, such as a loss.
    """

    def __init__(
        self,
        what: str,
        total: int,
        *,
        shown: bool,
        start: int = 0,
        images: float = 1,
        unit: str = "images",
        processes: int = 1,
        limits: Sequence[Limit] = (),
    ) -> None:
        """Begin the line.

        Args:
            what: the work, such as `training vqvae`.
            total: what is counted: images, optimizer steps or settings.
            shown: False in all processes but one. It is also hidden while the messages of the
                package are: the logger `latent_prior` is enabled for INFO by scripts only.
            start: how much of it an earlier call has done.
            images: in each of what is counted.
            unit: in which the rate is told.
            processes: that share the work evenly, each counting its own part.
            limits: further budgets; whichever is used up first ends the work.
        """
        self.detail = ""
        shown = shown and logging.getLogger("latent_prior").isEnabledFor(logging.INFO)
        self._what, self._total, self._images, self._processes = what, total, images, processes
        self._done, self._unit = float(start), unit
        self._begun, self._worked, self._counted = time.monotonic(), 0.0, 0.0
        self._last = self._begun
        self._limits = limits
        # (seconds of work, what was spent of every budget by then), within the window
        self._recent = deque([(0.0, self._spent())])
        self._terminal = shown and _on_terminal()
        self._shown, self._every = shown, REDRAWN if self._terminal else REPEATED
        self._due = self._begun + (0 if self._terminal else REPEATED)
        self._bar = tqdm(
            bar_format="{desc}", dynamic_ncols=True, disable=not self._terminal, maxinterval=0
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if kind is None and self._processes > 1:
            self._done = float(self._total)  # even parts differ by a batch
        if self._shown:
            self._show()
        self._bar.close()

    def over(self, batches: Iterable[range]) -> Iterator[range]:
        """The same batches; each one counts when the next one is asked for."""
        with self:
            for batch in batches:
                yield batch
                self.advance(len(batch))

    def advance(
        self, count: int = 1, *, seconds: float | None = None, limits: Sequence[Limit] = ()
    ) -> None:
        """Count work that took some seconds, by default those since the last call.

        `limits` are those of the beginning, as they are now.
        """
        now = time.monotonic()
        count *= self._processes
        self._worked += now - self._last if seconds is None else seconds
        self._done = min(self._done + count, self._total)
        self._counted += count
        self._limits, self._last = limits, now
        self._sample()
        if self._shown and now >= self._due:
            self._show()
            self._due = now + self._every

    def skip(self, count: int) -> None:
        """Count what an earlier call has done: it took no time."""
        self._done = min(self._done + count * self._processes, self._total)
        self._recent = deque([(self._worked, self._spent())])
        self._last = time.monotonic()

    def _spent(self) -> list[float]:
        return [self._done, *(limit.spent for limit in self._limits)]

    def _sample(self) -> None:
        # Two hundred samples are enough, however fast the steps are.
        if len(self._recent) > 1 and self._worked - self._recent[-2][0] < WINDOW / 200:
            self._recent.pop()
        self._recent.append((self._worked, self._spent()))
        while len(self._recent) > 2 and self._worked - self._recent[1][0] > WINDOW:
            self._recent.popleft()

    def _show(self) -> None:
        if self._terminal:
            self._bar.set_description_str(str(self))
        else:
            tqdm.write(str(self), file=sys.stderr)

    def __str__(self) -> str:
        """The line as it is now."""
        budgets = [Limit(self._done, self._total), *self._limits]
        share = max((spent / budget for spent, budget in budgets if budget), default=1.0)
        parts = [
            self._what,
            f"{self._done:,.0f}/{self._total:,}",
            f"{min(100, int(100 * share))} %",
        ]
        if share >= 1:
            rate = self._counted / self._worked if self._worked else 0.0
            ending = f"in {clock(time.monotonic() - self._begun)}"
        else:
            rates = self._rates()
            rate = rates[0]
            # Evaluations and checkpoints will take their share of the time as before.
            others = max(1.0, (time.monotonic() - self._begun) / max(self._worked, 1e-9))
            waits = [
                others * (budget - spent) / speed
                for (spent, budget), speed in zip(budgets, rates, strict=True)
                if speed > 0
            ]
            ending = f"{clock(min(waits))} left" if waits else ""
        if rate > 0:
            rate *= self._images
            parts.append(
                f"{rate:,.0f} {self._unit}/s" if rate >= 10 else f"{rate:.2g} {self._unit}/s"
            )
        return "  ".join(part for part in (*parts, ending, self.detail) if part)

    def _rates(self) -> list[float]:
        """How fast each budget is spent per second of work, over the window."""
        (first, before), (last, now) = self._recent[0], self._recent[-1]
        seconds = last - first
        if not seconds:
            return [0.0 for _ in now]
        return [(b - a) / seconds for a, b in zip(before, now, strict=True)]


def _on_terminal() -> bool:
    """Whether stderr is a terminal; that of a container may have no size, and shows no bar."""
    return sys.stderr.isatty() and os.get_terminal_size(sys.stderr.fileno()).columns > 0


def clock(seconds: float) -> str:
    """Hours, minutes and seconds: `0:01:23`."""
    minutes, seconds = divmod(round(seconds), 60)
    return f"{minutes // 60}:{minutes % 60:02}:{seconds:02}"
