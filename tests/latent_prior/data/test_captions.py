"""Captions of every kind of data set, and what is wrong with them."""

import csv
import io
import json

import datasets
import pyarrow
import pyarrow.parquet
import pytest

from latent_prior.data.captions import CAPTIONS_LIMIT, NO_CAPTIONS
from latent_prior.data.embedded.shapes import drawing
from latent_prior.data.found import found
from latent_prior.data.images import open_images
from latent_prior.data.metadata import TABLE_LIMIT
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
