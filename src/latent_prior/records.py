"""Records: the JSON, JSON lines and YAML files of the project, each checked against a schema.

A schema is a type that msgspec knows: a `msgspec.Struct` in the module that owns the file, or
`dict[str, Any]` for a file whose content is checked elsewhere. Whatever is wrong with a file, the
error names the file, the place in it and the way out.
"""

from __future__ import annotations

import itertools
import json
import re
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import Any, TypeVar

import msgspec
import xxhash
import yaml

from latent_prior.files import check_folder_path, read_regular, temporary_name, whole_file

T = TypeVar("T")
RECORD_LIMIT, LINES_LIMIT, YAML_LIMIT = 16 << 20, 1 << 30, 1 << 20
"""Most bytes of a JSON file, of a file of JSON lines and of a YAML document."""
SEAL = "sealed_xxh3"
"""Key of a sealed record: the digest of the rest, for files that travel without a manifest."""
DEPTH = 32
"""Most lists and mappings inside each other in a YAML document."""


def read_record(path: Path, schema: type[T], way_out: str, *, limit: int = RECORD_LIMIT) -> T:
    """Read a JSON file.

    Args:
        path: a regular file.
        schema: type of its content.
        way_out: what to do about a damaged file, for the message, such as `encode again`.
        limit: most bytes.

    Raises:
        ValueError: naming the file, the place and the way out.
    """
    if not path.exists():
        folder = path.parent
        names = sorted(entry.name for entry in folder.iterdir()) if folder.is_dir() else []
        holds = ", ".join(names[:8]) or "nothing"
        raise ValueError(f"{path} is missing; the folder holds: {holds}")
    return parse_record(read_regular(path, limit), schema, str(path), way_out)


def parse_record(content: bytes | str, schema: type[T], where: str, way_out: str) -> T:
    """The value that JSON text holds; `where` names the text in messages.

    Raises:
        ValueError: naming `where`, the place and the way out.
    """
    try:
        plain = msgspec.json.decode(content)
        json.loads(content, object_pairs_hook=_unique)
    except msgspec.ValidationError as error:
        raise ValueError(_sentence(where, error, way_out)) from error
    except RecursionError as error:
        raise ValueError(f"{where} is not valid: it is nested too deeply; {way_out}") from error
    except ValueError as error:
        raise ValueError(f"{where} is not JSON: {error}; {way_out}") from error
    if isinstance(plain, dict) and SEAL in plain:
        seal = plain.pop(SEAL)
        if seal != _seal(plain):
            raise ValueError(f"{where} was changed after it was written ({SEAL}); {way_out}")
    return convert_record(plain, schema, where, way_out)


def read_lines(path: Path, schema: type[T], way_out: str) -> list[T]:
    """Read a file of JSON lines; a last line without its end, left by a killed process, is skipped.

    Raises:
        ValueError: naming the file, the line and the way out.
    """
    lines = read_regular(path, LINES_LIMIT).split(b"\n")[:-1]
    return [
        parse_record(line, schema, f"{path}, line {number}", way_out)
        for number, line in enumerate(lines, start=1)
    ]


def convert_record(value: object, schema: type[T], where: str, way_out: str) -> T:
    """A plain value as its schema has it; `where` names the value in messages.

    Raises:
        ValueError: naming `where`, the place and the way out.
    """
    try:
        return msgspec.convert(value, schema)
    except msgspec.ValidationError as error:
        raise ValueError(_sentence(where, error, way_out)) from error
    except RecursionError as error:
        raise ValueError(f"{where} is not valid: it is nested too deeply; {way_out}") from error


def write_record(path: Path, value: object, *, sealed: bool = False) -> None:
    """Write a JSON file, whole or not at all; numbers that are not finite become null.

    Args:
        path: where it goes.
        value: its content.
        sealed: add the digest of an object's content, which `read_record` checks and removes.

    Raises:
        ValueError: a text in it is not Unicode, such as the name of a file that is not UTF-8.
    """
    content = record_text(value, str(path), sealed=sealed)
    with whole_file(path) as temporary:
        temporary.write_text(content, encoding="utf-8")


def record_text(value: object, where: str, *, sealed: bool = False) -> str:
    """A value as indented JSON text, sealed as by `write_record`; `where` names it in messages.

    Raises:
        ValueError: a text in it is not Unicode.
    """
    try:
        content = msgspec.json.encode(value)
        if sealed:
            plain = msgspec.json.decode(content)
            content = msgspec.json.encode({**plain, SEAL: _seal(plain)})
        return msgspec.json.format(content, indent=2).decode() + "\n"
    except UnicodeEncodeError as error:
        raise ValueError(f"{where} cannot hold {error.object!r}: it is not Unicode text") from error


def check_output_dir(
    folder: Path,
    file: str,
    settings: Mapping[str, Any],
    contents: str,
    *,
    section: str | None = None,
    may_change: Collection[str] = (),
) -> dict[str, Any] | None:
    """Check that an output folder is new, is empty, or was written with the same settings.

    Args:
        folder: value of `--output_dir`.
        file: JSON file in it that records the settings.
        settings: settings of this command.
        contents: what the folder should hold, for the error message, such as `images`.
        section: key of the settings in the file; None if they are its top level.
        may_change: names of settings that may differ.

    Returns:
        The content of the file, or None for a folder that is new or empty.

    Raises:
        ValueError: the folder holds something else, or was written with other settings.
    """
    check_folder_path(folder, "--output_dir ")
    # Of a process that was killed while it wrote its first file, the temporary file is left.
    temporary = temporary_name(folder / file)
    if not folder.exists() or all(path == temporary for path in folder.iterdir()):
        return None
    if not (folder / file).exists():
        raise ValueError(
            f"--output_dir {folder} is not empty and holds no {contents} (no {file}); "
            "choose another folder"
        )
    way_out = "choose another folder or delete this one"
    stored = read_record(folder / file, dict[str, Any], way_out)
    values = stored if section is None else stored.get(section)
    check_same_settings(
        convert_record(values, dict[str, Any], f"{folder / file}: {section}", way_out),
        settings,
        f"--output_dir {folder} holds {contents}",
        way_out,
        may_change=may_change,
    )
    return stored


def check_same_settings(
    stored: Mapping[str, Any],
    settings: Mapping[str, Any],
    holder: str,
    way_out: str,
    *,
    may_change: Collection[str] = (),
) -> None:
    """Compare the settings of this command with stored ones.

    A fingerprint that an older version did not store cannot be compared.

    Raises:
        ValueError: naming `holder`, the first setting that differs, both values and `way_out`.
    """
    for name, value in settings.items():
        if name.endswith("_fingerprint") and name not in stored:
            continue
        if name not in may_change and stored.get(name) != value:
            raise ValueError(
                f"{holder} with {name} = {stored.get(name)!r}, this command sets {value!r}: "
                f"{way_out}"
            )


def read_yaml(path: Path, way_out: str) -> dict[str, Any]:
    """Read a YAML file that holds a mapping.

    Raises:
        ValueError: naming the file, what is wrong and the way out.
    """
    try:
        values = parse_yaml(read_regular(path, YAML_LIMIT).decode())
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        place = " ".join(str(error).replace('"<unicode string>", ', "").split())
        raise ValueError(f"{path} is not YAML: {place}; {way_out}") from error
    if not isinstance(values, dict):
        raise ValueError(f"{path} is not a mapping of names to values; {way_out}")
    return values


def parse_yaml(text: str) -> Any:
    """One YAML document, as plain values; aliases and tags are refused.

    Plain words are read as in YAML 1.2: `no` is text, 1e-4 a number, 010 not octal and 12:30 no
    time. The events of the parser are read one by one, so that hostile text is refused at once.

    Raises:
        yaml.YAMLError: the text is not YAML, is nested too deeply, or has a mapping with a key that
            is no text or stands there twice.
    """
    events = yaml.parse(text, Loader=getattr(yaml, "CSafeLoader", yaml.SafeLoader))
    next(events)  # the stream's start
    if isinstance(next(events), yaml.StreamEndEvent):
        return None
    value = _value(next(events), events, DEPTH)
    next(events)  # the document's end
    if not isinstance(next(events), yaml.StreamEndEvent):
        raise yaml.YAMLError("there is more than one document")
    return value


def _value(event: Any, events: Iterator[Any], depth: int) -> Any:
    """The value that begins with an event."""
    if isinstance(event, yaml.AliasEvent) or event.anchor:
        raise yaml.YAMLError(f"anchors and aliases are not read {event.start_mark}")
    if event.tag:
        raise yaml.YAMLError(f"tags such as {event.tag[:40]!r} are not read {event.start_mark}")
    if isinstance(event, yaml.ScalarEvent):
        return _scalar(event.value) if event.implicit[0] else event.value
    if not depth:
        raise yaml.YAMLError(f"there are more than {DEPTH} levels {event.start_mark}")
    if isinstance(event, yaml.SequenceStartEvent):
        items = []
        while not isinstance(event := next(events), yaml.SequenceEndEvent):
            items.append(_value(event, events, depth - 1))
        return items
    values: dict[str, Any] = {}
    while not isinstance(event := next(events), yaml.MappingEndEvent):
        if not isinstance(event, yaml.ScalarEvent):
            raise yaml.YAMLError(f"a key is no text {event.start_mark}")
        if event.value in values:
            raise yaml.YAMLError(f"{event.value[:40]!r} stands there twice {event.start_mark}")
        values[event.value] = _value(next(events), events, depth - 1)
    return values


_WORDS = {
    **dict.fromkeys(("", "~", "null", "Null", "NULL")),
    **dict.fromkeys(("true", "True", "TRUE"), True),
    **dict.fromkeys(("false", "False", "FALSE"), False),
}
_INTEGER = re.compile("[-+]?(0|[1-9][0-9]{0,999})")
_FLOAT = re.compile(r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?")


def _scalar(word: str) -> Any:
    """A plain word as YAML 1.2 reads it; a number too large is infinite."""
    if word in _WORDS:
        return _WORDS[word]
    if _INTEGER.fullmatch(word):
        return int(word)
    return float(word) if _FLOAT.fullmatch(word) else word


def _seal(values: dict[str, Any]) -> str:
    return xxhash.xxh3_128_hexdigest(msgspec.json.encode(values))


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    values = dict(pairs)
    if len(values) < len(pairs):
        names = sorted(name for name, _ in pairs)
        twice = next(name for name, after in itertools.pairwise(names) if name == after)
        raise ValueError(f"{twice[:40]!r} stands there twice")
    return values


def _sentence(where: str, error: msgspec.ValidationError, way_out: str) -> str:
    """The message of msgspec with the place first."""
    message, _, place = str(error).replace("`", "").partition(" - at ")
    at = f"{place}: " if place else ""
    return f"{where}: {at}{message}; {way_out}"
