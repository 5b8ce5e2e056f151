"""The command line: a dataclass becomes flags, a YAML preset becomes their defaults, a mistake becomes one sentence.

Every entry script calls `parse_config` before it imports torch, so `--help` and a wrong flag answer at once,
and wraps its `main` in `run`, which turns errors meant for the user into `prog: error: ...` and exit code 2.
"""

from __future__ import annotations

import ast
import dataclasses
import difflib
import errno
import inspect
import itertools
import os
import re
import shlex
import sys
import textwrap
import typing
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, NoReturn, TypeVar

import draccus
import yaml
from draccus.choice_types import CHOICE_TYPE_KEY
from draccus.utils import DraccusException, is_choice_type

from latent_prior.cli_values import check_kind, fits, is_list, read_value, read_yaml

T = TypeVar("T")


def parse_config(options_class: type[T], argv: Sequence[str] | None = None) -> T:
    """Build `options_class` from `--config FILE.yaml` and flags; a flag wins over the file.

    A flag of a list takes several words (`--candidates a=x b=y`), a flag of a bool may stand alone (`--flip`).
    `--dry_run` prints the resolved options as YAML and ends the program.

    Args:
        options_class: a dataclass; nested dataclasses become dotted flags (`--model.codebook_size`), and of a draccus
            choice type `--model.type` says whose fields they are. All other flags are checked before that class is
            imported.
        argv: the words after the program's name; None reads `sys.argv`.

    Raises:
        SystemExit: code 2 with one line on stderr for any mistake, code 0 after `--help` or `--dry_run`.
    """
    words = list(sys.argv[1:] if argv is None else argv)
    asks_help, dry_run = bool({"-h", "--help"} & set(words)), "--dry_run" in words
    words = [word for word in words if word not in ("-h", "--help", "--dry_run")]
    try:
        values, kinds = {}, dict(flag_types(options_class))
        for _ in range(2):  # the second time it is known which classes are chosen
            values = _given(words, kinds)
            kinds = dict(flag_types(options_class, values))
        if asks_help:
            _print_help(options_class, values)
            raise SystemExit(0)
        options = draccus.decode(options_class, _nested(values))
    except (DraccusException, ValueError) as error:
        fail(_one_line(error))
    if dry_run:
        print(yaml.safe_dump(dump_config(options), sort_keys=False), end="")
        raise SystemExit(0)
    return options


def answer_early(name: str, options_class: type) -> None:
    """Answer `--help` and report a mistake before a script imports torch: `answer_early(__name__, TrainOptions)`.

    Stands above the script's other imports; does nothing where the script is imported as a module.
    """
    if name == "__main__":
        parse_config(options_class)


def command_line() -> str | None:
    """The command that started this process: `accelerate launch stage1_autoencoders/train.py --config ...`.

    The script is named as in a checkout, whether it was started there, by its absolute path, with `-m` or from an
    installed package; the words after it are as typed.

    Returns:
        None if this process runs no script of the package, for example a notebook that calls a `main`.
    """
    script = Path(sys.argv[0]).resolve()
    rooms = [folder.resolve() for folder in Path(__file__).parent.iterdir() if folder.is_dir()]
    for room in rooms:
        if room in script.parents:
            launched = {"LOCAL_RANK", "ACCELERATE_MIXED_PRECISION"} & set(os.environ)
            program = ["accelerate", "launch"] if launched else ["python"]
            path = script.relative_to(room.parent).as_posix()
            return shlex.join([*program, path, *sys.argv[1:]])
    return None


def dump_config(options: object) -> dict[str, Any]:
    """The options as plain YAML-ready values."""
    encoded = draccus.encode(options)
    assert isinstance(encoded, dict)
    return encoded


def flag_types(
    options_class: type, values: dict[str, Any] | None = None, prefix: str = ""
) -> Iterator[tuple[str, Any]]:
    """Every flag of a dataclass with its type; nested dataclasses give dotted names.

    Args:
        options_class: the dataclass.
        values: what the user gave; it says which class stands for a choice type. None: not known yet, and then
            `model.*` stands for the flags of whichever class it will be.
        prefix: of the dotted names.
    """
    for name, kind, _ in _fields(options_class, prefix):
        if is_choice_type(kind):
            yield f"{name}.{CHOICE_TYPE_KEY}", _names(kind)
            if values is None:
                yield f"{name}.*", Any
            else:
                yield from flag_types(_chosen(kind, name, values), values, f"{name}.")
        elif dataclasses.is_dataclass(kind) and isinstance(kind, type):
            yield from flag_types(kind, values, f"{name}.")
        else:
            yield name, kind


def _fields(options_class: type, prefix: str) -> Iterator[tuple[str, Any, dataclasses.Field[Any]]]:
    """Dotted name, type and field of everything a dataclass declares itself."""
    hints = typing.get_type_hints(options_class)
    for field in dataclasses.fields(options_class):
        yield prefix + field.name, hints[field.name], field


def _names(kind: Any) -> Any:
    """The type of the flag that chooses: one of the names."""
    return typing.Literal[tuple(kind.get_known_choices())]


def _chosen(kind: Any, name: str, values: dict[str, Any]) -> type:
    """The class that the user's words choose for a choice type."""
    chosen: type = kind.get_choice_class(
        values.get(f"{name}.{CHOICE_TYPE_KEY}", kind.default_choice_name())
    )
    return chosen


def _given(words: Sequence[str], kinds: dict[str, Any]) -> dict[str, Any]:
    """The values of the preset and, over them, of the flags.

    Raises:
        ValueError: an unknown name, or a value of another type than its flag takes.
    """
    flags = dict(flag_values(words, kinds))
    preset = _read_preset(flags.pop("config", None), kinds)
    values = {**preset, **flags}
    for name, value in values.items():
        check_kind(name, value, _kind_of(name, kinds))
    return values


def _kind_of(name: str, kinds: dict[str, Any]) -> Any:
    """The type of a flag, None for an unknown one, Any for one of a class that is not chosen yet."""
    return kinds.get(name, kinds.get(f"{name.partition('.')[0]}.*"))


def flag_values(words: Sequence[str], kinds: dict[str, Any]) -> Iterator[tuple[str, Any]]:
    """Pair every flag with its value.

    Raises:
        ValueError: for a word that belongs to no flag, an unknown flag or a flag without its value.
    """
    groups: list[tuple[str, list[str]]] = []
    for word in words:
        if word.startswith("--"):
            name, equals, value = word[2:].partition("=")
            groups.append((name, [value] if equals else []))
        elif groups:
            groups[-1][1].append(word)
        else:
            raise ValueError(f"unexpected word {word!r}: options start with --")
    for name, values in groups:
        kind = str if name == "config" else _kind_of(name, kinds)
        if kind is None:
            raise ValueError(f"unknown option --{name}{_suggest(name, kinds)}")
        if is_list(kind):
            if [other for other, _ in groups].count(name) > 1:
                raise ValueError(f"--{name} is given twice: write all its values behind one")
            listed = [read_value(word, kind) for word in values]
            # One word may be the whole value: `--blocks "[1, 2]"`, as in a preset, or `--blocks 1` of `int | list[int]`.
            yield name, listed[0] if len(listed) == 1 and fits(listed[0], kind) else listed
        elif not values and kind in (bool, Any):
            yield name, True
        elif kind is Any:
            yield name, values
        elif len(values) == 1:
            yield name, read_value(values[0], kind)
        else:
            raise ValueError(f"--{name} takes one value, not {len(values)}")


def run(main: Callable[[], None]) -> None:
    """Call a script's `main`; errors that are the user's to mend become one line and exit code 2."""
    try:
        main()
    except ValueError as error:
        fail(str(error))
    except Exception as error:
        reason = _disk_error(error)
        if reason is None:
            raise
        fail(f"{reason}; nothing incomplete was kept")


def fail(message: str) -> NoReturn:
    """Print `prog: error: message` on stderr and leave with exit code 2."""
    print(f"{_program()}: error: {' '.join(message.split())}", file=sys.stderr)
    raise SystemExit(2)


_USERS_ERRNO = {errno.ENOSPC, errno.EDQUOT, errno.EACCES, errno.EROFS, errno.ENOTDIR, errno.EISDIR}


def _disk_error(error: BaseException | None) -> str | None:
    """What a full or protected disk did, however the library that met it wraps the system's error."""
    while error is not None:
        # safetensors gives the number in its text only.
        in_text = re.search(r"\(os error (\d+)\)", str(error))
        number = int(in_text[1]) if in_text else getattr(error, "errno", None)
        if number in _USERS_ERRNO:
            name = getattr(error, "filename", None)
            return os.strerror(number) + (f": {name}" if name else "")
        error = error.__cause__ or error.__context__
    return None


def _program() -> str:
    return Path(sys.argv[0]).name or "latent-prior"


def _print_help(options_class: type, values: dict[str, Any]) -> None:
    """Every flag with its type, default and the sentence that stands under its field."""
    print(
        f"usage: {_program()} [--config FILE.yaml] [--FLAG VALUE ...]\n\n{options_class.__doc__}\n"
    )
    print(
        "  --config FILE.yaml\n        A preset: the values of any flags; a flag on the command line wins."
    )
    print("  --dry_run\n        Print the resolved options as YAML and stop.")
    for name, kind, default, sentence in _described_flags(options_class, values):
        shown = getattr(kind, "__name__", None) if isinstance(kind, type) else None
        kind_text = shown or str(kind).replace("typing.", "").replace("NoneType", "None")
        ending = "required" if default is dataclasses.MISSING else f"default: {default!r}"
        print(f"  --{name} {kind_text}")
        print(textwrap.indent(textwrap.fill(f"{sentence} ({ending})", 92), " " * 8))


def _described_flags(
    options_class: type, values: dict[str, Any], prefix: str = ""
) -> Iterator[tuple[str, Any, Any, str]]:
    """(flag, type, default, sentence) for every field, nested ones included."""
    sentences = {k: v for base in reversed(options_class.__mro__[:-1]) for k, v in _sentences(base)}
    for name, kind, field in _fields(options_class, prefix):
        if is_choice_type(kind):
            sentence = f"{sentences[field.name]} The flags below are those of this one."
            chosen = values.get(f"{name}.{CHOICE_TYPE_KEY}", kind.default_choice_name())
            yield f"{name}.{CHOICE_TYPE_KEY}", _names(kind), chosen, sentence
            yield from _described_flags(_chosen(kind, name, values), values, f"{name}.")
            continue
        if dataclasses.is_dataclass(kind) and isinstance(kind, type):
            yield from _described_flags(kind, values, f"{name}.")
            continue
        default = field.default
        if field.default_factory is not dataclasses.MISSING:
            default = field.default_factory()
        yield name, kind, default, sentences[field.name]


def _sentences(options_class: type) -> Iterator[tuple[str, str]]:
    """(field, docstring under it) as they stand in the source of one class."""
    body = ast.parse(textwrap.dedent(inspect.getsource(options_class))).body[0]
    assert isinstance(body, ast.ClassDef)
    for field, below in itertools.pairwise(body.body):
        if isinstance(field, ast.AnnAssign) and isinstance(below, ast.Expr):
            assert isinstance(field.target, ast.Name)
            assert isinstance(below.value, ast.Constant)
            yield field.target.id, " ".join(str(below.value.value).split())


def _read_preset(path: str | None, kinds: dict[str, Any]) -> dict[str, Any]:
    """The preset's values under their dotted names.

    Raises:
        ValueError: naming the file and the key.
    """
    if path is None:
        return {}
    if not Path(path).is_file():
        raise ValueError(f"--config: there is no file {path}")
    try:
        preset = read_yaml(Path(path).read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ValueError(f"--config: {path} is not YAML: {error}") from error
    if not isinstance(preset, dict):
        raise ValueError(f"--config: {path} is not a mapping of option names to values")
    values = dict(dotted(preset))
    for key in values:
        if _kind_of(key, kinds) is None:
            raise ValueError(f"unknown key {key!r} in {path}{_suggest(key, kinds)}")
    return values


def dotted(values: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Nested values under dotted names."""
    for key, value in values.items():
        if isinstance(value, dict):
            yield from dotted(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def _nested(values: dict[str, Any]) -> dict[str, Any]:
    """The inverse of `dotted`."""
    nested: dict[str, Any] = {}
    for name, value in values.items():
        *parents, last = name.split(".")
        inner = nested
        for parent in parents:
            inner = inner.setdefault(parent, {})
        inner[last] = value
    return nested


def _suggest(name: str, known: Iterable[str]) -> str:
    close = difflib.get_close_matches(name, list(known), n=1)
    return f" (did you mean {close[0]}?)" if close else "; --help lists them all"


def _one_line(error: Exception) -> str:
    """A check of the dataclass speaks for itself; of draccus' own errors only a missing option is left."""
    missing = re.match(r"Missing required field\(s\) (.+) for", str(error))
    if missing:
        flags = [f"--{name}" for name in re.findall(r"[\w.]+", missing[1])]
        return f"{', '.join(flags)} {'is' if len(flags) == 1 else 'are'} required"
    cause: BaseException = error
    while isinstance(cause, DraccusException) and cause.__cause__ is not None:
        cause = cause.__cause__
    return str(cause)
