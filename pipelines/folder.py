"""A pipeline on disk and on the hub: an index, a folder per component, and a model card.

`pipeline.json` records component classes, codes, versions, default sampler settings and command.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import msgspec
from huggingface_hub import HfApi

from latent_prior.data.codes import CodeSpec, check_same_codes
from latent_prior.folders import whole_folder
from latent_prior.machine import versions
from latent_prior.manifests import check_folder, write_manifest
from latent_prior.models import CONFIG_FILE, StrictModel, read_config
from latent_prior.pipelines.card import (
    README,
    carry_card,
    fingerprints,
    is_handwritten,
    license_of,
    write_card,
    write_json_without_places,
)
from latent_prior.pipelines.index import INDEX_FILE, Index, read_index
from latent_prior.stage1_autoencoders import load_autoencoder
from latent_prior.stage1_autoencoders.autoencoder import Autoencoder
from latent_prior.stage2_prior.prior import TransformerPrior
from latent_prior.stage2_prior.sampler import Sampler
from latent_prior.stage2_prior.text.encoder import TextEncoder

ENCODER_FOLDER = "text_encoder"
PACKAGES = ("latent-prior", "torch", "transformers")


def read_folder(
    folder: Path,
) -> tuple[Autoencoder, TransformerPrior | None, Sampler, TextEncoder | None]:
    """The components, the default sampler settings and the text encoder, if there is one.

    Raises:
        ValueError: the folder is missing, damaged or no pipeline, or components do not match.
    """
    path = folder / INDEX_FILE
    index = read_index(folder)
    check_folder(folder, "pipeline")
    autoencoder, prior = load_autoencoder(folder / "autoencoder"), None
    if "prior" in index.components:
        prior = TransformerPrior.from_pretrained(folder / "prior")
    check_same_codes(index.code_spec, autoencoder.code_spec, str(path), str(folder / "autoencoder"))
    encoder = None
    if (folder / ENCODER_FOLDER).is_dir():
        spec = None if prior is None else prior.config.text
        encoder = TextEncoder(
            str(folder / ENCODER_FOLDER), None if spec is None else spec["length"]
        )
    return autoencoder, prior, index.sampler, encoder


def write_folder(
    final: Path,
    components: Mapping[str, StrictModel],
    sampler: Sampler,
    code_spec: CodeSpec,
    *,
    text_encoder: TextEncoder | None = None,
    max_shard_size: int | str = "50GB",
    command: str | None = None,
) -> None:
    """Write the folder; a pipeline already there is replaced when the new one is complete.

    Weights of a component above `max_shard_size` are split over several files. `command` assembled
    the pipeline; None keeps the command of the folder it was loaded from.

    Raises:
        ValueError: the folder holds something else, which would be lost.
    """
    homes = {name: Path(model.name_or_path) for name, model in components.items() if model.name_or_path}  # fmt: skip
    with whole_folder(final, "pipeline") as folder:
        for name, model in components.items():
            model.save_pretrained(folder / name, max_shard_size=max_shard_size)
            config = folder / name / CONFIG_FILE
            write_json_without_places(config, read_config(folder / name))
            write_manifest(folder / name, "model")
        if text_encoder is not None:
            text_encoder.write(folder / ENCODER_FOLDER)
        weights = {name: model.fingerprint for name, model in components.items()}
        origins = [final, *(home.parent for home in homes.values())]
        same = [origin for origin in origins if fingerprints(origin) == weights]
        commands = (read_index(origin).command for origin in same)
        index = Index(
            components={name: type(model).__name__ for name, model in components.items()},
            parameters={name: model.num_parameters() for name, model in components.items()},
            sampler=sampler,
            versions=versions(PACKAGES),
            command=command or next(filter(None, commands), None),
            code_spec=code_spec,
        )
        write_json_without_places(folder / INDEX_FILE, msgspec.to_builtins(index))
        carry_card(folder, homes, before=final, same=same)
        write_card(folder)


def merge_card(folder: Path, hub: HfApi, repo: str, revision: str | None) -> list[str]:
    """Give a folder's model card the license chosen on the hub, before the folder is uploaded.

    Returns:
        Files not to upload: README.md if the one on the hub is handwritten.
    """
    remote = ""
    if hub.file_exists(repo, README, revision=revision):
        path = hub.hf_hub_download(repo, README, revision=revision)
        remote = Path(path).read_text(encoding="utf-8")
    if license_of((folder / README).read_text(encoding="utf-8")) is None:
        write_card(folder, license_name=license_of(remote))
    return [README] if is_handwritten(remote) else []
