"""Several scores.json in one report: `score.py --compare A/scores.json B/scores.json`.

Only numbers of one protocol are compared. The files may come from anywhere: a missing or malformed
entry raises a ValueError that names it.
"""

from __future__ import annotations

import dataclasses
import io
import itertools
import json
import math
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image

from latent_prior.evaluation.measures.table import MEASURES, Row, distance_measures
from latent_prior.evaluation.report.files import (
    JSON_FILE,
    check_sizes,
    comparable,
    terminal_table,
    write_report,
)
from latent_prior.evaluation.report.html import Grid
from latent_prior.evaluation.sets import draws_random_codes

GRID_FILE = "grid.png"  # written by generate.py beside the images
LONGEST_VALUE = 80  # characters of a protocol entry in a message


@dataclass(frozen=True)
class Scores:
    """The content of one scores.json."""

    path: Path
    protocol: dict[str, Any]
    rows: list[Row]
    column: str
    title: str


def compare(paths: Sequence[Path], output_dir: Path) -> None:
    """Merge the rows of several scores.json into one report, and print its table.

    Args:
        paths: at least two files, of equal protocols.
        output_dir: for the three files of the report; made if it is not there.

    Raises:
        ValueError: a file is not a scores.json, the protocols or sizes differ, or the report would
        replace
            a compared file; nothing is written then.
    """
    if len(paths) < 2:
        raise ValueError("--compare needs at least two scores.json files")
    if output_dir.exists() and not output_dir.is_dir():
        raise ValueError(f"--output_dir {output_dir} is a file; name a folder")
    resolved = [path.resolve() for path in paths]
    for path in resolved:
        if resolved.count(path) > 1:
            raise ValueError(f"--compare names {path} twice")
        if path == (output_dir / JSON_FILE).resolve():
            raise ValueError(f"the report would replace {path}: choose another --output_dir")
    scores = [read_scores(path) for path in paths]
    for other in scores[1:]:
        _check_protocols(scores[0], other)
    rows, candidates = _merged(scores)
    check_sizes([(row.name, row.num_images) for row in rows])
    protocol = scores[0].protocol | {
        "candidates": candidates,
        "compared": [_origin(score) for score in scores],
    }
    for key in (
        "versions",
        "command",
        "pipeline",
        "autoencoder_fingerprint",
    ):  # of each file, in `compared`
        protocol.pop(key, None)
    output_dir.mkdir(parents=True, exist_ok=True)
    column, title = scores[0].column, scores[0].title
    write_report(output_dir, protocol, rows, column, title, _pictures(rows, candidates))
    print(terminal_table(rows, column, title, output_dir))


def show(path: Path) -> None:
    """Print the table of a scores.json, as `evaluation/score.py` does.

    Raises:
        ValueError: naming the file and what is wrong with it.
    """
    scores = read_scores(path)
    print(terminal_table(scores.rows, scores.column, scores.title, path.parent))


def read_scores(path: Path) -> Scores:
    """Read and check one scores.json.

    Raises:
        ValueError: naming the file and what is wrong with it.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"), parse_constant=_no_number)
    except OSError as error:
        raise ValueError(f"--compare: {path} cannot be read: {error.strerror}") from error
    except (ValueError, RecursionError) as error:
        raise ValueError(f"--compare: {path} is not JSON: {error}") from error
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
            raise ValueError(f"row {name} has an entry {_short(key)} that no measure is called")
    if any(error < 0 for error in errors.values()):
        raise ValueError(f"row {name} has a negative standard error")
    curve = []
    for point in _get(entry, "curve", list):
        if not (isinstance(point, list) and len(point) == 2 and _is_size(point[0])):
            raise ValueError(f"the curve of row {name} has a point {_short(point)}")
        curve.append((point[0], _number(point[1], f"the curve of row {name}")))
    notes = _get(entry, "notes", list)
    if not all(isinstance(note, str) and note.isprintable() for note in notes):
        raise ValueError(f"the notes of row {name} are no sentences")
    if not _is_size(entry.get("num_images")):
        raise ValueError(f"num_images of row {name} is {_short(entry.get('num_images'))}")
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
        raise ValueError(f"its num_images is {_short(protocol['num_images'])}")
    if protocol.get("classifier") is not None:
        classifier = _get(protocol, "classifier", dict)
        _text(classifier, "split")
        _number(classifier.get("reference_accuracy"), "reference_accuracy")
    candidates = _get(protocol, "candidates", dict)
    if not all(isinstance(candidate, dict) for candidate in candidates.values()):
        raise ValueError("its candidates are not described")
    return protocol


def _check_protocols(first: Scores, other: Scores) -> None:
    """Refuse two protocols that are not equal where it counts."""
    one = comparable(first.protocol) | {"distance": [first.column, first.title]}
    two = comparable(other.protocol) | {"distance": [other.column, other.title]}
    if one.get("reference_sha256") != two.get("reference_sha256"):  # a name tells a reader more
        named = ("reference", "reference_split")
        one = {key: first.protocol.get(key) for key in named} | one
        two = {key: other.protocol.get(key) for key in named} | two
    for key in dict.fromkeys([*one, *two]):
        here, there = one.get(key), two.get(key)
        if here == there:
            continue
        if isinstance(here, dict) and isinstance(there, dict):
            inner = next(k for k in [*here, *there] if here.get(k) != there.get(k))
            key, here, there = f"{key}.{inner}", here.get(inner), there.get(inner)
        raise ValueError(
            f"--compare: numbers of two protocols do not stand in one column: {key} is {_short(here)} in "
            f"{first.path} and {_short(there)} in {other.path}; score both in the same way"
        )


def _merged(scores: Sequence[Scores]) -> tuple[list[Row], dict[str, Any]]:
    """All rows and candidates, under unique names.

    A row that several files share, such as real images, is kept once. Different rows of one name
    get the differing part of their files' paths as a suffix, and the name as their series.
    """
    rows: list[Row] = []
    candidates: dict[str, Any] = {}
    measured: dict[str, list[dict[str, Any]]] = {}
    for score in scores:
        for row in score.rows:
            values = dataclasses.replace(row, notes=()).to_json()  # versions word notes differently
            if values not in measured.setdefault(row.name, []):
                measured[row.name].append(values)
    labels = _labels([score.path for score in scores])
    kept: set[str] = set()
    for score, label in zip(scores, labels, strict=True):
        for row in score.rows:
            clash = len(measured[row.name]) > 1
            if row.name in kept and not clash:
                continue
            kept.add(row.name)
            name = f"{row.name} ({label})" if clash else row.name
            while name in (other.name for other in rows):  # so called in another file
                name += "'"
            if row.name in score.protocol["candidates"]:
                candidates[name] = score.protocol["candidates"][row.name]
            series = (row.series or row.name) if clash else row.series
            rows.append(dataclasses.replace(row, name=name, series=series))
    return rows, candidates


def _labels(paths: Sequence[Path]) -> list[str]:
    """The paths without the parts that all of them begin or end with."""
    parts = [path.resolve().with_suffix("").parts for path in paths]
    begin = _shared(parts)
    end = _shared([tuple(reversed(part)) for part in parts])
    kept = ["/".join(part[begin : len(part) - end]) for part in parts]
    whole = ["/".join(part[begin - 1 :]) for part in parts]
    return kept if all(kept) and len(set(kept)) == len(kept) else whole


def _shared(parts: Sequence[tuple[str, ...]]) -> int:
    columns = zip(*parts, strict=False)
    return sum(1 for _ in itertools.takewhile(lambda column: len(set(column)) == 1, columns))


def _origin(score: Scores) -> dict[str, Any]:
    kept = ("versions", "command", "pipeline", "autoencoder_fingerprint", "compared")
    found = {key: score.protocol[key] for key in kept if score.protocol.get(key) is not None}
    return {"file": str(score.path)} | found


def _pictures(rows: Sequence[Row], candidates: dict[str, Any]) -> list[Grid]:
    """The grid.png of each generated set that is still in its folder."""
    grids = []
    for row in rows:
        source = candidates.get(row.name, {}).get("source")
        if not isinstance(source, str) or candidates[row.name].get("split") is not None:
            continue
        try:
            content = (Path(source) / GRID_FILE).read_bytes()
            with Image.open(io.BytesIO(content), formats=["PNG"]) as image:
                image.verify()
                grids.append(Grid(row.name, source, content, image.width))
        except (OSError, SyntaxError, ValueError):  # missing or damaged; the numbers do not need it
            continue
    return grids


def _get(entries: Any, key: str, kind: type) -> Any:
    if not isinstance(entries, dict):
        raise ValueError(f"there is {_short(entries)} where {key} should stand")
    if not isinstance(entries.get(key), kind):
        raise ValueError(f"{key} is {_short(entries.get(key))}")
    return entries[key]


def _text(entries: Any, key: str) -> str:
    text: str = _get(entries, key, str)
    if not text or not text.isprintable():
        raise ValueError(f"{key} is {_short(text)}")
    return text


def _number(value: Any, what: str) -> float:
    """A float; NaN for null, which is how one is written."""
    if value is None:
        return math.nan
    if isinstance(value, bool) or not isinstance(value, int | float) or not abs(value) < 1e300:
        raise ValueError(f"{what} is {_short(value)}")
    return float(value)


def _is_size(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 1 <= value < 2**63


def _no_number(name: str) -> float:
    raise ValueError(f"it holds {name}")


def _short(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) <= LONGEST_VALUE else text[:LONGEST_VALUE] + "..."
