"""The command lines that make a pipeline, its samples and its scores, for its card."""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from typing import Any

from latent_prior.stage2_prior.sampler import Sampler

PRESETS = ("autoencoder.yaml", "encode.json", "prior.yaml")
"""The options of the trainings and of the encoding, in the pipeline folder's `card/`."""
AUTOENCODER, CODES, PRIOR = "runs/autoencoder", "runs/codes", "runs/prior"
PIPELINE, SAMPLES = "runs/pipeline", "runs/samples"
SAME_IN_PROTOCOL = (
    "reference", "reference_split", "features", "kid_subsets", "kid_subset_size", "seed", "image_size", "channels",
    "image_column", "label_column", "on_corrupt",
)  # fmt: skip
"""What the protocol of scores calls as score.py's flags do."""


def command_lines(
    index: Mapping[str, Any],
    presets: Sequence[str],
    generation: Mapping[str, Any] | None,
    protocol: Mapping[str, Any] | None,
) -> list[str]:
    """Everything from the images to the scores, as far as it is known.

    Args:
        index: of the pipeline folder.
        presets: those of `PRESETS` that there are.
        generation: what the samples depend on, and `num_images`.
        protocol: of the scores.
    """
    lines = []
    if "autoencoder.yaml" in presets:
        flags = {"config": "card/autoencoder.yaml", "output_dir": AUTOENCODER}
        lines.append(_line("stage1_autoencoders/train.py", flags))
    if "encode.json" in presets:
        flags = {
            "config": "card/encode.json",
            "autoencoder": f"{AUTOENCODER}/model",
            "output_dir": CODES,
        }
        lines.append(_line("stage1_autoencoders/encode.py", flags))
    if "prior.yaml" in presets:
        flags = {
            "config": "card/prior.yaml",
            "codes": CODES,
            "autoencoder": f"{AUTOENCODER}/model",
            "output_dir": PRIOR,
        }
        lines.append(_line("stage2_prior/train.py", flags))
    lines.append(_line("pipelines/assemble.py", _assembling(index)))
    if generation is not None:
        drawn = {k: v for k, v in generation.items() if not k.endswith("_fingerprint")}
        flags = {"pipeline": PIPELINE, **drawn, "output_dir": SAMPLES}
        lines.append(_line("pipelines/generate.py", flags))
    if protocol is not None:
        lines.append(_line("evaluation/score.py", _scoring(index, generation, protocol)))
    return lines


def _assembling(index: Mapping[str, Any]) -> dict[str, Any]:
    """The flags of assemble.py."""
    default = Sampler().to_dict()
    chosen = {name: value for name, value in index["sampler"].items() if value != default.get(name)}
    prior = f"{PRIOR}/model" if "prior" in index["components"] else None
    return {"autoencoder": f"{AUTOENCODER}/model", "prior": prior, **chosen, "output_dir": PIPELINE}


def _scoring(
    index: Mapping[str, Any], generation: Mapping[str, Any] | None, protocol: Mapping[str, Any]
) -> dict[str, Any]:
    """The flags of score.py; images and pipeline of this card under the names of the lines above."""
    drawn = {k: v for k, v in (generation or {}).items() if k != "num_images"}
    sources = []
    for name, each in protocol["candidates"].items():
        source = SAMPLES if drawn and each.get("sampler") == drawn else each["source"]
        sources.append(f"{name}={source}" + (f"[{each['split']}]" if each["split"] else ""))
    sizes = {each["num_images"] for each in protocol["candidates"].values()}
    classifier = protocol["classifier"]
    own = protocol["autoencoder_fingerprint"] == index["code_spec"]["autoencoder_fingerprint"]
    return {
        **{name: protocol[name] for name in SAME_IN_PROTOCOL},
        "num_images": sizes.pop() if len(sizes) == 1 else None,
        "class_accuracy": classifier is not None,
        "nearest": protocol["train_split"] is not None,
        "train_split": protocol["train_split"] or (classifier and classifier["split"]),
        "pipeline": PIPELINE if own else protocol["pipeline"],
        "candidates": sources,
        "output_dir": "runs/scores",
    }


def _line(script: str, flags: Mapping[str, Any]) -> str:
    """A command line; what is null, false or empty is left out."""
    words = ["python", script]
    for name, value in flags.items():
        if value is None or value is False or value == []:
            continue
        values = value if isinstance(value, list) else [] if value is True else [value]
        words += [f"--{name}", *(str(each) for each in values)]
    return shlex.join(words)
