"""Upper bounds of -log p(image) under a pipeline: nats of the codes and of the pixels given them.

A VAE has a posterior q(z | x), so that for any prior p(z), learned or N(0, I),

    -log p(x) <= E_q [ -log p(x | z) - log p(z) + log q(z | x) ]

(Kingma & Welling, 2014, https://arxiv.org/abs/1312.6114, Eq. 3). Codes c(x) are deterministic: of
all code maps that could produce the image, the bound counts the encoder's (van den Oord et al.,
2017, https://arxiv.org/abs/1711.00937, section 3.2),

    -log p(x) = -log sum_c p(c) p(x | c) <= -log p(x | c(x)) - log p(c(x)).

A model with codes has no likelihood, nor has an imported tokenizer, so it gets a discretised
logistic one around its reconstructions, with scales fitted to other images (`fit_logistic`).
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Generator, Tensor

from latent_prior.losses.likelihoods import Likelihood, LogisticLikelihood, ScaledLikelihood
from latent_prior.pipelines.pipeline import Pipeline

LEARNED, STANDARD_NORMAL, UNIFORM = "learned prior", "N(0, I)", "uniform codes"
FITTED_PIXELS = 1024  # per image


class Nats(NamedTuple):
    """The terms of the bound for one sample of latents and masks, in nats per image, float32 (B,).

    Attributes:
        pixels: -log p(x | z).
        posterior: log q(z | x); 0 for codes.
        priors: name of a prior -> level -> -log p(z) of that level.
    """

    pixels: Tensor
    posterior: Tensor
    priors: dict[str, dict[str, Tensor]]


class Bound:
    """The bound of a pipeline with its prior, if any, and with a fixed one (N(0, I) or uniform).

    An autoencoder without a likelihood of its own needs one, see `fit_logistic`.
    """

    def __init__(self, pipe: Pipeline, likelihood: Likelihood | None = None) -> None:
        self.pipe = pipe
        self.has_posterior = pipe.code_spec.kind == "latents"
        self.fitted = pipe.autoencoder.likelihood is None
        if not self.fitted:
            likelihood = pipe.autoencoder.likelihood
        assert likelihood is not None, "this autoencoder needs a fitted likelihood"
        self.likelihood = likelihood.to(pipe.device)

    @torch.no_grad()
    def __call__(
        self,
        images: Tensor,
        labels: Tensor,
        noise: Tensor | None = None,
        masks: Generator | Sequence[Generator] | None = None,
        captions: Sequence[str] | None = None,
    ) -> Nats:
        """The bound of each image for one sample of latents and masks.

        Args:
            images: (B, C, H, W) in [-1, 1].
            labels: int64 (B,), the prior's class numbers, -1 for any class.
            noise: standard normal (B, *latent shape) for the posterior; None for codes.
            masks: source of a masked prior's masks, one for all images or one for each.
            captions: one of each image, for a prior that reads captions; None is none.
        """
        images, labels = images.to(self.pipe.device), labels.to(self.pipe.device)
        posterior = self.pipe.autoencoder.posterior(images) if self.has_posterior else None
        if posterior is None:
            codes = self.pipe.encode(images)
            pixels = self.likelihood.nll(images, self.pipe.decode(codes))
            log_posterior = torch.zeros_like(pixels)
            priors = {UNIFORM: self._uniform_nats(len(images))}
        else:
            assert noise is not None, "latents are sampled"
            noise = noise.to(self.pipe.device)
            latents = posterior.from_noise(noise)
            (level,) = self.pipe.code_spec.levels
            codes = {level.name: latents}
            if self.fitted:
                pixels = self.likelihood.nll(images, self.pipe.decode(codes))
            else:
                pixels = self.pipe.autoencoder.nll(images, latents)
            log_posterior = -(_normal_nats(noise) + posterior.log_variance.flatten(1).sum(1) / 2)
            priors = {STANDARD_NORMAL: {level.name: _normal_nats(latents)}}
        if self.pipe.prior is not None:
            text = self.pipe.read_prompts(captions, slice(None))
            learned = self.pipe.prior.nats(codes, labels, text, generator=masks)
            priors = {LEARNED: learned} | priors
        return Nats(pixels, log_posterior, priors)

    @property
    def is_random(self) -> bool:
        """Whether samples differ: those of a posterior or of a masked prior do."""
        return self.has_posterior or (self.pipe.prior is not None and self.pipe.prior.masked)

    @property
    def priors(self) -> tuple[str, ...]:
        """Names of the priors in a result, the learned one first."""
        fixed = STANDARD_NORMAL if self.has_posterior else UNIFORM
        return (fixed,) if self.pipe.prior is None else (LEARNED, fixed)

    @property
    def distribution(self) -> dict[str, Any]:
        """The likelihood, JSON-ready; scales are in units of [-1, 1]."""
        name = type(self.likelihood).__name__.removesuffix("Likelihood").lower()
        described = {"likelihood": name, "is_density": self.likelihood.is_density}
        if isinstance(self.likelihood, ScaledLikelihood):
            described["scale"] = self.likelihood.scale().flatten().tolist()
        return described

    def _uniform_nats(self, num_images: int) -> dict[str, Tensor]:
        nats = {}
        for level in self.pipe.code_spec.levels:
            assert level.vocabulary is not None
            per_image = level.length * math.log(level.vocabulary)
            nats[level.name] = torch.full((num_images,), per_image, device=self.pipe.device)
        return nats


def fit_logistic(
    pipe: Pipeline, batches: Iterable[Tensor], generator: Generator
) -> LogisticLikelihood:
    """Fit a discretised logistic likelihood around reconstructions, one scale per channel.

    The batches are images (B, C, H, W) in [-1, 1], of which the generator chooses `FITTED_PIXELS`
    positions, the same in all images.
    """
    chosen = torch.randperm(pipe.code_spec.image_size**2, generator=generator)[:FITTED_PIXELS]
    pairs = [
        torch.stack([images, pipe.reconstruct(images).cpu()]).flatten(3)[..., chosen]
        for images in batches
    ]
    # A likelihood expects two spatial axes.
    original, prediction = torch.cat(pairs, 1).unsqueeze(-1)
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


def _normal_nats(values: Tensor) -> Tensor:
    """-log N(values; 0, I) of every image: (B, ...) to (B,)."""
    return (values.square() + math.log(2 * math.pi)).flatten(1).sum(1) / 2
