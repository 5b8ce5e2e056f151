import ast
import os
import subprocess
import sys
from pathlib import Path

import pytest

from latent_prior import __main__ as console
from latent_prior.cli import command_line

ROOT = Path(__file__).parents[2]


def start(*words: str, module: str = "latent_prior", cwd: Path | str = "/", **settings: str):
    """A console command in a process of its own, elsewhere than in the checkout."""
    return subprocess.run(
        [sys.executable, "-m", module, *words],
        capture_output=True,
        text=True,
        cwd=cwd,
        env={**os.environ, **settings},
        timeout=900,
        check=False,
    )


@pytest.fixture
def call(monkeypatch, capsys):
    """The exit code and the output of a verb in this process."""
    monkeypatch.setitem(sys.modules, "__main__", sys.modules["__main__"])

    def run(*words: str) -> tuple[object, str, str]:
        monkeypatch.setattr(sys, "argv", ["/bin/latent-prior", *words])
        code: object = 0
        try:
            console.main()
        except SystemExit as stopped:
            code = stopped.code
        return (code, *capsys.readouterr())

    return run


def test_every_verb_has_its_script_and_every_script_its_verb():
    scripts = {
        path.relative_to(ROOT).as_posix()
        for room in ("stage1_autoencoders", "stage2_prior", "pipelines", "evaluation")
        for path in (ROOT / room).rglob("*.py")
        if "answer_early(__name__" in path.read_text()
    }
    assert sorted(console.SCRIPTS.values()) == sorted(scripts)


def test_help_lists_the_verbs_without_importing_torch(call):
    code, out, _ = call("--help")
    assert code == 0
    assert call() == (0, out, "")
    for verb, path in console.SCRIPTS.items():
        docstring = ast.get_docstring(ast.parse((ROOT / path).read_text()))
        line = next(line for line in out.splitlines() if line.startswith(f"  {verb} "))
        assert docstring.startswith(line.split(maxsplit=1)[1])
    done = subprocess.run(
        [sys.executable, "-c", "import sys, latent_prior.__main__; print('torch' in sys.modules)"],
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.strip() == "False"


@pytest.mark.parametrize(
    ("verb", "message"),
    [
        ("genrate", "latent-prior: error: unknown verb 'genrate' (did you mean generate?)\n"),
        ("train", "latent-prior: error: unknown verb 'train' (did you mean train-gan?)\n"),
        ("qq", "latent-prior: error: unknown verb 'qq'; --help lists them all\n"),
    ],
)
def test_an_unknown_verb_is_one_line(call, verb, message):
    assert call(verb, "--seed", "3") == (2, "", message)


@pytest.mark.parametrize("verb", console.SCRIPTS)
def test_a_verb_runs_its_script_which_answers_early(call, verb):
    code, out, err = call(verb, "--help")
    assert (code, err) == (0, "")
    assert out.startswith(f"usage: latent-prior {verb} [--config PRESET]")
    code, out, err = call(verb, "--sed", "3")
    assert (code, out) == (2, "")
    assert err.startswith(f"latent-prior {verb}: error: unknown option --sed")
    assert err.count("\n") == 1


def test_a_verb_is_recorded_as_the_command_that_was_typed(monkeypatch):
    for name in ("LOCAL_RANK", "ACCELERATE_MIXED_PRECISION"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(sys, "argv", ["latent-prior generate", "--labels", "a b"])
    assert command_line() == "latent-prior generate --labels 'a b'"
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "no")
    assert command_line() == "accelerate launch -m latent_prior generate --labels 'a b'"


@pytest.mark.parametrize("module", ["latent_prior", "latent_prior.pipelines.generate"])
def test_modules_start_with_m_from_any_folder(module):
    words = ("generate",) if module == "latent_prior" else ()
    done = start(*words, "--pipelin", "x", module=module)
    assert done.returncode == 2
    program = "latent-prior generate" if words else "generate.py"
    assert done.stderr == f"{program}: error: unknown option --pipelin (did you mean pipeline?)\n"


@pytest.mark.parametrize("unbuffered", ["", "1"])
def test_a_reader_that_leaves_early_is_no_error(unbuffered):
    """As in `latent-prior train-prior --help | head -1`."""
    reading, writing = os.pipe()
    os.close(reading)
    done = subprocess.run(
        [sys.executable, "-m", "latent_prior", "train-prior", "--help"],
        stdout=writing,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONUNBUFFERED": unbuffered},
        timeout=900,
        check=False,
    )
    os.close(writing)
    assert (done.returncode, done.stderr) == (1, "")
