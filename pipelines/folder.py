"""A pipeline on disk: a folder with an index, one sub-folder for each component, and a model card (see `card`).

`pipeline.json` says which class each component has, what the codes are, versions and default sampler settings.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from latent_prior.data.codes import CodeSpec, check_same_codes
from latent_prior.files import read_json, whole_folder, write_json
from latent_prior.machine import versions
from latent_prior.models import StrictModel
from latent_prior.pipelines.card import INDEX_FILE, carry_card, write_card
from latent_prior.stage1_autoencoders import load_autoencoder
from latent_prior.stage1_autoencoders.autoencoder import Autoencoder
from latent_prior.stage2_prior.prior import TransformerPrior
from latent_prior.stage2_prior.sampler import Sampler

PACKAGES = ("latent-prior", "torch", "transformers")


def read_folder(folder: Path) -> tuple[Autoencoder, TransformerPrior | None, Sampler]:
    """The components and the default sampler settings.

    Raises:
        ValueError: a missing, damaged or foreign folder, or parts that do not belong together.
    """
    index = read_json(folder / INDEX_FILE)
    missing = {"components", "code_spec", "sampler"} - set(index)
    if missing:
        raise ValueError(
            f"{folder / INDEX_FILE} is not a pipeline's index: {', '.join(sorted(missing))} missing"
        )
    try:
        sampler = Sampler(**index["sampler"])
    except (TypeError, ValueError) as error:
        raise ValueError(f"{folder / INDEX_FILE}: sampler: {error}") from error
    autoencoder = load_autoencoder(folder / "autoencoder")
    prior = None
    if "prior" in index["components"]:
        prior = TransformerPrior.from_pretrained(folder / "prior")
    spec = CodeSpec.from_dict(index["code_spec"])
    check_same_codes(
        spec, autoencoder.code_spec, f"{folder / INDEX_FILE}", f"{folder / 'autoencoder'}"
    )
    return autoencoder, prior, sampler


def write_folder(
    final: Path,
    components: Mapping[str, StrictModel],
    sampler: Sampler,
    code_spec: CodeSpec,
    max_shard_size: int | str,
) -> None:
    """Write everything, and replace a pipeline that is already there once the new one is complete.

    Raises:
        ValueError: the folder holds something else, which would be lost.
    """
    if final.is_dir() and any(final.iterdir()) and not (final / INDEX_FILE).is_file():
        raise ValueError(f"{final} is not empty and holds no pipeline; choose another folder")
    with whole_folder(final) as folder:
        for name, part in components.items():
            part.save_pretrained(folder / name, max_shard_size=max_shard_size)
        index = {
            "components": {name: type(part).__name__ for name, part in components.items()},
            "parameters": {name: part.num_parameters() for name, part in components.items()},
            "sampler": sampler.to_dict(),
            "versions": versions(PACKAGES),
            "code_spec": code_spec.to_dict(),
        }
        write_json(folder / INDEX_FILE, index)
        named = {name: part.name_or_path for name, part in components.items()}
        homes = {name: Path(path) for name, path in named.items() if path}
        carry_card(folder, homes, before=final)
        write_card(folder)
