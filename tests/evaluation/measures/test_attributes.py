"""The drawings' own attributes are the truth; what is no drawing must not be recognised."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from latent_prior.data.embedded.shapes import (
    BACKGROUNDS,
    CLASS_NAMES,
    COLOURS,
    PLACES,
    SHAPES,
    SIZES,
    drawing,
)
from latent_prior.evaluation.measures.attributes import as_asked, asks, recognise

COUNT = 960


@pytest.fixture(scope="module")
def drawn():
    return [drawing("test", number) for number in range(COUNT)]


@pytest.fixture(scope="module")
def images(drawn):
    return np.stack([np.asarray(each.picture()) for each in drawn])


@pytest.fixture(scope="module")
def classes(drawn):
    return [CLASS_NAMES[each.label] for each in drawn]


def shares(images, classes):
    """Of shape, colour, place and all three."""
    return as_asked(list(images), classes).mean(0)


def blurred(images, sigma):
    reach = int(3 * sigma) + 1
    weights = torch.exp(-0.5 * (torch.arange(-reach, reach + 1) / sigma).square())
    weights = (weights / weights.sum())[None, None]
    flat = torch.from_numpy(images).float().permute(0, 3, 1, 2).reshape(-1, 1, 32, 32)
    flat = F.pad(flat, [reach] * 4, mode="replicate")
    flat = F.conv2d(F.conv2d(flat, weights[..., None]), weights[:, :, None])
    return flat.round().byte().reshape(-1, 3, 32, 32).permute(0, 2, 3, 1).numpy()


def noisy(images, deviation, seed=0):
    noise = np.random.default_rng(seed).normal(0, deviation, images.shape)
    return (images + noise).clip(0, 255).round().astype(np.uint8)


def test_originals_are_recognised(drawn, images, classes):
    assert (shares(images, classes) >= 0.995).all()
    found = recognise(list(images[:50]))
    for numbers, each in zip(found, drawn, strict=False):
        names = (SHAPES[numbers[0]], COLOURS[numbers[1]], PLACES[numbers[2]])
        assert names == (each.shape, each.colour, each.place)


@pytest.mark.parametrize("name", [*SIZES, *BACKGROUNDS])
def test_size_and_background_do_not_matter(drawn, images, classes, name):
    rows = [row for row, each in enumerate(drawn) if name in (each.size, each.background)]
    assert (shares(images[rows], [classes[row] for row in rows]) >= 0.99).all()


def test_rows_do_not_depend_on_each_other(images):
    together = recognise(list(images[:20]))
    np.testing.assert_array_equal(together, np.concatenate([recognise([x]) for x in images[:20]]))


def test_shuffled_classes_are_at_chance(images, classes):
    random = np.random.default_rng(0)
    found = shares(images, [classes[row] for row in random.permutation(COUNT)])
    for share, chance in zip(found, (1 / 4, 1 / 6, 1 / 4, 1 / 96), strict=True):
        assert abs(share - chance) < 5 * np.sqrt(chance * (1 - chance) / COUNT)


@pytest.mark.parametrize("rough", [1, 4, 8, 16])
def test_fog_shows_nothing(rough):
    """Noise of several grains."""
    random = torch.Generator().manual_seed(0)
    noise = torch.rand(200, 3, 32 // rough, 32 // rough, generator=random) * 255
    fog = F.interpolate(noise, size=(32, 32), mode="bilinear").byte().permute(0, 2, 3, 1)
    assert (recognise(list(fog.numpy())) >= 0).mean() < 0.03


def test_plain_images_and_two_figures_show_nothing(images):
    assert (recognise(list(np.full_like(images[:3], 128))) == -1).all()
    flipped = images[:96, ::-1, ::-1]
    ground = np.median(images[:96, 0], axis=1)[:, None, None]
    is_figure = np.abs(images[:96] - ground).sum(-1, keepdims=True) > 60
    assert (recognise(list(np.where(is_figure, images[:96], flipped))) == -1).mean() > 0.97


def test_it_degrades_with_blur_and_noise(images, classes):
    for spoil, levels in ((blurred, (0.5, 1.5, 2, 4)), (noisy, (5, 20, 30, 60))):
        found = np.array([shares(spoil(images[:480], level), classes[:480]) for level in levels])
        assert (found[0] >= 0.99).all()
        assert (np.diff(found[:, 3]) <= 0).all()
        assert (found[-1] <= 0.01).all()


def test_another_figure_is_none_of_them(drawn):
    """A ring: neither of the four shapes."""
    found = []
    for each in drawn[:96:4]:  # circles
        ring = np.asarray(each.picture()).copy()
        hole = np.asarray(replace(each, radius=each.radius * 0.65, fill=each.ground, ground=each.fill).picture())  # fmt: skip
        inner = (hole != np.array(each.fill)).any(-1)
        ring[inner] = hole[inner]
        found.append(ring)
    assert (recognise(found)[:, 0] == -1).all()


def test_other_sizes_are_brought_to_that_of_the_drawings(drawn, classes):
    large = [np.asarray(each.picture().resize((64, 64))) for each in drawn[:96]]
    assert shares(large, classes[:96])[3] > 0.95


def test_only_classes_of_shapes_are_asked_for():
    assert asks(["red circle, top left"])
    assert not asks(["red circle, top left", ""])
    assert not asks(["3", "7"])
    assert not asks(None)
