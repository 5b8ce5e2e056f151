"""What shards hold, which split they belong to, and the index that says what lies where."""

import os
import shutil

import datasets
import pyarrow
import pytest

from latent_prior.data.found import found
from latent_prior.data.images import open_images
from latent_prior.data.shards import index
from latent_prior.data.sources import open_source
from latent_prior.options import ImageOptions
from tests.latent_prior.data.shards.conftest import (
    numbered,
    sample,
    write_shards,
    write_tar,
)


def options(folder, **others) -> ImageOptions:
    return ImageOptions(dataset=str(folder), image_size=8, channels=3, **others)


@pytest.mark.parametrize("kind", ["tar", "parquet", "arrow"])
def test_shards_hold_what_a_table_of_the_same_rows_holds(shards, of_run, tmp_path, kind):
    """Image by image, with the same classes and the same parts held out."""
    rows = {
        "image": [{"bytes": numbered(n), "path": None} for n in range(600)],
        "label": [n % 3 for n in range(600)],
    }
    datasets.Dataset.from_dict(rows).save_to_disk(tmp_path / "saved")
    whole, ours = open_source(options(tmp_path / "saved")), open_source(of_run(shards(kind)))
    assert ours.split_names() == whole.split_names()
    assert ours.remarks() == whole.remarks()
    for split in whole.split_names():
        expected, table = whole.table(split), ours.table(split)
        assert len(table) == len(expected) == ours.size(split)
        assert table.labels.tolist() == expected.labels.tolist()
        assert table.class_names == ("0", "1", "2")
        for row in (0, 1, len(table) // 2, len(table) - 1):
            assert table.read(row) == expected.read(row)
    said = found(of_run(shards(kind)))
    assert said.startswith("train: ")
    assert said.endswith("images; validation and test are held out of train; read as a stream")


def test_classes_and_captions_of_a_tar_file(tmp_path):
    """Members, or fields of the JSON beside the image."""
    write_shards(tmp_path / "d", "tar", 12, 2)
    images = open_images(options(tmp_path / "d"), "train")
    assert images.captions([0, 11]) == [("picture 0",), ("picture 11",)]
    assert images.class_names == ("0", "1", "2")
    images = open_images(
        options(tmp_path / "d", label_column="kind", caption_column="said"), "train"
    )
    assert images.captions([5]) == [("5!",)]
    assert images.class_names == ("a", "b", "c")
    assert images.labels.tolist() == [0, 1, 2] * 4
    images = open_images(
        options(tmp_path / "d", label_column="none", caption_column="none"), "train"
    )
    assert images.labels is None
    assert not images.has_captions


@pytest.mark.parametrize(
    ("names", "splits"),
    [
        (["00000.tar", "00001.tar"], ["train"]),
        (["imagenet1k-train-0000.tar", "imagenet1k-validation-00.tar"], ["train", "validation"]),
        (["train/0.tar", "val/0.tar", "test/0.tar"], ["train", "validation", "test"]),
        (["train-00000-of-00001.tar", "test-00000-of-00001.tar"], ["train", "test"]),
        (["cc3m-000.tar", "cc3m-001.tar"], ["train"]),
        (["a_train2017_1.tar", "a_val2017_1.tar"], ["train", "validation"]),
    ],
)
def test_splits_are_named_by_files_or_folders(tmp_path, names, splits):
    for number, name in enumerate(names):
        write_tar(tmp_path / "d" / name, sample(number))
    assert open_source(options(tmp_path / "d")).split_names() == splits


DAMAGES = {
    "cut": "train-00001-of-00002.tar: it is damaged or cut off after 000011",
    "header": "train-00001-of-00002.tar: it is damaged or cut off after 000008",
    "no image": "the sample of its member 000012.txt holds no image",
    "two images": "holds 2 images: choose one with --image_column",
    "json": "000003.json is no JSON object",
    "text": "000003.txt is not UTF-8 (byte 0)",
    "class": "000003.png has no class, but others have",
}


def damage(folder, what) -> None:
    path = sorted(folder.iterdir())[1]
    data = path.read_bytes()
    if what == "cut":
        path.write_bytes(data[: data.rindex(b"ustar") + 300])
    elif what == "header":
        place = data.index(b"000009.png")
        path.write_bytes(data[: place + 20] + b"\xff" * 200 + data[place + 220 :])
    else:
        third = sample(3)
        changes = {
            "no image": {"000012.txt": b"nothing"}, "two images": {"000003.jpg": b""},
            "json": {"000003.json": b"[1"}, "text": {"000003.txt": b"\xff"}, "class": {},
        }[what]  # fmt: skip
        if what == "class":
            del third["000003.cls"]
        write_tar(folder / "train-00002-of-00002.tar", third | changes)


@pytest.mark.parametrize("what", DAMAGES)
def test_what_is_damaged_is_named_or_left_out(tmp_path, what):
    folder = write_shards(tmp_path / "d", "tar", 12, 2)
    damage(folder, what)
    chosen = {"caption_column": "said"} if what == "json" else {}
    with pytest.raises(
        ValueError, match=DAMAGES[what].replace("(", r"\(").replace(")", r"\)")
    ) as refused:
        open_images(options(folder, **chosen), "train")
    assert "\n" not in str(refused.value)
    images = open_images(options(folder, on_corrupt="skip", **chosen), "train")
    assert len(images) == {"cut": 12, "header": 9, "class": 13, "no image": 13}.get(what, 12)
    images.read(range(len(images)))


def test_members_are_bytes_whatever_their_names(tmp_path):
    """Names that lead away, links and devices write and open nothing."""
    folder = tmp_path / "d"
    write_tar(folder / "0.tar", {"../../out.png": numbered(1), "/etc/x.png": numbered(2)})
    images = open_images(options(folder), "train")
    assert len(images) == 2
    assert sorted(tmp_path.iterdir()) == [folder]
    assert {path.suffix for path in folder.iterdir()} == {".tar", ".arrow"}


def made(monkeypatch) -> list:
    """Every index that is made is added to the list."""
    calls = []
    original = index._make
    monkeypatch.setattr(
        index, "_make", lambda path, *args: (calls.append(path), original(path, *args))
    )
    return calls


def test_an_index_is_made_once_and_again_for_other_shards(tmp_path, monkeypatch):
    folder, calls = write_shards(tmp_path / "d", "tar", 12, 2), made(monkeypatch)
    for _ in range(2):
        assert open_source(options(folder)).size("train") == 12
    assert [path.parent for path in calls] == [folder]
    assert calls[0].name.startswith(".")
    write_tar(folder / "train-00002-of-00003.tar", sample(12))
    assert open_source(options(folder)).size("train") == 13
    write_tar(folder / "train-00002-of-00003.tar", sample(12) | sample(13))
    assert open_source(options(folder)).size("train") == 14
    path = folder / "train-00000-of-00002.tar"
    os.utime(path, (0, 0))
    open_source(options(folder)).size("train")
    assert len(calls) == 4
    open_source(options(folder, caption_column="said")).size("train")
    assert len(set(calls)) == 2


def test_an_index_goes_to_the_cache_where_the_data_cannot_be_written(tmp_path, monkeypatch):
    folder, calls = write_shards(tmp_path / "d", "parquet", 12, 2), made(monkeypatch)
    monkeypatch.setenv("LATENT_PRIOR_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(index.os, "access", lambda path, mode: path != folder)
    for _ in range(2):
        assert open_source(ImageOptions(dataset=f"file://{folder}")).size("train") == 12
    assert len(calls) == 1
    assert calls[0].is_relative_to(tmp_path / "cache")


@pytest.mark.parametrize("what", ["cut", "garbage", "beyond", "negative", "fewer"])
def test_a_damaged_index_is_made_again(tmp_path, monkeypatch, what):
    """Nothing outside of a shard is read, whatever an index says that came with the data."""
    folder = write_shards(tmp_path / "d", "tar", 12, 2)
    open_source(options(folder)).size("train")
    (path,) = folder.glob(".latent*")
    content = path.read_bytes()
    if what in ("cut", "garbage"):
        path.write_bytes(content[:200] if what == "cut" else b"x" * 100)
    else:
        reader = pyarrow.ipc.open_file(path)
        parts = [reader.get_batch_with_custom_metadata(n) for n in range(2)]
        name, value = {"beyond": ("offset", 10**9), "negative": ("size", -1)}.get(what, (None, 0))
        if name is None:
            del parts[1]
        else:
            first = parts[0].batch
            changed = pyarrow.array([value, *first.column(name).to_pylist()[1:]], pyarrow.int64())
            first = first.set_column(first.schema.get_field_index(name), name, changed)
            parts[0] = (
                first.replace_schema_metadata(reader.schema.metadata),
                parts[0].custom_metadata,
            )
        with pyarrow.ipc.new_file(str(path), reader.schema) as writer:
            for part, described in parts:
                writer.write_batch(part, described)
    calls = made(monkeypatch)
    images = open_images(options(folder), "train")
    assert len(images) == 12
    images.read(range(12))
    assert len(calls) == 1


def test_wrong_shards_are_one_sentence(tmp_path, of_run):
    folder = write_shards(tmp_path / "d", "parquet", 12, 2)
    for settings, said in (
        (
            {"image_column": "nope"},
            "--image_column nope: there is no such column; there are: image",
        ),
        ({"image_column": "label"}, "--image_column label: the column does not hold images"),
        ({"label_column": "nope"}, "--label_column nope: there is no such column"),
    ):
        with pytest.raises(ValueError, match=said):
            open_source(of_run(folder, **settings)).blocks("train")
    with pytest.raises(
        ValueError, match=r"has no split 'test'; it has: train \(12 images are too few"
    ):
        open_source(of_run(folder)).blocks("test")
    shutil.copy(write_tar(tmp_path / "x.tar", sample(1)), folder)
    with pytest.raises(ValueError, match=r"has \.parquet and \.tar files: name those of one kind"):
        open_source(options(f"file://{folder}"))
