"""The console script: `latent-prior VERB ...` or `python -m latent_prior VERB ...`.

Every verb is an entry script of the package, which runs as if it had been started by its path.
"""

from __future__ import annotations

import ast
import importlib.util
import sys
from pathlib import Path

from latent_prior.cli import CONSOLE, fail, run, suggestion

# Verb -> script, in order of use; `accelerate launch -m latent_prior VERB` works as well.
SCRIPTS = {
    "train-autoencoder": "stage1_autoencoders/train.py",
    "import-tokenizer": "stage1_autoencoders/import_tokenizer.py",
    "export-tokenizer": "stage1_autoencoders/export_tokenizer.py",
    "encode": "stage1_autoencoders/encode.py",
    "train-prior": "stage2_prior/train.py",
    "export": "stage2_prior/export.py",
    "assemble": "pipelines/assemble.py",
    "generate": "pipelines/generate.py",
    "latents": "pipelines/latents.py",
    "describe": "pipelines/describe.py",
    "app": "pipelines/app.py",
    "score": "evaluation/score.py",
    "sweep": "evaluation/sweep.py",
    "likelihood": "evaluation/likelihood.py",
    "train-gan": "evaluation/gan_baseline/train.py",
    "generate-gan": "evaluation/gan_baseline/generate.py",
}
PACKAGE = Path(__file__).parent


def main() -> None:
    """Run the script of the verb in `sys.argv`."""
    verb, *words = sys.argv[1:] or ["--help"]
    if verb in ("-h", "--help"):
        run(_print_help)
    elif verb in SCRIPTS:
        sys.argv = [f"{CONSOLE} {verb}", *words]
        _run_as_main(PACKAGE / SCRIPTS[verb])
    else:
        sys.argv[0] = CONSOLE
        fail(f"unknown verb {verb!r}{suggestion(verb, SCRIPTS)}")


def _run_as_main(path: Path) -> None:
    """Execute a file as `__main__`, as `runpy` does, but with `sys.argv` as it is."""
    spec = importlib.util.spec_from_file_location("__main__", path)
    assert spec is not None
    assert spec.loader is not None
    sys.modules["__main__"] = script = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)


def _print_help() -> None:
    """The verbs, each with the first line of its script's docstring; nothing is imported."""
    print(f"usage: {CONSOLE} VERB [--FLAG VALUE ...]\n")
    for verb, path in SCRIPTS.items():
        docstring = ast.get_docstring(ast.parse((PACKAGE / path).read_text(encoding="utf-8")))
        assert docstring is not None
        print(f"  {verb:<18} {docstring.splitlines()[0].partition(': `')[0]}")
    print(f"\n`{CONSOLE} VERB --help` describes the flags of a verb.")


if __name__ == "__main__":
    main()
