import os
from pathlib import Path

import numpy as np
import pyarrow
import pytest

from latent_prior.data import arrow_rows
from latent_prior.data.arrow_rows import MappedTable
from tests.latent_prior.samples import resident

COLUMNS = {
    "map": np.dtype((np.uint16, (2, 3))),
    "latents": np.dtype((np.float16, (2, 1, 2))),
    "place": np.dtype(np.int64),
}


def made(count: int, start: int = 0) -> dict[str, np.ndarray]:
    random = np.random.default_rng(start)
    return {
        "map": random.integers(0, 60000, (count, 2, 3)).astype(np.uint16),
        "latents": random.normal(size=(count, 2, 1, 2)).astype(np.float16),
        "place": np.arange(start, start + count),
    }


def nested(values: np.ndarray) -> pyarrow.Array:
    found = pyarrow.array(values.reshape(-1))
    for size in values.shape[:0:-1]:
        count = len(found) // size
        found = pyarrow.ListArray.from_arrays(np.arange(count + 1, dtype=np.int32) * size, found)
    return found


def write(path: Path, *parts: dict[str, np.ndarray | pyarrow.Array], **options: str) -> Path:
    """An Arrow stream with a record batch for every part."""
    batches = [
        pyarrow.record_batch(
            {
                name: nested(values) if isinstance(values, np.ndarray) else values
                for name, values in part.items()
            }
        )
        for part in parts
    ]
    how = pyarrow.ipc.IpcWriteOptions(**options)
    with pyarrow.ipc.new_stream(str(path), batches[0].schema, options=how) as writer:
        for batch in batches:
            writer.write_batch(batch)
    return path


@pytest.fixture
def table(tmp_path):
    """13 rows in three files and five chunks of uneven sizes, one of them empty."""
    parts = [made(3), made(1, 3), made(0, 4), made(5, 4), made(4, 9)]
    paths = [
        write(tmp_path / "a", *parts[:2]), write(tmp_path / "b", parts[2]), write(tmp_path / "c", *parts[3:]),
    ]  # fmt: skip
    whole = {name: np.concatenate([part[name] for part in parts]) for name in COLUMNS}
    return MappedTable(paths, COLUMNS), whole


def test_rows_are_found_in_any_order_over_chunks_and_files(table):
    found, whole = table
    assert len(found) == 13
    random = np.random.default_rng(0)
    for indices in (np.arange(13), random.integers(0, 13, 40), np.array([12]), np.arange(0)):
        rows = found.rows(indices, list(COLUMNS))
        for name, kind in COLUMNS.items():
            assert rows[name].dtype == kind.base
            np.testing.assert_array_equal(rows[name], whole[name][indices])


def test_many_rows_are_read_in_parts(table, monkeypatch):
    found, whole = table
    monkeypatch.setattr(arrow_rows, "_RESIDENT", 3 * arrow_rows.AROUND)
    indices = np.random.default_rng(0).integers(0, 13, 50)
    np.testing.assert_array_equal(found.rows(indices, ["map"])["map"], whole["map"][indices])


@pytest.mark.parametrize("limit", [2**24, 24])
def test_columns_and_pieces_keep_the_order(table, monkeypatch, limit):
    found, whole = table
    monkeypatch.setattr(arrow_rows, "_RESIDENT", limit)
    for name in COLUMNS:
        np.testing.assert_array_equal(found.column(name), whole[name])
        pieces = list(found.pieces(name, range(13)))
        np.testing.assert_array_equal(np.concatenate([p for _, p in pieces]), whole[name])
        assert max(piece.nbytes for _, piece in pieces) <= limit
        # The third file has the last 9 rows.
        last = list(found.pieces(name, range(4, 13)))
        np.testing.assert_array_equal(np.concatenate([p for _, p in last]), whole[name][4:])
        assert [first for first, _ in last] == [f for f, _ in pieces if f >= 4]


def test_pieces_lie_in_the_file_and_cannot_be_written(table):
    found, _ = table
    for _, piece in found.pieces("map", range(13)):
        assert not piece.flags.owndata
        assert not piece.flags.writeable


def test_files_without_rows(tmp_path):
    path = write(tmp_path / "a", made(0))
    wide = {"map": COLUMNS["map"]}
    for paths in ([path], []):
        found = MappedTable(paths, wide)
        assert len(found) == 0
        assert found.column("map").shape == (0, 2, 3)
        assert found.rows(np.arange(0), ["map"])["map"].shape == (0, 2, 3)
        assert list(found.pieces("map", range(0))) == []


def test_a_file_is_checked_when_it_is_first_read(tmp_path):
    checked = []

    class Checked(MappedTable):
        def check_rows(self, path, rows):
            checked.append((path.name, rows))
            if path.name == "b":
                raise ValueError("b is damaged")

    paths = [write(tmp_path / "a", made(3), made(2, 3)), write(tmp_path / "b", made(4, 5))]
    found = Checked(paths, COLUMNS)
    assert checked == []
    for _ in range(2):
        found.rows(np.array([4, 0]), ["place"])
    assert checked == [("a", range(5))]
    for _ in range(2):  # a damaged file is never taken
        with pytest.raises(ValueError, match="b is damaged"):
            found.rows(np.array([0, 8]), ["place"])
        with pytest.raises(ValueError, match="b is damaged"):
            found.column("place")
    assert checked == [("a", range(5)), *[("b", range(5, 9))] * 4]


def test_a_fifo_is_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "a")
    with pytest.raises(ValueError, match="a is no regular file"):
        MappedTable([tmp_path / "a"], COLUMNS)


@pytest.mark.parametrize("place", [-1, 13])
def test_there_are_no_other_rows(table, place):
    with pytest.raises(AssertionError):
        table[0].rows(np.array([0, place]), ["map"])


@pytest.mark.skipif(
    not Path("/proc/self/smaps").exists(), reason="only Linux says what is resident"
)
@pytest.mark.parametrize("way", ["rows", "column", "open"])
def test_what_was_read_does_not_stay_resident(tmp_path, monkeypatch, way):
    """Half of a file of 16 MB would be mapped by 128 readers of 64 KB."""
    count = 2**13
    values = np.random.default_rng(0).integers(0, 60000, (count, 32, 32)).astype(np.uint16)
    parts = [{"map": values[begin : begin + 16]} for begin in range(0, count, 16)]
    path = write(tmp_path / "large", *parts)
    monkeypatch.setattr(arrow_rows, "_RESIDENT", 2**20)
    found = MappedTable([path], {"map": np.dtype((np.uint16, (32, 32)))})
    if way == "rows":
        chosen = np.random.default_rng(1).permutation(count)[: count // 4]
        np.testing.assert_array_equal(found.rows(chosen, ["map"])["map"], values[chosen])
    elif way == "column":
        np.testing.assert_array_equal(found.column("map"), values)
    assert resident(path) < 2 * 2**20


def lists(*rows: list | None) -> pyarrow.Array:
    return pyarrow.array(rows, pyarrow.list_(pyarrow.list_(pyarrow.uint16())))


ROW = [[1, 2, 3], [4, 5, 6]]


@pytest.mark.parametrize(
    ("column", "said"),
    [
        (lists(ROW, [[1, 2], [3, 4], [5, 6]]), "another shape"),
        (lists(ROW, None), "another shape"),
        (lists(ROW, [[1, 2, 3], None]), "another shape"),
        (lists(ROW, [[1, 2, 3], [4, 5, None]]), "zero_copy"),
        (nested(np.zeros((2, 6), np.uint16)), "another shape"),
        (nested(np.zeros((2, 2), np.uint16)), "holds uint16 instead of lists"),
        (nested(np.zeros((2, 2, 3), np.int64)), "holds int64 instead of uint16"),
        (nested(np.zeros((2, 2, 3, 1), np.uint16)), "instead of uint16"),
        (pyarrow.array(["a", "b"]), "holds string instead of lists"),
    ],
)
def test_other_columns_are_told(tmp_path, column, said):
    path = write(tmp_path / "a", {"map": column})
    with pytest.raises(ValueError, match=said):
        MappedTable([path], {"map": COLUMNS["map"]})


def test_a_missing_column_is_told(tmp_path):
    path = write(tmp_path / "a", {"map": made(2)["map"]})
    with pytest.raises(ValueError, match="a has no column latents, place"):
        MappedTable([path], COLUMNS)


def test_a_compressed_file_is_told(tmp_path):
    path = write(tmp_path / "a", {"map": np.zeros((5000, 2, 3), np.uint16)}, compression="zstd")
    with pytest.raises(ValueError, match="column map of a is compressed"):
        MappedTable([path], {"map": COLUMNS["map"]})


@pytest.mark.parametrize("kept", [0, 100, -100])
def test_a_file_cut_short_is_told(tmp_path, kept):
    path = write(tmp_path / "a", made(50))
    path.write_bytes(path.read_bytes()[:kept])
    with pytest.raises(ValueError, match=r"damaged|empty"):
        MappedTable([path], COLUMNS)


def test_a_flipped_bit_of_a_header_is_an_error_like_others_or_has_no_effect(tmp_path):
    """Whatever pyarrow raises, such as "integers with more than 64 bits not implemented"."""
    path = write(tmp_path / "a", made(3))
    content, refused = path.read_bytes(), 0
    for bit in range(0, 8 * 700, 5):
        flipped = bytearray(content)
        flipped[bit // 8] ^= 1 << bit % 8
        path.write_bytes(flipped)
        try:
            MappedTable([path], COLUMNS)
        except ValueError:
            refused += 1
    assert refused > 200


# Lists of text

WORDS = ["a", "two words", "é\u0301 🐝", "עברית", "x" * 300, "new\nline"]


def texts(count: int, start: int = 0) -> list[list[str]]:
    """One text or several for each row."""
    return [
        [WORDS[(n + k) % len(WORDS)] for k in range(1 + n % 3)] for n in range(start, start + count)
    ]


LISTS = pyarrow.list_(pyarrow.string())


def with_texts(count: int, start: int = 0, kind=LISTS) -> dict:
    return {
        "place": made(count, start)["place"],
        "captions": pyarrow.array(texts(count, start), kind),
    }


PLACE = {"place": COLUMNS["place"]}


@pytest.fixture
def words(tmp_path):
    """13 rows in three files and five chunks, one of them empty."""
    paths = [
        write(tmp_path / "a", with_texts(3), with_texts(1, 3)), write(tmp_path / "b", with_texts(0, 4)),
        write(tmp_path / "c", with_texts(5, 4), with_texts(4, 9)),
    ]  # fmt: skip
    return MappedTable(paths, PLACE, "captions")


def test_texts_are_found_in_any_order_over_chunks_and_files(words, monkeypatch):
    assert words.has_texts
    words.check_texts(range(13))
    random = np.random.default_rng(0)
    for indices in (np.arange(13), random.integers(0, 13, 40), np.array([12]), np.arange(0)):
        for step in (1024, 3):
            monkeypatch.setattr(arrow_rows, "ROWS", step)
            assert list(words.texts(indices)) == [texts(13)[index] for index in indices]
    for place in (-1, 13):
        with pytest.raises(AssertionError):
            next(words.texts(np.array([0, place])))


def test_a_slice_of_an_arrow_column_has_its_own_texts(tmp_path):
    """Its offsets do not begin at 0."""
    part = {name: pyarrow.array(column)[3:7] for name, column in with_texts(9).items()}
    found = MappedTable([write(tmp_path / "a", part)], PLACE, "captions")
    found.check_texts(range(4))
    assert list(found.texts(np.arange(4))) == texts(4, 3)


def test_files_without_texts_have_none(tmp_path):
    found = MappedTable([write(tmp_path / "a", {"place": made(2)["place"]})], PLACE, "captions")
    assert not found.has_texts
    with pytest.raises(AssertionError):
        next(found.texts(np.arange(2)))
    assert not MappedTable([], PLACE, "captions").has_texts
    empty = MappedTable([write(tmp_path / "b", with_texts(0))], PLACE, "captions")
    assert empty.has_texts
    assert list(empty.texts(np.arange(0))) == []


def test_some_files_with_texts_and_some_without_are_told(tmp_path):
    paths = [
        write(tmp_path / "a", with_texts(2)),
        write(tmp_path / "b", {"place": made(2)["place"]}),
    ]
    with pytest.raises(ValueError, match="b has no column captions, unlike the file before it"):
        MappedTable(paths, PLACE, "captions")
    with pytest.raises(ValueError, match="a has a column captions, unlike the file before it"):
        MappedTable(paths[::-1], PLACE, "captions")


@pytest.mark.parametrize(
    "column",
    [pyarrow.array(["a", "b"]), pyarrow.array([[1], [2]]), pyarrow.array([["a"], ["b"]], pyarrow.large_list(pyarrow.string())),
     pyarrow.array([["a"], ["b"]], pyarrow.list_(pyarrow.large_string())), pyarrow.array([[["a"]], [["b"]]])],
    ids=lambda column: str(column.type),
)  # fmt: skip
def test_other_columns_are_no_lists_of_text(tmp_path, column):
    path = write(tmp_path / "a", {"place": made(2)["place"], "captions": column})
    with pytest.raises(ValueError, match=r"column captions holds .* instead of lists of text"):
        MappedTable([path], PLACE, "captions")


def test_compressed_texts_are_told(tmp_path):
    """Of small ones pyarrow leaves the buffers as they are."""
    part = {"place": np.zeros(1, np.int64), "captions": pyarrow.array([["x" * 10_000]])}
    path = write(tmp_path / "a", part, compression="zstd")
    with pytest.raises(ValueError, match="of a is compressed"):
        MappedTable([path], PLACE, "captions")


@pytest.mark.parametrize(
    ("cells", "said"),
    [([["a"], []], "empty list or text"), ([["a"], None], "empty list or text"), ([["a"], ["b", ""]], "empty list or text"),
     ([["a"], [None]], "empty list or text")],
)  # fmt: skip
def test_rows_without_text_are_told(tmp_path, cells, said):
    part = {
        "place": made(2)["place"],
        "captions": pyarrow.array(cells, pyarrow.list_(pyarrow.string())),
    }
    with pytest.raises(ValueError, match=said):
        MappedTable([write(tmp_path / "a", part)], PLACE, "captions").check_texts(range(2))


def damaged_texts(lists: list[int], starts: list[int], data: bytes) -> pyarrow.Array:
    """Two rows whose buffers hold these numbers and bytes."""
    buffers = [None, pyarrow.py_buffer(np.array(starts, np.int32)), pyarrow.py_buffer(data)]
    inner = pyarrow.Array.from_buffers(pyarrow.string(), len(starts) - 1, buffers)
    outer = [None, pyarrow.py_buffer(np.array(lists, np.int32))]
    kind = pyarrow.list_(pyarrow.string())
    return pyarrow.Array.from_buffers(kind, len(lists) - 1, outer, children=[inner])


@pytest.mark.parametrize(
    ("lists", "starts", "data"),
    [([0, 2, 1], [0, 1, 2], b"ab"), ([0, 9, 2], [0, 1, 2], b"ab"),
     ([0, 1, 2], [0, 9, 2], b"ab"), ([0, 1, 2], [0, -5, 2], b"ab"), ([0, 1, 2], [1, 0, 2], b"ab"),
     ([0, 1, 2], [0, 1, 2], b"a\xff"), ([0, 1, 2], [0, 1, 3], "aé"[:1].encode() + b"\xc3\x28"), ([0, 1, 2], [0, 2, 3], "aé".encode())],
)  # fmt: skip
def test_damaged_offsets_and_text_are_told(tmp_path, lists, starts, data):
    column = damaged_texts(lists, starts, data)
    path = write(tmp_path / "a", {"place": made(2)["place"], "captions": column})

    def read() -> None:
        found = MappedTable([path], PLACE, "captions")
        found.check_texts(range(2))

    with pytest.raises(ValueError, match=r"."):
        read()


def test_a_flipped_bit_of_texts_is_an_error_or_other_text(tmp_path):
    """Also in a file that changes after it was checked: nothing beyond the buffers is read."""
    path = write(tmp_path / "a", with_texts(4))
    content, refused = path.read_bytes(), 0
    for late in (False, True):
        for bit in range(0, 8 * len(content), 7):
            flipped = bytearray(content)
            flipped[bit // 8] ^= 1 << bit % 8
            path.write_bytes(content if late else flipped)
            try:
                found = MappedTable([path], PLACE, "captions")
                if not found.has_texts:  # its name has another letter
                    continue
                found.check_texts(range(len(found)))
                if late:
                    with path.open("r+b") as file:
                        file.write(flipped)
                rows = list(found.texts(np.arange(len(found))))
                assert all(isinstance(text, str) for row in rows for text in row)
            except ValueError:
                refused += 1
    assert refused > 200
