"""The operations of `latents.py` on images of a dataset, as sheets of rows and columns."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from latent_prior.data.images import ImageSet, open_images, to_float, to_uint8
from latent_prior.data.labels import label_number
from latent_prior.pipelines import directions, operations
from latent_prior.pipelines.completion import fill_with_mean, one_mask_each
from latent_prior.pipelines.options import LatentOptions
from latent_prior.pipelines.pipeline import Pipeline
from latent_prior.progress import Progress
from latent_prior.seeds import generator

STEPS = 9  # images per row
DEVIATION_IMAGES = 4096  # gives a channel's deviation to about one per cent


@dataclass(frozen=True)
class Sheet:
    """Images in rows and columns, uint8 (rows, columns, C, H, W), with the name of each."""

    pictures: Tensor
    rows: list[str]
    columns: list[str]


def interpolate(
    pipe: Pipeline, images: ImageSet, positions: list[int], options: LatentOptions
) -> Sheet:
    """From each image to the next, with the originals at both ends."""
    pixels, names = read(images, positions), row_names(images, positions)
    steps = options.steps or STEPS

    def make(starts: Tensor, ends: Tensor) -> Tensor:
        between = operations.interpolate(pipe, starts, ends, steps=steps, method=options.method)
        return torch.cat([starts[:, None], between, ends[:, None]], dim=1)

    rows = [f"{start}-{end}" for start, end in itertools.pairwise(names)]
    columns = ["start", *(f"step{step:03d}" for step in range(steps)), "end"]
    return Sheet(by_batch(make, pixels[:-1], pixels[1:], options=options), rows, columns)


def attribute(
    pipe: Pipeline, images: ImageSet, positions: list[int], options: LatentOptions
) -> Sheet:
    """Each image with different amounts of the attribute, the original on the left."""
    assert options.attribute is not None
    labelled = open_labelled(options)
    has = class_number(labelled, options.attribute, "attribute")
    lacks = None if options.against is None else class_number(labelled, options.against, "against")
    if has == lacks:
        raise ValueError(f"--against {options.against} is the same class as --attribute")

    def membership(labels: Tensor) -> Tensor:
        lacking = (labels >= 0) & (labels != has) if lacks is None else labels == lacks
        return torch.where(labels == has, 1, torch.where(lacking, 0, -1))

    batches = ((pixels, membership(labels)) for pixels, labels in batches_of(labelled, options))
    direction = directions.attribute_direction(pipe, batches, method=options.direction)

    def make(pixels: Tensor) -> Tensor:
        moved = operations.move(pipe, pixels, direction, options.strength)
        return torch.cat([pixels[:, None], moved], dim=1)

    columns = ["original", *(f"strength{strength:+g}" for strength in options.strength)]
    pictures = by_batch(make, read(images, positions), options=options)
    return Sheet(pictures, row_names(images, positions), columns)


def traverse(
    pipe: Pipeline, images: ImageSet, positions: list[int], options: LatentOptions
) -> Sheet:
    """Each image with single dimensions changed, one row per dimension."""
    count = sum(vectors.shape[1] for vectors in pipe.embed(read(images, positions[:1])).values())
    if max(options.dimensions, default=0) >= count:
        raise ValueError(f"--dimensions {max(options.dimensions)}: there are {count}, from 0")
    batches = batches_of(open_images(options, options.fit_split), options, DEVIATION_IMAGES)
    deviations = directions.channel_deviations(pipe, batches)
    every = torch.cat([values.flatten() for values in deviations.values()])
    steps = options.steps or STEPS
    dimensions = options.dimensions or every.topk(min(8, count)).indices.tolist()

    def make(pixels: Tensor) -> Tensor:
        changed = [
            operations.traverse(pipe, pixels, deviations, d, steps=steps, span=options.span)
            for d in dimensions
        ]
        return torch.stack(changed, dim=1).flatten(0, 1)

    rows = [f"{n}_dimension{d:03d}" for n in row_names(images, positions) for d in dimensions]
    columns = [f"step{step:03d}" for step in range(steps)]
    return Sheet(by_batch(make, read(images, positions), options=options), rows, columns)


def arithmetic(
    pipe: Pipeline, images: ImageSet, positions: list[int], options: LatentOptions
) -> Sheet:
    """Three images, or the decoded means of three classes, and a - b + c."""
    if options.labels:
        labelled = open_labelled(options)
        numbers = [class_number(labelled, label, "labels") for label in options.labels]
        names = [f"class{number}" for number in numbers]
        means = directions.class_means(pipe, batches_of(labelled, options), numbers)
        a, b, c = ({name: rows[i : i + 1] for name, rows in means.items()} for i in range(3))
        terms = pipe.decode_vectors(means).cpu()
        result = pipe.decode_vectors(operations.combine(a, b, c)).cpu()
    else:
        terms, names = read(images, positions), row_names(images, positions)
        result = operations.arithmetic(pipe, *terms.split(1)).cpu()
    row = f"{names[0]}-{names[1]}+{names[2]}"
    return Sheet(to_uint8(torch.cat([terms, result]))[None], [row], ["a", "b", "c", "result"])


def complete(
    pipe: Pipeline, images: ImageSet, positions: list[int], options: LatentOptions
) -> Sheet:
    """Each image as it is, with its hidden part filled by the mean colour, and completed."""
    pixels = read(images, positions)
    left, top, right, bottom = options.mask_box(pixels.shape[-1])
    mask = torch.zeros(pixels.shape[2:], dtype=torch.bool)
    mask[top:bottom, left:right] = True
    labels = options.labels[0] if len(options.labels) == 1 else options.labels or None
    output = pipe.complete(
        pixels,
        mask,
        prompt=options.prompt,
        labels=labels,
        generator=[
            generator(options.seed, "image", int(row)) for row in images.source_index[positions]
        ],
        paste=options.paste,
        batch_size=options.batch_size,
        output_type="pt",
        **options.settings(),
    )
    assert isinstance(output.images, Tensor)
    given = fill_with_mean(pixels, one_mask_each(mask, pixels))
    pictures = torch.stack([pixels, given, output.images], dim=1)
    return Sheet(
        to_uint8(pictures), row_names(images, positions), ["original", "given", "completed"]
    )


MAKERS: dict[str, Callable[[Pipeline, ImageSet, list[int], LatentOptions], Sheet]] = {
    "interpolate": interpolate,
    "attribute": attribute,
    "traverse": traverse,
    "arithmetic": arithmetic,
    "complete": complete,
}


def open_labelled(options: LatentOptions) -> ImageSet:
    """The labelled images for directions and class means."""
    images = open_images(options, options.fit_split)
    if images.labels is None:
        raise ValueError(
            f"--operation {options.operation}: split {options.fit_split!r} of {options.dataset} "
            "has no labels"
        )
    return images


def class_number(images: ImageSet, label: str, flag: str) -> int:
    """The number of a class, from its number or name."""
    try:
        number = label_number(label, images.class_names)
        if number < 0:
            raise ValueError(f"label {label!r} is no class")
    except ValueError as error:
        raise ValueError(f"--{flag}: {error}") from error
    return number


def by_batch(make: Callable[..., Tensor], *images: Tensor, options: LatentOptions) -> Tensor:
    """Apply `make` to batches of the images, and join the results as uint8."""
    parts = zip(*(pixels.split(options.batch_size) for pixels in images), strict=True)
    return torch.cat([to_uint8(make(*part)) for part in parts])


def batches_of(
    images: ImageSet, options: LatentOptions, at_most: int | None = None
) -> Iterator[tuple[Tensor, Tensor]]:
    """Images in [-1, 1] with labels, -1 for none; with `at_most`, evenly spread ones."""
    count = len(images) if at_most is None else min(at_most, len(images))
    positions = np.linspace(0, len(images) - 1, count).round().astype(np.int64)
    starts = range(0, count, options.batch_size)
    parts = [range(count)[start : start + options.batch_size] for start in starts]
    for part in Progress("measuring", count, shown=True).over(parts):
        batch = positions[part.start : part.stop].tolist()
        labels = images.labels_of(batch)
        yield read(images, batch), torch.full((len(batch),), -1) if labels is None else labels


def read(images: ImageSet, positions: list[int]) -> Tensor:
    """Images, float (B, C, H, W) in [-1, 1]."""
    return to_float(images.crops(positions))


def row_names(images: ImageSet, positions: list[int]) -> list[str]:
    """Row numbers of the images in their source, as file names."""
    return [f"{row:06d}" for row in images.source_index[positions]]
