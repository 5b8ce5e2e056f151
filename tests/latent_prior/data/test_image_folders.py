from itertools import chain

import pytest

from latent_prior.data.image_folders import image_splits
from latent_prior.data.listing import files_below
from latent_prior.data.splits import split_named
from latent_prior.options import ImageOptions
from tests.latent_prior.samples import encoded, pixels, write


def splits(root, *names):
    for number, name in enumerate(names):
        write(root / name, encoded(pixels(number)))
    return {
        split: (
            [str(cell["path"]).removeprefix(f"{root}/") for cell in rows["image"]],
            rows["label"] if "label" in rows.column_names else None,
        )
        for split, rows in image_splits(root, files_below(root), ImageOptions())[0].items()
    }


def test_a_flat_folder_is_one_split_without_labels(tmp_path):
    assert splits(tmp_path, "b.png", "a.png") == {"train": (["a.png", "b.png"], None)}


def test_sub_folders_are_classes_in_the_order_of_their_names(tmp_path):
    found = splits(tmp_path, "b/0.png", "a/1.png", "b/2.png")
    paths, labels = found["train"]
    assert paths == ["a/1.png", "b/0.png", "b/2.png"]
    assert list(labels) == [0, 1, 1]


def test_numbered_classes_are_in_the_order_of_their_numbers(tmp_path):
    splits(tmp_path, "10/a.png", "2/a.png", "1/a.png", "0/a.png")
    rows = image_splits(tmp_path, files_below(tmp_path), ImageOptions())[0]["train"]
    assert rows.features["label"].names == ["0", "1", "2", "10"]


@pytest.mark.parametrize(
    "names",
    [("train", "test"), ("Training", "TESTING"), ("train2017", "test2017"), ("training_set", "test_set"),
     ("train-images", "test images"), ("images/train", "images/test"), ("trainA", "testA")],
)  # fmt: skip
def test_folders_named_after_splits_are_splits(tmp_path, names):
    found = splits(tmp_path, *(f"{n}/{c}/0.png" for n in names for c in "ab"))
    assert list(found) == ["train", "test"]
    assert all(list(labels) == [0, 1] for _, labels in found.values())


def test_a_class_missing_in_one_split_keeps_its_number(tmp_path):
    found = splits(tmp_path, "train/a/0.png", "train/b/0.png", "val/b/0.png")
    assert list(found["validation"][1]) == [1]


def test_a_word_in_a_path_is_no_split(tmp_path):
    """`load_dataset("imagefolder")` takes the one file as the split `test` and drops the rest."""
    import datasets

    names = ["img_0.png", "img_test_1.png", "img_2.png"]
    assert splits(tmp_path / "ours", *names) == {
        "train": (names[:1] + names[2:] + names[1:2], None)
    }
    theirs = datasets.load_dataset("imagefolder", data_dir=str(tmp_path / "ours"))
    assert {name: len(rows) for name, rows in theirs.items()} == {"test": 1}


def test_a_class_named_like_a_split_is_a_class(tmp_path):
    found = splits(tmp_path / "a", "train/cat/0.png", "train/test/1.png")
    assert list(found["train"][1]) == [0, 1]
    found = splits(tmp_path / "b", "bus/0.png", "train/1.png")  # no test data that could be lost
    assert list(found["train"][1]) == [0, 1]


@pytest.mark.parametrize(
    "stray",
    ["cat/0.png", "stray.png", "images/x/0.png", "inner/train/a/0.png"],
)
@pytest.mark.parametrize("test", ["test", "val2017", "Testing_Set"])
def test_a_stray_beside_splits_is_refused(tmp_path, stray, test):
    """Otherwise the test images would be trained on."""
    names = ("train/a/0.png", "train/b/0.png", f"{test}/a/0.png", f"{test}/b/0.png")
    with pytest.raises(
        ValueError, match=rf"--dataset {tmp_path}: .* is named like a split"
    ) as told:
        splits(tmp_path, *names, stray)
    assert "\n" not in str(told.value)
    assert (
        stray.rpartition("/")[0] in str(told.value) if "/" in stray else "beside" in str(told.value)
    )


def test_a_stray_file_that_is_no_image_is_no_obstacle(tmp_path):
    write(tmp_path / "docs/notes.txt", b"x")
    assert list(splits(tmp_path, "train/0.png", "test/0.png")) == ["train", "test"]


def test_splits_below_classes(tmp_path):
    found = splits(tmp_path, *(f"{c}/{s}/0.png" for c in "ab" for s in ("train", "test")))
    assert found == {
        "train": (["a/train/0.png", "b/train/0.png"], [0, 1]),
        "test": (["a/test/0.png", "b/test/0.png"], [0, 1]),
    }


def test_a_test_split_without_classes_leaves_those_of_training(tmp_path):
    found = splits(tmp_path, "train/a/0.png", "train/b/0.png", "test/0.png")
    assert list(found["train"][1]) == [0, 1]
    assert list(found["test"][1]) == [-1]


@pytest.mark.parametrize("others", [(), ("test/a/0.png",)])
def test_of_many_images_the_missing_splits_are_held_out(tmp_path, others):
    """An image stays on its side when others are added."""
    prefix = "train/" if others else ""
    names = [f"{prefix}{c}/{number:02d}.png" for c in "ab" for number in range(40)]
    found = splits(tmp_path, *names, *others)
    assert list(found) == ["train", "validation", "test"]
    assert sorted(chain(*(paths for paths, _ in found.values()))) == sorted([*names, *others])
    assert 3 <= len(found["validation"][0]) <= 14
    if others:
        assert found["test"][0] == list(others)
    else:
        assert 3 <= len(found["test"][0]) <= 14
    more = splits(tmp_path, *(f"{prefix}b/new{number}.png" for number in range(20)))
    for split, (paths, _) in found.items():
        assert set(paths) <= set(more[split][0])


def test_few_images_and_a_validation_split_of_its_own_are_left_as_they_are(tmp_path):
    assert list(splits(tmp_path / "few", *(f"{n}.png" for n in range(49)))) == ["train"]
    names = [*(f"train/{number}.png" for number in range(60)), "val/0.png"]
    found = splits(tmp_path / "own", *names)
    assert {name: len(paths) for name, (paths, _) in found.items()} == {
        "train": 60,
        "validation": 1,
    }


@pytest.mark.parametrize(
    ("name", "split"),
    [("train", "train"), ("Train2014", "train"), ("training_data", "train"), ("val", "validation"), ("dev-set", "validation"),
     ("valid_2", "validation"), ("test_images", "test"), ("EVAL", "test"), ("testB", "test"),
     ("testa", None), ("trains", None), ("steam-train", None), ("pretrain", None), ("contest", None), ("valley", None)],
)  # fmt: skip
def test_names_of_splits(name, split):
    assert split_named(name) == split


def test_nested_folders_are_classes_by_their_last_name(tmp_path):
    paths, labels = splits(tmp_path, "x/b/0.png", "y/a/1.png", "y/b/2.png")["train"]
    assert dict(zip(paths, labels, strict=True)) == {"x/b/0.png": 1, "y/a/1.png": 0, "y/b/2.png": 1}


@pytest.mark.parametrize("names", [("a.png", "x/b.png"), ("x/a.png",), ("x/a.png", "x/y/b.png")])
def test_unclear_folders_give_no_labels(tmp_path, names):
    assert splits(tmp_path, *names)["train"][1] is None


def test_endings_may_be_upper_case_and_other_files_are_passed_over(tmp_path):
    write(tmp_path / "notes.txt", b"x")
    write(tmp_path / ".0.png.12.partial.png", b"x")
    write(tmp_path / ".cache" / "0.png", b"x")
    names = ["0.PNG", "1.JPEG", "2.Jpg", "3.BMP", "4.webp", "5.TIF"]
    assert splits(tmp_path, *names)["train"][0] == names


def test_brackets_stars_and_umlauts_in_names_are_plain_characters(tmp_path):
    root = tmp_path / "a[1] *ü"
    assert splits(root, "b ?.png")["train"][0] == ["b ?.png"]
