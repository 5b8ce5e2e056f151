"""Sampler settings: their names, defaults, ranges, and which kind of prior uses which; torch-free."""

from __future__ import annotations

import dataclasses
import math
import typing
from dataclasses import dataclass
from typing import Any, Literal, TypedDict

GuidanceSchedule = Literal["constant", "linear", "cosine"]


class Settings(TypedDict, total=False):
    """Keyword arguments that make a `Sampler`, for signatures that pass them on: `**settings: Unpack[Settings]`."""

    guidance_scale: float
    guidance_schedule: GuidanceSchedule
    guidance_interval: tuple[float, float]
    temperature: float
    top_k: int
    top_p: float
    steps: int
    choice_temperature: float


@dataclass(frozen=True)
class Sampler:
    """The settings of a sampling call; a pipeline stores them as its defaults.

    Attributes:
        guidance_scale: classifier-free guidance, from 0 up; 1 is none and costs nothing, other scales compute every
            step for twice the rows.
        guidance_schedule: how the scale is reached along the sequence or the rounds: `constant`, `linear` or `cosine`.
        guidance_interval: first and last share of the sequence or the rounds with guidance, in [0, 1].
        temperature: divides the logits, 0 always takes the likeliest code; of latents, multiplies the deviations.
        top_k: number of likeliest codes to choose from; 0 means all.
        top_p: in (0, 1], probability of the set of likeliest codes to choose from; 1 means all.
        steps: rounds of a masked prior.
        choice_temperature: of a masked prior, the noise in the choice of codes to keep in the first round; 0 always
            keeps the most confident ones.

    Raises:
        ValueError: a setting is out of its range.
    """

    guidance_scale: float = 1.0
    guidance_schedule: GuidanceSchedule = "constant"
    guidance_interval: tuple[float, float] = (0.0, 1.0)
    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    steps: int = 12
    choice_temperature: float = 4.5

    def __post_init__(self) -> None:
        """Check every setting; JSON has no tuples, so the interval becomes one."""
        object.__setattr__(self, "guidance_interval", tuple(self.guidance_interval))
        if not (self.guidance_scale >= 0 and math.isfinite(self.guidance_scale)):
            raise ValueError(
                f"guidance_scale must be a number from 0 up (1 means none), not {self.guidance_scale}"
            )
        if not (self.temperature >= 0 and math.isfinite(self.temperature)):
            raise ValueError(
                f"temperature must be a number from 0 (always the likeliest code) up, not {self.temperature}"
            )
        if self.top_k < 0:
            raise ValueError(f"top_k must be 0 (all codes) or a number of codes, not {self.top_k}")
        if not 0 < self.top_p <= 1:
            raise ValueError(f"top_p must lie in (0, 1] (1 means all codes), not {self.top_p}")
        schedules = typing.get_args(GuidanceSchedule)
        if self.guidance_schedule not in schedules:
            raise ValueError(
                f"guidance_schedule must be one of {', '.join(schedules)}, not {self.guidance_schedule!r}"
            )
        interval = list(self.guidance_interval)
        if len(interval) != 2 or not 0 <= interval[0] < interval[1] <= 1:
            raise ValueError(
                "guidance_interval must be two rising shares between 0 and 1, "
                f"not {' and '.join(map(str, interval))}"
            )
        if self.steps < 1:
            raise ValueError(f"steps must be at least 1, not {self.steps}")
        if not (self.choice_temperature >= 0 and math.isfinite(self.choice_temperature)):
            raise ValueError(
                "choice_temperature must be a number from 0 (keep the most confident codes) up, "
                f"not {self.choice_temperature}"
            )

    def to_dict(self) -> dict[str, Any]:
        """The settings in types that JSON gives back unchanged."""
        return {**dataclasses.asdict(self), "guidance_interval": list(self.guidance_interval)}


LATENT_SETTINGS = ("guidance_scale", "guidance_schedule", "guidance_interval", "temperature")
RASTER_SETTINGS = (*LATENT_SETTINGS, "top_k", "top_p")
MASKED_SETTINGS = (*RASTER_SETTINGS, "steps", "choice_temperature")
