"""Attribute directions, class means and deviations of channels, from the vectors of many images.

Each image is read once and only sums are kept, so memory does not grow with their number.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from latent_prior.data.codes import CodeMaps
from latent_prior.pipelines.inputs import ImageInput, as_tensor
from latent_prior.pipelines.pipeline import Pipeline

Batches = Iterable[tuple[ImageInput, Tensor | NDArray[np.integer[Any]] | Sequence[int]]]
"""Batches of images, as for `Pipeline.encode`, with an integer per image (B,)."""

RIDGE = 0.1
"""Penalty of the probe's squared weights, in units of the variance of one standardised latent."""
LARGEST_PROBE = 8192
"""Largest number of latents per image for the probe; its matrix then takes 512 MB."""


def attribute_direction(
    pipe: Pipeline, batches: Batches, *, method: Literal["mean", "probe"] = "mean"
) -> CodeMaps:
    """The direction from images without an attribute to images with it, for `operations.move`.

    `mean` is the difference of the two class means. `probe` is the weight vector of a linear
    classifier, which ignores properties that are merely correlated with the attribute: ridge
    regression of the attribute on standardised latents, in closed form. Its direction is Fisher's
    discriminant, and that of logistic regression for normal classes of equal covariance.

    Batches label images with 1 (has the attribute), 0 (lacks it) or another number (ignored).

    Returns:
        Level name -> float32 (channels, height, width). Strength 1 leads from the mean without the
        attribute to the mean with it, projected on the direction.

    Raises:
        ValueError: no image has or lacks the attribute, the probe has too many latents, or a batch
            has not one integer per image.
    """
    if method not in ("mean", "probe"):
        raise ValueError(f"method must be mean or probe, not {method!r}")
    everything = _Sums(products=method == "probe")
    sums, shapes = _sums_of_classes(pipe, batches, (1, 0), everything)
    for value, name in ((1, "with"), (0, "without")):
        if not sums[value].count:
            raise ValueError(f"there is no image {name} the attribute to learn its direction from")
    difference = sums[1].mean - sums[0].mean
    if method == "probe":
        difference = _along_probe(everything, difference)
    return _maps(difference, shapes)


def class_means(pipe: Pipeline, batches: Batches, classes: Sequence[int]) -> CodeMaps:
    """Mean vectors of classes, from images with their class numbers.

    Returns:
        Level name -> float32 (len(classes), channels, height, width).

    Raises:
        ValueError: a class has no images.
    """
    sums, shapes = _sums_of_classes(pipe, batches, classes)
    for number, of_class in sums.items():
        if not of_class.count:
            raise ValueError(f"there is no image of class {number} to take a mean of")
    return _maps(torch.stack([sums[number].mean for number in classes]), shapes)


def channel_deviations(pipe: Pipeline, batches: Batches) -> CodeMaps:
    """Standard deviation of each channel over images and positions.

    Returns:
        Level name -> float32 (channels, 1, 1).
    """
    sums: dict[str, _Sums] = {}
    for images, _ in batches:
        for name, values in pipe.embed(images).items():
            positions = values.movedim(1, -1).flatten(0, -2).cpu().double()
            sums.setdefault(name, _Sums()).add(positions)
    return {name: level.deviation.float()[:, None, None] for name, level in sums.items()}


class _Sums:
    """Count, sum, sum of squares and optionally of products of vectors (D,), float64 on the CPU."""

    def __init__(self, *, products: bool = False) -> None:
        self.count = 0
        self.total: Tensor = torch.zeros(())
        self.squares: Tensor = torch.zeros(())
        self.products: Tensor | None = torch.zeros(()) if products else None

    def add(self, rows: Tensor) -> None:
        """Add vectors (N, D)."""
        self.count += len(rows)
        self.total = self.total + rows.sum(0)
        self.squares = self.squares + rows.square().sum(0)
        if self.products is not None:
            if rows.shape[1] > LARGEST_PROBE:
                raise ValueError(
                    f"an image has {rows.shape[1]} latents, the probe takes up to "
                    f"{LARGEST_PROBE}: use the difference of means"
                )
            self.products = self.products + rows.T @ rows

    @property
    def mean(self) -> Tensor:
        return self.total / self.count

    @property
    def deviation(self) -> Tensor:
        # Vectors are centred near 0, so float64 sums of squares are precise enough.
        return (self.squares / self.count - self.mean.square()).clamp(min=0).sqrt()


def _sums_of_classes(
    pipe: Pipeline, batches: Batches, classes: Sequence[int], together: _Sums | None = None
) -> tuple[dict[int, _Sums], dict[str, torch.Size]]:
    """Sums of each class, whose images are added to `together` as well, and each level's shape."""
    sums, shapes = {number: _Sums() for number in classes}, {}
    for images, labels in batches:
        vectors = pipe.embed(images)
        shapes = {name: values.shape[1:] for name, values in vectors.items()}
        rows, numbers = _rows(vectors), as_tensor(labels, "labels").cpu()
        if tuple(numbers.shape) != (len(rows),):
            raise ValueError(
                f"a batch of {len(rows)} images has labels of shape {tuple(numbers.shape)}: "
                "give one integer per image"
            )
        for number, of_class in sums.items():
            of_class.add(rows[numbers == number])
        if together is not None:
            together.add(rows[torch.isin(numbers, torch.tensor(classes))])
    return sums, shapes


def _along_probe(everything: _Sums, difference: Tensor) -> Tensor:
    """Project the difference of means on the probe's weights, in standardised coordinates.

    Least squares gives weights w with (R + RIDGE) w = d up to a factor, where R is the correlation
    matrix of all latents and d the standardised difference of the class means.
    """
    assert everything.products is not None
    deviation = everything.deviation
    # Dimensions of a collapsed posterior are nearly constant; they get no weight.
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
    """Flatten and join the levels, float64 (B, D) on the CPU."""
    return torch.cat([values.flatten(1) for values in vectors.values()], dim=1).cpu().double()


def _maps(rows: Tensor, shapes: dict[str, torch.Size]) -> CodeMaps:
    """The inverse of `_rows`, for (..., D), in float32."""
    parts = rows.float().split([shape.numel() for shape in shapes.values()], dim=-1)
    return {
        name: part.unflatten(-1, shape)
        for (name, shape), part in zip(shapes.items(), parts, strict=True)
    }
