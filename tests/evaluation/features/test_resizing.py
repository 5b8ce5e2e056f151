import warnings

import numpy as np
import pytest
import torch
from PIL import Image

from latent_prior.evaluation.features.resizing import resize_clean, resize_for_clip


def noise(shape, count=1, seed=0):
    return list(np.random.default_rng(seed).integers(0, 256, (count, *shape), dtype=np.uint8))


def as_cleanfid(images, size):
    resize = pytest.importorskip("cleanfid.resize").make_resizer(
        "PIL", False, "bicubic", (size, size)
    )
    rgb = [np.repeat(image, 3, axis=2) if image.shape[2] == 1 else image for image in images]
    return np.stack([resize(image) for image in rgb]).transpose(0, 3, 1, 2)


@pytest.mark.parametrize("size", [8, 64, 299])
@pytest.mark.parametrize(
    "shape",
    [(32, 32, 3), (28, 28, 1), (64, 64, 3), (20, 24, 3), (64, 7, 3), (7, 64, 1), (90, 64, 3), (1, 1, 3), (300, 200, 3)],
)  # fmt: skip
def test_every_bit_is_that_of_cleanfids_resizer(shape, size):
    images = noise(shape, 5)
    np.testing.assert_array_equal(resize_clean(images, size), as_cleanfid(images, size))


def test_the_overshoot_of_the_filter_is_cut_off_as_clean_fid_does():
    checkered = [np.kron(np.indices((4, 4)).sum(0) % 2, np.ones((8, 8)))[..., None] * 255]
    images = [np.repeat(image.astype(np.uint8), 3, axis=2) for image in checkered * 3]
    resized = resize_clean(images, 64)
    np.testing.assert_array_equal(resized, as_cleanfid(images, 64))
    assert (resized.min(), resized.max()) == (0, 255)


def test_shapes_may_change_from_image_to_image():
    images = [
        *noise((32, 32, 3), 3),
        *noise((28, 28, 1), 2),
        *noise((32, 32, 3), 40),
        *noise((9, 5, 3)),
    ]
    resized = resize_clean(images, 16)
    assert resized.dtype == np.float32
    assert resized.shape == (46, 3, 16, 16)
    np.testing.assert_array_equal(resized, as_cleanfid(images, 16))


def test_one_coloured_image_among_grey_ones_keeps_its_colours():
    grey = [np.repeat(image, 3, axis=2) for image in noise((12, 12, 1), 4)]
    coloured = noise((12, 12, 3), seed=1)
    for images in (grey, [*grey, *coloured], [*coloured, *grey]):
        np.testing.assert_array_equal(resize_clean(images, 20), as_cleanfid(images, 20))


def test_resizing_one_axis_of_a_stack_as_one_picture_would_mix_neighbours():
    """What the trick must not do: columns of pictures that lie below one another."""
    first, second = (image[..., 0].astype(np.float32) for image in noise((8, 8, 1), 2))
    below = Image.fromarray(np.concatenate([first, second]))
    mixed = np.asarray(below.resize((16, 32), Image.Resampling.BICUBIC))[:16]
    alone = resize_clean([first.astype(np.uint8)[..., None]], 16)[0, 0]
    assert np.abs(mixed.clip(0, 255) - alone).max() > 1


@pytest.mark.parametrize(
    "shape", [(32, 32, 3), (40, 100, 3), (101, 40, 3), (224, 224, 3), (28, 28, 1), (300, 224, 3)]
)
def test_clips_resizer_is_that_of_clean_fid(shape):
    """clean-fid's module for CLIP needs a package that is not on PyPI; these are its two lines."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        transforms = pytest.importorskip("torchvision.transforms")
    bicubic = transforms.InterpolationMode.BICUBIC
    theirs = transforms.Compose(
        [transforms.Resize(224, interpolation=bicubic), transforms.CenterCrop(224)]
    )
    (image,) = noise(shape)
    picture = Image.fromarray(image if shape[2] == 3 else image[..., 0]).convert("RGB")
    expected = np.asarray(theirs(picture)).transpose(2, 0, 1)
    np.testing.assert_array_equal(resize_for_clip([image], 224)[0], expected)


@pytest.mark.parametrize("resize", [resize_clean, resize_for_clip])
def test_two_channels_are_refused(resize):
    with pytest.raises(AssertionError, match="1 or 3 channels"):
        resize(noise((8, 8, 2)), 16)


def test_clean_resizing_is_antialiased_and_keeps_fractions():
    stripes = np.zeros((64, 64, 3), np.uint8)
    stripes[:, ::2] = 255  # finer than 16 pixels can show
    small = resize_clean([stripes], 16)
    assert small.shape == (1, 3, 16, 16)
    assert small.dtype == np.float32
    assert np.abs(small - 127.5).max() < 20  # torch's bilinear without antialiasing would alias
    assert (small != np.rint(small)).any()
    aliased = torch.nn.functional.interpolate(
        torch.from_numpy(stripes).permute(2, 0, 1)[None].float(), size=16, mode="nearest"
    )
    assert (aliased - 127.5).abs().max() > 100
