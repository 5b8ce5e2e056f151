"""Calls of entry scripts that may be killed, hang or eat memory, and what they leave behind.

The scripts are imported once; every trial is a fork that calls one `main` as the command line does.
"""

from __future__ import annotations

import hashlib
import importlib
import os
import re
import resource
import shutil
import signal
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace

from latent_prior.cli import run as run_main

MEMORY = 3 * 2**30  # bytes of private memory of a trial
SECONDS = 60.0  # a trial that takes longer hangs
_WRITES = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND


@dataclass(frozen=True)
class Outcome:
    """How a trial ended.

    Attributes:
        code: exit code, or minus the number of the signal that ended it.
        said: what it wrote to stdout and stderr.
        hung: it was ended after `SECONDS`.
        events: changes of files below the watched folder, in order.
        megabytes: its largest memory.
    """

    code: int
    said: str
    hung: bool
    events: list[str] = field(repr=False)
    megabytes: float

    @property
    def sentence(self) -> str | None:
        """The one line of a refused command."""
        found = re.findall(r"^[\w. -]+: error: .*$", self.said, re.MULTILINE)
        refused = self.code == 2 and len(found) == 1 and "Traceback" not in self.said
        return found[0] if refused else None

    def __str__(self) -> str:
        last = (self.said.strip().splitlines() or ["nothing"])[-1]
        return f"{'hung' if self.hung else f'code {self.code}'}: {self.sentence or last}"[:400]


def call(
    script: str,
    words: Sequence[object],
    *,
    watched: Path | None = None,
    kill_at: int | None = None,
    signal_number: int = signal.SIGKILL,
    seconds: float = SECONDS,
) -> Outcome:
    """Call a script in a fork, with clocks that stand still so that two calls write the same bytes.

    Args:
        script: module within the package, such as `pipelines.generate`.
        words: its command line.
        watched: folder whose changes are listed.
        kill_at: number of the change before which the fork is sent `signal_number`, from 1.
        signal_number: SIGKILL, SIGTERM or SIGINT.
        seconds: limit of its time.
    """
    for slow in ("datasets", "torchvision", "matplotlib.figure", "PIL.JpegImagePlugin"):
        importlib.import_module(slow)  # here, and not again in every fork
    module = importlib.import_module(f"latent_prior.{script}")
    report = Path(os.environ["LATENT_PRIOR_FAULTS"]) / f"said-{os.getpid()}"
    events = report.with_name(f"events-{os.getpid()}")
    sys.stdout.flush()
    sys.stderr.flush()
    child = os.fork()
    if child == 0:
        code = 1
        try:
            os.setsid()
            _redirect(report)
            resource.setrlimit(resource.RLIMIT_DATA, (MEMORY, MEMORY))
            _stop_clocks()
            sys.argv = [f"{script.rpartition('.')[2]}.py", *map(str, words)]
            if watched is not None:
                _watch(watched, events, kill_at, signal_number)
            run_main(module.main)
            code = 0
        except SystemExit as error:
            code = error.code if isinstance(error.code, int) else 1
        except BaseException:
            sys.excepthook(*sys.exc_info())
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(code)
    hung, status, usage = _wait(child, seconds)
    code = -os.WTERMSIG(status) if os.WIFSIGNALED(status) else os.WEXITSTATUS(status)
    said = report.read_text(errors="replace").replace("\r", "\n") if report.exists() else ""
    listed = events.read_text().splitlines() if events.exists() else []
    for path in (report, events):
        path.unlink(missing_ok=True)
    return Outcome(code, said, hung, listed, usage.ru_maxrss / 1024)


def _redirect(report: Path) -> None:
    for number, path, flags in (
        (0, os.devnull, os.O_RDONLY),
        (1, str(report), os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_APPEND),
    ):
        descriptor = os.open(path, flags, 0o644)
        os.dup2(descriptor, number)
        os.close(descriptor)
    os.dup2(1, 2)


def _stop_clocks() -> None:
    """Let the times that are written into files be zero."""
    for name in ("training.loop", "data.batch_order", "machine", "pipelines.image_folder"):
        module = importlib.import_module(f"latent_prior.{name}")
        stopped = SimpleNamespace(
            monotonic=lambda: 0.0, process_time=lambda: 0.0, perf_counter=lambda: 0.0
        )
        module.time = stopped  # type: ignore[attr-defined]


def _watch(watched: Path, listed: Path, kill_at: int | None, signal_number: int) -> None:
    """List every change of the file system below `watched`; send a signal before one of them."""
    count, report = 0, listed.open("w")

    def hook(event: str, arguments: tuple[object, ...]) -> None:
        nonlocal count
        if event == "open":
            path, _, flags = arguments
            if isinstance(path, int) or not (isinstance(flags, int) and flags & _WRITES):
                return
            paths = [path]
        elif event in ("os.rename", "os.link", "os.symlink"):
            paths = list(arguments[:2])
        elif event in ("os.remove", "os.rmdir"):
            beside = len(arguments) > 1 and arguments[1] != -1  # `shutil.rmtree` names them so
            paths = [f"{watched}/.../{arguments[0]}" if beside else arguments[0]]
        elif event in ("os.mkdir", "os.truncate"):
            paths = [arguments[0]]
        elif event == "ctypes.dlsym" and arguments[1] == "renameat2":  # an exchange of two names
            paths = [watched]
        else:
            return
        names = [os.fsdecode(p) for p in paths if isinstance(p, str | bytes | os.PathLike)]
        if not any(name.startswith(str(watched)) for name in names):
            return
        count += 1
        report.write(f"{event} {' -> '.join(names).replace(str(watched), '~')}\n")
        report.flush()
        if count == kill_at:
            os.kill(os.getpid(), signal_number)
            if signal_number == signal.SIGKILL:
                time.sleep(5)

    sys.addaudithook(hook)


def _wait(child: int, seconds: float) -> tuple[bool, int, resource.struct_rusage]:
    deadline, hung = time.monotonic() + seconds, False
    while True:
        ended, status, usage = os.wait4(child, os.WNOHANG)
        if ended:
            return hung, status, usage
        if time.monotonic() > deadline:
            hung = True
            os.killpg(child, signal.SIGKILL)
        time.sleep(0.005)


def tree(folder: Path, ignore: Callable[[str], bool] = lambda name: False) -> dict[str, str]:
    """Digest of every file below a folder by its name; links and empty folders count."""
    found = {}
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder).as_posix()
        if ignore(name):
            continue
        if path.is_symlink():
            found[name] = f"link to {os.readlink(path)}"
        elif path.is_file():
            found[name] = hashlib.sha256(path.read_bytes()).hexdigest()
        elif path.is_dir() and not any(path.iterdir()):
            found[name] = "empty folder"
    return found


def differences(one: dict[str, str], two: dict[str, str]) -> list[str]:
    """Names that are in one of two trees only, or differ."""
    return sorted(name for name in {*one, *two} if one.get(name) != two.get(name))


def fresh(folder: Path) -> Path:
    """An empty folder in place of whatever was there."""
    if folder.is_symlink() or folder.is_file():
        folder.unlink()
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    return folder
