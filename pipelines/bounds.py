"""Upper bounds of -log p(image) under a whole pipeline: what the prior needs for the codes, and the pixels given them.

A VAE has a posterior q(z | x), so that for every prior p(z), learned or N(0, I),

    -log p(x) <= E_q [ -log p(x | z) - log p(z) + log q(z | x) ]

(Kingma and Welling, 2014, https://arxiv.org/abs/1312.6114, Eq. 3). Codes c(x) are certain: of all code maps that could
have made the image, the bound counts the encoder's own (van den Oord et al., 2017, https://arxiv.org/abs/1711.00937,
section 3.2),

    -log p(x) = -log sum_c p(c) p(x | c) <= -log p(x | c(x)) - log p(c(x)).

Members with codes are trained to give images back and state no distribution of a pixel. They get the discretised
logistic one around the decoder's image, its scales fitted to other images (`fit_logistic`).
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Generator, Tensor

from latent_prior.pipelines.pipeline import Pipeline
from latent_prior.stage1_autoencoders.likelihoods import (
    Likelihood,
    LogisticLikelihood,
    ScaledLikelihood,
)
from latent_prior.stage1_autoencoders.vae import VAE

LEARNED, STANDARD_NORMAL, UNIFORM = "learned prior", "N(0, I)", "uniform codes"
FITTED_PLACES = 1024  # pixels of each image that scales are fitted to


class Nats(NamedTuple):
    """What the bound of every image is made of, for one draw of what is random. Float32 (B,), nats per image.

    Attributes:
        pixels: -log p(x | z).
        posterior: log q(z | x); 0 of codes.
        priors: name of a prior -> level -> -log p(z) of that level.
    """

    pixels: Tensor
    posterior: Tensor
    priors: dict[str, dict[str, Tensor]]


class Bound:
    """The bound of a pipeline with its prior, if it has one, and with the one that nobody had to learn.

    Args:
        pipe: any pipeline.
        likelihood: p(x | c) of members with codes, see `fit_logistic`; a VAE has its own.
    """

    def __init__(self, pipe: Pipeline, likelihood: Likelihood | None = None) -> None:
        self.pipe = pipe
        self.vae = pipe.autoencoder if isinstance(pipe.autoencoder, VAE) else None
        found = likelihood if self.vae is None else self.vae.likelihood
        assert found is not None, "members with codes need a likelihood that was fitted"
        self.likelihood = found.to(pipe.device)

    @torch.no_grad()
    def __call__(
        self,
        images: Tensor,
        labels: Tensor,
        noise: Tensor | None = None,
        masks: Generator | Sequence[Generator] | None = None,
    ) -> Nats:
        """One draw of the bound for each image.

        Args:
            images: (B, C, H, W) in [-1, 1].
            labels: int64 (B,), the prior's class numbers, -1 for any class.
            noise: of the draw from a VAE's posterior, standard normal (B, *latent shape); None where there are codes.
            masks: source of a masked prior's masks, one for all images or one for each.
        """
        images, labels = images.to(self.pipe.device), labels.to(self.pipe.device)
        if self.vae is None:
            codes = self.pipe.encode(images)
            pixels = self.likelihood.nll(images, self.pipe.decode(codes))
            posterior = torch.zeros_like(pixels)
            priors = {UNIFORM: self._uniform(len(images))}
        else:
            assert noise is not None, "a VAE's latents are drawn"
            noise = noise.to(self.pipe.device)
            gaussian = self.vae.posterior(images)
            latents = gaussian.mean + (gaussian.log_variance / 2).exp() * noise
            pixels = self.likelihood.nll(images, _prediction(self.vae, latents, images))
            posterior = -(_normal_nats(noise) + gaussian.log_variance.flatten(1).sum(1) / 2)
            (level,) = self.pipe.code_spec.levels
            codes = {level.name: latents}
            priors = {STANDARD_NORMAL: {level.name: _normal_nats(latents)}}
        if self.pipe.prior is not None:
            learned = self.pipe.prior.nats(codes, labels, generator=masks)
            priors = {LEARNED: learned} | priors
        return Nats(pixels, posterior, priors)

    @property
    def is_random(self) -> bool:
        """Whether several draws differ: a posterior's or a masked prior's do."""
        return self.vae is not None or (self.pipe.prior is not None and self.pipe.prior.masked)

    @property
    def priors(self) -> tuple[str, ...]:
        """Names of the priors that a call speaks about, the learned one first."""
        known = UNIFORM if self.vae is None else STANDARD_NORMAL
        return (known,) if self.pipe.prior is None else (LEARNED, known)

    @property
    def distribution(self) -> dict[str, Any]:
        """The distribution of the pixels, JSON-ready; its scales are in units of [-1, 1]."""
        name = type(self.likelihood).__name__.removesuffix("Likelihood").lower()
        described = {"likelihood": name, "is_density": self.likelihood.is_density}
        if isinstance(self.likelihood, ScaledLikelihood):
            described["scale"] = self.likelihood.scale().flatten().tolist()
        return described

    def _uniform(self, num_images: int) -> dict[str, Tensor]:
        nats = {}
        for level in self.pipe.code_spec.levels:
            assert level.vocabulary is not None
            each = level.length * math.log(level.vocabulary)
            nats[level.name] = torch.full((num_images,), each, device=self.pipe.device)
        return nats


def fit_logistic(
    pipe: Pipeline, batches: Iterable[Tensor], generator: Generator
) -> LogisticLikelihood:
    """The discretised logistic distribution around the decoder's images, one scale per channel by maximum likelihood.

    Args:
        pipe: a pipeline of a member with codes.
        batches: images (B, C, H, W) in [-1, 1].
        generator: chooses `FITTED_PLACES` pixels, the same in all images, where they have more.
    """
    places = torch.randperm(pipe.code_spec.image_size**2, generator=generator)[:FITTED_PLACES]
    originals, predictions = [], []
    for images in batches:
        decoded = pipe.reconstruct(images).cpu()
        originals.append(images.flatten(2)[..., places])
        predictions.append(decoded.flatten(2)[..., places])
    # Two spatial axes, as a likelihood expects them.
    original, prediction = (torch.cat(parts).unsqueeze(-1) for parts in (originals, predictions))
    likelihood = LogisticLikelihood(pipe.code_spec.image_channels, scale=None)
    optimizer = torch.optim.LBFGS(
        likelihood.parameters(), max_iter=100, tolerance_change=1e-10, line_search_fn="strong_wolfe"
    )

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = likelihood.nll(original, prediction).mean() / original[0].numel()
        loss.backward()
        return loss

    optimizer.step(closure)
    return likelihood.requires_grad_(False)


def _prediction(vae: VAE, latents: Tensor, images: Tensor) -> Tensor:
    """The decoder's output, from which the likelihood makes a distribution; autoregressive layers see the true pixels."""
    prediction = vae.decoder(vae.from_latent(latents.to(vae.dtype)))
    return prediction if vae.head is None else vae.head(prediction, images)


def _normal_nats(values: Tensor) -> Tensor:
    """-log N(values; 0, I) of every image: (B, ...) to (B,)."""
    return (values.square() + math.log(2 * math.pi)).flatten(1).sum(1) / 2
