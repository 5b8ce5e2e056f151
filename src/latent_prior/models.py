"""The base of every saved model: a transformers model with strict loading.

transformers tolerates damage: missing weights stay random, a folder without a config gives the
default model, unknown config keys become attributes. Here each of these raises an error, and a
fingerprint of the weights detects a file that was replaced.
"""

from __future__ import annotations

import dataclasses
import hashlib
import inspect
import os
import sys
from collections.abc import Collection, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path
from types import SimpleNamespace
from typing import Annotated, Any, Literal, NotRequired, Self, TypedDict, get_type_hints

import msgspec
import torch
from huggingface_hub import snapshot_download
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError
from safetensors import SafetensorError, safe_open
from torch import Tensor
from transformers import PretrainedConfig, PreTrainedModel
from transformers.utils import logging as transformers_logging

from latent_prior.manifests import checked_meanwhile, record_of, write_manifest
from latent_prior.options import default_of
from latent_prior.records import convert_record, read_record

CONFIG_FILE = "config.json"
WEIGHTS_FILE = "model.safetensors"
INDEX_FILE = "model.safetensors.index.json"

_ADAPTER_FILE = "adapter_config.json"
RESTORE = "restore it, or save the model again"
LARGEST_SIZE = 1 << 24
"""Largest number among the sizes of a config; larger ones would only fill the memory."""
LARGEST_WEIGHT = 1e15
"""Weights beyond it, up or down, are damage; counters of codes stay far below."""
# Keys that models saved by earlier versions do not have.
_ADDED_LATER = {
    "training",
    "trained_classes",
    "patch",
    "network",
    "condition",
    "text",
    "trained_guidance",
}
# Keys that only models saved by earlier versions have; their config classes translate them.
_FORMER_KEYS = {"class_conditional": bool}

# What transformers itself adds to a config.json, besides `architectures` and `model_type`.
_TRANSFORMERS_KEYS = {
    "dtype": Literal["float16", "bfloat16", "float32", "float64"] | None,
    "transformers_version": str,
}
_stored_bytes: ContextVar[int | None] = ContextVar("stored_bytes", default=None)
"""Size of the weights of the model that is being loaded."""
_Count = Annotated[int, msgspec.Meta(ge=0)]
_Seconds = Annotated[float, msgspec.Meta(ge=0)]


class Budget(TypedDict):
    """The cost of a training; the times are those of the steps in one process."""

    steps: _Count
    images_seen: _Count
    seconds: _Seconds
    cpu_seconds: _Seconds
    device: str
    num_processes: _Count
    command: NotRequired[str | None]
    """Command line of the training (`latent_prior.cli.command_line`); absent in older folders."""


class ModelConfig(PretrainedConfig):
    """A config with declared fields only; an options dataclass among its bases checks them."""

    weights_sha256: str | None = None
    """Fingerprint of the weights, written by `save_pretrained`."""
    training: Budget | None = None
    """What the weights have cost; None where nobody trained them."""

    def __post_init__(self, **undeclared: Any) -> None:
        """Run the set-up of transformers, then the checks of the options dataclass.

        Raises:
            ValueError: a value is out of range.
        """
        super().__post_init__(**undeclared)
        # PretrainedConfig does not pass the call on to the classes behind it.
        check_options = getattr(super(PretrainedConfig, self), "__post_init__", None)
        if check_options is not None:
            check_options()


class StrictModel(PreTrainedModel):
    """Abstract: a model that loads exactly what was saved, or raises."""

    config_class = ModelConfig
    config: ModelConfig

    def _init_weights(self, module: torch.nn.Module) -> None:
        """Keep the weights of `__init__`; transformers' N(0, 0.02) does not suit convolutions."""

    @property
    def fingerprint(self) -> str:
        """sha256 of the saved weights; of the current ones if the model was never saved."""
        return self.config.weights_sha256 or fingerprint(self.state_dict().items())

    def save_pretrained(  # type: ignore[override]  # the rest of transformers' options is for other formats
        self,
        save_directory: str | os.PathLike[str],
        *,
        state_dict: dict[str, Tensor] | None = None,
        max_shard_size: int | str = "50GB",
    ) -> None:
        """Write `config.json`, with the weights' fingerprint, `model.safetensors` and a manifest.

        Args:
            save_directory: folder, created if missing.
            state_dict: weights to write instead of the model's own, under the same names.
            max_shard_size: size above which the weights are split over several files.
        """
        folder = Path(save_directory)
        # A copy: transformers empties the dictionary it is given.
        weights = dict(self.state_dict() if state_dict is None else state_dict)
        with ThreadPoolExecutor(1) as pool, quiet():
            # A sha256 takes as long as writing the weights and their digest.
            own = pool.submit(fingerprint, list(weights.items()))
            super().save_pretrained(folder, state_dict=weights, max_shard_size=max_shard_size)
            written = {path.name: record_of(path) for path in folder.glob("*.safetensors")}
        self.config.weights_sha256 = own.result()
        self.config.save_pretrained(folder)
        self._write_description(folder)
        write_manifest(folder, "model", known=written)

    def _write_description(self, folder: Path) -> None:
        """Write further files that belong to the saved model."""

    def _read_description(self, folder: Path) -> None:
        """Read them again."""

    @classmethod
    def from_pretrained(  # type: ignore[override]  # strict: none of transformers' lenient options
        cls,
        path_or_hub_id: str | os.PathLike[str],
        *,
        revision: str | None = None,
        dtype: torch.dtype = torch.float32,
        config: ModelConfig | None = None,
    ) -> Self:
        """Load a model from a folder or the Hugging Face hub, in evaluation mode.

        Args:
            path_or_hub_id: folder written by `save_pretrained`, or `user/name` on the hub.
            revision: branch, tag or commit on the hub.
            dtype: type of the loaded weights.
            config: ignored; transformers' Auto classes pass it.

        Raises:
            ValueError: a missing folder or file, another model type, unknown or missing config
                keys, damaged or replaced weights, or weights that do not fit the config.
        """
        folder = local_folder(path_or_hub_id, revision=revision)
        if (folder / _ADAPTER_FILE).exists():  # transformers would add it, unchecked
            raise ValueError(
                f"{folder / _ADAPTER_FILE}: adapters of weights are not supported; remove the file"
            )
        values = cls._read_config(folder)
        with checked_meanwhile(folder, "model") as manifest:
            if manifest is None:
                _check_fingerprint(folder, values["weights_sha256"])
            for name in (CONFIG_FILE, WEIGHTS_FILE, INDEX_FILE):
                if manifest is not None and name not in manifest.files and (folder / name).exists():
                    raise ValueError(
                        f"{folder / name} was added to a model that has no such file; delete it"
                    )
            sizes = [(folder / name).stat().st_size for name in _weight_files(folder)]
            reset = _stored_bytes.set(sum(sizes))
            try:
                with quiet():
                    loaded: Any = super().from_pretrained(
                        folder,
                        dtype=dtype,
                        output_loading_info=True,
                        ignore_mismatched_sizes=True,  # reported below, more clearly
                        use_safetensors=True,
                    )
            except (RuntimeError, TypeError, ValueError) as error:
                raise ValueError(
                    f"{folder / CONFIG_FILE} does not describe a model: {error}"
                ) from error
            finally:
                _stored_bytes.reset(reset)
        model, report = loaded
        for problem in ("missing_keys", "unexpected_keys", "mismatched_keys"):
            if report[problem]:
                raise ValueError(
                    f"{folder}: the weights do not fit the config: {problem.replace('_', ' ')}: "
                    f"{', '.join(map(str, sorted(report[problem])[:3]))}"
                )
        for name, weight in model.state_dict().items():
            if weight.is_floating_point() and not in_range(weight):
                raise ValueError(
                    f"{folder}: weight {name} holds numbers that are not finite or beyond "
                    f"{LARGEST_WEIGHT:g}; restore it or train again"
                )
        strict: Self = model.eval()
        strict._read_description(folder)
        return strict

    def post_init(self) -> None:
        """Finish the set-up; refuse a config that describes far more weights than are stored.

        While a model is loaded, its weights take no memory up to here. transformers would fill the
        memory before it compares their shapes.
        """
        super().post_init()
        stored = _stored_bytes.get()
        described = sum(weight.numel() for weight in self.state_dict().values())
        if stored is not None and described > 100 * stored:
            raise ValueError(
                f"it is one of {described:.3g} numbers, the weights have {stored:,} bytes; {RESTORE}"
            )

    @classmethod
    def _read_config(cls, folder: Path) -> dict[str, Any]:
        """Check config.json against the class."""
        values, path = read_config(folder), folder / CONFIG_FILE
        expected = cls.config_class.model_type
        if values["model_type"] != expected:
            raise ValueError(
                f"{folder} holds a model of type {values.get('model_type')!r}, expected {expected!r}"
            )
        inherited = {field.name: field for field in dataclasses.fields(PretrainedConfig)}
        own = {field.name for field in dataclasses.fields(cls.config_class)} - set(inherited)
        hints = _types_of(own, cls.config_class) | _TRANSFORMERS_KEYS | _FORMER_KEYS
        if missing := sorted(own - _ADDED_LATER - set(values)):
            raise ValueError(f"{path}: {missing[0]} is missing; {RESTORE}")
        for name, value in values.items():
            if name in hints:
                convert_record(value, hints[name], f"{path}: {name}", RESTORE)
                if name in own - {"training", "code_spec", "text"}:
                    _check_sizes(value, f"{path}: {name}")
            elif name == "architectures":
                if value != [cls.__name__]:
                    raise ValueError(f"{path}: architectures must be {cls.__name__}; {RESTORE}")
            elif name != "model_type" and (
                name not in inherited or value != default_of(inherited[name])
            ):
                raise ValueError(f"{path}: unknown key {name[:40]!r}; {expected} does not have it")
        return values


@contextmanager
def quiet() -> Iterator[None]:
    """Silence transformers' progress bars and reports; problems are raised instead."""
    level = transformers_logging.get_verbosity()
    bars = transformers_logging.is_progress_bar_enabled()
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    try:
        yield
    finally:
        transformers_logging.set_verbosity(level)
        if bars:
            transformers_logging.enable_progress_bar()


def fingerprint(weights: Iterable[tuple[str, Tensor]]) -> str:
    """sha256 of the names, types, shapes and bytes of the weights, sorted by name."""
    digest = hashlib.sha256()
    for name, weight in sorted(weights):
        digest.update(f"{name} {weight.dtype} {tuple(weight.shape)}\n".encode())
        digest.update(weight.detach().contiguous().cpu().reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def local_folder(
    path_or_hub_id: str | os.PathLike[str],
    *,
    revision: str | None = None,
    patterns: Collection[str] | None = None,
) -> Path:
    """The folder itself, or a copy of the hub repository in the hub's cache.

    Of a repository only the files whose names fit one of the `patterns`, if given. A name that
    exists, starts with a dot or slash, or does not look like `user/name` is a path.

    Raises:
        ValueError: there is no such folder or repository, or no network.
    """
    text = os.fspath(path_or_hub_id)
    if not text:
        raise ValueError("the name of the folder or hub repository is empty")
    path = Path(text)
    if path.is_dir():
        return path
    if path.exists():
        raise ValueError(f"{text} is a file; expected the folder that holds it")
    if text.startswith((".", "/", "~")) or text.count("/") != 1 or text.endswith("/"):
        raise ValueError(f"there is no folder {text}")
    try:
        wanted = None if patterns is None else [*patterns]
        return Path(snapshot_download(text, revision=revision, allow_patterns=wanted))
    except HFValidationError as error:
        raise ValueError(f"there is no folder {text}, and it is no hub id: {error}") from error
    except LocalEntryNotFoundError as error:
        raise ValueError(
            f"there is no folder {text}, and the hub cannot be reached: check the path or the network"
        ) from error
    except HfHubHTTPError as error:
        raise ValueError(
            f"there is no folder {text}, and the hub has no such repository or revision for you: "
            f"{str(error).splitlines()[0]}"
        ) from error


def _check_fingerprint(folder: Path, expected: str) -> None:
    """Compare the weights of a folder from before manifests with its config."""
    found = fingerprint(_stored_weights(folder))
    if found != expected:
        raise ValueError(
            f"{folder}: the weights have fingerprint {found[:12]}, config.json expects "
            f"{str(expected)[:12]}: one of the two files was exchanged; restore the folder"
        )


def read_config(folder: Path) -> dict[str, Any]:
    """The content of a model folder's config.json, of which `model_type` is checked.

    Raises:
        ValueError: it is missing, damaged or of no model.
    """
    values = read_record(folder / CONFIG_FILE, dict[str, Any], RESTORE)
    if not isinstance(values.get("model_type"), str):
        raise ValueError(f"{folder / CONFIG_FILE}: model_type is no name; {RESTORE}")
    return values


def _types_of(names: Collection[str], config_class: type) -> dict[str, Any]:
    """The types of a config's own fields; those of transformers cannot be resolved."""
    hints: dict[str, Any] = {}
    for base in reversed(config_class.__mro__):
        if base not in PretrainedConfig.__mro__:
            scope = vars(sys.modules[base.__module__])
            declared = inspect.get_annotations(base)
            chosen = {name: declared[name] for name in declared if name in names}
            holder = SimpleNamespace(__annotations__=chosen)
            hints |= get_type_hints(holder, globalns=scope, include_extras=True)
    return hints


def _check_sizes(value: object, where: str) -> None:
    """Refuse numbers that no size or number of layers reaches."""
    for item in value if isinstance(value, list) else [value]:
        if isinstance(item, int | float) and abs(item) > LARGEST_SIZE:
            raise ValueError(f"{where} = {item:.6g} is beyond {LARGEST_SIZE:,}; {RESTORE}")


def in_range(weight: Tensor) -> bool:
    """Whether all numbers are finite and within `LARGEST_WEIGHT`, at the speed of the memory."""
    flat = weight.detach().reshape(-1).float()
    squares = float(torch.dot(flat, flat))  # NaN and infinity stay, large numbers overflow
    return squares <= LARGEST_WEIGHT**2


class _WeightIndex(msgspec.Struct):
    """`model.safetensors.index.json`, in the format of transformers."""

    weight_map: dict[str, Annotated[str, msgspec.Meta(pattern=r"^\w[\w.\-]*\.safetensors$")]]
    metadata: dict[str, Any] = {}


def _weight_files(folder: Path) -> list[str]:
    """Names of the folder's safetensors files."""
    files = [WEIGHTS_FILE]  # which transformers prefers where it finds both
    if (folder / INDEX_FILE).exists() and not (folder / WEIGHTS_FILE).exists():
        index = read_record(folder / INDEX_FILE, _WeightIndex, "restore it or train again")
        files = sorted(set(index.weight_map.values()))
    for name in files:
        if not (folder / name).is_file():
            raise ValueError(f"{folder / name} is missing; the folder holds no weights")
    return files


def _stored_weights(folder: Path) -> Iterable[tuple[str, Tensor]]:
    """Every tensor of the folder's safetensors files."""
    for name in _weight_files(folder):
        try:
            with safe_open(folder / name, framework="pt") as weights:
                yield from [(key, weights.get_tensor(key)) for key in weights.keys()]  # noqa: SIM118
        except SafetensorError as error:
            raise ValueError(
                f"{folder / name} is damaged ({error}); restore it or train again"
            ) from error
