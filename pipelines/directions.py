"""What the vectors of many images say together: the direction of an attribute, class means, how much a channel varies.

Every image is seen once and only sums are kept, so memory does not grow with the number of images.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Literal

import torch
from torch import Tensor

from latent_prior.data.codes import CodeMaps
from latent_prior.pipelines.pipeline import Pipeline

Batches = Iterable[tuple[Tensor, Tensor]]
"""Batches of images, float (B, C, H, W) in [-1, 1], with integers (B,) that say what each of them is."""

RIDGE = 0.1
"""Penalty of the probe's squared weights, in units of the variance of one standardised latent."""
LARGEST_PROBE = 8192
"""Numbers per image up to which the probe's matrix is made; it takes 512 MB then."""


def attribute_direction(
    pipe: Pipeline, batches: Batches, *, method: Literal["mean", "probe"] = "mean"
) -> CodeMaps:
    """The way from images without an attribute to images with it, for `move`.

    `mean` is the difference of the two means. `probe` is the weight vector of a linear classifier, which leaves out what
    merely tends to come along with the attribute: ridge regression of the attribute on standardised latents, in closed
    form from the normal equations. Its direction is that of Fisher's discriminant, and the one that logistic regression
    finds where both classes are normal with one covariance; and no iteration has to converge.

    Args:
        pipe: any.
        batches: images with 1 for those that have the attribute, 0 for those that have not; others are left out. Each
            batch is seen once, memory does not grow with their number.
        method: `mean` or `probe`.

    Returns:
        level name -> float32 (channels, height, width); strength 1 leads from the mean without to the mean with, as far
        as that lies along the direction.

    Raises:
        ValueError: no image with or none without the attribute, or more numbers per image than the probe can take.
    """
    sums = {1: _Sums(), 0: _Sums()}
    everything = _Sums(products=method == "probe")
    for images, has in batches:
        vectors = pipe.embed(images)
        shapes = {name: values.shape[1:] for name, values in vectors.items()}
        rows = _rows(vectors)
        for value, own in sums.items():
            own.add(rows[has.cpu() == value])
        everything.add(rows[(has.cpu() == 0) | (has.cpu() == 1)])
    for value, name in ((1, "with"), (0, "without")):
        if not sums[value].count:
            raise ValueError(f"there is no image {name} the attribute to learn its direction from")
    difference = sums[1].mean - sums[0].mean
    if method == "probe":
        difference = _along_probe(everything, difference)
    return _maps(difference, shapes)


def class_means(pipe: Pipeline, batches: Batches, classes: Sequence[int]) -> CodeMaps:
    """The mean vectors of some classes, which can be decoded and calculated with.

    Args:
        pipe: any.
        batches: images with their class numbers; each is seen once.
        classes: the classes, in the order of the result.

    Returns:
        level name -> float32 (len(classes), channels, height, width)

    Raises:
        ValueError: a class without images.
    """
    sums = {number: _Sums() for number in classes}
    for images, labels in batches:
        vectors = pipe.embed(images)
        shapes = {name: values.shape[1:] for name, values in vectors.items()}
        rows = _rows(vectors)
        for number, own in sums.items():
            own.add(rows[labels.cpu() == number])
    for number, own in sums.items():
        if not own.count:
            raise ValueError(f"there is no image of class {number} to take a mean of")
    return _maps(torch.stack([sums[number].mean for number in classes]), shapes)


def channel_deviations(pipe: Pipeline, batches: Batches) -> CodeMaps:
    """Standard deviation of every channel over images and places, level name -> float32 (channels, 1, 1)."""
    sums: dict[str, _Sums] = {}
    for images, _ in batches:
        for name, values in pipe.embed(images).items():
            places = values.movedim(1, -1).flatten(0, -2).cpu().double()
            sums.setdefault(name, _Sums()).add(places)
    return {name: own.deviation.float()[:, None, None] for name, own in sums.items()}


class _Sums:
    """What is kept of any number of vectors (D,), in float64 on the CPU: count, sum, squares and, on demand, products."""

    def __init__(self, *, products: bool = False) -> None:
        self.count = 0
        self.total: Tensor = torch.zeros(())
        self.squares: Tensor = torch.zeros(())
        self.products: Tensor | None = torch.zeros(()) if products else None

    def add(self, rows: Tensor) -> None:
        """Count vectors (N, D)."""
        self.count += len(rows)
        self.total = self.total + rows.sum(0)
        self.squares = self.squares + rows.square().sum(0)
        if self.products is not None:
            if rows.shape[1] > LARGEST_PROBE:
                raise ValueError(
                    f"an image has {rows.shape[1]} numbers in its latents, the probe takes up to {LARGEST_PROBE}: "
                    "use the difference of means"
                )
            self.products = self.products + rows.T @ rows

    @property
    def mean(self) -> Tensor:
        return self.total / self.count

    @property
    def deviation(self) -> Tensor:
        # Vectors lie around 0, so float64 sums of squares lose no digit that matters.
        return (self.squares / self.count - self.mean.square()).clamp(min=0).sqrt()


def _along_probe(everything: _Sums, difference: Tensor) -> Tensor:
    """The part of the difference of means that lies along the probe's weights, both in standardised coordinates.

    Least squares gives weights that solve (R + RIDGE) w = d up to a factor, with R the correlations of all latents and d
    the standardised difference of the class means; the classes' numbers only change the factor.
    """
    assert everything.products is not None
    deviation = everything.deviation
    # Dimensions that say nothing (a collapsed posterior's) are exactly or nearly constant; they get no weight.
    scale = torch.where(deviation > 1e-6 * deviation.max(), 1 / deviation, 0.0)
    mean = everything.mean
    covariance = everything.products / everything.count - torch.outer(mean, mean)
    correlation = covariance * torch.outer(scale, scale)
    correlation.diagonal().add_(RIDGE)
    standardised = difference * scale
    weights = torch.cholesky_solve(
        standardised.unsqueeze(1), torch.linalg.cholesky(correlation)
    ).squeeze(1)
    share = weights @ standardised / (weights @ weights).clamp(min=torch.finfo(weights.dtype).tiny)
    return deviation * weights * share


def _rows(vectors: CodeMaps) -> Tensor:
    """All numbers of every image, float64 (B, D) on the CPU, level after level."""
    return torch.cat([values.flatten(1) for values in vectors.values()], dim=1).cpu().double()


def _maps(rows: Tensor, shapes: dict[str, torch.Size]) -> CodeMaps:
    """The inverse of `_rows`, for numbers (..., D), in float32."""
    parts = rows.float().split([shape.numel() for shape in shapes.values()], dim=-1)
    return {
        name: part.unflatten(-1, shape)
        for (name, shape), part in zip(shapes.items(), parts, strict=True)
    }
