"""Weights of other projects' files, of which nothing is executed, by the names of this project."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from latent_prior.files import open_regular
from latent_prior.models import ModelConfig, in_range
from latent_prior.stage1_autoencoders.imported.tokenizer import CHOICES, Tokenizer

Model = TypeVar("Model", bound=Tokenizer)
Weights = dict[str, Tensor]

ENDINGS = (".safetensors", ".ckpt", ".pt", ".pth", ".bin")
_NO_LIMIT = 1 << 62
_AGAIN = "download it again"
_NOT_WEIGHTS = {
    b"version https://git-lfs": "is a git-lfs pointer, not the file itself: run `git lfs pull`",
    b"<": f"is a web page, not a checkpoint: {_AGAIN} by the link to the file itself",
}
# A name that only the network of one format has -> the format's flag.
_FORMATS = {
    "taming": re.compile(r"encoder\.down\.\d+\.block\."),
    "llamagen": re.compile(r"encoder\.conv_blocks\.\d+\."),
    "diffusers": re.compile(r"encoder\.down_blocks\.\d+\."),
}
_WRAPPERS = re.compile(r"^(module\.|_orig_mod\.)+")
FIRST_STAGE = "first_stage_model."


def find_weights(folder: Path, name: str | None, preferred: Sequence[str] = ()) -> Path:
    """The file of weights in a folder: the named one, the first preferred one, or the only one.

    Raises:
        ValueError: there is none, or several.
    """
    if name is not None:
        if not (folder / name).is_file():
            raise ValueError(f"--weights {name}: there is no such file in {folder}")
        return folder / name
    for each in preferred:
        if (folder / each).is_file():
            return folder / each
    found = sorted(path.name for path in folder.iterdir() if path.suffix in ENDINGS)
    if not found:
        raise ValueError(f"{folder} holds no weights ({', '.join(ENDINGS)}); name their folder")
    if len(found) > 1:
        raise ValueError(
            f"{folder} holds {', '.join(found[:4])}: say which one by --weights {found[0]}"
        )
    return folder / found[0]


def read_file(path: Path) -> dict[str, Any]:
    """The content of a safetensors file or a checkpoint of torch: tensors, numbers and text.

    What a file is, its first bytes say. Nothing is unpickled.

    Raises:
        ValueError: the file is damaged, no checkpoint, or holds objects besides tensors.
    """
    with open_regular(path, _NO_LIMIT) as file:
        start = file.read(64)
    if not start:
        raise ValueError(f"{path} is empty: {_AGAIN}")
    for beginning, reason in _NOT_WEIGHTS.items():
        if start.lstrip().startswith(beginning):
            raise ValueError(f"{path} {reason}")
    if start[8:9] == b"{":
        try:
            return dict(load_file(path))
        except SafetensorError as error:
            raise ValueError(f"{path} is damaged ({error}): {_AGAIN}") from error
    if not start.startswith((b"PK\x03\x04", b"\x80")):
        raise ValueError(
            f"{path} is neither a safetensors file nor a checkpoint of torch: name another file"
        )
    try:
        # Only what is used is then read: two thirds of a training's checkpoint are not.
        mapped = start.startswith(b"PK")
        content = torch.load(path, map_location="cpu", weights_only=True, mmap=mapped)
    except Exception as error:  # of many classes; the text recommends to unpickle the file
        raise ValueError(_reason(path, str(error))) from error
    if not isinstance(content, Mapping):
        raise ValueError(f"{path} holds no weights by name: name another file")
    return dict(content)


def _reason(path: Path, message: str) -> str:
    """What is wrong with a checkpoint that torch did not load."""
    if found := re.search(r"GLOBAL ([\w.]+)", message):
        return (
            f"{path} holds {found[1]} besides tensors, would have to be unpickled, which can run "
            "any program, and is not read: convert it once in an environment where you trust it, "
            f"python -c \"import torch; d = torch.load({path.name!r}, map_location='cpu', "
            "weights_only=False); torch.save({k: d[k] for k in ('state_dict', 'model', 'ema') "
            "if k in d}, 'converted.ckpt')\""
        )
    if "TorchScript" in message:
        return f"{path} is TorchScript, a program, and is not read: name a file of weights"
    return f"{path} is damaged or no checkpoint of torch: {_AGAIN}"


def state_of(content: Mapping[str, Any], entries: Sequence[str], path: Path) -> Weights:
    """The tokenizer's tensors in the content of a file, without the prefixes of wrappers.

    Args:
        content: of the file.
        entries: keys under which the weights may stand, the first that exists wins; otherwise they
            are the content itself.
        path: of the file, for messages.

    Raises:
        ValueError: there are no tensors.
    """
    held = next((content[entry] for entry in entries if entry in content), content)
    if not isinstance(held, Mapping):
        raise ValueError(f"{path} holds no weights by name: name another file")
    weights = {
        _WRAPPERS.sub("", str(name)): value
        for name, value in held.items()
        if isinstance(value, Tensor)
    }
    if any(name.startswith(FIRST_STAGE) for name in weights):  # of a model over the tokenizer
        weights = {
            _WRAPPERS.sub("", name.removeprefix(FIRST_STAGE)): value
            for name, value in weights.items()
            if name.startswith(FIRST_STAGE)
        }
    return weights


def check_format(weights: Weights, expected: str, path: Path) -> None:
    """Check that weights have the names of a format.

    Raises:
        ValueError: naming the flag of the format that they have.
    """
    found = [
        name for name, pattern in _FORMATS.items() if any(pattern.match(key) for key in weights)
    ]
    if found == [expected]:
        return
    if found:
        raise ValueError(
            f"{path} holds a tokenizer in the format {found[0]}, not {expected}: "
            f"say --format {found[0]}"
        )
    names = ", ".join(sorted(weights)[:3]) or "nothing"
    raise ValueError(
        f"{path} holds no tokenizer of a known format (but {names}, ...): name another file"
    )


def renamed(weights: Weights, table: Sequence[tuple[str, str]]) -> Weights:
    """Weights under other names, by regular expressions that are applied in turn.

    Names that two weights would share stay as they are, to be reported as surplus.
    """
    result: Weights = {}
    for name, value in weights.items():
        new = name
        for pattern, replacement in table:
            new = re.sub(pattern, replacement, new)
        result[name if new in result else new] = value
    return result


def shape_of(weights: Weights, name: str, path: Path, axes: int) -> list[int]:
    """The shape of a weight with this many axes.

    Raises:
        ValueError: there is no such weight.
    """
    if name not in weights or weights[name].ndim != axes:
        raise ValueError(
            f"{path}: the weight {name} is missing or has not {axes} axes: the file is incomplete "
            f"or of another network; {_AGAIN} or name another"
        )
    return list(weights[name].shape)


def filled(
    model_class: Callable[[Any], Model],
    config: ModelConfig,
    weights: Weights,
    path: Path,
    hint: Callable[[str], str],
) -> Model:
    """A model with exactly these weights, as float32.

    Args:
        model_class: of the model.
        config: of the model.
        weights: by the model's names.
        path: of the file, for messages.
        hint: what may be wrong, for the name of a weight that does not fit.

    Raises:
        ValueError: weights are missing, surplus, of other shapes or not finite.
    """
    with torch.device("meta"):  # no memory and no random numbers for weights to be replaced
        model = model_class(config)
    expected = model.state_dict()
    choices = expected.pop(CHOICES)
    weights = {
        name: value.flatten(1)
        if name in expected and expected[name].ndim == 2 and value.shape[2:] == (1, 1)
        else value
        for name, value in weights.items()
    }
    missing = sorted(expected.keys() - weights.keys())
    surplus = sorted(weights.keys() - expected.keys())
    for kind, names in (("has no place for", surplus), ("misses", missing)):
        if names:
            others = f" and {len(names) - 1} others" if len(names) > 1 else ""
            subject = "the network of the config" if kind.startswith("has") else "the file"
            raise ValueError(f"{path}: {subject} {kind} {names[0]}{others}: {hint(names[0])}")
    for name, value in weights.items():
        if value.shape != expected[name].shape:
            raise ValueError(
                f"{path}: {name} has the shape {tuple(value.shape)}, the config asks for "
                f"{tuple(expected[name].shape)}: {hint(name)}"
            )
        if not value.is_floating_point() or not in_range(value):
            raise ValueError(
                f"{path}: {name} holds numbers that are not finite or no weights: {_AGAIN}"
            )
    copies = {name: value.float().clone() for name, value in weights.items()}
    model.load_state_dict(copies | {CHOICES: choices}, assign=True)
    return model.requires_grad_(False).eval()


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object that another program wrote.

    Raises:
        ValueError: it cannot be read or is no object.
    """
    with open_regular(path, 1 << 24) as file:
        content = file.read()
    try:
        values = json.loads(content, parse_constant=_refuse_constant)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path} is not JSON ({error}): {_AGAIN}") from error
    if not isinstance(values, dict):
        raise ValueError(f"{path} is no object of names and values: {_AGAIN}")
    return values


def _refuse_constant(word: str) -> None:
    raise ValueError(f"{word} is no number")
