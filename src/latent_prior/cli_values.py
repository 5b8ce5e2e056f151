"""From words of a command line and values of a preset to values of a flag's type."""

from __future__ import annotations

import json
import math
import re
import types
import typing
from typing import Any

import yaml


class _Loader(yaml.SafeLoader):
    """Plain words as in YAML 1.2: `no` is text, 1e-4 a number, 010 not octal and 12:30 no time."""


_Loader.yaml_implicit_resolvers = {"~": [("tag:yaml.org,2002:null", re.compile("~"))]}
for _tag, _form, _first in (
    ("null", "null|Null|NULL|", ["n", "N", ""]),
    ("bool", "true|True|TRUE|false|False|FALSE", list("tTfF")),
    ("int", "[-+]?(0|[1-9][0-9]*)", list("-+0123456789")),
    ("float", r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?", list("-+.0123456789")),
):
    _Loader.add_implicit_resolver(f"tag:yaml.org,2002:{_tag}", re.compile(f"^({_form})$"), _first)


def read_yaml(text: str) -> Any:
    """One YAML document, as plain values.

    Raises:
        yaml.YAMLError: the text is not YAML.
    """
    loader = _Loader(text)
    try:
        return loader.get_single_data()
    finally:
        loader.dispose()


def read_value(word: str, kind: Any) -> Any:
    """Text stays text (`--dataset 2024`); everything else is read as YAML reads it."""
    parts = (kind, *typing.get_args(kind))
    if word in ("null", "None") and type(None) in parts:
        return None
    if any(part is str or part == list[str] for part in parts):
        return word
    try:
        return read_yaml(word)
    except yaml.YAMLError:
        return word


def convert(name: str, value: Any, kind: Any) -> Any:
    """The value in the type its flag takes: a whole number may stand for a float or for text.

    Raises:
        ValueError: naming the flag, the value and what was expected.
    """
    if not fits(value, kind):
        raise ValueError(f"--{name} takes {_kind_text(kind)}, not {_word(value)}")
    parts = (kind, *typing.get_args(kind))
    if isinstance(value, list) and kind is not Any:
        lists = [part for part in parts if typing.get_origin(part) is list]
        return [convert(name, item, typing.get_args(lists[0])[0]) for item in value]
    if type(value) is int and int not in parts:
        return float(value) if float in parts else str(value) if str in parts else value
    return value


def fits(value: Any, kind: Any) -> bool:
    """Whether a value is of a flag's type; numbers must be finite, and a bool is not a number."""
    if kind is Any:
        return True
    origin, inner = typing.get_origin(kind), typing.get_args(kind)
    if origin in (typing.Union, types.UnionType):
        return any(fits(value, part) for part in inner)
    if origin is typing.Literal:
        return any(type(value) is type(choice) and value == choice for choice in inner)
    if origin is list:
        return isinstance(value, list) and all(fits(item, inner[0]) for item in value)
    if kind is float:
        return type(value) in (int, float) and math.isfinite(value)
    if kind is str:
        return type(value) in (int, str)
    return type(value) is kind


def _kind_text(kind: Any) -> str:
    """`int | None` -> `a whole number or null`."""
    origin, inner = typing.get_origin(kind), typing.get_args(kind)
    if origin in (typing.Union, types.UnionType):
        return " or ".join(map(_kind_text, inner))
    if origin is typing.Literal:
        return f"one of {', '.join(map(str, inner))}"
    if origin is list:
        return f"a list, each {_kind_text(inner[0])}"
    names = {int: "a whole number", float: "a number", bool: "true or false", str: "text"}
    return "null" if kind is type(None) else names[kind]


def _word(value: Any) -> str:
    """A value as the user wrote it, more or less."""
    if isinstance(value, list):
        return " ".join(map(_word, value)) or "nothing"
    return repr(value) if isinstance(value, str) else json.dumps(value, default=str)


def is_list(kind: Any) -> bool:
    """Whether a flag takes several words."""
    return any(typing.get_origin(k) is list for k in (kind, *typing.get_args(kind)))
