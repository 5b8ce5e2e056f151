"""The reference from the package itself: its public names, the flags of scripts, the presets.

Three directives, of which each writes Markdown that Sphinx then reads.
"""

import ast
import importlib
import inspect
import typing
from collections.abc import Iterable, Iterator

from docutils import nodes
from sphinx.application import Sphinx
from sphinx.util.docutils import SphinxDirective

import latent_prior
from latent_prior import cli
from latent_prior.__main__ import PACKAGE, SCRIPTS


class PublicNames(SphinxDirective):
    """`{public-names}`: everything in `latent_prior.__all__`, from its docstrings."""

    def run(self) -> list[nodes.Node]:
        """Functions first, then classes."""
        lines = ["```{eval-rst}"]
        for name in sorted(latent_prior.__all__, key=str.lower):
            is_class = inspect.isclass(getattr(latent_prior, name))
            lines.append(f".. {'autoclass' if is_class else 'autofunction'}:: latent_prior.{name}")
            lines += ["   :members:", ""] if is_class else [""]
        return self.parse_text_to_nodes("\n".join([*lines, "```"]))


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
    docstring = ast.get_docstring(ast.parse((PACKAGE / path).read_text())) or ""
    yield f"## `{verb}`\n"
    yield f"`{path}`: {docstring}\n"
    flags = list(cli.flags(options))
    choice = next((flag for flag in flags if flag.name.endswith(".*")), None)
    if choice is None:
        yield from table(verb, flags)
        return
    yield from table(verb, (flag for flag in flags if flag is not choice))
    prefix = choice.name.removesuffix("*")
    (kind,) = (flag.kind for flag in flags if flag.name == f"{prefix}type")
    for name in typing.get_args(kind):
        yield f"### `{verb}` with `--{prefix}type {name}`\n"
        known = cli.flags(options, {f"{prefix}type": name})
        own = [flag for flag in known if flag.name.startswith(prefix)]
        yield from table(f"{verb}--{name}", (flag for flag in own if flag.name != f"{prefix}type"))


def table(place: str, flags: Iterable[cli.Flag]) -> Iterator[str]:
    """A table of flags."""
    yield "| flag | type | default | |"
    yield "| --- | --- | --- | --- |"
    for flag in flags:
        limits = f"<br>{flag.range_text()}" if flag.range_text() else ""
        cells = [
            f"`--{flag.name}`",
            f"`{flag.type_text()}`{limits}",
            f"`{flag.default_text()}`",
            flag.sentence(),
        ]
        yield f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in cells)} |"
    yield ""


def setup(app: Sphinx) -> dict[str, bool]:
    """Register the directives."""
    app.add_directive("public-names", PublicNames)
    app.add_directive("scripts", Scripts)
    app.add_directive("presets", Presets)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
