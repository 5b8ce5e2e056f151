r"""Export a tokenizer as a folder of diffusers, see docs/tutorials/tokenizers.md.

python stage1_autoencoders/export_tokenizer.py --autoencoder runs/vqgan/model \
    --output_dir runs/vqgan/diffusers
"""

from __future__ import annotations

from dataclasses import dataclass

from latent_prior.cli import answer_early, parse_config, run
from latent_prior.options import Options, option


@dataclass(kw_only=True)
class ExportTokenizerOptions(Options):
    """Export a tokenizer as a `diffusers.VQModel` or `AutoencoderKL`."""

    autoencoder: str = option(path=True)
    """Folder or hub id: an imported tokenizer, or a vqvae or vqgan with --model.network ddpm."""
    output_dir: str = option(path=True)
    """Folder to write; an earlier export in it is replaced."""


answer_early(__name__, ExportTokenizerOptions)

import logging
from collections.abc import Sequence
from pathlib import Path

from safetensors.torch import save_file

from latent_prior.calls import takes_options
from latent_prior.data.codes import write_spec
from latent_prior.folders import check_replaceable, whole_folder
from latent_prior.records import write_record
from latent_prior.stage1_autoencoders import load_autoencoder
from latent_prior.stage1_autoencoders.imported.diffusers_folders import (
    CONFIG,
    WEIGHTS,
    to_diffusers,
)

_log = logging.getLogger("latent_prior")


@takes_options(ExportTokenizerOptions)
def export_tokenizer(options: ExportTokenizerOptions) -> Path:
    """Export a tokenizer as a folder of diffusers.

    Returns:
        The folder.

    Raises:
        ValueError: the autoencoder is invalid or cannot be exported, or the folder holds other
            files.
    """
    output = Path(options.output_dir)
    check_replaceable(output, "export", "--output_dir ")
    model = load_autoencoder(options.autoencoder)
    config, weights = to_diffusers(model)
    with whole_folder(output, "export") as folder:
        write_record(folder / CONFIG, config)
        held = {name: weight.contiguous() for name, weight in weights.items()}
        save_file(held, folder / f"{WEIGHTS}.safetensors", metadata={"format": "pt"})
        write_spec(model.code_spec, folder)
    _log.info("%s of diffusers: %s", config["_class_name"], output)
    return output


def main(argv: Sequence[str] | None = None) -> None:
    """Entry point."""
    export_tokenizer(options=parse_config(ExportTokenizerOptions, argv))


if __name__ == "__main__":
    run(main)
