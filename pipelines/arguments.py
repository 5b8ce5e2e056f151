"""What callers may give in several forms: classes by number or name, randomness for all or for each."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

from torch import Generator

from latent_prior.pipelines.options import SamplerOptions
from latent_prior.stage2_prior.sampler import Sampler


def label_number(label: int | str, names: Sequence[str]) -> int:
    """A class as number, from its number or name; -1 is any class.

    Raises:
        ValueError: there is no such class.
    """
    if isinstance(label, str) and label in names:
        return names.index(label)
    try:
        number = int(label)
    except ValueError:
        number = len(names)
    if -1 <= number < len(names):
        return number
    known = (
        f"the classes are 0 to {len(names) - 1}: {', '.join(names[:20])}"
        if names
        else "this prior has no classes"
    )
    raise ValueError(f"label {label!r} is out of range: {known}")


def one_each(
    generator: Generator | Sequence[Generator] | None, num_images: int
) -> list[Generator] | None:
    """A source of randomness for every image; None stays torch's global one."""
    if generator is None:
        return None
    generators = [generator] * num_images if isinstance(generator, Generator) else list(generator)
    if len(generators) != num_images:
        raise ValueError(
            f"{num_images} images need one generator, or one each, not {len(generators)}"
        )
    return generators


def check_settings_apply(
    given: Mapping[str, Any], settings: Sequence[str], reason: str, prefix: str = ""
) -> None:
    """Stop at a sampler setting that would have no effect.

    Args:
        given: settings by name, None where nothing was said.
        settings: names of those that have an effect.
        reason: why the others have none, for the message.
        prefix: put before the name in the message, as `--`.

    Raises:
        ValueError: naming the setting.
    """
    for name, value in given.items():
        if value is not None and name not in settings:
            raise ValueError(f"{prefix}{name} {reason}; leave it out")


def given_settings(options: SamplerOptions) -> dict[str, Any]:
    """The sampler's flags by name, None where nothing was said."""
    return {field.name: getattr(options, field.name) for field in dataclasses.fields(Sampler)}
