"""`pipeline.json`: the parts of a pipeline folder, their codes and the default sampler settings."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import msgspec

from latent_prior.data.codes import CodeSpec
from latent_prior.models import CONFIG_FILE, Budget
from latent_prior.records import read_record
from latent_prior.stage2_prior.sampler import Sampler

INDEX_FILE = "pipeline.json"
RESTORE = "restore it, or assemble the pipeline again"

COMPONENTS = ("autoencoder", "prior")
Digest = Annotated[str, msgspec.Meta(pattern="^[0-9a-f]{64}$")]
"""A sha256 in hexadecimal."""


class Index(msgspec.Struct, forbid_unknown_fields=True):
    """The content of `pipeline.json`."""

    components: dict[str, Annotated[str, msgspec.Meta(pattern=r"^\w+$")]]
    """Part -> its class."""
    sampler: Sampler
    code_spec: CodeSpec
    parameters: dict[str, Annotated[int, msgspec.Meta(ge=0)]] = {}
    versions: dict[str, str] = {}
    command: str | None = None


class ModelRecord(msgspec.Struct):
    """What a model card takes from a component's `config.json`."""

    weights_sha256: Digest
    training: Budget | None = None
    order: str | None = None
    condition: str | None = None
    class_conditional: bool = False
    """What earlier versions have in place of `condition`."""
    code_spec: dict[str, Any] | None = None


def read_index(folder: Path) -> Index:
    """The index of a pipeline folder.

    Raises:
        ValueError: naming the file, the place and the way out.
    """
    path = folder / INDEX_FILE
    index = read_record(path, Index, RESTORE)
    # Dataclasses are read without regard to unknown keys.
    plain = read_record(path, dict[str, Any], RESTORE)
    CodeSpec.from_dict(plain["code_spec"], f"{path}: code_spec", RESTORE)
    Sampler.from_dict(plain["sampler"], f"{path}: sampler", RESTORE)
    if not {"autoencoder"} <= set(index.components) <= set(COMPONENTS):
        raise ValueError(f"{path}: components must be {' and '.join(COMPONENTS)}; {RESTORE}")
    return index


def read_model_record(folder: Path) -> ModelRecord:
    """The record of a component's folder.

    Raises:
        ValueError: naming the file, the place and the way out.
    """
    return read_record(folder / CONFIG_FILE, ModelRecord, RESTORE)
