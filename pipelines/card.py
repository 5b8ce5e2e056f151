"""The model card of a pipeline folder: README.md, for people and for the Hugging Face hub.

Its facts come from the folder: `pipeline.json`, the components' configs, and `card/`, which holds
training options, a grid of samples with its settings, and scores with their protocol.
"""

from __future__ import annotations

import json
import re
import shlex
import shutil
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import msgspec
import yaml
from huggingface_hub import ModelCard, ModelCardData

from latent_prior.data.codes import CodeSpec, Level
from latent_prior.data.labels import read_label_table
from latent_prior.data.listing import ABOUT_FILE, GENERATION_FILE, GRID_FILE, LABELS_FILE
from latent_prior.files import read_regular, whole_file
from latent_prior.markdown import code, code_block, markdown_table, plain
from latent_prior.pipelines.index import (
    COMPONENTS,
    INDEX_FILE,
    RESTORE,
    Index,
    ModelRecord,
    read_index,
    read_model_record,
)
from latent_prior.records import convert_record, read_record, read_yaml, record_text
from latent_prior.stage2_prior.sampler import Sampler

README, CARD = "README.md", "card"
SCORES_FILE, TABLE_FILE = "scores.json", "scores.md"
TEXT_LIMIT = 16 << 20
"""Most bytes of a README.md or a table."""
MARK = "<!-- Written by latent-prior, which writes it anew; without this line it is yours and stays as it is. -->"


SCORE_AGAIN = "score again"
_LICENSE = re.compile(r"[A-Za-z0-9][\w.+-]{0,99}", re.ASCII)


class _Command(msgspec.Struct):
    """The command of an `about.json`."""

    command: str | None = None


class _Candidate(msgspec.Struct):
    """What was scored: the settings of its generator."""

    sampler: dict[str, Any] | None = None


class _Protocol(msgspec.Struct):
    """The part of a protocol that says whose scores they are."""

    candidates: dict[str, _Candidate]
    autoencoder_fingerprint: str | None = None
    command: str | None = None


class _Scores(msgspec.Struct):
    """The part of `scores.json` that is read."""

    protocol: _Protocol


def write_card(
    folder: Path,
    *,
    grid: Path | None = None,
    scores: Path | None = None,
    license_name: str | None = None,
) -> bool:
    """Write README.md into a pipeline folder, after copying samples and scores into its `card/`.

    `grid` is the `grid.png` of generate.py, `scores` the `scores.json` of score.py; the license is
    spelled as on the hub, such as `apache-2.0`. None keeps what the card has.

    Returns:
        Whether README.md was written; a handwritten one is left unchanged.

    Raises:
        ValueError: the folder holds no pipeline, or samples or scores are from another one.
    """
    if license_name is not None and not _LICENSE.fullmatch(license_name):
        raise ValueError(
            f"--license {license_name[:40]!r} is no license as spelled on the hub, such as apache-2.0"
        )
    index = read_index(folder)
    if grid is not None:
        _copy_grid(folder, grid)
    if scores is not None:
        _copy_scores(folder, scores)
    path = folder / README
    text = read_text(path) if path.exists() else ""
    if is_handwritten(text):
        return False
    with whole_file(path) as temporary:
        card = _card_text(folder, index, license_name or license_of(text))
        temporary.write_text(card, encoding="utf-8")
    return True


def carry_card(
    folder: Path, homes: Mapping[str, Path], before: Path, same: Sequence[Path] = ()
) -> None:
    """Copy training options, and the card of the same pipeline elsewhere, into a new folder.

    Args:
        folder: the new pipeline folder, without a card.
        homes: component name -> folder it was loaded from.
        before: the folder to be replaced, whose handwritten README.md is kept.
        same: folders of the same pipeline.
    """
    card = folder / CARD
    for origin in same[:1]:
        if (origin / CARD).is_dir():
            shutil.copytree(origin / CARD, card)
    for component, home in homes.items():
        for name, source in _training_options(component, home).items():
            card.mkdir(exist_ok=True)
            if not (card / name).exists():
                way_out = f"restore it, or delete {source.parent}"
                if source.suffix == ".yaml":
                    values = read_yaml(source, way_out)
                else:
                    values = read_record(source, dict[str, Any], way_out)
                text = without_places(read_text(source), values)
                (card / name).write_text(text, encoding="utf-8")
    for origin in (before, *same):  # a README.md in the folder itself is never lost
        path = origin / README
        if path.is_file() and not (folder / README).exists():
            text = read_text(path)
            if origin in same or is_handwritten(text):
                (folder / README).write_text(text, encoding="utf-8")


def read_text(path: Path) -> str:
    """A text file.

    Raises:
        ValueError: it is no regular file, too large or not UTF-8.
    """
    try:
        return read_regular(path, TEXT_LIMIT).decode()
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is not UTF-8 text ({error}); replace it") from error


def is_handwritten(text: str) -> bool:
    """Whether a README.md holds a user's text, not just the front matter of the hub's website."""
    return MARK not in text and bool(_parse(text).text.strip())


def license_of(text: str) -> str | None:
    """The license in the front matter of a README.md."""
    name = _parse(text).data.get("license")
    return name if isinstance(name, str) and _LICENSE.fullmatch(name) else None


def _parse(text: str) -> ModelCard:
    """Front matter and text of a README.md; damaged front matter counts as text."""
    try:
        if text.startswith("---"):
            return ModelCard(text, ignore_metadata_errors=True)
    except (ValueError, yaml.YAMLError):
        pass
    return ModelCard(f"---\n\n---\n{text}")


def without_places(text: str, values: Any) -> str:
    """Cut every absolute path among the values of a file, or in a command, to its last part.

    On the hub, these paths would disclose the folders of the user's machine.
    """
    for path in sorted(set(_absolute_paths(values)), key=len, reverse=True):
        for written in (path, json.dumps(path)[1:-1], json.dumps(path, ensure_ascii=False)[1:-1]):
            text = text.replace(written, Path(path).name)
    return text


def write_json_without_places(path: Path, values: Mapping[str, Any]) -> None:
    """Write a JSON object whose absolute paths are cut to their last part."""
    text = without_places(record_text(values, str(path)), values)
    with whole_file(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def _absolute_paths(values: Any) -> Iterator[str]:
    if isinstance(values, Mapping):
        command = values.get("command")
        words = _words(command) if isinstance(command, str) else []
        values = [*values.values(), *(part for word in words for part in word.split("="))]
    if isinstance(values, list):
        for value in values:
            yield from _absolute_paths(value)
    elif isinstance(values, str) and Path(values).is_absolute() and Path(values).name:
        yield values


def _words(command: str) -> list[str]:
    """The words of a command line; those between spaces if its quotes do not match."""
    try:
        return shlex.split(command)
    except ValueError:
        return command.split()


def fingerprints(folder: Path) -> dict[str, str]:
    """sha256 of the weights of each component; empty if the folder holds no pipeline."""
    if not (folder / INDEX_FILE).is_file():
        return {}
    return {
        name: read_model_record(folder / name).weights_sha256
        for name in COMPONENTS
        if (folder / name).is_dir()
    }


def _training_options(component: str, home: Path) -> dict[str, Path]:
    """Name in `card/` -> file with a component's training options, of its run or another card."""
    card, run = home.parent / CARD, home.parent / "config.yaml"
    sources = {f"{component}.yaml": card / f"{component}.yaml"}
    if component == "prior":
        sources["encode.json"] = card / "encode.json"
    if not (home.parent / INDEX_FILE).is_file() and run.is_file():
        sources = {f"{component}.yaml": run}
        if component == "prior":
            codes = read_yaml(run, "restore it, or move the model out of its run folder").get(
                "codes"
            )
            if isinstance(codes, str):
                sources["encode.json"] = Path(codes) / "encode.json"
    return {name: path for name, path in sources.items() if path.is_file()}


def _copy_grid(folder: Path, grid: Path) -> None:
    """Copy a grid of samples from this pipeline, with its settings, image count and command."""
    way_out = "run generate.py again into a new folder"
    settings = read_record(grid.parent / GENERATION_FILE, dict[str, Any], way_out)
    if not grid.is_file():
        raise ValueError(f"{grid} is missing: run generate.py again until it finishes")
    if not _generated_by(fingerprints(folder), settings):
        raise ValueError(f"{grid.parent} holds images of another pipeline")
    settings["num_images"] = len(read_label_table(grid.parent / LABELS_FILE))
    about = grid.parent / ABOUT_FILE
    settings["command"] = read_record(about, _Command, way_out).command if about.exists() else None
    with whole_file(folder / CARD / GRID_FILE) as path:
        shutil.copyfile(grid, path)
    write_json_without_places(folder / CARD / GENERATION_FILE, settings)


def _copy_scores(folder: Path, scores: Path) -> None:
    """Copy scores of this pipeline's images or reconstructions, and their table."""
    protocol = read_record(scores, _Scores, SCORE_AGAIN).protocol
    values = read_record(scores, dict[str, Any], SCORE_AGAIN)
    if not scores.with_name(TABLE_FILE).is_file():
        raise ValueError(f"{scores.with_name(TABLE_FILE)} is missing; {SCORE_AGAIN}")
    weights = fingerprints(folder)
    samplers = [candidate.sampler or {} for candidate in protocol.candidates.values()]
    reconstructed = protocol.autoencoder_fingerprint == weights["autoencoder"]
    if not reconstructed and not any(_generated_by(weights, sampler) for sampler in samplers):
        raise ValueError(f"{scores} scores no images of this pipeline")
    texts = {SCORES_FILE: record_text(values, str(scores))}  # without a seal: places are cut
    texts[TABLE_FILE] = read_text(scores.with_name(TABLE_FILE))
    for name, text in texts.items():
        with whole_file(folder / CARD / name) as path:
            path.write_text(without_places(text, values["protocol"]), encoding="utf-8")


def _generated_by(weights: Mapping[str, str], settings: Mapping[str, Any]) -> bool:
    """Whether generation settings name the components with these fingerprints."""
    return bool(weights) and all(
        settings.get(f"{name}_fingerprint") == weights.get(name) for name in COMPONENTS
    )


def _card_text(folder: Path, index: Index, license_name: str | None) -> str:
    """The whole README.md."""
    card, classes = folder / CARD, list(index.components.values())
    configs = {name: read_model_record(folder / name) for name in index.components}
    generation, scores = _optional(card / GENERATION_FILE), _optional(card / SCORES_FILE)
    if scores:  # a table without its protocol is no result
        read_record(card / SCORES_FILE, _Scores, SCORE_AGAIN)
    reads_text = any(config.condition == "text" for config in configs.values())
    front = ModelCardData(
        library_name="latent-prior",
        pipeline_tag="text-to-image" if reads_text else "unconditional-image-generation",
        license=license_name,
        tags=["image-generation", "two-stage", *(name.lower() for name in classes)],
    )
    sections = [f"---\n{front.to_yaml()}\n---\n{MARK}", f"# {' + '.join(classes)}"]
    sections += [_summary(index, configs, card), _costs(index, configs)]
    sections += ["## Use", _use(index, configs)]
    if generation:
        sections += ["## Samples", f"![samples]({CARD}/{GRID_FILE})", _samples(generation, card)]
    if scores:
        sections += ["## Scores", read_text(card / TABLE_FILE).strip().replace("<", "&lt;")]
        sections += [
            f"<details><summary>The protocol, as in {CARD}/{SCORES_FILE}</summary>\n\n"
            f"{code_block(json.dumps(scores['protocol'], indent=2), 'json')}\n\n</details>"
        ]
    trainings = [config.training for config in configs.values()]
    trained = [None if training is None else training.get("command") for training in trainings]
    found = [
        trained[0],
        _optional(card / "encode.json").get("command"),
        *trained[1:],
        index.command,
        generation.get("command"),
        scores.get("protocol", {}).get("command"),
    ]
    commands = [command for command in found if isinstance(command, str) and command]
    sections += ["## How it was made", _origin(commands, card)]
    return "\n\n".join(sections) + "\n"


def _summary(index: Index, configs: Mapping[str, ModelRecord], card: Path) -> str:
    spec, prior = index.code_spec, configs.get("prior")
    size, colour = spec.image_size, "grey" if spec.image_channels == 1 else "RGB"
    text = (
        f"Generates {colour} images of {size} x {size} pixels. An autoencoder "
        f"(`{index.components['autoencoder']}`) maps an image to {spec.kind} and back: "
        f"{', '.join(_level(level) for level in spec.levels)}."
    )
    if prior is not None:
        order = "one by one" if prior.order == "raster" else "in a few rounds of masked decoding"
        text += f" A Transformer prior samples new {spec.kind} {order}."
    elif spec.kind == "latents":
        text += " New latents are drawn from N(0, I)."
    else:
        text += " There is no prior: it encodes and decodes only."
    options = card / "autoencoder.yaml"
    if options.is_file():
        text += f" Trained on {code(str(read_yaml(options, RESTORE).get('dataset')))}."
    if prior is not None and prior.condition == "text":
        text += " It was trained on captions, so it takes a prompt."
    has_classes = prior is not None and (prior.condition == "class" or prior.class_conditional)
    if prior is not None and has_classes and prior.code_spec is not None:
        where = f"{card.parent / 'prior'}: code_spec"
        classes = CodeSpec.from_dict(prior.code_spec, where, RESTORE).class_names
    else:
        classes = ()
    if classes:
        names = ", ".join(code(name) for name in classes[:20])
        text += f" Classes ({len(classes)}): {names}{', ...' * (len(classes) > 20)}."
    return text


def _level(level: Level) -> str:
    name, shape = level.name, f"{level.height} x {level.width}"
    if level.vocabulary is None:
        return f"`{name}`, {level.channels} x {shape} numbers"
    return f"`{name}`, {shape} of {level.vocabulary} codes"


def _costs(index: Index, configs: Mapping[str, ModelRecord]) -> str:
    """A table of the components: class, size and training cost."""
    rows = []
    for component, name in index.components.items():
        parameters = index.parameters.get(component)
        row = [component, f"`{name}`", "" if parameters is None else f"{parameters:,}"]
        training = configs[component].training
        if training is None:
            rows.append([*row, "", "", "not recorded"])
            continue
        time = f"{training['seconds']:,.0f} s, {training['cpu_seconds']:,.0f} processor seconds"
        row += [f"{training['steps']:,}", f"{training['images_seen']:,}"]
        rows.append([*row, f"{time}, {training['device']}"])
    headings = ["component", "class", "parameters", "steps", "images seen", "training"]
    return "\n".join(markdown_table(headings, rows, left=2))


def _use(index: Index, configs: Mapping[str, ModelRecord]) -> str:
    call, note = "pipe(num_images=16).images  # PIL images", ""
    if "prior" not in index.components and index.code_spec.kind == "codes":
        call = "pipe.reconstruct(batch)  # float (B, C, H, W) in [-1, 1]"
    prior = configs.get("prior")
    if prior is not None and prior.condition == "text":
        call = 'pipe(prompt="what the image shows").images  # PIL images'
    default = Sampler().to_dict()
    if changed := {k: v for k, v in index.sampler.to_dict().items() if v != default.get(k)}:
        note = f"\n\nBy default it samples with {_listed(changed)}."
    return (
        "```python\nfrom latent_prior import Pipeline\n"
        'pipe = Pipeline.from_pretrained("FOLDER_OR_HUB_ID")\n'
        f"images = {call}\n```{note}"
    )


def _samples(generation: Mapping[str, Any], card: Path) -> str:
    hidden = ("autoencoder_fingerprint", "prior_fingerprint", "num_images", "random_codes", "command", "prompts")  # fmt: skip
    settings = {k: v for k, v in generation.items() if k not in hidden and v not in (None, [])}
    where, way_out = f"{card / GENERATION_FILE}: num_images", "describe the samples again"
    total = convert_record(generation.get("num_images"), int, where, way_out)
    count = min(total, 100)
    text = f"The first {count} of {total:,} images, not cherry-picked: {_listed(settings)}."
    prompts = convert_record(generation.get("prompts", []), list[str], where, way_out)
    if prompts:
        asked = ", ".join(code(prompt) for prompt in prompts[:20])
        text += f" Prompts in turn: {asked}{', ...' * (len(prompts) > 20)}."
    return text


def _origin(commands: Sequence[str], card: Path) -> str:
    """The recorded command lines, and where all options are."""
    sentences = []
    if (card / "autoencoder.yaml").is_file():
        sentences.append(f"All options of the trainings are in `{CARD}/`.")
    if commands:
        sentences.append("The command lines:\n\n" + code_block("\n".join(commands), "sh"))
    return " ".join(sentences) or "The command lines are not recorded."


def _listed(settings: Mapping[str, Any]) -> str:
    words = {k: " ".join(map(str, v)) if isinstance(v, list) else v for k, v in settings.items()}
    return ", ".join(plain(f"{name} {value}") for name, value in words.items())


def _optional(path: Path) -> dict[str, Any]:
    """A JSON object; empty if the file is missing."""
    return read_record(path, dict[str, Any], RESTORE) if path.exists() else {}
