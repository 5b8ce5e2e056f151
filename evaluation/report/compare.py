"""Several scores.json in one report: `score.py --compare A/scores.json B/scores.json`.

Only numbers of one protocol are compared.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from latent_prior.data.image_files import FILE_LIMIT, decode_image
from latent_prior.data.listing import GRID_FILE
from latent_prior.evaluation.measures.table import Row
from latent_prior.evaluation.report.files import (
    JSON_FILE,
    PER_RUN,
    check_sizes,
    comparable,
    terminal_table,
    write_report,
)
from latent_prior.evaluation.report.html import Grid
from latent_prior.evaluation.report.scores import Scores, read_scores, short
from latent_prior.files import check_folder_path, read_regular

PNG = b"\x89PNG"  # what such files begin with


def compare(paths: Sequence[Path], output_dir: Path) -> None:
    """Merge the rows of several scores.json into one report.

    Args:
        paths: at least two files, of equal protocols.
        output_dir: for the three files of the report; made if it is not there.

    Raises:
        ValueError: a file is not a scores.json, the protocols or sizes differ, or the report would
            replace a compared file; nothing is written then.
    """
    if len(paths) < 2:
        raise ValueError("--compare needs at least two scores.json files")
    check_folder_path(output_dir, "--output_dir ")
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
    for key in PER_RUN:  # `compared` has them for each file
        protocol.pop(key, None)
    output_dir.mkdir(parents=True, exist_ok=True)
    column, title = scores[0].column, scores[0].title
    write_report(output_dir, protocol, rows, column, title, _pictures(rows, candidates))


def show(path: Path) -> None:
    """Print the table of a scores.json, as `evaluation/score.py` does.

    Raises:
        ValueError: naming the file and what is wrong with it.
    """
    scores = read_scores(path)
    print(terminal_table(scores.rows, scores.column, scores.title, path.parent))


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
            f"--compare: numbers of two protocols do not stand in one column: {key} is {short(here)} in "
            f"{first.path} and {short(there)} in {other.path}; score both in the same way"
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
    protocol = score.protocol
    known = {k: protocol[k] for k in (*PER_RUN, "compared") if protocol.get(k) is not None}
    return {"file": str(score.path)} | known


def _pictures(rows: Sequence[Row], candidates: dict[str, Any]) -> list[Grid]:
    """The grid.png of each generated set that is still in its folder."""
    grids = []
    for row in rows:
        source = candidates.get(row.name, {}).get("source")
        if not isinstance(source, str) or candidates[row.name].get("split") is not None:
            continue
        try:
            content = read_regular(Path(source) / GRID_FILE, FILE_LIMIT)
            width = decode_image(content, None).shape[1]
        except ValueError:  # missing or damaged; the numbers do not need it
            continue
        if content.startswith(PNG):
            grids.append(Grid(row.name, source, content, width))
    return grids
