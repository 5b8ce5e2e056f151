"""Read scores.json files, which may come from anywhere: a malformed entry raises a ValueError."""

from __future__ import annotations

import json
import math
from collections.abc import Collection
from pathlib import Path
from typing import Any, NamedTuple

from latent_prior.evaluation.measures.table import MEASURES, Row, distance_measures
from latent_prior.evaluation.sets import draws_random_codes
from latent_prior.records import read_record

LONGEST_VALUE = 80  # characters of a protocol entry in a message


class Scores(NamedTuple):
    """The content of one scores.json."""

    path: Path
    protocol: dict[str, Any]
    rows: list[Row]
    column: str
    title: str


def read_scores(path: Path) -> Scores:
    """Read and check one scores.json.

    Raises:
        ValueError: naming the file and what is wrong with it.
    """
    try:
        content = read_record(path, dict[str, Any], "score again")
    except ValueError as error:
        raise ValueError(f"--compare: {error}") from error
    try:
        protocol = _protocol(_get(content, "protocol", dict))
        distance = _get(content, "distance", dict)
        column, title = _text(distance, "key"), _text(distance, "title")
        entries = _get(content, "rows", list)
        baselines = {  # older versions took them for contestants
            name
            for name, candidate in protocol["candidates"].items()
            if draws_random_codes(candidate.get("sampler"))
        }
        rows = [_row(entry, column, title, baselines) for entry in entries]
        if len({row.name for row in rows}) < len(rows):
            raise ValueError("two rows have one name")
        if not rows:
            raise ValueError("there are no rows")
    except ValueError as error:
        raise ValueError(
            f"--compare: {path} is not a scores.json of this program: {error}"
        ) from error
    return Scores(path, protocol, rows, column, title)


def _row(entry: Any, column: str, title: str, baselines: Collection[str]) -> Row:
    """The inverse of `Row.to_json`."""
    fixed = ("name", "num_images", "notes", "curve", "contestant", "series")
    known = {measure.key for measure in distance_measures(column, title)} | set(MEASURES)
    name = _text(entry, "name")
    values, errors = {}, {}
    for key, value in entry.items():
        if key in known:
            values[key] = _number(value, f"{key} of row {name}")
        elif key.removesuffix("_stderr") in known:
            errors[key.removesuffix("_stderr")] = _number(value, f"{key} of row {name}")
        elif key not in fixed:
            raise ValueError(f"row {name} has an entry {short(key)} that no measure is called")
    if any(error < 0 for error in errors.values()):
        raise ValueError(f"row {name} has a negative standard error")
    curve = []
    for point in _get(entry, "curve", list):
        if not (isinstance(point, list) and len(point) == 2 and _is_size(point[0])):
            raise ValueError(f"the curve of row {name} has a point {short(point)}")
        curve.append((point[0], _number(point[1], f"the curve of row {name}")))
    notes = _get(entry, "notes", list)
    if not all(isinstance(note, str) and note.isprintable() for note in notes):
        raise ValueError(f"the notes of row {name} are no sentences")
    if not _is_size(entry.get("num_images")):
        raise ValueError(f"num_images of row {name} is {short(entry.get('num_images'))}")
    series = _text(entry, "series") if "series" in entry else ""
    contestant = _get(entry, "contestant", bool) and name not in baselines
    return Row(
        name, entry["num_images"], values, errors, tuple(notes), tuple(curve), contestant, series
    )


def _protocol(protocol: dict[str, Any]) -> dict[str, Any]:
    """The protocol, whose entries are as `describe` needs them."""
    for key in ("reference", "features", "resizer"):
        _text(protocol, key)
    if protocol.get("reference_split") is not None:
        _text(protocol, "reference_split")
    if protocol.get("num_images") is not None and not _is_size(protocol["num_images"]):
        raise ValueError(f"its num_images is {short(protocol['num_images'])}")
    if protocol.get("classifier") is not None:
        classifier = _get(protocol, "classifier", dict)
        _text(classifier, "split")
        _number(classifier.get("reference_accuracy"), "reference_accuracy")
    candidates = _get(protocol, "candidates", dict)
    if not all(isinstance(candidate, dict) for candidate in candidates.values()):
        raise ValueError("its candidates are not described")
    return protocol


def _get(entries: Any, key: str, kind: type) -> Any:
    if not isinstance(entries, dict):
        raise ValueError(f"there is {short(entries)} where {key} should stand")
    if not isinstance(entries.get(key), kind):
        raise ValueError(f"{key} is {short(entries.get(key))}")
    return entries[key]


def _text(entries: Any, key: str) -> str:
    text: str = _get(entries, key, str)
    if not text or not text.isprintable():
        raise ValueError(f"{key} is {short(text)}")
    return text


def _number(value: Any, what: str) -> float:
    """A float; NaN for null, which is how one is written."""
    if value is None:
        return math.nan
    if isinstance(value, bool) or not isinstance(value, int | float) or not abs(value) < 1e300:
        raise ValueError(f"{what} is {short(value)}")
    return float(value)


def _is_size(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 1 <= value < 2**63


def short(value: Any) -> str:
    """A value as in JSON, cut for a message."""
    text = json.dumps(value)
    return text if len(text) <= LONGEST_VALUE else text[:LONGEST_VALUE] + "..."
