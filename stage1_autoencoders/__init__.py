"""Stage 1: autoencoders that turn images into a small grid of codes or latents and back."""

from __future__ import annotations

import importlib
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from latent_prior.stage1_autoencoders.autoencoder import Autoencoder

# The registry: the name in a preset -> module and class. Beside a class `VAE` its module holds `VAEOptions` and
# `VAEConfig`. Names only, so that reading it imports no torch.
MODELS = {
    "vae": ("latent_prior.stage1_autoencoders.vae", "VAE"),
    "vqvae": ("latent_prior.stage1_autoencoders.vqvae", "VQVAE"),
    "vqvae2": ("latent_prior.stage1_autoencoders.vqvae2", "VQVAE2"),
    "vaegan": ("latent_prior.stage1_autoencoders.vaegan", "VAEGAN"),
    "vqgan": ("latent_prior.stage1_autoencoders.vqgan", "VQGAN"),
}


def __getattr__(name: str) -> Any:
    """Import a model's module when its class or config is first asked for."""
    if name == "Autoencoder":
        return importlib.import_module("latent_prior.stage1_autoencoders.autoencoder").Autoencoder
    for module, model in MODELS.values():
        if name in (model, f"{model}Config"):
            return getattr(importlib.import_module(module), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def model_class(name: str) -> type[Autoencoder]:
    """The class of a family member, by its name in `MODELS`."""
    module, attribute = MODELS[name]
    found: type[Autoencoder] = getattr(importlib.import_module(module), attribute)
    return found


def load_autoencoder(
    path_or_hub_id: str | os.PathLike[str], *, revision: str | None = None
) -> Autoencoder:
    """Load an autoencoder of any family member.

    Raises:
        ValueError: no such folder or repository, a damaged folder, or a model that is no autoencoder.
    """
    from latent_prior.files import read_json
    from latent_prior.models import CONFIG_FILE, local_folder

    folder: Path = local_folder(path_or_hub_id, revision=revision)
    found = read_json(folder / CONFIG_FILE).get("model_type")
    for name in MODELS:
        candidate = model_class(name)
        if candidate.config_class.model_type == found:
            return candidate.from_pretrained(folder)
    raise ValueError(
        f"{folder} holds a model of type {found!r}, not an autoencoder ({', '.join(MODELS)})"
    )
