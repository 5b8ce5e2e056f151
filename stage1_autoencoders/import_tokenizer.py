r"""Make an autoencoder of another project's tokenizer, see docs/tutorials/tokenizers.md.

python stage1_autoencoders/import_tokenizer.py --format diffusers --source path/sd-turbo \
    --subfolder vae --output_dir runs/sd/vae
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

from latent_prior.cli import answer_early, parse_config, run
from latent_prior.options import Options, option


@dataclass(kw_only=True)
class ImportOptions(Options):
    """Make an autoencoder of another project's tokenizer; nothing in its files is executed."""

    used_by: ClassVar[str] = "format"

    format: Literal["diffusers", "taming", "llamagen"]
    """Whose files: diffusers, taming-transformers and latent diffusion, or LlamaGen."""
    source: str = option(path=True)
    """File of weights, folder with them, or hub id."""
    output_dir: str = option(path=True)
    """Folder to write; it may hold the same tokenizer already."""
    subfolder: str | None = None
    """Folder within the source, such as `vae` or `vqvae` of a pipeline."""
    revision: str | None = None
    """Branch, tag or commit of a source on the hub. Default: its main branch."""
    weights: str | None = None
    """File of weights within the folder. Default: the usual name, or the only one."""
    yaml: str | None = option(None, only_for=("taming",), path=True)
    """The model's YAML. Default: the only one beside the weights, if any."""
    image_size: int | None = option(None, at_least=1)
    """Height and width of the images. Default: what the config says; LlamaGen's files say none."""
    l2_norm: bool | None = option(None, only_for=("llamagen",))
    """Whether vectors and codes are scaled to length 1. Default: as config.json says, else true."""
    unit_pixels: bool = option(False, only_for=("diffusers",))
    """The tokenizer's pixels lie in [0, 1], as aMUSEd's do, instead of [-1, 1]."""
    scaling_factor: float | None = option(None, above=0, only_for=("diffusers", "taming"))
    """Factor of the latents. Default: what the config says, for taming otherwise 1."""
    shift_factor: float | None = option(None, only_for=("diffusers", "taming"))
    """Subtracted from the latents before the factor. Default: what the config says, or nothing."""


answer_early(__name__, ImportOptions)

import logging
from collections.abc import Sequence
from pathlib import Path

from latent_prior.calls import takes_options
from latent_prior.folders import check_replaceable, whole_folder
from latent_prior.models import CONFIG_FILE, local_folder, read_config
from latent_prior.stage1_autoencoders.autoencoder import Autoencoder
from latent_prior.stage1_autoencoders.imported.diffusers_folders import PREFERRED, read_diffusers
from latent_prior.stage1_autoencoders.imported.llamagen import read_llamagen
from latent_prior.stage1_autoencoders.imported.taming import read_taming
from latent_prior.stage1_autoencoders.imported.weight_files import ENDINGS, find_weights

_log = logging.getLogger("latent_prior")
# Weights of these names are taken where a folder holds several files.
HUB_FORM = {"taming": (), "llamagen": ("model.safetensors",)}


@takes_options(ImportOptions)
def import_tokenizer(options: ImportOptions) -> Autoencoder:
    """Make an autoencoder of another project's tokenizer, and write its folder.

    Raises:
        ValueError: the source is damaged, of another format or contradicts itself, or the output
            folder holds other files.
    """
    output = Path(options.output_dir)
    check_replaceable(output, "model", "--output_dir ")
    model = read_tokenizer(options)
    if (output / CONFIG_FILE).is_file():
        stored = read_config(output).get("weights_sha256")
        if stored != model.fingerprint:
            raise ValueError(
                f"--output_dir {output} holds another model ({str(stored)[:12]}); choose another "
                "folder or delete this one"
            )
    with whole_folder(output, "model") as folder:
        model.save_pretrained(folder)
    spec = model.code_spec
    (level,) = spec.levels
    kind = f"{level.vocabulary} codes" if level.channels is None else f"{level.channels} channels"
    _log.info(
        "autoencoder: %s (images of %d x %d, %d x %d positions, %s)",
        output, spec.image_size, spec.image_size, level.height, level.width, kind,
    )  # fmt: skip
    return model


def read_tokenizer(options: ImportOptions) -> Autoencoder:
    """The tokenizer that the options name.

    Raises:
        ValueError: see `import_tokenizer`.
    """
    folder, file = open_source(options)
    factors = {
        "scaling_factor": options.scaling_factor,
        "shift_factor": options.shift_factor,
    }
    model: Autoencoder
    if options.format == "diffusers":
        model = read_diffusers(
            folder,
            weights_name=file.name if file else options.weights,
            image_size=options.image_size,
            unit_pixels=options.unit_pixels,
            **factors,
        )
    else:
        path = file or find_weights(folder, options.weights, HUB_FORM[options.format])
        if options.format == "llamagen":
            model = read_llamagen(path, image_size=options.image_size, l2_norm=options.l2_norm)
        else:
            yaml = find_yaml(path.parent, options.yaml)
            model = read_taming(path, yaml, image_size=options.image_size, **factors)
    if model.code_spec.kind == "codes":
        for name, value in factors.items():
            if value is not None:
                raise ValueError(
                    f"--{name} {value} is for latents, and {options.source} holds a tokenizer "
                    "with codes; leave the flag out"
                )
    return model


def open_source(options: ImportOptions) -> tuple[Path, Path | None]:
    """The folder of the source, and the file if the source is one.

    Raises:
        ValueError: there is no such file, folder or repository, or flags name another place in it.
    """
    source = Path(options.source)
    if source.is_file():
        for name in ("subfolder", "weights", "revision"):
            if getattr(options, name) is not None:
                raise ValueError(f"--{name}: --source {source} is a file already; leave it out")
        return source.parent, source
    inner = "" if options.subfolder is None else f"{options.subfolder.strip('/')}/"
    names = [options.weights] if options.weights else [f"*{ending}" for ending in ENDINGS]
    if options.format == "diffusers" and not options.weights:
        names = list(PREFERRED)
    wanted = [f"{inner}{name}" for name in (*names, "*.json", "*.yaml", "*.yml")]
    folder = local_folder(options.source, revision=options.revision, patterns=wanted)
    if options.subfolder is not None:
        folder = folder / options.subfolder
        if not folder.is_dir():
            raise ValueError(f"--subfolder {options.subfolder}: there is no folder {folder}")
    return folder, None


def find_yaml(folder: Path, named: str | None) -> Path | None:
    """The YAML of a checkpoint: the named one, or the only one in its folder.

    Raises:
        ValueError: it does not exist, or there are several.
    """
    if named is not None:
        if not Path(named).is_file():
            raise ValueError(f"--yaml {named}: there is no such file")
        return Path(named)
    found = sorted(path for path in folder.iterdir() if path.suffix in (".yaml", ".yml"))
    if len(found) > 1:
        names = ", ".join(path.name for path in found[:4])
        raise ValueError(f"{folder} holds {names}: say which one by --yaml {found[0]}")
    return found[0] if found else None


def main(argv: Sequence[str] | None = None) -> None:
    """Entry point."""
    import_tokenizer(options=parse_config(ImportOptions, argv))


if __name__ == "__main__":
    run(main)
