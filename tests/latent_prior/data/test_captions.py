"""Captions of every kind of data set, and what is wrong with them."""

import csv
import dataclasses
import datetime
import gc
import io
import json
import os
import shutil
import tracemalloc

import datasets
import pyarrow
import pyarrow.parquet
import pytest
import torch

from latent_prior.data import metadata
from latent_prior.data.captions import CAPTIONS_LIMIT, NO_CAPTIONS
from latent_prior.data.embedded.shapes import drawing
from latent_prior.data.found import found
from latent_prior.data.images import open_images, open_stream
from latent_prior.data.sources import open_source
from tests.latent_prior.samples import encoded, pixels, write

TEXTS = [
    "a red circle",
    'commas, semicolons; and "quotes"',
    "two\nlines",
    "emoji 🐝🏳️‍🌈",
    "combining e\u0301, not \u00e9",
    "עברית from right to left",
    "  spaces stay  ",
    "=1+1 'tis",
]
KINDS = ("csv", "jsonl", "parquet")


def table(kind, rows) -> bytes:
    """A metadata file as users write it."""
    if kind == "jsonl":
        return "\n".join(json.dumps(row) for row in rows).encode()
    if kind == "parquet":
        file = io.BytesIO()
        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), file)
        return file.getvalue()
    text = io.StringIO(newline="")
    writer = csv.DictWriter(text, list(rows[0]))
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue().encode()


@pytest.fixture
def described(tmp_path):
    """`described(kind, rows, ...)`: a folder with eight pictures and a metadata file."""

    def make(kind, rows, count=8, place="", folder="images"):
        for number in range(count):
            write(tmp_path / folder / place / f"{number}.png", encoded(pixels(number)))
        content = rows if isinstance(rows, bytes) else table(kind, rows)
        write(tmp_path / folder / place / f"metadata.{kind}", content)
        return tmp_path / folder

    return make


def rows(texts=TEXTS, **others):
    return [
        {"file_name": f"{number}.png", "text": text}
        | {name: cells[number] for name, cells in others.items()}
        for number, text in enumerate(texts)
    ]


def captions(images) -> dict[int, tuple[str, ...]]:
    """The captions by the number that the image's first pixel tells."""
    numbers = [int(images.array(index)[0, 0, 0]) for index in range(len(images))]
    return dict(zip(numbers, images.captions(range(len(images))), strict=True))


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # of `datasets`
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("backwards", [False, True])
def test_a_metadata_file_gives_each_image_its_caption(described, options, kind, backwards):
    """As `datasets` reads it, whatever the order of the rows."""
    folder = described(kind, rows()[:: -1 if backwards else 1])
    images = open_images(options(folder), "train")
    assert images.has_captions
    assert captions(images) == {number: (text,) for number, text in enumerate(TEXTS)}
    theirs = datasets.load_dataset("imagefolder", data_dir=str(folder))["train"]
    gc.collect()  # the file that `datasets` leaves open, here and not within another test
    names = [row["image"].filename for row in theirs]
    assert {images.table.name_of(n): images.captions([n])[0] for n in range(8)} == {
        name: (text,) for name, text in zip(names, theirs["text"], strict=True)
    }
    assert "8 images, 8 x 8, RGB, no classes, captions of 8; " in found(options(folder))
    assert "ignored" not in found(options(folder))


def test_captions_are_left_alone_when_asked(described, options):
    folder = described("csv", rows())
    images = open_images(options(folder, caption_column=NO_CAPTIONS), "train")
    assert not images.has_captions
    assert images.captions_fingerprint is None


SEVERAL = [[text, f"another {n}"] if n % 2 else [text] for n, text in enumerate(TEXTS)]


@pytest.mark.parametrize("kind", ["jsonl", "parquet"])
def test_an_image_may_have_several_captions(described, options, kind):
    images = open_images(options(described(kind, rows(SEVERAL))), "train")
    assert captions(images) == {number: tuple(cell) for number, cell in enumerate(SEVERAL)}
    assert images.captions([]) == []
    assert images.captions(torch.tensor([3, 3, 1])) == [tuple(SEVERAL[n]) for n in (3, 3, 1)]


def test_one_caption_may_stand_beside_lists(described, options):
    folder = described("jsonl", rows([TEXTS[0], *SEVERAL[1:]]))
    assert captions(open_images(options(folder), "train"))[0] == (TEXTS[0],)


def test_text_files_beside_the_images_have_a_caption_in_each_line(tmp_path, options):
    for number in range(3):
        for place in ("a", "b"):
            write(tmp_path / place / f"{number}.png", encoded(pixels(number + 3 * (place == "b"))))
            lines = f"\ufeff{place} {number} 🐝\r\n\n  second עברית\n"
            write(tmp_path / place / f"{number}.txt", lines.encode())
    write(tmp_path / "notes.txt", b"no caption")
    images = open_images(options(tmp_path), "train")
    assert captions(images)[4] == ("b 1 🐝", "second עברית")
    assert images.labels.tolist() == [0, 0, 0, 1, 1, 1]
    assert found(options(tmp_path)).endswith(
        "captions of 6; validation: none; test: none; 1 file ignored (.txt)"
    )
    assert open_images(options(tmp_path, caption_column="text"), "train").has_captions


def test_a_column_text_hides_text_files(described, options):
    folder = described("csv", rows())
    write(folder / "3.txt", b"another")
    assert captions(open_images(options(folder), "train"))[3] == (TEXTS[3],)
    assert "1 file ignored (.txt)" in found(options(folder))


def test_metadata_lies_in_any_folder_and_speaks_of_what_is_below(described, options):
    described("csv", rows(), place="train")
    folder = described("jsonl", rows([f"of test {n}" for n in range(8)]), place="test")
    write(folder / "train" / "deep" / "x.png", encoded(pixels(8)))
    deeper = [*rows(), {"file_name": "./deep\\x.png", "text": "deep"}]
    described("csv", deeper, place="train")
    assert captions(open_images(options(folder), "train"))[8] == ("deep",)
    assert captions(open_images(options(folder), "test"))[2] == ("of test 2",)


def test_a_split_may_have_no_captions(described, options):
    described("csv", rows(), place="train")
    folder = described("csv", rows(), place="test")
    (folder / "test" / "metadata.csv").unlink()
    for column in (None, "text"):
        assert open_images(options(folder, caption_column=column), "train").has_captions
        assert not open_images(options(folder, caption_column=column), "test").has_captions


def test_held_out_images_keep_their_captions(described, options):
    texts = [f"number {n}" for n in range(60)]
    folder = described("csv", rows(texts), count=60)
    for split in ("train", "validation", "test"):
        images = open_images(options(folder), split)
        assert captions(images) == {n: (texts[n],) for n in captions(images)}


def test_other_columns_may_be_captions_and_classes(described, options):
    kinds = ["bee", "ant"] * 4
    folder = described("csv", rows(label=kinds, prompt=TEXTS[::-1], kind=["x", "y", "", "y"] * 2))
    images = open_images(options(folder), "train")
    assert images.class_names == ("ant", "bee")
    assert images.labels.tolist() == [1, 0] * 4
    images = open_images(options(folder, caption_column="prompt", label_column="kind"), "train")
    assert captions(images)[0] == (TEXTS[7],)
    assert images.class_names == ("x", "y")
    assert images.labels.tolist() == [0, 1, -1, 1] * 2
    both = open_images(options(folder, caption_column="label", label_column="label"), "train")
    assert captions(both)[1] == ("ant",)
    assert both.labels.tolist() == [1, 0] * 4
    assert open_images(options(folder, label_column="none"), "train").labels is None


def test_class_folders_are_the_classes_unless_a_column_is_named(folder, options):
    files = sorted(path.relative_to(folder) for path in folder.rglob("*.png"))
    listed = [
        {"file_name": str(path), "text": f"of {path}", "label": n % 2, "kind": n}
        for n, path in enumerate(files)
    ]
    write(folder / "metadata.jsonl", table("jsonl", listed))
    assert open_images(options(folder), "train").class_names == ("ant", "bee", "cow")
    assert len(open_images(options(folder, label_column="kind"), "train").class_names) == 12
    named = open_images(options(folder, label_column="label"), "train")
    assert named.labels.tolist() == [0, 1] * 6
    assert named.captions([4]) == [("of bee/01.png",)]


def test_images_at_several_depths_have_the_classes_of_a_column(described, options):
    folder = described("jsonl", [*rows(label=[1, 2] * 4), {"file_name": "a/8.png", "text": "a"}])
    write(folder / "a" / "8.png", encoded(pixels(8)))
    line = found(options(folder))
    assert "2 classes, 1 without a class, captions of 9" in line
    assert "depths" not in line


def test_without_a_column_text_there_are_classes_alone(described, options):
    listed = [{"file_name": "1.png", "label": 4}, {"file_name": "0.png", "label": 3}]
    folder = described("jsonl", listed, count=3)
    images = open_images(options(folder), "train")
    assert not images.has_captions
    assert images.labels.tolist() == [0, 1, -1]
    assert "no captions, because metadata.jsonl has no column text" in found(options(folder))


# Tables


def cells(texts):
    images = [{"bytes": encoded(pixels(n)), "path": None} for n in range(len(texts))]
    return datasets.Dataset.from_dict({"image": images, "prompt": texts})


def saved(folder, texts, how):
    folder.mkdir()
    table = cells(texts)
    if how == "saved":
        table.save_to_disk(folder)
    elif how == "arrow":
        table.save_to_disk(folder / "own")
        for number, path in enumerate(sorted((folder / "own").glob("*.arrow"))):
            path.rename(folder / f"{number}.arrow")
        shutil.rmtree(folder / "own")
    else:
        for shard in range(2):
            part = table.shard(2, shard, contiguous=True)
            part.to_parquet(folder / f"train-0000{shard}-of-00002.parquet")
    return folder


@pytest.mark.parametrize("how", ["parquet", "arrow", "saved"])
@pytest.mark.parametrize("texts", [TEXTS, SEVERAL], ids=["one", "several"])
def test_tables_have_captions_when_they_are_asked_for(tmp_path, options, how, texts):
    folder = saved(tmp_path / "d", texts, how)
    assert not open_images(options(folder), "train").has_captions
    images = open_images(options(folder, caption_column="prompt"), "train")
    expected = {n: (t,) if isinstance(t, str) else tuple(t) for n, t in enumerate(texts)}
    assert captions(images) == expected
    assert "captions of 8" in found(options(folder, caption_column="prompt"))


def test_captions_of_held_out_rows(tmp_path, options):
    texts = [f"number {n}" for n in range(60)]
    folder = saved(tmp_path / "d", texts, "parquet")
    for split in ("train", "validation", "test"):
        images = open_images(options(folder, caption_column="prompt"), split)
        assert captions(images) == {n: (texts[n],) for n in captions(images)}


def test_captions_of_tables_stay_on_disk(tmp_path, options):
    """4 MB of captions; opening checks every one."""
    texts = [f"{n} " + "x" * 1000 for n in range(4000)]
    image = {"bytes": encoded(pixels(0)), "path": None}
    table = datasets.Dataset.from_dict({"image": [image] * 4000, "prompt": texts})
    table.save_to_disk(tmp_path / "d")
    chosen = options(tmp_path / "d", caption_column="prompt", channels=3)
    open_images(chosen, "train")
    before = pyarrow.total_allocated_bytes()
    tracemalloc.start()
    try:
        images = open_images(chosen, "train")
        assert len(images.captions([len(images) - 1])[0][0]) > 1000
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 3 * 2**20
    assert pyarrow.total_allocated_bytes() < before + 2**20


def test_streams_pass_over_captions(tmp_path, described, options):
    """Streams train autoencoders, which read none."""
    folder = described("jsonl", rows(SEVERAL))
    table = saved(tmp_path / "d", SEVERAL, "parquet")
    for chosen in (options(folder), options(table, caption_column="prompt")):
        size = dataclasses.replace(chosen, image_size=8, channels=3)
        found = open_stream(size, "train").first(9)
        assert [int(array[0, 0, 0]) for array in found] == list(range(8))


def test_shapes_have_captions(options):
    images = open_images(options("shapes"), "validation")
    assert images.has_captions
    test = open_images(options("shapes"), "test")
    assert test.captions([0, 1999]) == [(drawing("test", n).caption,) for n in (0, 1999)]
    assert not open_images(options("shapes", caption_column=NO_CAPTIONS), "test").has_captions
    assert not open_images(options("mnist5k"), "test").has_captions


# Fingerprints


def test_every_change_of_the_captions_is_seen(described, options):
    seen = []
    for texts in (TEXTS, TEXTS[::-1], SEVERAL, [[t] for t in TEXTS]):
        folder = described("jsonl", rows(texts))
        images = open_images(options(folder), "train")
        seen.append((images.fingerprint, images.captions_fingerprint))
    assert len({its for its, _ in seen}) == 1  # of the images alone
    assert len({its for _, its in seen}) == 3
    assert seen[3] == seen[0]


def test_captions_of_images_that_are_left_out_do_not_count(described, options):
    folder = described("csv", rows())
    write(folder / "3.png", b"no image")
    images = open_images(options(folder, on_corrupt="skip", image_size=8), "train")
    assert captions(images) == {n: (t,) for n, t in enumerate(TEXTS) if n != 3}
    before = images.captions_fingerprint
    described("csv", rows([*TEXTS[:3], "new", *TEXTS[4:]]))
    write(folder / "3.png", b"no image")
    assert open_images(options(folder, on_corrupt="skip"), "train").captions_fingerprint == before


# What is wrong with them

FIRST = {"file_name": "0.png", "text": "a"}
WRONG = {
    "no file_name": ("csv", b"file,text\n0.png,a\n", r"metadata.csv, row 1, names no image by file_name; its columns are file, text;"),
    "no file": ("jsonl", [{"file_name": None, "text": "a"}], "metadata.jsonl, row 1, names no image by file_name"),
    "a number": ("jsonl", [{"file_name": 3, "text": "a"}], "metadata.jsonl, row 1, names no image"),
    "above": ("csv", [{"file_name": "../x.png", "text": "a"}], r"row 1, names '\.\./x\.png', a file outside of its folder"),
    "far above": ("csv", [{"file_name": "a/../../images/0.png", "text": "a"}], "a file outside of its folder"),
    "absolute": ("csv", [{"file_name": "/etc/passwd", "text": "a"}], "'/etc/passwd', a file outside"),
    "backslashes": ("csv", [{"file_name": "..\\x.png", "text": "a"}], "a file outside of its folder"),
    "missing": ("csv", [FIRST, {"file_name": "x.png", "text": "a"}], "names 'x.png', which is no image of its folder; .*skip"),
    "no image": ("csv", [{"file_name": "metadata.csv", "text": "a"}], "'metadata.csv', which is no image"),
    "twice": ("csv", [FIRST, FIRST], "names '0.png', which has a row already; .*list.*skip"),
    "twice in other words": ("csv", [FIRST, {"file_name": "./0.png", "text": "a"}], "which has a row already"),
    "without a row": ("csv", [FIRST], r"1\.png and 6 others have no caption: .*--on_corrupt skip"),
    "no rows": ("csv", b"file_name,text\n", "metadata.csv holds no rows"),
    "nothing": ("csv", b"", "metadata.csv holds no rows"),
    "empty text": ("csv", rows([*TEXTS[:7], ""]), r"7\.png has a caption without text; .*--caption_column none"),
    "spaces": ("jsonl", rows([*TEXTS[:7], [" \n"]]), r"7\.png has a caption without text"),
    "null": ("jsonl", rows([*TEXTS[:7], None]), r"7\.png has no caption"),
    "all null": ("jsonl", rows([None] * 8), "not one image has a caption"),
    "no list": ("parquet", rows([*SEVERAL[:7], []]), r"7\.png has no caption"),
    "null in a list": ("jsonl", rows([*SEVERAL[:7], [None]]), r"7\.png has a caption without text"),
    "long": ("jsonl", rows([*TEXTS[:7], "é" * 33_000]), r"7\.png has captions of 66,000 bytes, but at most 65,536"),
    "numbers": ("jsonl", rows([*TEXTS[:7], 3]), "--caption_column text: the column holds '3', int, but"),
    "mappings": ("jsonl", rows([*TEXTS[:7], {"a": 1}]), "the column holds .*, dict, but captions"),
    "lists of lists": ("jsonl", rows([*TEXTS[:7], [["a"]]]), "the column holds .*, list, but captions"),
    "times": ("parquet", rows([datetime.date(2020, 1, 1)] * 8), "'2020-01-01', date, but captions"),
    "latin-1": ("csv", "file_name,text\n0.png,é\n".encode("latin-1"), r"metadata\.csv is not UTF-8 \(byte 21\); save it"),
    "utf-16": ("csv", "file_name,text\n0.png,é\n".encode("utf-16"), r"metadata\.csv is not UTF-8 \(byte 0\)"),
    "latin-1 lines": ("jsonl", '{"file_name": "0.png", "text": "é"}'.encode("latin-1"), r"metadata\.jsonl, line 1, is not JSON"),
    "commas": ("csv", b"file_name,text\n0.png,a, b\n", r"metadata\.csv, row 1, has 3 cells for 2 columns; put .*quotes"),
    "an open quote": ("csv", b'file_name,text\n0.png,"a\n', r"cannot be read as a table \(unexpected end"),
    "two columns": ("csv", b"file_name,text,text\n0.png,a,b\n", "has two columns 'text'"),
    "half a line": ("jsonl", b'{"file_name": "0.png", "te', r"metadata\.jsonl, line 1, is not JSON.*; repair it"),
    "a list": ("jsonl", b'["0.png", "a"]', r"metadata\.jsonl, line 1,: "),
    "deep": ("jsonl", b"[" * 100_000, r"metadata\.jsonl, line 1, is"),
    "surrogates": ("jsonl", b'{"file_name": "0.png", "text": "\\ud800"}', "is not JSON"),
    "garbage": ("parquet", b"garbage", r"metadata\.parquet cannot be read as a table"),
}  # fmt: skip


@pytest.mark.parametrize("case", WRONG)
def test_wrong_metadata_is_one_sentence(described, options, case):
    kind, content, said = WRONG[case]
    folder = described(kind, content)
    with pytest.raises(ValueError, match=said) as told:
        open_images(options(folder), "train")
    assert "\n" not in str(told.value)
    assert len(str(told.value)) < 600
    assert not case.startswith("no file") or str(folder) in str(told.value)


def test_two_metadata_files_in_one_folder(described, options):
    described("jsonl", rows())
    folder = described("csv", rows())
    with pytest.raises(ValueError, match=r"has metadata\.csv and metadata\.jsonl; keep one"):
        open_images(options(folder), "train")


def test_an_image_of_two_metadata_files(described, options):
    described("csv", rows(), place="a")
    folder = described("csv", [{"file_name": "a/0.png", "text": "x"}], count=0)
    with pytest.raises(ValueError, match=r"/metadata\.csv names 'a/0\.png', which has a row al"):
        open_images(options(folder), "train")


def test_unknown_columns_are_told_with_those_there_are(described, options):
    folder = described("csv", rows(kind=["a"] * 8))
    for flag in ("caption_column", "label_column"):
        said = f"--{flag} nope: there is no such column; there are: file_name, text, kind"
        with pytest.raises(ValueError, match=said):
            open_images(options(folder, **{flag: "nope"}), "train")


def test_unknown_columns_without_metadata(folder, tmp_path, options):
    table = saved(tmp_path / "d", TEXTS, "parquet")
    for data, others in ((folder, "image, label"), (table, "image, prompt")):
        said = f"--caption_column nope: there is no such column; there are: {others}"
        with pytest.raises(ValueError, match=said):
            open_images(options(data, caption_column="nope"), "train")
        streamed = options(data, caption_column="nope")
        with pytest.raises(ValueError, match=said):
            open_source(streamed).blocks("train")


@pytest.mark.parametrize(
    "column", [list(range(8)), [[1]] * 8, [{"a": "b"}] * 8, [[["a"]]] * 8, [b"a"] * 8], ids=str
)
def test_columns_of_other_types_are_no_captions(tmp_path, options, column):
    folder = saved(tmp_path / "d", column, "saved")
    with pytest.raises(ValueError, match=r"--caption_column prompt: the column holds .*, but cap"):
        open_images(options(folder, caption_column="prompt"), "train")
    with pytest.raises(ValueError, match="--caption_column image: the column holds struct"):
        open_images(options(folder, caption_column="image"), "train")


@pytest.mark.parametrize(
    ("cell", "said"),
    [(None, "has no caption"), ([], "has no caption"), ("", "has a caption without text"), (["a", ""], "has a caption without text"),
     ([None, "a"], "has a caption without text"), ("x" * (CAPTIONS_LIMIT + 1), "has captions of 65,537 bytes"),
     (["x" * 999] * 66, "has captions of 65,934 bytes")],
    ids=["null", "no list", "empty", "empty in a list", "null in a list", "long", "long together"],
)  # fmt: skip
def test_a_wrong_caption_in_a_table_is_told_or_left_out(tmp_path, options, cell, said, caplog):
    caplog.set_level("INFO", "latent_prior")
    texts = list(SEVERAL if isinstance(cell, list) else TEXTS)
    texts[5] = cell
    chosen = options(saved(tmp_path / "d", texts, "parquet"), caption_column="prompt")
    with pytest.raises(ValueError, match=f"^row 5 of split train of {tmp_path}/d {said}"):
        open_images(chosen, "train")
    assert "captions of 7" in found(chosen)
    images = open_images(dataclasses.replace(chosen, on_corrupt="skip"), "train")
    assert "left out 1 of 8 images without usable captions" in caplog.text
    assert images.skipped == 1
    assert images.source_index.tolist() == [0, 1, 2, 3, 4, 6, 7]
    assert set(captions(images)) == {0, 1, 2, 3, 4, 6, 7}


def test_text_that_is_not_utf_8_in_a_table(tmp_path, options):
    """Arrow does not look at text that it reads."""
    buffers = pyarrow.array([b"a", b"\xff", b"c"]).buffers()
    texts = pyarrow.Array.from_buffers(pyarrow.string(), 3, buffers)
    images = pyarrow.array([{"bytes": encoded(pixels(n)), "path": None} for n in range(3)])
    (tmp_path / "d").mkdir()
    made = pyarrow.table({"image": images, "prompt": texts})
    pyarrow.parquet.write_table(made, tmp_path / "d" / "train.parquet")
    chosen = options(tmp_path / "d", caption_column="prompt")
    with pytest.raises(ValueError, match=r"row 1 of .* has a caption that is not UTF-8"):
        open_images(chosen, "train")
    kept = open_images(dataclasses.replace(chosen, on_corrupt="skip"), "train")
    assert captions(kept) == {0: ("a",), 2: ("c",)}


def test_rows_and_images_that_do_not_fit_are_left_out_when_asked(described, options, caplog):
    caplog.set_level("INFO", "latent_prior")
    listed = [
        *rows()[:6],
        FIRST,
        {"file_name": "x.png", "text": "a"},
        {"file_name": "y.png", "text": ""},
    ]
    listed[2] = {"file_name": "2.png", "text": ""}
    chosen = options(described("csv", listed), on_corrupt="skip")
    images = open_images(chosen, "train")
    assert captions(images) == {n: (TEXTS[n],) for n in (0, 1, 3, 4, 5)}
    assert "left out 3 of 8 images without usable captions" in caplog.text
    line = found(chosen)
    assert "captions of 5; " in line
    assert "2 rows of metadata without an image left out; 1 row of metadata of an image" in line


@pytest.mark.parametrize(
    ("content", "said"),
    [(b"", r"1\.txt holds no caption"), (b" \r\n\n", r"1\.txt holds no caption"), (b"\xff", r"1\.txt is not UTF-8 \(byte 0\)"),
     (b"x" * (CAPTIONS_LIMIT + 1), r"1\.txt has 65,537 bytes; at most 65,536"), (None, r"1\.png has no caption")],
    ids=["empty", "blank", "not UTF-8", "long", "missing"],
)  # fmt: skip
def test_wrong_text_files_are_told_or_left_out(tmp_path, options, content, said):
    for number in range(3):
        write(tmp_path / f"{number}.png", encoded(pixels(number)))
        if number != 1:
            write(tmp_path / f"{number}.txt", b"a")
        elif content is not None:
            write(tmp_path / f"{number}.txt", content)
    with pytest.raises(ValueError, match=said):
        open_images(options(tmp_path), "train")
    assert len(open_images(options(tmp_path, caption_column=NO_CAPTIONS), "train")) == 3
    assert captions(open_images(options(tmp_path, on_corrupt="skip"), "train")) == {
        0: ("a",),
        2: ("a",),
    }


@pytest.mark.parametrize("name", ["metadata.csv", "metadata.jsonl", "metadata.parquet", "0.txt"])
def test_what_is_no_regular_file_is_not_waited_for(tmp_path, options, name):
    write(tmp_path / "0.png", encoded(pixels(0)))
    os.mkfifo(tmp_path / name)
    with pytest.raises(ValueError, match=f"{name} is no regular file"):
        open_images(options(tmp_path), "train")


@pytest.mark.parametrize("kind", KINDS)
def test_metadata_is_limited(described, options, monkeypatch, kind):
    """Of a parquet file, also what it becomes when it is unpacked."""
    limit = 4000 if kind == "parquet" else 500
    texts = ["x" * 100] * 80
    monkeypatch.setattr(metadata, "TABLE_LIMIT", limit)
    folder = described(kind, rows(texts))
    assert kind != "parquet" or (folder / "metadata.parquet").stat().st_size < limit
    with pytest.raises(ValueError, match=r"metadata\.\w+ (has|holds more than) .* bytes"):
        open_images(options(folder), "train")


@pytest.mark.parametrize("labels", [[1, "a"] * 4, [2**70] * 8], ids=["mixed", "huge"])
def test_labels_of_several_types(described, options, labels):
    folder = described("jsonl", rows(label=labels))
    assert open_images(options(folder), "train").labels is None
    assert "no classes, because the column label holds values of several types" in found(
        options(folder)
    )
    with pytest.raises(ValueError, match="--label_column label: the column holds values of sev"):
        open_images(options(folder, label_column="label"), "train")


def test_nobody_has_to_mend_metadata_that_is_not_asked_for(described, options):
    folder = described("csv", b"name,caption\n0.png,a\n")
    chosen = options(folder, caption_column=NO_CAPTIONS)
    assert len(open_images(chosen, "train")) == 8
    assert "metadata is not read, because " in found(chosen)
    assert "1 file ignored (.csv)" in found(chosen)
    with pytest.raises(ValueError, match="names no image by file_name"):
        open_images(options(folder, caption_column=NO_CAPTIONS, label_column="name"), "train")
    none = options(folder, caption_column=NO_CAPTIONS, label_column="none")
    assert "metadata.csv is not read; 1 file ignored" in found(none)
