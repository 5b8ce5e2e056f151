"""The codebooks of a pipeline: which codes are alike, and a colour for each."""

from __future__ import annotations

import functools

import torch
from torch import Tensor

from latent_prior.pipelines.pipeline import Pipeline


class Codebook:
    """The code vectors of one level, whatever the quantizer.

    Attributes:
        vectors: float32 (K, D), on the CPU.
    """

    def __init__(self, pipe: Pipeline, level: str) -> None:
        """Look up every code of the level, with code 0 at the others."""
        sizes = {each.name: each.vocabulary for each in pipe.code_spec.levels}
        size = sizes[level]
        assert size is not None, "latents have no codebook"
        every = torch.arange(size, device=pipe.device).view(1, 1, -1)
        maps = {name: every if name == level else torch.zeros_like(every) for name in sizes}
        with torch.no_grad():
            vectors = pipe.autoencoder.code_vectors(maps)
        self.vectors = torch.cat([part[0, :, 0].T.float() for part in vectors.values()], 1).cpu()

    def nearest(self, code: int, count: int) -> list[tuple[int, float]]:
        """The codes whose vectors are nearest to a code's, except itself, with their distances."""
        distances = (self.vectors - self.vectors[code]).norm(dim=1)
        distances[code] = torch.inf
        found = distances.topk(min(count, len(distances) - 1), largest=False)
        return list(zip(found.indices.tolist(), found.values.tolist(), strict=True))

    @functools.cached_property
    def colours(self) -> Tensor:
        """A colour for each code, uint8 (K, 3): like codes have like colours.

        Red, green and blue are the vectors' first three principal components, by rank.
        """
        centred = self.vectors - self.vectors.mean(0)
        _, axes = torch.linalg.eigh(centred.T @ centred)
        components = centred @ axes.flip(1)[:, :3]
        ranks = components.argsort(0).argsort(0).float() / max(1, len(components) - 1)
        colours = torch.full((len(ranks), 3), 0.5)
        colours[:, : ranks.shape[1]] = ranks
        return (40 + 200 * colours).round().to(torch.uint8)
