"""The command line: a dataclass becomes flags, a YAML preset sets their defaults.

Every entry script calls `answer_early` before it imports torch, so that `--help` and a wrong flag
are answered at once. `run` calls its `main` and reports errors that a user can fix as one line.
"""

from __future__ import annotations

import ast
import dataclasses
import difflib
import errno
import functools
import inspect
import itertools
import logging
import os
import re
import shlex
import sys
import textwrap
import typing
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple, NoReturn, TypeVar

import yaml
from tqdm import tqdm

from latent_prior import stopping
from latent_prior.cli_values import convert, fits, is_list, read_value
from latent_prior.options import default_of
from latent_prior.records import read_yaml

T = TypeVar("T")
CONSOLE = "latent-prior"
"""The console script; `latent_prior.__main__` puts it in front of the verb in `sys.argv[0]`."""


class Flag(NamedTuple):
    """One option as it stands on a command line."""

    name: str
    """Without the dashes; dotted for a field of a nested dataclass (`model.codebook_size`)."""
    kind: Any
    default: Any
    """`dataclasses.MISSING` if the option is required."""
    owner: type
    field: dataclasses.Field[Any]

    def type_text(self) -> str:
        """The type as Python writes it: `int | None`, `Literal['l1', 'l2']`."""
        plain = isinstance(self.kind, type) and not typing.get_args(self.kind)
        text = self.kind.__name__ if plain else str(self.kind)
        return text.replace("typing.", "").replace("NoneType", "None")

    def default_text(self) -> str:
        """The default as Python writes it; `required` if there is none."""
        return "required" if self.default is dataclasses.MISSING else repr(self.default)

    def range_text(self) -> str:
        """The numbers that are allowed, in words; empty if all are."""
        return str(self.field.metadata.get("range", ""))

    def sentence(self) -> str:
        """The docstring under the field."""
        return _sentences(self.owner)[self.field.name]

    def explanation(self, addition: str = "") -> str:
        """The docstring under the field and an addition, with default and range."""
        default = self.default_text()
        ending = default if default == "required" else f"default: {default}"
        ending += f", {limits}" if (limits := self.range_text()) else ""
        return f"{self.sentence()}{addition} ({ending})"


def parse_config(options_class: type[T], argv: Sequence[str] | None = None) -> T:
    """Build `options_class` from flags and `--config PRESET`; a flag wins over the preset.

    A list takes several words (`--candidates a=x b=y`), a bool may stand alone (`--flip`).
    `--dry_run` prints the resolved options as YAML and exits.

    Args:
        options_class: a dataclass. Fields of nested dataclasses become dotted flags. A field whose
            class has `get_choice_class` is chosen by name (`--model.type`); the class is imported
            only after all other flags are checked.
        argv: the words after the program's name; None reads `sys.argv`.

    Raises:
        SystemExit: code 2 with one line on stderr for any mistake, 0 after `--help` or `--dry_run`.
    """
    words = list(sys.argv[1:] if argv is None else argv)
    wants_help, dry_run = bool({"-h", "--help"} & set(words)), "--dry_run" in words
    words = [word for word in words if word not in ("-h", "--help", "--dry_run")]
    try:
        chosen, values = _settle(options_class, lambda kinds: dict(flag_values(words, kinds)))
        if wants_help:
            _print_help(options_class, chosen)
            raise SystemExit(0)
        options = _complete(options_class, chosen, values)
    except ValueError as error:
        fail(str(error))
    if dry_run:
        print(yaml.safe_dump(dump_config(options), sort_keys=False), end="")
        raise SystemExit(0)
    return options


def make_options(options_class: type[T], given: Mapping[str, Any]) -> T:
    """Build `options_class` from values under dotted names, `config` among them: the same checks.

    Raises:
        ValueError: an unknown option, a wrong value or a missing one, in the words that
            `parse_config` prints.
    """

    def read(kinds: dict[str, Any]) -> dict[str, Any]:
        for name in given:
            if name != "config" and _kind_of(name, kinds) is None:
                raise ValueError(f"unknown option --{name}{suggestion(name, kinds)}")
        return dict(given)

    return _complete(options_class, *_settle(options_class, read))


def answer_early(name: str, options_class: type) -> None:
    """Answer `--help` and report mistakes; stands above a script's heavy imports.

    `name` is the script's `__name__`; nothing happens if the script is imported as a module.
    """
    if name == "__main__":
        stopping.end_at_once(_program())
        run(lambda: parse_config(options_class))


def command_line() -> str | None:
    """The command that started this process: `accelerate launch stage1_autoencoders/train.py ...`.

    A script is named as in a checkout, even if it was started by its absolute path, with `-m` or
    from an installed package. The words after it are as typed.

    Returns:
        None if this process runs no script of the package, for example in a notebook.
    """
    program, *words = sys.argv
    start = launcher()
    if program.startswith(f"{CONSOLE} "):
        start = [*start, "-m", "latent_prior"] if start else [CONSOLE]
        return shlex.join([*start, program.removeprefix(f"{CONSOLE} "), *words])
    script = Path(program).resolve()
    rooms = [folder.resolve() for folder in Path(__file__).parent.iterdir() if folder.is_dir()]
    for room in rooms:
        if room in script.parents:
            name = script.relative_to(room.parent).as_posix()
            return shlex.join([*(start or ["python"]), name, *words])
    return None


def launcher() -> list[str]:
    """The words that start such a group of processes again; none if no launcher started this one.

    `accelerate launch` reads its number of processes from its config; `torchrun` is told.
    """
    if "ACCELERATE_MIXED_PRECISION" in os.environ:
        return ["accelerate", "launch"]
    if "LOCAL_RANK" not in os.environ:
        return []
    here = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    machines = int(os.environ.get("WORLD_SIZE", "1")) // here
    on_cpu = ["ACCELERATE_USE_CPU=true"] if "ACCELERATE_USE_CPU" in os.environ else []
    nodes = ["--standalone"] if machines == 1 else ["--nnodes", str(machines)]
    return [*on_cpu, "torchrun", *nodes, "--nproc_per_node", str(here)]


def dump_config(options: Any) -> dict[str, Any]:
    """The options as nested plain values, ready for YAML and JSON."""
    values = dataclasses.asdict(options)
    for name, kind, _ in _fields(type(options)):
        if _is_choice(kind):
            chosen = kind.get_choice_name(type(getattr(options, name)))
            values[name] = {"type": chosen, **values[name]}
    return values


def flags(
    options_class: type, values: dict[str, Any] | None = None, prefix: str = ""
) -> Iterator[Flag]:
    """Every flag of a dataclass, nested ones included, with a prefix before its name.

    The user's values name the chosen classes. While they are not known (None), `model.*` stands for
    the flags of any choice.
    """
    for name, kind, field in _fields(options_class, prefix):
        if _is_choice(kind):
            names: Any = typing.Literal[tuple(kind.get_known_choices())]
            default = kind.default_choice_name()
            yield Flag(f"{name}.type", names, default, options_class, field)
            if values is None:
                yield Flag(f"{name}.*", Any, None, options_class, field)
                continue
        if nested := _nested_class(name, kind, values or {}):
            yield from flags(nested, values, f"{name}.")
        else:
            yield Flag(name, kind, default_of(field), options_class, field)


def _fields(
    options_class: Any, prefix: str = ""
) -> Iterator[tuple[str, Any, dataclasses.Field[Any]]]:
    """Dotted name, type and field of everything a dataclass declares."""
    hints = typing.get_type_hints(options_class)
    for field in dataclasses.fields(options_class):
        yield prefix + field.name, hints[field.name], field


def _is_choice(kind: Any) -> bool:
    """Whether a field's class is chosen by name, as `ModelOptions` of stage 1."""
    return hasattr(kind, "get_choice_class")


def _nested_class(name: str, kind: Any, values: dict[str, Any]) -> Any:
    """The dataclass whose fields are flags under this name; None for a plain value."""
    if _is_choice(kind):
        return kind.get_choice_class(values.get(f"{name}.type", kind.default_choice_name()))
    return kind if dataclasses.is_dataclass(kind) else None


def _build(options_class: type[T], values: dict[str, Any], prefix: str = "") -> T:
    """The dataclass with these values, which stand under dotted names; defaults elsewhere."""
    settings = {}
    for name, kind, field in _fields(options_class, prefix):
        if nested := _nested_class(name, kind, values):
            settings[field.name] = _build(nested, values, f"{name}.")
        elif name in values:
            settings[field.name] = values[name]
    return options_class(**settings)


def _settle(
    options_class: type, read: Callable[[dict[str, Any]], dict[str, Any]]
) -> tuple[list[Flag], dict[str, Any]]:
    """The flags there are and the values they get, which name the chosen classes.

    `read` returns what the user gives, which wins over the preset, from the types of the flags.
    """
    values = _read_values(read, flags(options_class), options_class)
    # Now it is known which classes are chosen, so their flags are read as well.
    chosen = list(flags(options_class, values))
    return chosen, _read_values(read, chosen, options_class)


def _complete(options_class: type[T], chosen: Iterable[Flag], values: dict[str, Any]) -> T:
    """The options, none of which may be missing."""
    required = [flag.name for flag in chosen if flag.default is dataclasses.MISSING]
    if missing := [f"--{name}" for name in required if name not in values]:
        raise ValueError(f"{', '.join(missing)} {'is' if len(missing) == 1 else 'are'} required")
    return _build(options_class, values)


def _read_values(
    read: Callable[[dict[str, Any]], dict[str, Any]], known: Iterable[Flag], options_class: type
) -> dict[str, Any]:
    """The values of the preset and of the user, which win."""
    kinds = {flag.name: flag.kind for flag in known}
    given = read(kinds)
    preset = _read_preset(given.pop("config", None), kinds, options_class)
    values = {**preset, **given}
    return {name: convert(name, value, _kind_of(name, kinds)) for name, value in values.items()}


def _kind_of(name: str, kinds: dict[str, Any]) -> Any:
    """A flag's type; None if it is unknown, Any if its class is not chosen yet."""
    return kinds.get(name, kinds.get(f"{name.partition('.')[0]}.*"))


def flag_values(words: Sequence[str], kinds: dict[str, Any]) -> Iterator[tuple[str, Any]]:
    """Pair every flag with its value.

    Raises:
        ValueError: a word that belongs to no flag, an unknown flag or a flag without its value.
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
            raise ValueError(f"unknown option --{name}{suggestion(name, kinds)}")
        if is_list(kind):
            if [other for other, _ in groups].count(name) > 1:
                raise ValueError(f"--{name} is given twice: write all its values behind one")
            items = [read_value(word, kind) for word in values]
            # One word may be the whole value: `--blocks "[1, 2]"`, or `1` of `int | list[int]`.
            yield name, items[0] if len(items) == 1 and fits(items[0], kind) else items
        elif not values and kind in (bool, Any):
            yield name, True
        elif kind is Any:
            yield name, values
        elif len(values) == 1:
            yield name, read_value(values[0], kind)
        else:
            raise ValueError(f"--{name} takes one value, not {len(values)}")


def run(main: Callable[[], object]) -> None:
    """Call a script's `main`; errors that a user can fix become one line and exit code 2.

    So do SIGINT and SIGTERM, with exit code 130 or 143. Messages and progress are shown.
    """
    try:
        try:
            with messages_shown():
                stopping.exit_when_stopped(main, _program())
            _leave_process_group()
        finally:
            sys.stdout.flush()
    except BrokenPipeError:  # the reader of stdout is gone, as in `--help | head`
        # The interpreter flushes once more at exit; what is left in the buffer goes nowhere.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        raise SystemExit(1) from None
    except ValueError as error:
        fail(str(error))
    except Exception as error:
        reason = _disk_error(error)
        if reason is None:
            raise
        fail(f"{reason}; nothing incomplete was kept")


def _leave_process_group() -> None:
    """NCCL warns of a process that ends without; a program of several calls needs it to its end."""
    distributed = sys.modules.get("torch.distributed")
    if distributed is not None and distributed.is_available() and distributed.is_initialized():
        distributed.destroy_process_group()


class _Printer(logging.Handler):
    """Prints messages as plain lines above a progress bar: warnings on stderr, others on stdout."""

    def emit(self, record: logging.LogRecord) -> None:
        warns = record.levelno >= logging.WARNING
        tqdm.write(record.getMessage(), file=sys.stderr if warns else sys.stdout)


@contextmanager
def messages_shown() -> Iterator[None]:
    """Within the block, messages of the logger `latent_prior` and progress bars are shown."""
    log, printer = logging.getLogger("latent_prior"), _Printer()
    level = log.level
    log.addHandler(printer)
    log.setLevel(logging.INFO)
    try:
        yield
    finally:
        log.setLevel(level)
        log.removeHandler(printer)


def fail(message: str) -> NoReturn:
    """Print `prog: error: message` on stderr and exit with code 2."""
    print(f"{_program()}: error: {' '.join(message.split())}", file=sys.stderr)
    raise SystemExit(2)


_DISK_ERRORS = {
    errno.ENOSPC, errno.EDQUOT, errno.EACCES, errno.EROFS, errno.ENOTDIR, errno.EISDIR,
    errno.ENAMETOOLONG, errno.ELOOP,
}  # fmt: skip


def _disk_error(error: BaseException | None) -> str | None:
    """The message of a full or protected disk, whatever exception a library wrapped it in."""
    while error is not None:
        # safetensors has the number in its text only.
        in_text = re.search(r"\(os error (\d+)\)", str(error))
        number = int(in_text[1]) if in_text else getattr(error, "errno", None)
        if number in _DISK_ERRORS:
            name = getattr(error, "filename", None)
            return os.strerror(number) + (f": {str(name)[:200]}" if name else "")
        error = error.__cause__ or error.__context__
    return None


def _program() -> str:
    return Path(sys.argv[0]).name or CONSOLE


def _print_help(options_class: type, known: Iterable[Flag]) -> None:
    """Every flag with its type, default, range and the docstring under its field."""
    print(f"usage: {_program()} [--config PRESET] [--FLAG VALUE ...]\n\n{options_class.__doc__}\n")
    shipped = f" or one of {', '.join(names)}" if (names := sorted(presets(options_class))) else ""
    config = f"Defaults of any flags: a YAML file{shipped}. A flag on the command line wins."
    print(f"  --config PRESET\n{_paragraph(config)}")
    print("  --dry_run\n        Print the resolved options as YAML and exit.")
    for flag in known:
        chooses = flag.name.endswith(".type")
        text = flag.explanation(" The flags below are those of the chosen one." if chooses else "")
        print(f"  --{flag.name} {flag.type_text()}\n{_paragraph(text)}")


def _paragraph(text: str) -> str:
    return textwrap.indent(textwrap.fill(text, 92), " " * 8)


@functools.cache
def _sentences(options_class: type) -> dict[str, str]:
    """Field -> docstring under it, from the source of a class and its bases."""
    sentences = {}
    for base in reversed(options_class.__mro__[:-1]):
        body = ast.parse(textwrap.dedent(inspect.getsource(base))).body[0]
        assert isinstance(body, ast.ClassDef)
        for field, below in itertools.pairwise(body.body):
            if isinstance(field, ast.AnnAssign) and isinstance(below, ast.Expr):
                sentence = ast.literal_eval(below.value)
                sentences[ast.unparse(field.target)] = " ".join(sentence.split())
    return sentences


def presets(options_class: type) -> dict[str, Path]:
    """Name -> file of the presets shipped in `configs/` beside the class's module."""
    return {
        path.stem: path
        for path in Path(inspect.getfile(options_class)).parent.glob("configs/*.yaml")
    }


def _read_preset(name: str | None, kinds: dict[str, Any], options_class: type) -> dict[str, Any]:
    """A preset's values under their dotted names, from a file or by the name of a shipped one."""
    if name is None:
        return {}
    shipped = presets(options_class)
    path = shipped.get(name, Path(name)) if not Path(name).is_file() else Path(name)
    if not path.is_file():
        known = suggestion(Path(name).stem, shipped, count=3) if shipped else ""
        raise ValueError(f"--config: there is no file {name} and no preset of that name{known}")
    pairs = list(dotted(read_yaml(path, "mend the file of --config")))
    values = dict(pairs)
    if len(values) < len(pairs):
        raise ValueError(
            f"{path} sets an option twice, nested and dotted; mend the file of --config"
        )
    for key in values:
        if _kind_of(key, kinds) is None:
            raise ValueError(f"unknown key {key!r} in {path}{suggestion(key, kinds)}")
    return values


def dotted(values: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Nested values under dotted names."""
    for key, value in values.items():
        if isinstance(value, dict):
            yield from dotted(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def suggestion(name: str, known: Iterable[str], count: int = 1) -> str:
    """The end of a message about an unknown name: the closest known ones, at most `count`."""
    close = difflib.get_close_matches(name, list(known), n=count)
    return f" (did you mean {' or '.join(close)}?)" if close else "; --help lists them all"
