"""How samples are drawn from a prior, as a plain dataclass that needs no torch."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Sampler:
    """The settings of a sampling call; a pipeline stores them as its defaults.

    Attributes:
        guidance_scale: classifier-free guidance; 1 is none.
        guidance_schedule: how the scale is reached along the sequence or the rounds: `constant`, `linear` or `cosine`.
        guidance_interval: shares of the sequence or the rounds, from and to, within which there is guidance at all.
        temperature: divides the logits, 0 always takes the likeliest code; of latents, multiplies the deviations.
        top_k: codes to choose from, the likeliest; 0 means all.
        top_p: probability of the set of likeliest codes to choose from; 1 means all.
        steps: rounds of a masked prior.
        choice_temperature: of a masked prior: how freely it chooses which codes to keep in the first round; 0 always
            keeps those it is surest of.
    """

    guidance_scale: float = 1.0
    guidance_schedule: str = "constant"
    guidance_interval: tuple[float, float] = (0.0, 1.0)
    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    steps: int = 12
    choice_temperature: float = 4.5

    def __post_init__(self) -> None:
        """Give the interval its type, which JSON does not know."""
        object.__setattr__(self, "guidance_interval", tuple(self.guidance_interval))

    def to_dict(self) -> dict[str, Any]:
        """The settings in types that JSON gives back unchanged."""
        return {**dataclasses.asdict(self), "guidance_interval": list(self.guidance_interval)}


GUIDANCE = ("guidance_scale", "guidance_schedule", "guidance_interval")
LATENT_SETTINGS = (*GUIDANCE, "temperature")
RASTER_SETTINGS = (*LATENT_SETTINGS, "top_k", "top_p")
MASKED_SETTINGS = (*RASTER_SETTINGS, "steps", "choice_temperature")
