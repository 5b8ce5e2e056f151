import numpy as np
import pytest
from PIL import Image

from latent_prior.evaluation.classes import asked_classes
from latent_prior.evaluation.options import Candidate, ScoreOptions
from latent_prior.evaluation.sets import open_candidate, open_reference
from latent_prior.pipelines.results import write_labels

NAMES = ("cat", "dog", "owl")


def options(**values):
    return ScoreOptions(**{"candidates": ["a=x"], "output_dir": "out", **values})


def folder_of(path, count):
    path.mkdir(parents=True, exist_ok=True)
    for number in range(count):
        Image.new("L", (4, 4), number).save(path / f"{number:06d}.png")
    return path


def opened(folder, **values):
    return open_candidate(Candidate("a", str(folder), None), options(**values))


def test_classes_of_a_folder_meet_by_name_whatever_their_numbers(tmp_path):
    folder = folder_of(tmp_path, 4)
    files = [f"{number:06d}.png" for number in (3, 1, 0, 2)]  # rows in any order
    write_labels(folder / "labels.csv", files, [0, 1, 1, -1], ["owl", "cat"])
    np.testing.assert_array_equal(asked_classes(opened(folder), NAMES), [0, 0, -1, 2])


def test_only_images_that_take_part_are_told(tmp_path):
    folder = folder_of(tmp_path, 30)
    labels = [number % 3 for number in range(30)]
    write_labels(
        folder / "labels.csv", [f"{n:06d}.png" for n in range(30)], labels, ["owl", "dog", "cat"]
    )
    scored = opened(folder, num_images=10, seed=2)
    np.testing.assert_array_equal(asked_classes(scored, NAMES), 2 - scored.chosen % 3)


def test_skipped_files_do_not_shift_the_classes(tmp_path):
    folder = folder_of(tmp_path, 4)
    (folder / "000001.png").write_bytes(b"broken")
    write_labels(
        folder / "labels.csv", [f"{n:06d}.png" for n in range(4)], [0, 1, 2, 2], list(NAMES)
    )
    found = asked_classes(opened(folder, on_corrupt="skip"), NAMES)
    np.testing.assert_array_equal(found, [0, 2, 2])


def test_images_in_sub_folders_are_named_with_them(tmp_path):
    folder_of(tmp_path / "x", 1)
    folder_of(tmp_path / "y", 1)
    (tmp_path / "labels.csv").write_text("class,file\ndog,x/000000.png\nowl,y/000000.png\n")
    np.testing.assert_array_equal(asked_classes(opened(tmp_path), NAMES), [1, 2])


def test_folders_without_classes_have_none(tmp_path):
    folder = folder_of(tmp_path, 2)
    assert asked_classes(opened(folder), NAMES) is None
    write_labels(folder / "labels.csv", ["000000.png", "000001.png"], [-1, -1], [])
    assert asked_classes(opened(folder), NAMES) is None


@pytest.mark.parametrize(
    ("table", "message"),
    [
        ("file,label,class\n000000.png,0,cat\n000001.png,1,cow\n", r"--candidates a: .*labels\.csv asks for the class 'cow', .* it has: cat, dog, owl"),
        ("file,label,class\n000000.png,0,cat\n", r"has no row for the image 000001\.png"),
        ("000000.png,0,cat\n000001.png,0,cat\n", r"labels\.csv needs the columns file and class"),
        ("", r"labels\.csv needs the columns file and class"),
    ],
)  # fmt: skip
def test_mistakes_in_the_table_are_one_sentence(tmp_path, table, message):
    folder = folder_of(tmp_path, 2)
    (folder / "labels.csv").write_text(table)
    with pytest.raises(ValueError, match=message) as caught:
        asked_classes(opened(folder), NAMES)
    assert "\n" not in str(caught.value)


def test_many_known_classes_are_not_all_told(tmp_path):
    folder = folder_of(tmp_path, 2)
    (folder / "labels.csv").write_text("file,class\n000000.png,x\n000001.png,x\n")
    with pytest.raises(ValueError, match=r"it has: 0, 1, .*9, \.\.\.$"):
        asked_classes(opened(folder), tuple(map(str, range(1000))))


def test_classes_of_a_split_meet_by_name_too(tmp_path):
    reference = open_reference(options(num_images=20))
    labels = reference.images.labels.numpy()[reference.chosen]
    names = tuple(str(9 - number) for number in range(10))
    np.testing.assert_array_equal(asked_classes(reference, names), 9 - labels)
    with pytest.raises(
        ValueError, match=r"--reference: mnist5k has images of the class '9', .*lacks"
    ):
        asked_classes(reference, names[1:])
    for name in ("0", "1"):
        Image.new("L", (4, 4)).save(tmp_path / f"{name}.png")
    unlabelled = open_candidate(Candidate("a", str(tmp_path), "train"), options())
    assert asked_classes(unlabelled, names) is None
