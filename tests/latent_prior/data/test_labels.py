import csv

import numpy as np
import pytest

from latent_prior.data.labels import (
    classes_in_turn,
    label_number,
    natural_order,
    read_label_table,
    seen_classes,
    write_labels,
)

ANIMALS = ("ant", "bee", "cow")


def test_natural_order():
    assert natural_order({"10", "9", "1", "b2", "b10", "a"}) == ["1", "9", "10", "a", "b2", "b10"]
    assert natural_order(["01", "1", "1.png"]) == natural_order(["1.png", "1", "01"])


@pytest.mark.parametrize("form", [str, int, np.int64])
def test_a_number_is_the_class_of_that_name_or_else_its_place(form):
    """The same from Python, numpy and the command line."""
    assert label_number(form(2), ("0", "1", "2", "10")) == 2
    assert label_number(form(10), ("0", "1", "2", "10")) == 3
    assert label_number(form(1), ("1", "2", "3")) == 0
    assert label_number(form(7), ("05", "07")) == 1
    assert label_number(form(2), ANIMALS) == 2
    assert label_number(form(-1), ANIMALS) == -1


@pytest.mark.parametrize(
    ("label", "names"),
    [(3, ("0", "1", "2", "10")), ("3", ("0", "1", "2", "10")), (0, ("1", "2")), (1, ("0", "2", "other")), (3, ANIMALS),
     (-2, ANIMALS), ("cat", ANIMALS), ("", ANIMALS), ("1.0", ANIMALS), (1.0, ANIMALS), (None, ANIMALS), (True, ANIMALS)],
)  # fmt: skip
def test_an_unknown_class_is_refused_with_the_known_ones(label, names):
    with pytest.raises(ValueError, match=f"is out of range: the classes are {', '.join(names)}$"):
        label_number(label, names)


def test_without_classes_and_with_many():
    with pytest.raises(ValueError, match="label 0 is out of range: there are no classes"):
        label_number(0, ())
    with pytest.raises(ValueError, match=r"c18, c19 and 80 more$"):
        label_number("x", [f"c{n}" for n in range(100)])


def test_our_own_table_gives_the_same_names_and_no_formulas(tmp_path):
    names = [
        "=1+1",
        "+a",
        "-5",
        "@x",
        "'=x",
        "''=",
        "'plain",
        "a, b",
        'say "x"',
        "two\nlines",
        "ü",
        "<b>",
    ]
    files = [f"{number}.png" for number in range(len(names))]
    write_labels(tmp_path / "labels.csv", [*files, "none.png"], [*range(len(names)), -1], names)
    found = read_label_table(tmp_path / "labels.csv")
    assert found == dict(zip(files, names, strict=True)) | {"none.png": ""}
    with (tmp_path / "labels.csv").open(newline="", encoding="utf-8") as file:
        assert not any(cell[:1] in tuple("=+@") for row in csv.reader(file) for cell in row)


def test_only_classes_with_images_take_turns():
    assert seen_classes(np.array([3, 1, -1, 3]), 5) == [1, 3]
    assert seen_classes(np.array([0, 1]), 2) is seen_classes(None, 2) is None
    assert seen_classes(np.array([-1]), 2) is None
    assert classes_in_turn(3, 5, [1, 3]) == [1, 3, 1]
    assert classes_in_turn(3, 2, None) == [0, 1, 0]
    assert classes_in_turn(2, 0, None) == [-1, -1]
