"""The words of a pipeline's model card, from what its folder holds."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from latent_prior.cli_values import read_yaml
from latent_prior.files import read_json
from latent_prior.models import CONFIG_FILE
from latent_prior.pipelines.commands import PRESETS, command_lines
from latent_prior.stage2_prior.sampler import Sampler

CARD = "card"
GRID_FILE, GENERATION_FILE = "grid.png", "generation.json"
SCORES_FILE, TABLE_FILE = "scores.json", "scores.md"
MARK = "<!-- Written by latent-prior, which writes it anew; without this line it is yours and stays as it is. -->"


def card_text(folder: Path, index: Mapping[str, Any], license_name: str | None) -> str:
    """The whole README.md."""
    card = folder / CARD
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
    sections += [_parts(index, configs), "## Use", _use(index)]
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


def _use(index: Mapping[str, Any]) -> str:
    drawn, note = "pipe(num_images=16).images  # PIL images", ""
    if "prior" not in index["components"] and index["code_spec"]["kind"] == "codes":
        drawn = "pipe.reconstruct(batch)  # float (B, C, H, W) in [-1, 1]"
    own = {k: v for k, v in index["sampler"].items() if v != Sampler().to_dict().get(k)}
    if own:
        settings = ", ".join(f"{name} {_words(value)}" for name, value in own.items())
        note = f"\n\nUnless told otherwise it samples with {settings}."
    return (
        "```python\nfrom pipelines import Pipeline\n"
        'pipe = Pipeline.from_pretrained("FOLDER_OR_HUB_ID")\n'
        f"images = {drawn}\n```{note}"
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


def _dataset(card: Path) -> str | None:
    """What the autoencoder was trained on, where that is known."""
    path = card / "autoencoder.yaml"
    return read_yaml(path.read_text(encoding="utf-8"))["dataset"] if path.is_file() else None


def _optional(path: Path) -> dict[str, Any] | None:
    return read_json(path) if path.is_file() else None
