import contextlib
import io
import os
import shutil
from itertools import chain

import datasets
import numpy as np
import pyarrow
import pytest
from PIL import Image

from latent_prior.data.images import open_images
from latent_prior.data.shards.tables import image_tables
from latent_prior.data.sources import open_source
from latent_prior.options import ImageOptions
from latent_prior.stage1_autoencoders.options import TrainOptions
from tests.latent_prior.samples import CLASSES, encoded, pixels, write


def rows(count: int = 12, start: int = 0) -> dict[str, list]:
    numbers = range(start, start + count)
    return {
        "image": [{"bytes": encoded(pixels(n)), "path": f"{n}.png"} for n in numbers],
        "label": [n % 3 for n in numbers],
    }


def numbers(table) -> list[int]:
    """Which images a table holds, told by their first pixel."""
    return [
        int(np.asarray(Image.open(io.BytesIO(table.read(row))))[0, 0, 0])
        for row in range(len(table))
    ]


def with_names(columns: dict[str, list]) -> datasets.Dataset:
    return datasets.Dataset.from_dict(columns).cast_column(
        "label", datasets.ClassLabel(names=list(CLASSES))
    )


@pytest.fixture
def parquet(tmp_path):
    """A folder of parquet files with two splits."""

    def make(train: dict[str, list], test: dict[str, list], cast=with_names):
        (tmp_path / "parquet").mkdir()
        for split, columns in (("train", train), ("test", test)):
            cast(datasets.Dataset.from_dict(columns) if cast is not with_names else columns
                 ).to_parquet(tmp_path / "parquet" / f"{split}-00000-of-00001.parquet")  # fmt: skip
        return tmp_path / "parquet"

    return make


def plain(dataset: datasets.Dataset) -> datasets.Dataset:
    return dataset


def test_an_image_folder(folder, options):
    table = open_source(options(folder)).table("train")
    assert open_source(options(folder)).split_names() == ["train"]
    assert numbers(table) == [0, 3, 6, 9, 1, 4, 7, 10, 2, 5, 8, 11]
    assert table.labels.tolist() == [0] * 4 + [1] * 4 + [2] * 4
    assert table.class_names == CLASSES
    assert table.name_of(4) == str(folder / "bee" / "01.png")


def test_a_relative_folder_names_its_files(folder, options, monkeypatch):
    monkeypatch.chdir(folder.parent)
    assert open_source(options("images")).table("train").name_of(0) == "images/ant/00.png"


def test_a_parquet_folder(parquet, options):
    path = parquet(rows(12), rows(3, 12))
    assert open_source(options(path)).split_names() == ["train", "test"]
    test = open_source(options(path)).table("test")
    assert numbers(test) == [12, 13, 14]
    assert test.class_names == CLASSES
    assert test.name_of(1) == f"row 1 of split test of {path}"


def test_a_parquet_folder_with_brackets_in_its_name(parquet, options, tmp_path):
    path = shutil.move(parquet(rows(3), rows(3)), tmp_path / "a[1]")
    assert len(open_source(options(path)).table("train")) == 3


@pytest.mark.parametrize("with_splits", [True, False])
def test_a_folder_of_save_to_disk(tmp_path, options, with_splits):
    saved = with_names(rows())
    (datasets.DatasetDict({"train": saved}) if with_splits else saved).save_to_disk(tmp_path / "d")
    table = open_source(options(tmp_path / "d")).table("train")
    assert numbers(table) == list(range(12))
    assert table.labels.tolist() == [n % 3 for n in range(12)]


def test_text_labels_have_the_same_numbers_in_every_split(parquet, options):
    """Numbering each split by itself would call `cow` 2 in one and 0 in the other."""
    train = {"image": rows(3)["image"], "label": list(CLASSES)}
    test = {"image": rows(2)["image"], "label": ["cow", "bee"]}
    path = parquet(train, test, plain)
    for split, labels in (("train", [0, 1, 2]), ("test", [2, 1])):
        table = open_source(options(path)).table(split)
        assert table.labels.tolist() == labels
        assert table.class_names == CLASSES


def test_other_columns_can_serve(parquet, options):
    columns = {"picture": rows(3)["image"], "year": [1999, 2024, 1999]}
    path = parquet(columns, columns, plain)
    table = open_source(options(path, image_column="picture", label_column="year")).table("train")
    assert table.labels.tolist() == [0, 1, 0]
    assert table.class_names == ("1999", "2024")


def test_unknown_labels_are_minus_one(tmp_path, options):
    saved = with_names({**rows(3), "label": [0, None, -1]})
    saved.save_to_disk(tmp_path / "d")
    assert open_source(options(tmp_path / "d")).table("train").labels.tolist() == [0, -1, -1]


def test_a_column_that_only_happens_to_be_called_label_is_no_label(parquet, options):
    columns = {"image": rows(2)["image"], "label": [0.25, 0.5]}
    path = parquet(columns, columns, plain)
    assert open_source(options(path)).table("train").labels is None
    with pytest.raises(
        ValueError, match=r"--label_column label: the column holds fractions such as 0\.25"
    ):
        open_source(options(path, label_column="label")).table("train")


def test_a_stem_that_holds_the_word_of_a_split_is_none(tmp_path, options):
    """`datasets` takes `steam-train` as the split train, and drops the others."""
    for number, name in enumerate(("steam-train.parquet", "car.PARQUET", "test_drive.parquet")):
        (tmp_path / "p").mkdir(exist_ok=True)
        with_names(rows(4, 4 * number)).to_parquet(tmp_path / "p" / name)
    source = open_source(options(tmp_path / "p"))
    assert source.split_names() == ["train"]
    assert sorted(numbers(source.table("train"))) == list(range(12))


@pytest.mark.parametrize(
    ("train", "test"),
    [("train.parquet", "test.parquet"), ("Train.PARQUET", "TEST.PARQUET"), ("data/train-00000-of-00001.parquet", "data/test-00000-of-00001.parquet"),
     ("default/train/0000.parquet", "default/test/0000.parquet"), ("training_set.parquet", "val2017.parquet")],
)  # fmt: skip
def test_whole_names_of_tables_are_splits(tmp_path, options, train, test):
    for name, columns in ((train, rows(6)), (test, rows(3, 6))):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        with_names(columns).to_parquet(tmp_path / name)
    source = open_source(options(tmp_path))
    assert len(source.split_names()) == 2
    assert numbers(source.table(source.split_names()[1])) == [6, 7, 8]


def test_tables_with_and_without_the_name_of_a_split_are_refused(tmp_path, options):
    for name in ("train", "test", "more"):
        with_names(rows(3)).to_parquet(tmp_path / f"{name}.parquet")
    with pytest.raises(ValueError, match=r"(train|test) is named like a split.* in more"):
        open_source(options(tmp_path)).split_names()


def test_a_table_that_is_no_data_set_beside_images(folder, options):
    datasets.Dataset.from_dict({"a": [1]}).to_parquet(folder / "notes.parquet")
    source = open_source(options(folder))
    assert len(source.table("train")) == 12
    assert source.remarks() == ["1 file ignored (.parquet)"]
    write(folder / "notes.parquet", b"garbage")
    with pytest.raises(ValueError, match=r"notes\.parquet cannot be read as a table"):
        open_source(options(folder)).split_names()


def test_a_table_of_images_beside_other_files(tmp_path, options):
    with_names(rows(3)).to_parquet(tmp_path / "train.parquet")
    datasets.Dataset.from_dict({"a": [1]}).to_parquet(tmp_path / "metadata.parquet")
    write(tmp_path / "preview.png", encoded(pixels(0)))
    source = open_source(options(tmp_path))
    assert len(source.table("train")) == 3
    assert source.remarks() == ["metadata.parquet is not read", "2 files ignored (.parquet, .png)"]


@pytest.mark.parametrize(
    ("labels", "found", "names"),
    [([10, 2, 1, None], [2, 1, 0, -1], ("1", "2", "10")),
     ([3, -1, 3, 4], [0, -1, 0, 1], ("3", "4")),
     ([1.0, float("nan"), 2.0, 1.0], [0, -1, 1, 0], ("1", "2")),
     (["10", "9", None, ""], [1, 0, -1, -1], ("9", "10")),
     ([False, True, True, None], [0, 1, 1, -1], ("False", "True"))],
)  # fmt: skip
def test_plain_labels_in_natural_order_and_unknown_ones(parquet, options, labels, found, names):
    columns = {"image": rows(4)["image"], "label": labels}
    table = open_source(options(parquet(columns, columns, plain))).table("train")
    assert table.labels.tolist() == found
    assert table.class_names == names


def test_labels_that_are_lists_are_refused_and_can_be_left_out(parquet, options):
    columns = {"image": rows(2)["image"], "label": [[1], [1, 2]]}
    path = parquet(columns, columns, plain)
    with pytest.raises(
        ValueError, match=r"the column holds lists, not classes.*--label_column none"
    ):
        open_source(options(path)).table("train")
    assert open_source(options(path, label_column="none")).table("train").labels is None


def test_classes_of_folders_can_be_left_out(folder, options):
    assert open_source(options(folder, label_column="none")).table("train").labels is None


def save_table(folder, kind, stored) -> None:
    """Splits as tables; of parquet, `train` in two shards."""
    made = {name: with_names(columns) for name, columns in stored.items()}
    if kind == "saved":
        datasets.DatasetDict(made).save_to_disk(folder)
        return
    folder.mkdir()
    for name, table in made.items():
        for shard in range(2):
            part = table.shard(2, shard, contiguous=True)
            part.to_parquet(folder / f"{name}-0000{shard}-of-00002.parquet")


def streamed(chosen, split) -> list[bytes]:
    """The images of a split in the order of its blocks."""
    blocks = open_source(chosen).blocks(split)
    return [
        read()
        for block, size in enumerate(blocks.sizes.tolist())
        for read in blocks.read(block, np.arange(size))
    ]


def as_stream(chosen) -> TrainOptions:
    return TrainOptions(
        output_dir="x", dataset=chosen.dataset, image_size=8, channels=3, streaming=True,
        image_column=chosen.image_column, caption_column=chosen.caption_column,
    )  # fmt: skip


@pytest.mark.parametrize("streaming", [False, True])
@pytest.mark.parametrize("kind", ["parquet", "saved"])
@pytest.mark.parametrize("others", [(), ("test",)])
def test_of_many_rows_the_missing_splits_are_held_out(tmp_path, options, kind, others, streaming):
    """The same from a table and from its stream, in any order; added rows move no others."""
    held_out = {}
    for count in (90, 120):
        stored = {"train": rows(count)} | {name: rows(20, 200) for name in others}
        save_table(tmp_path / str(count), kind, stored)
        source = open_source(options(tmp_path / str(count)))
        assert source.split_names() == ["train", "validation", "test"]
        found = {name: numbers(source.table(name)) for name in source.split_names()}
        if others:
            assert found.pop("test") == list(range(200, 220))
        assert sorted(chain(*found.values())) == list(range(count))
        assert all(4 <= len(each) <= 24 for name, each in found.items() if name != "train")
        parts = "validation is" if others else "validation and test are"
        assert source.remarks() == [f"{parts} held out of train"]
        for name, expected in found.items() if streaming else ():
            images = streamed(as_stream(source.options), name)
            assert images == list(map(source.table(name).read, range(len(expected))))
        held_out[count] = found
    for name, before in held_out[90].items():
        assert held_out[120][name][: len(before)] == before


def test_a_validation_split_of_its_own_is_left_as_it_is(tmp_path, options):
    for names in (("train", "validation"), ("train", "val", "test")):
        folder = tmp_path / names[1]
        save_table(folder, "saved", {name: rows(60) for name in names})
        source = open_source(options(folder))
        assert source.split_names() == list(names)
        assert {source.size(name) for name in names} == {60}
        assert source.remarks() == []


def test_held_out_images_are_named_by_their_stored_row(tmp_path, options):
    save_table(tmp_path / "d", "saved", {"train": rows(60)})
    table = open_source(options(tmp_path / "d")).table("validation")
    assert table.name_of(0).startswith(f"row {numbers(table)[0]} of split train of ")


def test_too_few_images_to_hold_some_out(folder, options):
    with pytest.raises(ValueError, match=r"no split 'test'; it has: train \(12 images are too few"):
        open_source(options(folder)).table("test")


def test_mnist5k_is_embedded(options):
    table = open_source(ImageOptions()).table("test")
    assert open_source(ImageOptions()).split_names() == ["train", "validation", "test"]
    assert len(table) == 1000
    assert table.labels.tolist() == [n % 10 for n in range(1000)]
    assert table.name_of(3) == "mnist5k test 3"


def test_wrong_names_are_told(folder, tmp_path, options, parquet):
    (tmp_path / "empty").mkdir()
    write(tmp_path / "file.txt", b"")
    path = parquet(rows(3), rows(3))
    for settings, split, message in (
        ((tmp_path / "nowhere",), "train", "there is no folder"),
        (("a/b/c",), "train", "there is no folder a/b/c"),
        ((tmp_path / "empty",), "train", "the folder holds no images and no tar, parquet or arrow"),
        ((tmp_path / "file.txt",), "train", "is a file; expected a folder"),
        ((folder,), "test", "has no split 'test'; it has: train"),
        ((path,), "validation", "has no split 'validation'; it has: train, test"),
        (("mnist5k",), "extra", "has no split 'extra'"),
    ):
        with pytest.raises(ValueError, match=message):
            open_source(options(*settings)).table(split)
    for flag in ("image_column", "label_column"):
        with pytest.raises(ValueError, match=f"--{flag} nope: there is no such column; .* image, "):
            open_source(options(path, **{flag: "nope"})).table("train")
    with pytest.raises(ValueError, match="--image_column label: the column does not hold images"):
        open_source(options(path, image_column="label")).table("train")


def test_damaged_tables_are_told(tmp_path, options, capfd):
    write(tmp_path / "p" / "x.parquet", b"garbage")
    with pytest.raises(ValueError, match=r"p/x\.parquet cannot be read as a table"):
        open_source(options(tmp_path / "p")).table("train")
    with_names(rows()).save_to_disk(tmp_path / "d")
    arrow = tmp_path / "d" / "data-00000-of-00001.arrow"
    arrow.write_bytes(arrow.read_bytes()[:300])
    with pytest.raises(ValueError, match="its arrow files cannot be read"):
        open_source(options(tmp_path / "d")).table("train")


@pytest.mark.parametrize("name", ["somebody/something", "something"])
def test_without_a_network_a_hub_name_is_one_sentence(options, name):
    """The tests run with HF_HUB_OFFLINE=1; test_hub.py looks at a hub that cannot be reached."""
    with pytest.raises(ValueError, match=f"--dataset {name}: no such folder here") as refused:
        open_source(options(name)).table("train")
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize("kind", ["folder", "parquet", "saved", "mnist5k"])
def test_a_stream_holds_what_the_table_holds(kind, folder, parquet, tmp_path, options):
    split = "train"
    if kind == "saved":
        with_names(rows()).save_to_disk(tmp_path / "saved")
    path = {"folder": folder, "saved": tmp_path / "saved", "mnist5k": "mnist5k"}.get(kind)
    chosen = options(path or parquet(rows(12), rows(3)))
    if kind == "mnist5k":
        chosen, split = ImageOptions(), "test"
    table = open_source(chosen).table(split)
    assert streamed(chosen, split) == list(map(table.read, range(len(table))))
    assert streamed(as_stream(chosen), split) == list(map(table.read, range(len(table))))


def test_a_stream_refuses_missing_columns_and_splits(folder, options):
    with pytest.raises(ValueError, match="--image_column nope"):
        open_source(options(folder, image_column="nope")).blocks("train")
    with pytest.raises(ValueError, match="has no split 'test'"):
        open_source(options(folder)).blocks("test")


def test_a_table_that_is_no_regular_file_is_told(tmp_path, options):
    (tmp_path / "p").mkdir()
    os.mkfifo(tmp_path / "p" / "x.parquet")
    with pytest.raises(ValueError, match=r"x\.parquet is no regular file"):
        open_source(options(tmp_path / "p")).table("train")


@pytest.mark.parametrize("cell", ["0.png", "./deeper/../0.png", "absolute"])
def test_cells_may_name_files_of_their_folder(tmp_path, options, cell):
    path = tmp_path / "data"
    named = write(path / "0.png", encoded(pixels(7)))
    columns = {"image": [{"bytes": None, "path": str(named) if cell == "absolute" else cell}]}
    datasets.Dataset.from_dict(columns).to_parquet(path / "train.parquet")
    table = open_source(options(path)).table("train")
    assert table.read(0) == encoded(pixels(7))
    assert streamed(as_stream(options(path)), "train") == [encoded(pixels(7))]


@pytest.mark.parametrize(
    "cell", ["/etc/passwd", "/dev/zero", "../outside.png", "fifo.png", "https://a.invalid/x.png", "a\0b",
             "x" * 10_000, "missing.png"],
)  # fmt: skip
def test_cells_that_name_anything_else_are_unreadable_images(tmp_path, options, cell):
    path = tmp_path / "data"
    path.mkdir()
    write(tmp_path / "outside.png", encoded(pixels(7)))
    os.mkfifo(path / "fifo.png")
    columns = {
        "image": [{"bytes": encoded(pixels(0)), "path": None}, {"bytes": None, "path": cell}]
    }
    datasets.Dataset.from_dict(columns).to_parquet(path / "train.parquet")
    with pytest.raises(ValueError, match=r"cannot be read as an image .*skip") as error:
        open_images(options(path, image_size=8), "train")
    assert len(str(error.value)) < 600
    assert cell[:5] in str(error.value) or "\0" in cell
    assert len(open_images(options(path, image_size=8, on_corrupt="skip"), "train")) == 1


@pytest.mark.parametrize(
    "file", ["dataset_dict.json", "train/state.json", "train/dataset_info.json"]
)
@pytest.mark.parametrize("content", [b"null", b"[1]", b"5", b"{}", b"", b"[" * 10_000])
def test_the_records_of_a_saved_data_set_may_be_damaged(tmp_path, options, file, content):
    datasets.DatasetDict({"train": with_names(rows())}).save_to_disk(tmp_path / "d")
    write(tmp_path / "d" / file, content)
    with contextlib.suppress(ValueError):  # some are not needed
        assert len(open_source(options(tmp_path / "d")).table("train")) == 12


def test_a_flipped_bit_of_a_tables_header_is_a_sentence(tmp_path):
    """Whatever pyarrow raises, such as "Integers with more than 64 bits not implemented"."""
    path = tmp_path / "x.arrow"
    table = pyarrow.table({"image": [b"a"], "label": [1]})
    with pyarrow.ipc.new_stream(str(path), table.schema) as writer:
        writer.write_table(table)
    content, refused = path.read_bytes(), 0
    for bit in range(0, 8 * len(content), 3):
        flipped = bytearray(content)
        flipped[bit // 8] ^= 1 << bit % 8
        path.write_bytes(flipped)
        try:
            image_tables(tmp_path, [path], "image", beside=False)
        except ValueError:
            refused += 1
    assert refused > 50


def test_lists_of_numbers_are_no_images(tmp_path, options):
    """`datasets` makes pictures of them."""
    (tmp_path / "d").mkdir()
    datasets.Dataset.from_dict({"image": [[1, 2]] * 3}).to_parquet(tmp_path / "d" / "train.parquet")
    with pytest.raises(ValueError, match="--image_column image: the column does not hold images"):
        open_source(options(tmp_path / "d")).table("train")
