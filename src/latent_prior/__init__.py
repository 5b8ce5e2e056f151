"""Two-stage image generation: an autoencoder, a Transformer prior over its codes, a pipeline.

from latent_prior import Pipeline
pipe = Pipeline.from_pretrained("runs/demo/pipeline")
pipe(num_images=16).images[0].save("image.png")
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from latent_prior.data.codes_dataset import open_codes
    from latent_prior.evaluation.gan_baseline.generate import generate_gan
    from latent_prior.evaluation.gan_baseline.train import train_gan
    from latent_prior.evaluation.likelihood import likelihood
    from latent_prior.evaluation.score import score
    from latent_prior.evaluation.sweep import sweep
    from latent_prior.pipelines.assemble import assemble
    from latent_prior.pipelines.describe import describe
    from latent_prior.pipelines.generate import generate
    from latent_prior.pipelines.latents import latents
    from latent_prior.pipelines.pipeline import Pipeline, PipelineOutput
    from latent_prior.stage1_autoencoders import load_autoencoder
    from latent_prior.stage1_autoencoders.encode import encode
    from latent_prior.stage1_autoencoders.export_tokenizer import export_tokenizer
    from latent_prior.stage1_autoencoders.import_tokenizer import import_tokenizer
    from latent_prior.stage1_autoencoders.train import train_autoencoder
    from latent_prior.stage2_prior.export import export_prior
    from latent_prior.stage2_prior.prior import TransformerPrior
    from latent_prior.stage2_prior.sampler import Sampler
    from latent_prior.stage2_prior.train import train_prior

__all__ = [
    "Pipeline",
    "PipelineOutput",
    "Sampler",
    "TransformerPrior",
    "assemble",
    "describe",
    "encode",
    "export_prior",
    "export_tokenizer",
    "generate",
    "generate_gan",
    "import_tokenizer",
    "latents",
    "likelihood",
    "load_autoencoder",
    "open_codes",
    "score",
    "sweep",
    "train_autoencoder",
    "train_gan",
    "train_prior",
]

_MODULES = {
    "Pipeline": "latent_prior.pipelines.pipeline",
    "PipelineOutput": "latent_prior.pipelines.pipeline",
    "Sampler": "latent_prior.stage2_prior.sampler",
    "TransformerPrior": "latent_prior.stage2_prior.prior",
    "assemble": "latent_prior.pipelines.assemble",
    "describe": "latent_prior.pipelines.describe",
    "encode": "latent_prior.stage1_autoencoders.encode",
    "export_prior": "latent_prior.stage2_prior.export",
    "export_tokenizer": "latent_prior.stage1_autoencoders.export_tokenizer",
    "generate": "latent_prior.pipelines.generate",
    "generate_gan": "latent_prior.evaluation.gan_baseline.generate",
    "import_tokenizer": "latent_prior.stage1_autoencoders.import_tokenizer",
    "latents": "latent_prior.pipelines.latents",
    "likelihood": "latent_prior.evaluation.likelihood",
    "load_autoencoder": "latent_prior.stage1_autoencoders",
    "open_codes": "latent_prior.data.codes_dataset",
    "score": "latent_prior.evaluation.score",
    "sweep": "latent_prior.evaluation.sweep",
    "train_autoencoder": "latent_prior.stage1_autoencoders.train",
    "train_gan": "latent_prior.evaluation.gan_baseline.train",
    "train_prior": "latent_prior.stage2_prior.train",
}


def __getattr__(name: str) -> Any:
    """Import a name on first use, so that `import latent_prior` needs no torch."""
    if name in _MODULES:
        return getattr(importlib.import_module(_MODULES[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
