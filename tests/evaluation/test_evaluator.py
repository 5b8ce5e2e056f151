"""The evaluator on real digits: damage to the images worsens every number, each in its own way.

Real images, a real network, known damage of rising strength. The reference and the damaged
images are different digits from the same source.
"""

import io
from collections.abc import Callable
from functools import cache
from typing import NamedTuple

import numpy as np
import pytest
from PIL import Image, ImageFilter

from latent_prior.data.embedded.mnist5k import digits
from latent_prior.evaluation.features.networks import load_network
from latent_prior.evaluation.measures import fid
from latent_prior.evaluation.measures.kid import kernel_distance
from latent_prior.evaluation.measures.precision_recall import Manifolds, manifolds

COUNT = 250
COLOURS = np.array([[255, 160, 90], [120, 220, 255], [200, 255, 140]]) / 255


class Scores(NamedTuple):
    distance: float
    kid: float
    overlap: Manifolds


@cache
def coloured(part: int) -> tuple[np.ndarray, np.ndarray]:
    """The part-th digits, tinted: uint8 (COUNT, 28, 28, 3), and their labels."""
    images, labels = digits("train")
    chosen = np.random.default_rng(0).permutation(len(images))[part * COUNT : (part + 1) * COUNT]
    grey = images[chosen].reshape(COUNT, 28, 28, 1)
    tints = COLOURS[np.arange(COUNT) % len(COLOURS)][:, None, None]
    return (grey * tints).round().astype(np.uint8), labels[chosen]


@cache
def network():
    return load_network("efficientnet_lite0")


@cache
def expected() -> np.ndarray:
    return network()(list(coloured(0)[0]))


def scored(images: list[np.ndarray]) -> Scores:
    found = network()(images)
    reference = fid.Reference(fid.statistics(expected()))
    kid, _ = kernel_distance(expected(), found)
    return Scores(fid.frechet_distance(reference, found), kid, manifolds(expected(), found))


def blurred(image: np.ndarray, strength: float) -> np.ndarray:
    return np.asarray(Image.fromarray(image).filter(ImageFilter.GaussianBlur(strength)))


def noisy(image: np.ndarray, strength: float) -> np.ndarray:
    random = np.random.default_rng(image.sum())
    return (image + random.normal(0, strength, image.shape)).clip(0, 255).astype(np.uint8)


def shifted_in_colour(image: np.ndarray, strength: float) -> np.ndarray:
    return (image + np.array([strength, 0, -strength])).clip(0, 255).astype(np.uint8)


def as_jpeg(image: np.ndarray, strength: float) -> np.ndarray:
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, "jpeg", quality=round(100 - strength))
    return np.asarray(Image.open(buffer))


@cache
def untouched() -> Scores:
    return scored(list(coloured(1)[0]))


@pytest.mark.parametrize(
    ("damage", "strengths"),
    [
        (blurred, (0.7, 1.2, 2.5)),
        (noisy, (2, 4, 8)),  # of stronger noise see below
        (shifted_in_colour, (20, 50, 100)),
        (as_jpeg, (60, 85, 97)),
    ],
)
def test_more_damage_is_a_larger_distance(
    damage: Callable[[np.ndarray, float], np.ndarray], strengths: tuple[float, ...]
):
    found = [untouched()] + [
        scored([damage(image, strength) for image in coloured(1)[0]]) for strength in strengths
    ]
    for worse, better in zip(found[1:], found, strict=False):
        assert worse.distance > better.distance
        assert worse.kid > better.kid
    # Damaged images leave the originals' neighbourhoods: they are not precise and cover nothing.
    assert found[-1].overlap.precision < 0.5 * found[0].overlap.precision
    assert found[-1].overlap.density < 0.5 * found[0].overlap.density
    assert found[-1].overlap.coverage < 0.5 * found[0].overlap.coverage


def test_strong_noise_is_ranked_by_the_distance():
    """KID falls again, though far above that of originals: features of noise are short vectors."""
    found = [
        scored([noisy(image, strength) for image in coloured(1)[0]]) for strength in (4, 12, 30)
    ]
    assert found[0].distance < found[1].distance < found[2].distance
    # The estimate for originals is 0 up to chance, -0.04 for these; that of noise is at least 4.5.
    assert min(one.kid for one in found) > max(4.0, 100 * abs(untouched().kid))
    assert found[-1].overlap.precision < 0.5 * untouched().overlap.precision


def test_dropping_modes_is_a_larger_distance_and_costs_recall_but_not_precision():
    images, labels = coloured(1)
    found = [untouched()]
    for kept in (7, 4, 1):
        own = np.flatnonzero(labels < kept)
        found.append(scored(list(images[np.resize(own, COUNT)])))  # as many, from fewer classes
    for worse, better in zip(found[1:], found, strict=False):
        assert worse.distance > better.distance
        assert worse.kid > better.kid
        assert worse.overlap.recall < better.overlap.recall
        assert worse.overlap.coverage < better.overlap.coverage
    assert found[-1].overlap.precision > 0.8 * found[0].overlap.precision


def test_identical_images_are_at_no_distance():
    same = scored(list(coloured(0)[0]))
    assert same.distance < 1e-3
    assert same.kid < 0  # unbiased: below that of other images of the same source
    assert same.overlap[:2] == (1, 1)
    assert same.overlap.coverage == 1
