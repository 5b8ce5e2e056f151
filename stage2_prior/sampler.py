"""Sampler settings: names, defaults, ranges, and which kind of prior uses which. Torch-free."""

from __future__ import annotations

import dataclasses
import math
import numbers
import typing
from dataclasses import dataclass
from typing import Any, Literal, TypedDict

from latent_prior.records import convert_record

GuidanceSchedule = Literal["constant", "linear", "cosine"]


class Settings(TypedDict, total=False):
    """Keyword arguments of `Sampler`, for functions that pass on `**settings: Unpack[Settings]`."""

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
        guidance_scale: classifier-free guidance, from 0 up; 1 is none and costs nothing, other
            scales compute every step for twice the rows.
        guidance_schedule: how the scale is reached along the sequence or the rounds.
        guidance_interval: first and last share of the sequence or the rounds with guidance.
        temperature: divides the logits, 0 takes the likeliest code; multiplies the deviations of
            latents.
        top_k: number of likeliest codes to choose from; 0 means all.
        top_p: probability of the set of likeliest codes to choose from, in (0, 1]; 1 means all.
        steps: rounds of a masked prior.
        choice_temperature: noise in a masked prior's choice of the codes to keep in the first
            round; 0 always keeps the most confident ones.

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
        for name in ("guidance_scale", "temperature", "choice_temperature", "top_p"):
            self._make(name, float, numbers.Real, "a number")
        for name in ("top_k", "steps"):
            self._make(name, int, numbers.Integral, "a whole number")
        try:
            interval = tuple(map(float, self.guidance_interval))
        except (TypeError, ValueError) as error:
            raise ValueError(
                f"guidance_interval must be two rising shares in [0, 1], not {self.guidance_interval!r}"
            ) from error
        object.__setattr__(self, "guidance_interval", interval)
        for name, note in (
            ("guidance_scale", "1 means none"),
            ("temperature", "0 means always the likeliest code"),
            ("choice_temperature", "0 keeps the most confident codes"),
        ):
            value = getattr(self, name)
            if not (value >= 0 and math.isfinite(value)):
                raise ValueError(f"{name} must be a number from 0 up ({note}), not {value}")
        if self.top_k < 0:
            raise ValueError(f"top_k must be 0 (all codes) or a number of codes, not {self.top_k}")
        if not 0 < self.top_p <= 1:
            raise ValueError(f"top_p must lie in (0, 1] (1 means all codes), not {self.top_p}")
        if self.steps < 1:
            raise ValueError(f"steps must be at least 1, not {self.steps}")
        schedule, schedules = self.guidance_schedule, typing.get_args(GuidanceSchedule)
        if schedule not in schedules:
            known = ", ".join(schedules)
            raise ValueError(f"guidance_schedule must be one of {known}, not {schedule!r}")
        if len(interval) != 2 or not 0 <= interval[0] < interval[1] <= 1:
            raise ValueError(
                f"guidance_interval must be two rising shares in [0, 1], not {list(interval)}"
            )

    def _make(self, name: str, kind: type, expected: type, words: str) -> None:
        """Make a setting a plain number, as JSON has them; numpy's are taken."""
        value = getattr(self, name)
        if not isinstance(value, expected) or isinstance(value, bool):
            raise ValueError(f"{name} must be {words}, not {value!r}")
        object.__setattr__(self, name, kind(value))

    @classmethod
    def from_dict(cls, values: object, where: str, way_out: str) -> Sampler:
        """The inverse of `to_dict`.

        Raises:
            ValueError: an unknown setting, or one of another type or out of its range; names
                `where`, the setting and the way out.
        """
        sampler = convert_record(values, cls, where, way_out)
        assert isinstance(values, dict)
        known = {field.name for field in dataclasses.fields(cls)}
        if unknown := sorted(set(values) - known):
            raise ValueError(f"{where}: unknown setting {unknown[0][:40]!r}; {way_out}")
        return sampler

    def to_dict(self) -> dict[str, Any]:
        """The settings in types that JSON gives back unchanged."""
        return {**dataclasses.asdict(self), "guidance_interval": list(self.guidance_interval)}


_LATENTS = ("guidance_scale", "guidance_schedule", "guidance_interval", "temperature")
_RASTER = (*_LATENTS, "top_k", "top_p")
_MASKED = (*_RASTER, "steps", "choice_temperature")
# Settings that have an effect: on a prior over latents, and by the order of one over codes.
EFFECTIVE = {"latents": _LATENTS, "raster": _RASTER, "masked": _MASKED}
