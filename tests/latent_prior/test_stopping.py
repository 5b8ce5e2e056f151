"""Real processes: what a signal does to a script at each of its stages."""

import os
import signal
import subprocess
import sys
import time

import pytest

from latent_prior import cli

SCRIPT = """
import sys, time
from latent_prior import cli, stopping
if sys.argv[1] == "import":
    stopping.end_at_once(cli._program())
    print("ready", flush=True)
    time.sleep(60)

def main():
    if sys.argv[1] == "main":
        print("ready", flush=True)
        time.sleep(60)
    if sys.argv[1] == "library":
        try:
            print("ready", flush=True)
            time.sleep(60)
        except BaseException as error:
            raise RuntimeError("a library's own words") from error
    if sys.argv[1] == "group":
        with stopping.left_to_the_system():
            print("ready", flush=True)
            while True:
                try:
                    time.sleep(60)
                except BaseException:
                    pass
    with stopping.postponed():
        print("ready", flush=True)
        while True:
            time.sleep(0.01)

cli.run(main)
"""


@pytest.fixture
def started(tmp_path):
    """`started(stage)`: a script that has come to a stage."""
    processes = []

    def start(stage, **environment):
        path = tmp_path / "script.py"
        path.write_text(SCRIPT)
        process = subprocess.Popen(
            [sys.executable, str(path), stage],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env=os.environ | environment,
        )
        processes.append(process)
        assert process.stdout.readline() == "ready\n"
        return process

    yield start
    for process in processes:
        process.kill()
        process.communicate()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("stage", ["import", "main", "library"])
def test_a_signal_is_one_line_and_its_exit_code(started, stage, number):
    process = started(stage)
    process.send_signal(number)
    said = process.communicate(timeout=20)[1]
    assert process.returncode == 128 + number
    assert said == f"script.py: stopped by {number.name}; repeat the command to go on\n"


def test_a_second_signal_ends_at_once_what_the_first_does_not(started):
    process = started("postponed")
    process.terminate()
    time.sleep(0.3)
    assert process.poll() is None
    process.send_signal(signal.SIGINT)
    assert process.wait(20) == -signal.SIGINT


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_process_that_waits_for_its_group_ends_at_once(started, number):
    process = started("group", WORLD_SIZE="2")
    process.send_signal(number)
    assert process.wait(20) == -number


def test_a_launcher_that_passes_on_the_terminals_signal_sends_no_second_one(started):
    process = started("postponed", WORLD_SIZE="2")
    for _ in range(2):
        process.send_signal(signal.SIGINT)
        time.sleep(0.2)
    assert process.poll() is None
    time.sleep(1)
    process.terminate()
    assert process.wait(20) == -signal.SIGTERM


def test_an_ignored_signal_stays_ignored_and_handlers_are_put_back():
    """As under nohup."""
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        cli.run(lambda: os.kill(os.getpid(), signal.SIGINT))
        assert signal.getsignal(signal.SIGINT) == signal.SIG_IGN
    finally:
        signal.signal(signal.SIGINT, before)
    cli.run(lambda: None)
    assert signal.getsignal(signal.SIGINT) == before
