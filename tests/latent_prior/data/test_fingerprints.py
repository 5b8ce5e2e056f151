import os
import shutil

import datasets
import numpy as np
import pytest

from latent_prior.data import fingerprints
from latent_prior.data.images import open_images, open_stream
from latent_prior.options import ImageOptions
from tests.latent_prior.samples import encoded, pixels, write


def stream_fingerprint(folder) -> str:
    options = ImageOptions(dataset=str(folder), image_size=8, channels=3)
    return open_stream(options, "train").fingerprint


def fingerprint(folder, **settings) -> str:
    return open_images(ImageOptions(dataset=str(folder), **settings), "train").fingerprint


def test_a_copy_of_a_small_folder_is_the_same(folder, tmp_path):
    """However it is read, and whatever its name and times are."""
    first = fingerprint(folder)
    shutil.copytree(folder, tmp_path / "copy")
    os.utime(tmp_path / "copy/ant/00.png", (0, 0))
    assert fingerprint(folder) == fingerprint(folder, image_size=8) == first
    assert fingerprint(tmp_path / "copy") == first
    assert fingerprint(folder, image_size=8, on_corrupt="skip") == first


@pytest.mark.parametrize("small", [True, False])
def test_every_change_of_a_folder_is_seen(folder, small, monkeypatch):
    if not small:
        monkeypatch.setattr(fingerprints, "SMALL", 100)
    seen = [fingerprint(folder)]
    write(folder / "ant" / "99.png", encoded(pixels(99)))
    seen.append(fingerprint(folder))
    write(folder / "ant" / "99.png", encoded(pixels(98)))
    os.utime(folder / "ant" / "99.png", (0, 0))
    seen.append(fingerprint(folder))
    (folder / "ant" / "00.png").unlink()
    seen.append(fingerprint(folder))
    (folder / "ant" / "99.png").rename(folder / "bee" / "99.png")
    seen.append(fingerprint(folder))
    (folder / "cow").rename(folder / "cat")
    seen.append(fingerprint(folder))
    assert len(set(seen)) == len(seen)
    assert fingerprint(folder) == seen[-1]


def test_a_large_folder_is_not_read(folder, monkeypatch):
    images = open_images(ImageOptions(dataset=str(folder)), "train")
    monkeypatch.setattr(fingerprints, "SMALL", 100)
    monkeypatch.setattr("pathlib.Path.read_bytes", lambda path: pytest.fail(f"{path} is read"))
    assert len(images.fingerprint) == 64


@pytest.mark.parametrize("kind", ["parquet", "saved"])
def test_tables_and_their_labels(kind, tmp_path):
    seen = []
    for count, label in ((3, 0), (3, 1), (4, 1), (4, 1)):
        columns = {
            "image": [{"bytes": encoded(pixels(n)), "path": None} for n in range(count)],
            "label": [label] * count,
        }
        shutil.rmtree(tmp_path / "data", ignore_errors=True)
        (tmp_path / "data").mkdir()
        rows = datasets.Dataset.from_dict(columns)
        if kind == "parquet":
            rows.to_parquet(tmp_path / "data" / "train.parquet")
        else:
            rows.save_to_disk(tmp_path / "data")
        seen.append(fingerprint(tmp_path / "data"))
        stream = stream_fingerprint(tmp_path / "data")
        assert stream == stream_fingerprint(tmp_path / "data")
    assert len(set(seen)) == 3
    assert seen[2] == seen[3]


def test_left_out_images_count(folder):
    write(folder / "ant" / "99.png", b"no image")
    skipping = fingerprint(folder, on_corrupt="skip")
    images = open_images(ImageOptions(dataset=str(folder), on_corrupt="skip"), "train")
    images.source_index = np.arange(len(images) + 1)
    assert images.fingerprint != skipping


def test_the_embedded_digits_and_streams(folder):
    digits = [
        open_images(ImageOptions(), split).fingerprint for split in ("train", "train", "test")
    ]
    assert digits[0] == digits[1] != digits[2]
    stream = stream_fingerprint(folder)
    write(folder / "ant" / "99.png", encoded(pixels(99)))
    assert stream_fingerprint(folder) != stream
