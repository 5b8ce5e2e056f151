from typing import Any, Literal

import pytest

from latent_prior.cli_values import convert, is_list, read_value


def test_lists_are_recognised():
    assert is_list(list[int])
    assert is_list(list[str] | None)
    assert not is_list(int | None)
    assert not is_list(Literal["list"])


def test_a_word_is_read_by_the_type_of_its_flag():
    assert read_value("5", str) == "5"
    assert read_value("5", list[str]) == "5"
    assert read_value("5", list[int]) == 5
    assert read_value("no", Literal["no", "yes"]) == "no"
    assert read_value("3", Literal[1, 3] | None) == 3


@pytest.mark.parametrize(
    ("value", "kind"),
    [
        (1, int), (1, float), (0.5, float), (True, bool), ("a", str), (2024, str), (None, int | None), (2, int | None),
        ([], list[int]), ([1], list[int]), ("a", Literal["a", "b"]), (3, Literal[1, 3]), ([1], list[int] | None),
        (1, int | list[int]), ([1, 2], int | list[int]), ("a", Any), ([1, "b"], Any), (None, Any),
    ],
)  # fmt: skip
def test_fitting_values_pass(value, kind):
    convert("x", value, kind)


@pytest.mark.parametrize(
    ("value", "kind"),
    [
        (True, int), (1.0, int), ("1", int), (None, int), (True, float), (float("nan"), float), (float("inf"), float),
        (1, bool), ("no", bool), (True, str), (None, str), (1, list[int]), ([1.5], list[int]), ([None], list[int]),
        (2**70, int), (10**400, float), (True, Literal[1, 3]), ("3", Literal[1, 3]), ("c", Literal["a", "b"]),
    ],
)  # fmt: skip
def test_other_values_are_named(value, kind):
    with pytest.raises(ValueError, match=r"^--some\.flag takes .+, not "):
        convert("some.flag", value, kind)


@pytest.mark.parametrize(
    ("value", "kind", "converted"),
    [
        (5, float, 5.0), (5, float | None, 5.0), (2024, str, "2024"), (2024, str | None, "2024"), (5, int | None, 5),
        ([1, 2.5], list[float], [1.0, 2.5]), ([1, "a"], list[str], ["1", "a"]), ([1], list[int] | None, [1]),
        (1, int | list[int], 1), ([1], int | list[int], [1]), (3, Literal[1, 3] | None, 3), (True, bool, True),
        ([1, "b"], Any, [1, "b"]), ({"a": 1}, Any, {"a": 1}), (None, float | None, None),
    ],
)  # fmt: skip
def test_whole_numbers_become_floats_or_text_where_a_flag_takes_those(value, kind, converted):
    result = convert("x", value, kind)
    assert repr(result) == repr(converted)
