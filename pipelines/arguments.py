"""What callers may give in several forms: classes by number or name, randomness for all or for each."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Generator


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
