"""The line of progress, with a clock that the test moves."""

import fcntl
import os
import pty
import struct
import sys
import termios
from types import SimpleNamespace

import pytest

from latent_prior import progress
from latent_prior.progress import Limit, Progress, clock


@pytest.fixture(autouse=True)
def messages(caplog):
    """The line is hidden while messages are."""
    caplog.set_level("INFO", "latent_prior")


@pytest.fixture
def now(monkeypatch):
    """The clock; its `seconds` are what the line believes."""
    clock = SimpleNamespace(seconds=100.0)
    monkeypatch.setattr(progress, "time", SimpleNamespace(monotonic=lambda: clock.seconds))
    return clock


def test_the_line_says_what_how_far_how_fast_and_how_long(now):
    line = Progress("training vqvae", 1400, shown=False, images=64)
    for _ in range(412):
        now.seconds += 0.05
        line.advance(seconds=0.05)
    line.detail = "total 0.0523"
    assert (
        str(line) == "training vqvae  412/1,400  29 %  1,280 images/s  0:00:49 left  total 0.0523"
    )


def test_evaluations_do_not_slow_the_rate_but_take_their_share_of_the_time_left(now):
    line = Progress("training", 100, shown=False, images=10)
    for step in range(1, 51):
        now.seconds += 1
        line.advance(seconds=1)
        if step % 10 == 0:
            now.seconds += 10
    assert str(line) == "training  50/100  50 %  10 images/s  0:01:40 left"


def test_the_rate_is_that_of_the_last_seconds(now):
    line = Progress("encoding", 10_000, shown=False)
    for seconds in [1.0] * 100 + [0.1] * 1000:
        now.seconds += seconds
        line.advance(2)
    assert "2,200/10,000  22 %  20 images/s  0:06:30 left" in str(line)


def test_a_resumed_run_begins_where_it_stopped_and_is_as_fast_as_it_is(now):
    line = Progress("training", 100, shown=False, start=90)
    assert str(line) == "training  90/100  90 %"
    now.seconds += 4
    line.advance(2)
    assert str(line) == "training  92/100  92 %  0.5 images/s  0:00:16 left"
    line.skip(4)
    now.seconds += 1
    line.advance()
    assert str(line) == "training  97/100  97 %  1 images/s  0:00:03 left"


@pytest.mark.parametrize(("budget", "share", "left"), [(100, 20, "0:01:20"), (1000, 10, "0:03:00")])
def test_what_is_used_up_first_ends_the_work(now, budget, share, left):
    line = Progress("training", 100, shown=False, limits=[Limit(0, budget)])
    for step in range(1, 11):
        now.seconds += 2
        line.advance(seconds=2, limits=[Limit(2 * step, budget)])
    assert f"  {share} %  " in str(line)
    assert f"  {left} left" in str(line)


def test_a_budget_of_a_resumed_run_is_spent_at_its_speed(now):
    limits = [Limit(3.0, 60.0), Limit(50.0, 100.0)]  # seconds, processor seconds of two threads
    line = Progress("training", 10**6, shown=False, start=7, limits=limits)
    now.seconds += 10
    line.advance(5, seconds=10, limits=[Limit(13.0, 60.0), Limit(70.0, 100.0)])
    assert str(line) == "training  12/1,000,000  70 %  0.5 images/s  0:00:15 left"


def test_at_the_end_it_says_how_long_it_took(now, capsys):
    with Progress("encoding", 60, shown=True) as line:
        for _ in range(3):
            now.seconds += 2
            line.advance(20)
    assert capsys.readouterr().err == "encoding  60/60  100 %  10 images/s  in 0:00:06\n"


def test_processes_share_the_work(now):
    with Progress("scoring", 99, shown=False, processes=2) as line:
        now.seconds += 1
        line.advance(20)
        assert str(line) == "scoring  40/99  40 %  40 images/s  0:00:01 left"
        now.seconds += 1
        line.advance(29)
    assert "99/99  100 %" in str(line)


def test_elsewhere_than_on_a_terminal_a_line_appears_now_and_then(now, capsys):
    with Progress("generating", 100, shown=True) as line:
        for _ in range(100):
            now.seconds += 1
            line.advance()
    said = capsys.readouterr().err
    assert "\r" not in said
    assert [text.split()[1] for text in said.splitlines()] == [
        "30/100", "60/100", "90/100", "100/100",
    ]  # fmt: skip


@pytest.mark.parametrize("width", [40, 80])
def test_a_terminal_shows_one_line_that_fits(now, monkeypatch, width):
    reader, writer = pty.openpty()
    fcntl.ioctl(writer, termios.TIOCSWINSZ, struct.pack("HHHH", 24, width, 0, 0))
    with os.fdopen(writer, "w") as terminal, monkeypatch.context() as patch:
        patch.setattr(sys, "stderr", terminal)
        with Progress("generating", 20, shown=True) as line:
            for _ in range(20):
                now.seconds += 1
                line.advance()
        terminal.write("END")
        terminal.flush()
        said = ""
        while not said.endswith("END"):
            said += os.read(reader, 4096).decode()
    os.close(reader)
    said = said.removesuffix("END")
    assert said.count("\n") == 1
    shown = [text.rstrip() for text in said.split("\r") if text.strip()]
    assert max(map(len, shown)) < width
    whole = "generating  10/20  50 %  1 images/s  0:00:10 left"
    assert whole[: width - 1] in said
    assert shown[-1].startswith("generating  20/20  100 %")


def test_a_terminal_without_a_size_gets_whole_lines(now, monkeypatch):
    reader, writer = pty.openpty()
    with os.fdopen(writer, "w") as terminal, monkeypatch.context() as patch:
        patch.setattr(sys, "stderr", terminal)
        list(Progress("scoring", 2, shown=True).over([range(2)]))
        assert os.read(reader, 4096).startswith(b"scoring  2/2  100 %  in 0:00:00")
    os.close(reader)


def test_one_process_speaks_and_each_batch_counts(now, capsys):
    batches = [range(0, 8), range(8, 12)]
    line = Progress("scoring", 12, shown=False)
    assert list(line.over(batches)) == batches
    assert "12/12  100 %" in str(line)
    assert capsys.readouterr().err == ""


def test_nothing_to_do_is_all_of_it(now, capsys):
    with Progress("generating", 0, shown=True):
        pass
    assert capsys.readouterr().err == "generating  0/0  100 %  in 0:00:00\n"


def test_a_stopped_command_says_how_far_it_came(now, capsys):
    line = Progress("encoding", 60, shown=True)
    batches = line.over([range(20), range(20, 40)])
    next(batches)
    now.seconds += 2
    next(batches)
    with pytest.raises(KeyboardInterrupt):
        batches.throw(KeyboardInterrupt)
    assert capsys.readouterr().err == "encoding  20/60  33 %  10 images/s  0:00:04 left\n"


@pytest.mark.parametrize(
    ("seconds", "text"), [(0.4, "0:00:00"), (83, "0:01:23"), (359999.6, "100:00:00")]
)
def test_time_is_written_as_on_a_clock(seconds, text):
    assert clock(seconds) == text
