"""The model card of a pipeline folder: README.md, for people and for the Hugging Face hub.

Everything it says is read from the folder: `pipeline.json`, the parts' configs, and in `card/` what is known beyond
them: the options of the trainings, a grid of samples with its settings, scores with their protocol.
"""

from __future__ import annotations

import csv
import json
import re
import shutil
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from common.checkpoint import whole_file
from common.pretrained import CONFIG_FILE, read_json
from common.values import read_yaml
from pipelines.commands import PRESETS, command_lines

README = "README.md"
CARD = "card"
INDEX_FILE = "pipeline.json"
GRID_FILE, GENERATION_FILE, LABELS_FILE = "grid.png", "generation.json", "labels.csv"
SCORES_FILE, TABLE_FILE = "scores.json", "scores.md"
PARTS = ("autoencoder", "prior")
MARK = "<!-- Written by latent-prior, which writes it anew; without this line it is yours and stays as it is. -->"


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
                shutil.copyfile(source, card / name)
    for origin in (before, *same):  # what stands in the folder itself is never lost
        path = origin / README
        if path.is_file() and not (folder / README).exists():
            text = path.read_text(encoding="utf-8")
            if origin in same or is_handwritten(text):
                (folder / README).write_text(text, encoding="utf-8")


def is_handwritten(text: str) -> bool:
    """Whether a README.md says something of its own: more than the front matter that the hub's website writes."""
    return MARK not in text and bool(re.sub(r"\A---\n.*?\n---\n", "", text, flags=re.S).strip())


def card_text(folder: Path, index: Mapping[str, Any], license_name: str | None) -> str:
    """The whole README.md."""
    card, spec = folder / CARD, index["code_spec"]
    configs = {part: read_json(folder / part / CONFIG_FILE) for part in index["components"]}
    generation = _optional(card / GENERATION_FILE)
    scores = _optional(card / SCORES_FILE)
    presets = [name for name in PRESETS if (card / name).is_file()]
    kinds = [name.lower() for name in index["components"].values()]
    tags = ["image-generation", "two-stage", *kinds]
    front = ["---", "library_name: latent-prior", "pipeline_tag: unconditional-image-generation"]
    front += [f"license: {license_name}"] if license_name else []
    front += ["tags:", *(f"- {tag}" for tag in tags), "---", MARK]
    title = " + ".join(index["components"].values())
    sections = ["\n".join(front), f"# {title}", _what(index, configs, _dataset(card))]
    sections += [_parts(index, configs), "## Use", _use(spec, configs)]
    if generation is not None:
        sections += ["## Samples", f"![samples]({CARD}/{GRID_FILE})", _drawn(generation)]
    if scores is not None:
        sections += ["## Scores", (card / TABLE_FILE).read_text(encoding="utf-8").strip()]
        sections += [_protocol(scores["protocol"])]
    lines = command_lines(
        index, presets, generation, None if scores is None else scores["protocol"]
    )
    sections += ["## How it was made", _made(lines, presets)]
    return "\n\n".join(sections) + "\n"


def _what(index: Mapping[str, Any], configs: Mapping[str, Any], dataset: str | None) -> str:
    spec = index["code_spec"]
    size, colour = spec["image_size"], "grey" if spec["image_channels"] == 1 else "RGB"
    maps = ", ".join(_level(level) for level in spec["levels"])
    text = (
        f"Draws {colour} images of {size} x {size} pixels. An autoencoder (`{index['components']['autoencoder']}`) "
        f"turns an image into {spec['kind']} and back: {maps}."
    )
    if "prior" in configs:
        order = configs["prior"]["order"]
        drawn = "place after place" if order == "raster" else "in a few rounds of filling in masks"
        text += f" A Transformer prior draws new {spec['kind']}, {drawn}."
    elif spec["kind"] == "latents":
        text += " New latents are drawn from N(0, I)."
    else:
        text += " There is no prior: it encodes and decodes."
    if dataset is not None:
        text += f" Trained on `{dataset}`."
    if classes := _classes(index, configs):
        names = ", ".join(f"`{name}`" for name in classes[:20])
        text += f" Classes ({len(classes)}): {names}{', ...' * (len(classes) > 20)}."
    return text


def _level(level: Mapping[str, Any]) -> str:
    if level["vocabulary"] is None:
        return (
            f"`{level['name']}`, {level['channels']} x {level['height']} x {level['width']} numbers"
        )
    return f"`{level['name']}`, {level['height']} x {level['width']} of {level['vocabulary']} codes"


def _classes(index: Mapping[str, Any], configs: Mapping[str, Any]) -> list[str]:
    """Names of the classes that can be asked for."""
    if "prior" not in configs or not configs["prior"]["class_conditional"]:
        return []
    names: list[str] = configs["prior"]["code_spec"]["class_names"]
    return names


def _parts(index: Mapping[str, Any], configs: Mapping[str, Any]) -> str:
    """What each part is and what its training cost."""
    rows = ["| part | class | parameters | steps | images seen | training |"]
    rows += ["| --- | --- | ---: | ---: | ---: | --- |"]
    for part, name in index["components"].items():
        parameters = index.get("parameters", {}).get(part)
        cells = [part, f"`{name}`", "" if parameters is None else f"{parameters:,}"]
        training = configs[part].get("training")
        if training is None:
            cells += ["", "", "not recorded"]
        else:
            cells += [f"{training['steps']:,}", f"{training['images_seen']:,}"]
            cells += [
                f"{training['seconds']:,.0f} s, {training['cpu_seconds']:,.0f} processor seconds, {training['device']}"
            ]
        rows.append("| " + " | ".join(cells) + " |")
    return "\n".join(rows)


def _use(spec: Mapping[str, Any], configs: Mapping[str, Any]) -> str:
    drawn = "pipe(num_images=16).images  # PIL images"
    if "prior" not in configs and spec["kind"] == "codes":
        drawn = "pipe.reconstruct(batch)  # float (B, C, H, W) in [-1, 1]"
    return (
        "```python\nfrom pipelines import Pipeline\n"
        'pipe = Pipeline.from_pretrained("FOLDER_OR_HUB_ID")\n'
        f"images = {drawn}\n```"
    )


def _drawn(generation: Mapping[str, Any]) -> str:
    left_out = ("autoencoder_fingerprint", "prior_fingerprint", "num_images", "random_codes")
    said = {k: v for k, v in generation.items() if k not in left_out and v not in (None, [])}
    settings = ", ".join(f"{name} {_words(value)}" for name, value in said.items())
    shown = min(generation["num_images"], 100)
    return f"The first {shown} of {generation['num_images']:,} images, none picked: {settings}."


def _protocol(protocol: Mapping[str, Any]) -> str:
    return (
        f"<details><summary>The protocol, as in {CARD}/{SCORES_FILE}</summary>\n\n```json\n"
        f"{json.dumps(protocol, indent=2)}\n```\n\n</details>"
    )


def _made(lines: Sequence[str], presets: Sequence[str]) -> str:
    known = f"All options of the trainings are in `{CARD}/`. " if presets else ""
    missing = (
        "" if "autoencoder.yaml" in presets else "How its parts were trained is not recorded here. "
    )
    return f"{missing}{known}The command lines:\n\n```sh\n" + "\n".join(lines) + "\n```"


def _words(value: Any) -> str:
    return " ".join(map(str, value)) if isinstance(value, list) else str(value)


def license_of(text: str) -> str | None:
    """The license that the front matter of a README.md names."""
    front = re.match(r"\A---\n(.*?)\n---\n", text, flags=re.S)
    found = front and re.search(r"^license: *(.+?) *$", front[1], flags=re.M)
    return found[1] if found else None


def _dataset(card: Path) -> str | None:
    """What the autoencoder was trained on, where that is known."""
    path = card / "autoencoder.yaml"
    return read_yaml(path.read_text(encoding="utf-8"))["dataset"] if path.is_file() else None


def _optional(path: Path) -> dict[str, Any] | None:
    return read_json(path) if path.is_file() else None


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
    with whole_file(folder / CARD / GENERATION_FILE) as path:
        path.write_text(json.dumps(settings, indent=2) + "\n", encoding="utf-8")


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
        with whole_file(folder / CARD / source.name) as path:
            shutil.copyfile(source, path)


def _drawn_from(settings: Mapping[str, Any], own: Mapping[str, str]) -> bool:
    """Whether images with these settings came from the parts with these fingerprints."""
    return bool(own) and all(settings.get(f"{part}_fingerprint") == own.get(part) for part in PARTS)
