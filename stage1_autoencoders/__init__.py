"""Stage 1: autoencoders from images to a small grid of codes or latents and back."""

from __future__ import annotations

import importlib
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from latent_prior.stage1_autoencoders.autoencoder import Autoencoder

# Name in a preset -> module and class, without importing torch. Beside a class `VAE` its module
# has `VAEOptions` and `VAEConfig`.
MODELS = {
    "vae": ("latent_prior.stage1_autoencoders.vae", "VAE"),
    "vqvae": ("latent_prior.stage1_autoencoders.vqvae", "VQVAE"),
    "vqvae2": ("latent_prior.stage1_autoencoders.vqvae2", "VQVAE2"),
    "vaegan": ("latent_prior.stage1_autoencoders.vaegan", "VAEGAN"),
    "vqgan": ("latent_prior.stage1_autoencoders.vqgan", "VQGAN"),
}
# `model_type` -> module and class of tokenizers from elsewhere, which are not trained here.
IMPORTED = {
    "latent_prior_imported_vq": ("latent_prior.stage1_autoencoders.imported.models", "ImportedVQ"),
    "latent_prior_imported_kl": ("latent_prior.stage1_autoencoders.imported.models", "ImportedKL"),
    "latent_prior_diffusers_vq": (
        "latent_prior.stage1_autoencoders.imported.diffusers_models",
        "DiffusersVQ",
    ),
    "latent_prior_diffusers_kl": (
        "latent_prior.stage1_autoencoders.imported.diffusers_models",
        "DiffusersKL",
    ),
}


def __getattr__(name: str) -> Any:
    """Import a model's module on first use of its class or config."""
    if name == "Autoencoder":
        return importlib.import_module("latent_prior.stage1_autoencoders.autoencoder").Autoencoder
    for module, model in MODELS.values():
        if name in (model, f"{model}Config"):
            return getattr(importlib.import_module(module), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def model_class(name: str) -> type[Autoencoder]:
    """Import the class of a model, by its name in `MODELS` or its type in `IMPORTED`."""
    module, attribute = (MODELS | IMPORTED)[name]
    model: type[Autoencoder] = getattr(importlib.import_module(module), attribute)
    return model


def load_autoencoder(
    path_or_hub_id: str | os.PathLike[str], *, revision: str | None = None
) -> Autoencoder:
    """Load an autoencoder of any type, an imported tokenizer too.

    Raises:
        ValueError: a missing or damaged folder or repository, or another kind of model.
    """
    from latent_prior.models import local_folder, read_config

    folder: Path = local_folder(path_or_hub_id, revision=revision)
    model_type = read_config(folder)["model_type"]
    if model_type in IMPORTED:
        return model_class(model_type).from_pretrained(folder)
    for name in MODELS:
        candidate = model_class(name)
        if candidate.config_class.model_type == model_type:
            return candidate.from_pretrained(folder)
    raise ValueError(
        f"{folder} holds a model of type {model_type!r}, not an autoencoder ({', '.join(MODELS)})"
    )
