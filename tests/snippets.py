"""The code blocks of the pages, and how they are typed: shortened, in one process, in a clone.

A page is read from top to bottom. Its shell blocks are run by bash and its Python blocks share one
namespace, in a folder that looks like the root of a clone. Commands of the project start no new
interpreter: bash finds `python`, `accelerate`, `torchrun`, `latent-prior` and `make` in a folder of
stand-ins, which hand their words to this process. It replaces what makes a command long (steps,
numbers of images) by small values, and leaves all else as it is written.

Two comments in a page are read, each on a line of its own:

    <!-- after: docs/tutorials/digits.md -->   the page goes on with the files of that page
    <!-- not run: engine -->                   above a block that cannot run here, with the reason
"""

from __future__ import annotations

import contextlib
import csv
import importlib
import io
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import threading
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import contest
import yaml

from latent_prior import cli
from latent_prior.__main__ import SCRIPTS as VERBS
from tests.test_docs import ROOT, SCRIPTS, options_of

REASONS = {
    "install": "changes the reader's system: git, pip, apt, make setup",
    "network": "needs a download",
    "hardware": "needs a GPU or other machines",
    "engine": "needs a program of others that is not a dependency",
    "server": "runs until it is stopped; a test of its own starts it",
    "tests": "starts the tests",
}
LANGUAGES = ("bash", "python", "yaml", "json", "csv", "text")
ROOMS = ("stage1_autoencoders", "stage2_prior", "pipelines", "evaluation", "benchmarks")
IN_CLONE = (*ROOMS, "docs", "examples", "src", "Makefile", "pyproject.toml")

# Script -> flags that replace those of the page, or are added; a list keeps its first values.
TRAINING: dict[str, object] = {"max_steps": 2, "batch_size": 4, "warmup_steps": 1}
STAGE1 = {**TRAINING, "validation_images": 8}
BENCHMARK = {"score_images": 12, "jobs": 1, "threads": 1}
CONTEST = {**BENCHMARK, "seeds": [0], "budget": 0.5, "sweep_images": 8}
SHORT_AND_PLANNED = {"batch_size": 4, "validation_images": 8, "evaluate_every": 1_000_000}
FEATURES = {"features": "efficientnet_lite0"}
SHORT: dict[str, Mapping[str, object]] = {
    "stage1_autoencoders/train.py": STAGE1,
    "stage2_prior/train.py": {**TRAINING, "validation_images": 8},
    "evaluation/gan_baseline/train.py": TRAINING,
    "evaluation/gan_baseline/generate.py": {"num_images": 12},
    "pipelines/generate.py": {"num_images": 12},
    "pipelines/latents.py": {"num_images": 12},
    "evaluation/score.py": {**FEATURES, "num_images": 12},
    "evaluation/sweep.py": {**FEATURES, "num_images": 8, "full_images": 12},
    "evaluation/likelihood.py": {"num_images": 8, "fit_images": 8},
    "benchmarks/families.py": {**BENCHMARK, "tables": ["family"]},
    "benchmarks/priors.py": {**BENCHMARK, "pairs": ["vqvae"], "likelihood_images": 8},
    "benchmarks/league.py": CONTEST,
    "benchmarks/ablation.py": CONTEST,
    "benchmarks/reference_load.py": {"repetitions": 1},
}
CHOICES_KEPT = 2  # of lists such as the settings of a sweep
SHORTER_LISTS = ("guidance_scale", "temperature", "top_k", "top_p")

# What every stand-in does: hands over folder, own name and words; shows what came of it.
STAND_IN = r"""#!/bin/sh
printf '%s\0' "$PWD" "${0##*/}" "$@" > "$TYPED/request"
read -r status < "$TYPED/answer"
if [ "$status" = other ]; then . "$TYPED/other"; fi
cat "$TYPED/output"
exit "$status"
"""
STAND_INS = ("python", "python3", "accelerate", "torchrun", "latent-prior", "make")


class Block(NamedTuple):
    """A fenced block of a page.

    Attributes:
        page: its path from the project's root.
        line: the line of the opening fence; of a notebook the number of the cell.
        language: the word behind the fence.
        text: what stands between the fences.
        reason: the key of `REASONS` in the comment above it; None if it runs.
    """

    page: str
    line: int
    language: str
    text: str
    reason: str | None

    @property
    def place(self) -> str:
        return f"{self.page}:{self.line}"


def pages() -> list[Path]:
    pages = [*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")]
    return [*sorted(pages), *sorted((ROOT / "notebooks").glob("*.ipynb"))]


def blocks_of(path: Path) -> Iterator[Block]:
    """Fenced code in the order of the page; directives such as {toctree} are no code.

    Of a notebook the cells with code.
    """
    page = str(path.relative_to(ROOT))
    if path.suffix == ".ipynb":
        for number, cell in enumerate(json.loads(path.read_text())["cells"]):
            if cell["cell_type"] == "code":
                yield Block(page, number, "python", "".join(cell["source"]), None)
        return
    lines = path.read_text().splitlines()
    above, number = "", 0
    while number < len(lines):
        opening = re.fullmatch(r"( *)(`{3,})(.*)", lines[number])
        if opening is None:
            above = lines[number] or above
            number += 1
            continue
        indent, fence, words = opening[1], opening[2], opening[3].strip()
        start = number + 1
        while lines[number := number + 1].strip() != fence:
            assert number < len(lines) - 1, f"{page}:{start}: the block has no end"
        body = [line.removeprefix(indent) for line in lines[start:number]]
        directive = re.fullmatch(r"\{code-block\} *(\w+)", words)
        if directive or not words.startswith("{"):
            language = directive[1] if directive else words
            marked = re.fullmatch(r" *<!-- not run: (.*) -->", above)
            text = "".join(f"{line}\n" for line in body if not (directive and line.startswith(":")))
            yield Block(page, start, language, text, marked and marked[1])
        above, number = "", number + 1


def page_before(path: Path) -> Path | None:
    """The page whose files a page goes on with."""
    named = re.search(r"^<!-- after: (.*) -->$", path.read_text(), re.MULTILINE)
    return ROOT / named[1] if named else None


def check_data(block: Block) -> None:
    """Blocks that show a file are such files."""
    if block.language == "yaml":
        yaml.safe_load(block.text)
    elif block.language == "json":
        json.loads(block.text)
    elif block.language == "csv":
        widths = {len(row) for row in csv.reader(io.StringIO(block.text))}
        assert len(widths) == 1, block.place


def shortened(script: str, words: Sequence[str], short: Mapping[str, object]) -> list[str]:
    """A command's words with small values."""
    options: Any = options_of(script)
    known = {flag.name for flag in cli.flags(options)}
    short = {"cpu_threads": 1, **short}
    if "--images" in words:  # rows of `latents.py`, so there is no number of them
        short.pop("num_images", None)
    groups: list[list[str]] = []
    for word in words:
        if word.startswith("--") or not groups:
            groups.append([word])
        else:
            groups[-1].append(word)
    kept = []
    for group in groups:
        name = group[0].removeprefix("--").partition("=")[0]
        if name in short:
            continue
        kept += group[: 1 + CHOICES_KEPT] if name in SHORTER_LISTS else group
    for name, value in short.items():
        if name in known:
            kept += [f"--{name}", *map(str, value if isinstance(value, list) else [value])]
    return kept


class Typist:
    """Types the blocks of pages into a folder that looks like a clone.

    Args:
        folder: is filled with links to the project's rooms.
        controls: a folder for the stand-ins and their pipes.
    """

    def __init__(self, folder: Path, controls: Path) -> None:
        self.folder, self.controls = folder, controls
        for name in IN_CLONE:
            if (ROOT / name).exists():
                (folder / name).symlink_to(ROOT / name)
        self.stand_ins = controls / "bin"
        if not controls.exists():
            self.stand_ins.mkdir(parents=True)
            for name in STAND_INS:
                (self.stand_ins / name).write_text(STAND_IN)
                (self.stand_ins / name).chmod(0o755)
            for name in ("request", "answer"):
                os.mkfifo(controls / name)
        self.namespace: dict[str, Any] = {"__name__": "__main__"}

    def type(self, block: Block) -> None:
        """Run a block.

        Raises:
            AssertionError: it failed; says where it stands and what it printed.
        """
        with contextlib.chdir(self.folder):
            if block.language == "python":
                self._python(block)
            elif block.language == "bash":
                self._bash(block)
            else:
                check_data(block)

    def _python(self, block: Block) -> None:
        lines = "\n" * block.line  # so that a traceback names the line of the page
        try:
            exec(compile(lines + block.text, block.page, "exec"), self.namespace)
        except Exception as error:
            raise AssertionError(f"{block.place}: {traceback.format_exc()}") from error

    def _bash(self, block: Block) -> None:
        """Let bash run the block and answer its stand-ins until it ends."""
        environment = os.environ | {
            "PATH": f"{self.stand_ins}:{os.environ['PATH']}",
            "TYPED": str(self.controls),
        }
        said = self.controls / "said"
        with said.open("w") as file:
            bash = subprocess.Popen(
                ["bash", "-euo", "pipefail", "-c", block.text],
                stdin=subprocess.DEVNULL, stdout=file, stderr=file, env=environment,
            )  # fmt: skip
        waiting = threading.Thread(target=self._say_when_ended, args=(bash,))
        waiting.start()
        while words := (self.controls / "request").read_text().split("\0")[:-1]:
            (self.controls / "output").write_text("")
            with contextlib.chdir(words[0]):
                status = self._answer(words[1], words[2:])
            (self.controls / "answer").write_text(f"{status}\n")
        waiting.join()
        assert bash.returncode == 0, f"{block.place}\n{block.text}\n{said.read_text()[-6000:]}"

    def _say_when_ended(self, bash: subprocess.Popen[bytes]) -> None:
        bash.wait()
        (self.controls / "request").write_text("")

    def _answer(self, program: str, words: list[str]) -> str:
        """Do what a stand-in was called for; its exit status, or `other` for another program."""
        if program == "make":
            stand_ins = [f"BIN={self.stand_ins}", f"LAUNCH={self.stand_ins}/python", "READY="]
            return self._other([shutil.which("make") or "make", *stand_ins, *words])
        if program == "latent-prior":
            return self._script(VERBS[words[0]], words[1:])
        if words[:2] == ["-m", "latent_prior"]:
            return self._script(VERBS[words[2]], words[3:])
        if program.startswith("python") and words[:1] == ["-c"]:
            return self._in_this_process(lambda: exec(words[1], {"__name__": "__main__"}))
        for place, word in enumerate(words):
            script = str(Path(word).resolve()).removeprefix(f"{ROOT}/")
            if script in SCRIPTS:
                rest = words[place + 1 :]
                if program != "torchrun":
                    return self._script(script, rest)
                launch = [sys.executable, "-m", "torch.distributed.run", *words[: place + 1]]
                return self._other([*launch, *shortened(script, rest, SHORT.get(script, {}))])
        assert program.startswith("python"), (program, words)
        return self._other([sys.executable, *words])

    def _other(self, command: Sequence[str]) -> str:
        """Let the stand-in become another program, with the environment it was called with."""
        (self.controls / "other").write_text(f"exec {shlex.join(command)}\n")
        return "other"

    def _script(self, script: str, words: list[str]) -> str:
        return self._in_this_process(lambda: run_script(script, words, SHORT.get(script, {})))

    def _in_this_process(self, call: Callable[[], None]) -> str:
        """Call something; what it prints becomes what the stand-in prints."""
        with (
            (self.controls / "output").open("w") as file,
            contextlib.redirect_stdout(file),
            contextlib.redirect_stderr(file),
        ):
            try:
                call()
            except SystemExit as stopped:
                return str(stopped.code or 0)
            except Exception:
                traceback.print_exc()
                return "1"
        return "0"


def run_script(script: str, words: Sequence[str], short: Mapping[str, object]) -> None:
    """Run one of the project's scripts in this process, with the small values in `short`."""
    plain = {"-h", "--help", "--dry_run"} & set(words)
    argv, sys.argv = sys.argv, [script, *(words if plain else shortened(script, words, short))]
    try:
        room, _, stem = script.removesuffix(".py").replace("/", ".").partition(".")
        module = importlib.import_module(
            stem if room == "benchmarks" else f"latent_prior.{room}.{stem}"
        )
        if plain:  # answered before the script imports what it needs
            cli.parse_config(options_of(script))
        module.main()
    finally:
        sys.argv = argv


def short_options(options_class: type, given: Mapping[str, Any]) -> Any:
    """`cli.make_options` for a function that is called in Python, with the same small values."""
    known = {flag.name for flag in cli.flags(options_class)}
    for script, short in SHORT.items():
        if options_of(script) is options_class:
            small = {name: value for name, value in short.items() if name in known}
            given = {**given, "cpu_threads": 1, **small}
    return cli.make_options(options_class, given)


def command_in_this_process(experiment: Any, script: str, run: Path, flags: Any) -> None:
    """What `experiments.Experiment.command` does, without a process of its own."""
    words = []
    for name, value in flags.items():
        if value is not None:
            words += [f"--{name}", *map(str, value if isinstance(value, list) else [value])]
    run.parent.mkdir(parents=True, exist_ok=True)
    # A contest plans its steps by itself, within the budget that `SHORT` gave it.
    planned = isinstance(experiment, contest.Contest) and script.endswith("train.py")
    run_script(script, words, SHORT_AND_PLANNED if planned else SHORT.get(script, {}))
