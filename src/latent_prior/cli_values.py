"""From words of a command line and values of a preset to values of a flag's type."""

from __future__ import annotations

import json
import math
import types
import typing
from typing import Any

import yaml

from latent_prior.records import parse_yaml

LARGEST = 2**63 - 1
LONGEST_WORD = 80  # characters of a value in a message


def read_value(word: str, kind: Any) -> Any:
    """Text stays text (`--dataset 2024`); everything else is read as YAML reads it."""
    parts = (kind, *typing.get_args(kind))
    if word in ("null", "None") and type(None) in parts:
        return None
    if any(part is str or part == list[str] for part in parts):
        return word
    try:
        return parse_yaml(word)
    except yaml.YAMLError:
        return word


def convert(name: str, value: Any, kind: Any) -> Any:
    """The value in the type its flag takes: a whole number may stand for a float or for text.

    Raises:
        ValueError: naming the flag, the value and what was expected.
    """
    if not fits(value, kind):
        raise ValueError(f"--{name} takes {kind_text(kind)}, not {_word(value)}")
    parts = (kind, *typing.get_args(kind))
    if isinstance(value, list) and kind is not Any:
        lists = [part for part in parts if typing.get_origin(part) is list]
        return [convert(name, item, typing.get_args(lists[0])[0]) for item in value]
    if type(value) is int and int not in parts:
        return float(value) if float in parts else str(value) if str in parts else value
    return value


def fits(value: Any, kind: Any) -> bool:
    """Whether a value is of a flag's type: numbers of 64 bits and finite; no bool for a number."""
    if kind is Any:
        return True
    origin, inner = typing.get_origin(kind), typing.get_args(kind)
    if origin in (typing.Union, types.UnionType):
        return any(fits(value, part) for part in inner)
    if origin is typing.Literal:
        return any(type(value) is type(choice) and value == choice for choice in inner)
    if origin is list:
        return isinstance(value, list) and all(fits(item, inner[0]) for item in value)
    if type(value) is int and abs(value) > LARGEST:
        return False
    if kind is float:
        return type(value) in (int, float) and math.isfinite(value)
    if kind is str:
        return type(value) in (int, str)
    return type(value) is kind


def kind_text(kind: Any) -> str:
    """`int | None` -> `a whole number or null`."""
    origin, inner = typing.get_origin(kind), typing.get_args(kind)
    if origin in (typing.Union, types.UnionType):
        return " or ".join(map(kind_text, inner))
    if origin is typing.Literal:
        return f"one of {', '.join(map(str, inner))}"
    if origin is list:
        return f"a list, each {kind_text(inner[0])}"
    names = {int: "a whole number", float: "a number", bool: "true or false", str: "text"}
    return "null" if kind is type(None) else names[kind]


def _word(value: Any) -> str:
    """A value as the user wrote it, more or less."""
    if isinstance(value, list):
        return " ".join(map(_word, value)) or "nothing"
    text = repr(value) if isinstance(value, str) else json.dumps(value, default=str)
    return text if len(text) <= LONGEST_WORD else f"{text[:LONGEST_WORD]}..."


def is_list(kind: Any) -> bool:
    """Whether a flag takes several words."""
    return any(typing.get_origin(k) is list for k in (kind, *typing.get_args(kind)))
