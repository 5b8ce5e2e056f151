"""The model card of a pipeline folder: README.md, for people and for the Hugging Face hub.

Everything it says is read from the folder: `pipeline.json`, the parts' configs, and in `card/` what is known beyond
them: the options of the trainings, a grid of samples with its settings, scores with their protocol.
"""

from __future__ import annotations

import csv
import json
import re
import shutil
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from latent_prior.cli_values import read_yaml
from latent_prior.files import read_json, whole_file, write_json
from latent_prior.models import CONFIG_FILE
from latent_prior.pipelines.card_text import (
    CARD,
    GENERATION_FILE,
    GRID_FILE,
    MARK,
    TABLE_FILE,
    card_text,
)

README, INDEX_FILE, LABELS_FILE = "README.md", "pipeline.json", "labels.csv"
PARTS = ("autoencoder", "prior")


def write_card(
    folder: Path,
    *,
    grid: Path | None = None,
    scores: Path | None = None,
    license_name: str | None = None,
) -> bool:
    """Write README.md into a pipeline folder, after taking in what is given.

    Args:
        folder: of the pipeline.
        grid: `grid.png` in a folder of images that generate.py drew from this pipeline; None keeps the card's own.
        scores: `scores.json` in a folder that score.py wrote about it, likewise.
        license_name: as the hub spells it, `apache-2.0`; None keeps what the card says.

    Returns:
        Whether it was written: a README.md that somebody else wrote stays as it is.

    Raises:
        ValueError: no pipeline, or pictures or scores of something else.
    """
    index = read_json(folder / INDEX_FILE)
    if grid is not None:
        _take_grid(folder, grid)
    if scores is not None:
        _take_scores(folder, scores)
    path = folder / README
    text = path.read_text(encoding="utf-8") if path.is_file() else ""
    if is_handwritten(text):
        return False
    with whole_file(path) as temporary:
        temporary.write_text(
            card_text(folder, index, license_name or license_of(text)), encoding="utf-8"
        )
    return True


def carry_card(folder: Path, homes: Mapping[str, Path], before: Path) -> None:
    """Bring to a new pipeline folder what is known of its parts, and what was said of the same pipeline elsewhere.

    Args:
        folder: the new one, without a card.
        homes: folder that each part was loaded from.
        before: the pipeline folder that the new one replaces, if there is one.
    """
    card = folder / CARD
    origins = [before, *(home.parent for home in homes.values())]
    same = [origin for origin in origins if _fingerprints(origin) == _fingerprints(folder)]
    for origin in same[:1]:
        if (origin / CARD).is_dir():
            shutil.copytree(origin / CARD, card)
    for part, home in homes.items():
        for name, source in _recipes(part, home):
            card.mkdir(exist_ok=True)
            if name not in (path.name for path in card.iterdir()):
                text = source.read_text(encoding="utf-8")
                text = without_places(text, read_yaml(text))  # JSON is YAML
                (card / name).write_text(text, encoding="utf-8")
    for origin in (before, *same):  # what stands in the folder itself is never lost
        path = origin / README
        if path.is_file() and not (folder / README).exists():
            text = path.read_text(encoding="utf-8")
            if origin in same or is_handwritten(text):
                (folder / README).write_text(text, encoding="utf-8")


def is_handwritten(text: str) -> bool:
    """Whether a README.md says something of its own: more than the front matter that the hub's website writes."""
    return MARK not in text and bool(re.sub(r"\A---\n.*?\n---\n", "", text, flags=re.S).strip())


def license_of(text: str) -> str | None:
    """The license that the front matter of a README.md names."""
    front = re.match(r"\A---\n(.*?)\n---\n", text, flags=re.S)
    found = front and re.search(r"^license: *(.+?) *$", front[1], flags=re.M)
    return found[1] if found else None


def without_places(text: str, values: Any) -> str:
    """A file's text with the absolute paths among its values cut down to their last part.

    On another machine they lead nowhere, and they tell the hub who lives where on this one.
    """
    paths = sorted(set(_absolute_paths(values)), key=len, reverse=True)
    for path in paths:
        for written in (path, json.dumps(path)[1:-1]):
            text = text.replace(written, Path(path).name)
    return text


def _absolute_paths(values: Any) -> Iterator[str]:
    if isinstance(values, Mapping):
        values = list(values.values())
    if isinstance(values, list):
        for value in values:
            yield from _absolute_paths(value)
    elif isinstance(values, str) and Path(values).is_absolute() and Path(values).name:
        yield values


def _fingerprints(folder: Path) -> dict[str, str]:
    """sha256 of the weights of each part of a pipeline folder; empty for another folder."""
    if not (folder / INDEX_FILE).is_file():
        return {}
    paths = {part: folder / part / CONFIG_FILE for part in PARTS}
    return {
        part: read_json(path)["weights_sha256"] for part, path in paths.items() if path.is_file()
    }


def _recipes(part: str, home: Path) -> Iterable[tuple[str, Path]]:
    """The options a part was trained with, as (name in `card/`, file): from its run, or from another pipeline's card."""
    card, run = home.parent / CARD, home.parent / "config.yaml"
    sources = {f"{part}.yaml": card / f"{part}.yaml"}
    if part == "prior":
        sources["encode.json"] = card / "encode.json"
    if not (home.parent / INDEX_FILE).is_file() and run.is_file():
        sources = {f"{part}.yaml": run}
        if part == "prior":
            codes = read_yaml(run.read_text(encoding="utf-8"))["codes"]
            sources["encode.json"] = Path(codes) / "encode.json"
    return [(name, path) for name, path in sources.items() if path.is_file()]


def _take_grid(folder: Path, grid: Path) -> None:
    """Copy a grid and its settings.

    Raises:
        ValueError: it is none of this pipeline.
    """
    settings = read_json(grid.parent / GENERATION_FILE)
    if not grid.is_file():
        raise ValueError(f"{grid} is missing: let generate.py come to its end")
    if not _drawn_from(settings, _fingerprints(folder)):
        raise ValueError(f"{grid.parent} holds images of another pipeline than {folder}")
    with (grid.parent / LABELS_FILE).open(newline="", encoding="utf-8") as file:
        settings["num_images"] = sum(1 for _ in csv.DictReader(file))
    with whole_file(folder / CARD / GRID_FILE) as path:
        shutil.copyfile(grid, path)
    write_json(folder / CARD / GENERATION_FILE, settings)


def _take_scores(folder: Path, scores: Path) -> None:
    """Copy scores and their table.

    Raises:
        ValueError: this pipeline is not among what was scored.
    """
    protocol = read_json(scores).get("protocol")
    if protocol is None or not scores.with_name(TABLE_FILE).is_file():
        raise ValueError(f"{scores.parent} does not hold the scores of score.py")
    own = _fingerprints(folder)
    candidates = [each.get("sampler") or {} for each in protocol["candidates"].values()]
    reconstructed = protocol["autoencoder_fingerprint"] == own["autoencoder"]
    if not reconstructed and not any(_drawn_from(settings, own) for settings in candidates):
        raise ValueError(f"{scores} scores no images of the pipeline {folder}")
    for source in (scores, scores.with_name(TABLE_FILE)):
        text = without_places(source.read_text(encoding="utf-8"), protocol)
        with whole_file(folder / CARD / source.name) as path:
            path.write_text(text, encoding="utf-8")


def _drawn_from(settings: Mapping[str, Any], own: Mapping[str, str]) -> bool:
    """Whether images with these settings came from the parts with these fingerprints."""
    return bool(own) and all(settings.get(f"{part}_fingerprint") == own.get(part) for part in PARTS)
