"""The reference from the package itself: its public names, the flags of scripts, the presets.

Three directives, of which each writes Markdown that Sphinx then reads.
"""

import ast
import dataclasses
import importlib
import inspect
import itertools
import textwrap
import typing
from collections.abc import Iterable, Iterator

from docutils import nodes
from sphinx.application import Sphinx
from sphinx.util.docutils import SphinxDirective

import latent_prior
from latent_prior import cli
from latent_prior.__main__ import PACKAGE, SCRIPTS
from latent_prior.cli_values import kind_text

PUBLIC = sorted(latent_prior.__all__, key=str.lower)


class PublicNames(SphinxDirective):
    """`{public-names}`: everything in `latent_prior.__all__`, from its docstrings."""

    def run(self) -> list[nodes.Node]:
        """Functions, classes, and the other classes of the package that functions return."""
        public = {f"latent_prior.{name}": getattr(latent_prior, name) for name in PUBLIC}
        classes = {name: value for name, value in public.items() if inspect.isclass(value)}
        functions = {name: value for name, value in public.items() if name not in classes}
        returned = {
            f"{each.__module__}.{each.__name__}": each
            for function in functions.values()
            if inspect.isclass(each := inspect.signature(function).return_annotation)
            and each.__module__.startswith("latent_prior.")
            and each not in classes.values()
        }
        lines = ["## Functions", *documented("autofunction", functions)]
        lines += ["## Classes", *documented("autoclass", classes)]
        if returned:
            lines += ["## What functions return", *documented("autoclass", returned)]
        return self.parse_text_to_nodes("\n".join(lines), allow_section_headings=True)


class Scripts(SphinxDirective):
    """`{scripts} ROOM`: the scripts of a room, each with its flags."""

    required_arguments = 1

    def run(self) -> list[nodes.Node]:
        """One section for each script, in the order in which they are used."""
        (room,) = self.arguments
        chosen = {verb: path for verb, path in SCRIPTS.items() if path.startswith(f"{room}/")}
        sections = (each for verb, path in chosen.items() for each in described(verb, path))
        return self.parse_text_to_nodes("\n".join(sections), allow_section_headings=True)


class Presets(SphinxDirective):
    """`{presets} VERB`: the presets of a script, each with its header."""

    required_arguments = 1

    def run(self) -> list[nodes.Node]:
        """One section for each preset: the file as it is."""
        (verb,) = self.arguments
        lines = []
        for name, path in sorted(cli.presets(options_of(SCRIPTS[verb])).items()):
            self.env.note_dependency(str(path))
            lines += [f"### {name}", "```yaml", path.read_text().rstrip(), "```"]
        return self.parse_text_to_nodes("\n".join(lines), allow_section_headings=True)


def documented(directive: str, names: Iterable[str]) -> list[str]:
    """Markdown that has Sphinx write the docstrings of these names."""
    members = ["   :members:"] if directive == "autoclass" else []
    blocks = ([f".. {directive}:: {name}", *members, ""] for name in names)
    return ["```{eval-rst}", *itertools.chain.from_iterable(blocks), "```"]


def options_of(path: str) -> type:
    """The class that a script parses its command line into: the second word of `answer_early`."""
    calls = [
        node
        for node in ast.walk(ast.parse((PACKAGE / path).read_text()))
        if isinstance(node, ast.Call) and ast.unparse(node.func) == "answer_early"
    ]
    module = importlib.import_module(f"latent_prior.{path.removesuffix('.py').replace('/', '.')}")
    found: type = getattr(module, ast.unparse(calls[0].args[1]))
    return found


def described(verb: str, path: str) -> Iterator[str]:
    """The section of a script: what it does, then a table of flags for every choice it has."""
    options = options_of(path)
    yield from (f"## {verb}\n", *introduction(path))
    flags = list(cli.flags(options))
    yield from table(flag for flag in flags if not flag.name.endswith(".*"))
    for flag in flags:
        if flag.name.endswith(".type"):
            group = flag.name.removesuffix("type")
            # Of a class that is chosen by its name, the flags are known only with it.
            for name in (
                typing.get_args(flag.kind) if f"{group}*" in {f.name for f in flags} else ()
            ):
                yield f"### {verb} --{flag.name} {name}\n"
                known = cli.flags(options, {flag.name: name})
                yield from table(
                    f for f in known if f.name.startswith(group) and f.name != flag.name
                )


def introduction(path: str) -> Iterator[str]:
    """A script's docstring, with the commands in it as code."""
    commands = ("accelerate launch ", "python ")
    docstring = ast.get_docstring(ast.parse((PACKAGE / path).read_text())) or ""
    for part in docstring.split("\n\n"):
        text = textwrap.dedent(part)
        yield f"```text\n{text}\n```\n" if text.startswith(commands) else f"{text}\n"


def table(flags: Iterable[cli.Flag]) -> Iterator[str]:
    """A table of flags."""
    yield "| flag | value | default | meaning |"
    yield "| --- | --- | --- | --- |"
    for flag in flags:
        numbers = f", {flag.range_text()}" if flag.range_text() else ""
        default = "required" if flag.default is dataclasses.MISSING else f"`{typed(flag.default)}`"
        cells = (f"`--{flag.name}`", f"{kind_text(flag.kind)}{numbers}", default, flag.sentence())
        yield f"| {' | '.join(cell.replace('|', '&#124;') for cell in cells)} |"
    yield ""


def typed(value: object) -> str:
    """A value as it is typed on a command line."""
    if isinstance(value, list):
        return " ".join(map(typed, value)) or "[]"
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    return str(value)


def setup(app: Sphinx) -> dict[str, bool]:
    """Register the directives."""
    app.add_directive("public-names", PublicNames)
    app.add_directive("scripts", Scripts)
    app.add_directive("presets", Presets)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
