import os
from collections.abc import Callable
from typing import Any

import msgspec
import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from latent_prior.records import (
    DEPTH,
    RECORD_LIMIT,
    YAML_LIMIT,
    check_output_dir,
    convert_record,
    parse_yaml,
    read_lines,
    read_record,
    read_yaml,
    write_record,
)


class Point(msgspec.Struct, forbid_unknown_fields=True):
    x: int
    y: list[float] = []


WHOLE = b'{"x": 1, "y": [0.5]}'


def test_a_record_is_written_whole_and_read_back(tmp_path):
    path = tmp_path / "sub" / "a.json"
    write_record(path, {"x": 1, "y": [0.5, 2.0]})
    assert read_record(path, Point, "write it again") == Point(1, [0.5, 2.0])
    assert path.read_text().endswith("}\n")
    write_record(path, Point(3))
    with pytest.raises(TypeError):
        write_record(path, {"x": object()})
    with pytest.raises(ValueError, match=r"a\.json cannot hold 'a\\udcff'"):
        write_record(path, {"x": "a\udcff"})
    assert read_record(path, dict[str, Any], "") == {"x": 3, "y": []}
    assert os.listdir(path.parent) == ["a.json"]
    write_record(path, {"x": float("nan"), "y": float("inf")})
    assert read_record(path, dict[str, Any], "") == {"x": None, "y": None}


@pytest.mark.parametrize(
    ("content", "place"),
    [
        (b"", "truncated"), (WHOLE[:-1], "truncated"), (WHOLE[:9], "truncated"), (bytes(9), "invalid"),
        (b"[1]", "Expected object, got array"), (b"null", "got null"), (b"12", "got int"), (b"NaN", "invalid"),
        (b"{}", "a.json: Object missing required field x"), (b'{"x": "1"}', "$.x: Expected int, got str"),
        (b'{"x": true}', "$.x: Expected int, got bool"), (b'{"x": 1.5}', "$.x: Expected int"),
        (b'{"x": 1, "y": [1, "a"]}', "$.y[1]: Expected float, got str"), (b'{"x": 1, "z": 2}', "unknown field z"),
        (b'{"x": 1, "x": 2}', "'x' stands there twice"), (b'{"x": 1}\xff', "JSON"), (b'{"\xff": 1}', "utf-8"),
        (b'{"x": 1, "y": [NaN]}', "invalid"), (b'{"x": 1, "y": [1e999]}', "out of range"),
        (b'{"x": ' + b"9" * 5000 + b"}", "out of range"), (b'{"x": 1, "y": ["\\ud800"]}', "a.json"),
        (b" " * (RECORD_LIMIT + 1), "at most"),
    ],
)  # fmt: skip
def test_a_damaged_record_is_named_with_place_and_way_out(tmp_path, content, place):
    path = tmp_path / "a.json"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=r"a\.json") as refused:
        read_record(path, Point, "write it again")
    assert place in str(refused.value)
    assert "write it again" in str(refused.value) or len(content) > RECORD_LIMIT


def test_records_nested_without_end_are_refused(tmp_path):
    path = tmp_path / "a.json"
    for content in ("[" * 100_000, '{"a":' * 100_000 + "1" + "}" * 100_000):
        path.write_text(content)
        with pytest.raises(ValueError, match=r"a\.json"):
            read_record(path, dict[str, Any], "write it again")
    deep: list[Any] = []
    for _ in range(100_000):
        deep = [deep]
    with pytest.raises(ValueError, match=r"here: .*; there"):
        convert_record(deep, dict[str, Any], "here", "there")


def test_what_is_no_file_is_refused_and_never_waited_for(tmp_path):
    with pytest.raises(ValueError, match=r"nowhere/a\.json is missing; the folder holds: nothing"):
        read_record(tmp_path / "nowhere" / "a.json", Point, "")
    os.mkfifo(tmp_path / "fifo.json")
    (tmp_path / "folder.json").mkdir()
    for name in ("fifo.json", "folder.json"):
        for read in (read_record, read_lines):
            with pytest.raises(ValueError, match=name):
                read(tmp_path / name, Point, "")
        with pytest.raises(ValueError, match=name):
            read_yaml(tmp_path / name, "")
    (tmp_path / "loop.json").symlink_to(tmp_path / "loop.json")
    with pytest.raises(ValueError, match=r"loop\.json"):
        read_record(tmp_path / "loop.json", Point, "")


def test_lines_are_named_and_a_half_last_one_is_left_out(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_bytes(b'{"x": 1}\n{"x": 2}\n{"x"')
    assert read_lines(path, Point, "delete it") == [Point(1), Point(2)]
    path.write_bytes(b'{"x": 1}\n\xff\xfe\n{"x": 2}\n')
    with pytest.raises(ValueError, match=r"a\.jsonl, line 2 .*; delete it"):
        read_lines(path, Point, "delete it")
    path.write_bytes(b'{"x": 1}\n{"x": "a"}\n')
    with pytest.raises(ValueError, match=r"a\.jsonl, line 2: \$\.x: Expected int, got str"):
        read_lines(path, Point, "delete it")


def test_an_output_folder_is_new_or_holds_the_same_settings_or_is_refused(tmp_path):
    folder, settings = tmp_path / "images", {"seed": 3, "labels": ["0"]}

    def check(values=settings, file="made.json", **options):
        return check_output_dir(folder, file, values, "images", **options)

    assert check() is None
    folder.mkdir()
    assert check() is None
    stored = settings | {"rows": [1, 2], "more": {"seed": 5}}
    write_record(folder / "made.json", stored)
    assert check() == stored
    with pytest.raises(
        ValueError,
        match=r"--output_dir .*images holds images with seed = 3, this command sets 4: "
        "choose another folder or delete this one",
    ):
        check({"seed": 4})
    assert check({"seed": 4}, may_change=("seed",)) == stored
    assert check({"seed": 5}, section="more") == stored
    with pytest.raises(ValueError, match="seed = 5, this command sets 4"):
        check({"seed": 4}, section="more")
    with pytest.raises(ValueError, match="with new = None, this command sets 1"):
        check(settings | {"new": 1})
    with pytest.raises(ValueError, match=r"is not empty and holds no images \(no other\.json\)"):
        check(file="other.json")
    (folder / "made.json").write_text("{")
    with pytest.raises(ValueError, match=r"made\.json"):
        check()


def test_yaml_is_read_without_the_surprises_of_its_version_1_1():
    text = "{a: no, b: 1e-4, c: 010, d: 12:30, e: 2024-01-01, f: true, g: ~, h: -3, i: '5', j: 0}"
    assert parse_yaml(text) == {
        "a": "no", "b": 1e-4, "c": 10.0, "d": "12:30", "e": "2024-01-01", "f": True, "g": None, "h": -3, "i": "5",
        "j": 0,
    }  # fmt: skip
    assert parse_yaml("") is None
    assert parse_yaml("- 1\n- [a, {b: }]\n") == [1, ["a", {"b": None}]]


@pytest.mark.parametrize(
    "text",
    [
        "!!python/object/apply:os.getcwd []", "!!python/name:os.system", "!!int 3", "a: &a {b: *a}", "a: &a 1\nb: *a",
        "a: 1\na: 2", "? [1]\n: 2", "a: 1\n---\nb: 2", "a: b: c", "[1", "a: \0", "[" * (DEPTH + 1) + "]" * (DEPTH + 1),
        "[" * 200_000, "- " * 200_000, "? " * 200_000, "{a: " * 200_000, "[" * 200_000 + "]" * 200_000,
    ],
)  # fmt: skip
def test_yaml_makes_no_objects_and_no_knots(text, tmp_path):
    with pytest.raises(yaml.YAMLError):
        parse_yaml(text)
    path = tmp_path / "a.yaml"
    path.write_text(text)
    with pytest.raises(ValueError, match=r"a\.yaml is not YAML: .*; mend it"):
        read_yaml(path, "mend it")


def test_yaml_files_hold_a_mapping_of_bounded_size(tmp_path):
    path = tmp_path / "a.yaml"
    for content, message in (
        (b"", "mapping"), (b"12\n", "mapping"), (b"[1]\n", "mapping"), (b"a: \xff\n", "utf-8"),
        (b"a: " + b"b" * YAML_LIMIT, "at most"),
    ):  # fmt: skip
        path.write_bytes(content)
        with pytest.raises(ValueError, match=rf"a\.yaml .*{message}"):
            read_yaml(path, "mend it")


plain = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**63 - 1)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(st.characters(exclude_categories=["Cs"]), max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text("abc", max_size=3), inner),
    max_leaves=10,
)
quick = settings(max_examples=40, derandomize=True, deadline=None, database=None)


@quick
@given(values=st.dictionaries(st.text("abc", max_size=3), plain))
def test_json_and_yaml_survive_the_way_to_a_file_and_back(values, tmp_path_factory):
    folder = tmp_path_factory.getbasetemp()
    write_record(folder / "round.json", values)
    assert read_record(folder / "round.json", dict[str, Any], "") == values
    assert parse_yaml(yaml.safe_dump(_without_11(values))) == _without_11(values)


def _without_11(value: Any) -> Any:
    """Text that only YAML 1.1 or only 1.2 reads as a number is no matter of this test."""
    if isinstance(value, str):
        return "".join(each for each in value if each.isalpha() and each.isascii())
    if isinstance(value, list):
        return [_without_11(item) for item in value]
    if isinstance(value, dict):
        return {key: _without_11(item) for key, item in value.items()}
    return value


@quick
@given(content=st.binary(max_size=60) | st.text(max_size=40).map(lambda text: text.encode()))
def test_any_bytes_are_read_or_refused_with_the_files_name(content, tmp_path_factory):
    path = tmp_path_factory.getbasetemp() / "any.json"
    path.write_bytes(content)
    for read in (
        lambda: read_record(path, dict[str, Any], "write it"),
        lambda: read_lines(path, Point, "write it"),
        lambda: read_yaml(path, "write it"),
    ):
        message = refusal(read)
        assert message is None or "any.json" in message


@quick
@given(place=st.integers(0, len(WHOLE) - 1), byte=st.integers(0, 255))
def test_a_changed_byte_is_refused_or_makes_another_record_of_these_types(
    place, byte, tmp_path_factory
):
    path = tmp_path_factory.getbasetemp() / "flipped.json"
    path.write_bytes(WHOLE[:place] + bytes([byte]) + WHOLE[place + 1 :])
    message = refusal(lambda: read_record(path, Point, "write it"))
    if message is None:
        found = read_record(path, Point, "write it")
        assert type(found.x) is int
        assert all(type(each) is float for each in found.y)
    else:
        assert "flipped.json" in message


def refusal(read: Callable[[], object]) -> str | None:
    """The message of a ValueError; None without one."""
    try:
        read()
    except ValueError as error:
        return str(error)
    return None


def test_any_bit_of_a_sealed_record_counts(tmp_path):
    path, value = (
        tmp_path / "a.json",
        {"rows": [{"fd": 12.5, "name": "ours"}], "none": float("nan")},
    )
    write_record(path, value, sealed=True)
    expected = {"rows": [{"fd": 12.5, "name": "ours"}], "none": None}
    assert read_record(path, dict[str, Any], "score again") == expected
    content = path.read_bytes()
    for bit in range(8 * len(content)):
        changed = bytearray(content)
        changed[bit // 8] ^= 1 << bit % 8
        path.write_bytes(changed)
        try:
            found = read_record(path, dict[str, Any], "score again")
        except ValueError as error:
            assert str(path) in str(error)  # noqa: PT017
        else:  # white space, or the name of the seal: then it is an entry that is no part of this record
            assert found == expected or set(found) - set(expected)
