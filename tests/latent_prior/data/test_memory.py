"""Opening, counting and reading images takes as much memory for many rows as for few."""

import functools
import tracemalloc
from pathlib import Path

import numpy as np
import pyarrow
import pytest
from datasets import ClassLabel, Dataset, Features, Image, Value
from datasets.table import InMemoryTable

from latent_prior.data import arrow_rows
from latent_prior.data import found as found_module
from latent_prior.data.found import found
from latent_prior.data.images import ImageSet, open_images
from latent_prior.data.labels import read_labels
from latent_prior.data.shards.tables import in_memory
from latent_prior.data.splits import parts_of_rows, rows_of_part
from latent_prior.options import ImageOptions
from tests.latent_prior.data.shards.conftest import write_tar
from tests.latent_prior.samples import encoded, pixels, resident

FEW, MANY = 10_000, 50_000
NAMES = ["ant", "bee", "cow"]
LINUX = pytest.mark.skipif(
    not Path("/proc/self/smaps").exists(), reason="only Linux says what is resident"
)


@pytest.fixture(scope="module")
def table(tmp_path_factory):
    """The options of a saved data set of so many rows, in record batches of 100, without splits."""

    @functools.cache
    def made(rows: int, label: str = "class", padding: int = 0) -> ImageOptions:
        folder = tmp_path_factory.mktemp("rows")
        cell = {"bytes": encoded(pixels(0)) + bytes(padding), "path": None}
        kinds = {
            "class": ClassLabel(names=NAMES),
            "number": Value("int64"),
            "text": Value("string"),
        }
        features = Features({"image": Image(), "label": kinds[label]})
        part = pyarrow.array([cell] * 100, features.arrow_schema.field("image").type)
        images = pyarrow.chunked_array([part] * (rows // 100))
        numbers = np.arange(rows) % len(NAMES)
        labels = np.array(NAMES)[numbers] if label == "text" else numbers
        whole = InMemoryTable(pyarrow.table({"image": images, "label": labels}))
        data = Dataset(whole.cast(features.arrow_schema), fingerprint="-")
        data.save_to_disk(folder / "data")
        return ImageOptions(dataset=str(folder / "data"), image_size=8, channels=3, cache_mb=0)

    return made


def opened(options: ImageOptions) -> ImageSet:
    """As a command opens its data, and some images of it."""
    found(options)
    images = open_images(options, "train")
    assert images.fingerprint
    assert images.read([0, len(images) - 1]).shape == (2, 3, 8, 8)
    assert images.labels_of([0, 1]) is not None
    return images


@pytest.mark.parametrize("label", ["class", "number", "text"])
def test_opening_takes_a_few_bytes_for_each_row(table, label, monkeypatch):
    monkeypatch.setattr(found_module, "MOST_HEADERS", 8)

    def peak(options: ImageOptions) -> int:
        before = pyarrow.total_allocated_bytes()
        tracemalloc.start()
        try:
            opened(options)
            peak = tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()
        return peak + pyarrow.total_allocated_bytes() - before

    opened(table(100, label))  # imports
    few, many = (peak(table(rows, label)) for rows in (FEW, MANY))
    # Numbers of 4 bytes for the rows of each split and the images, 1 for each label; some twice for
    # a moment.
    assert many - few < 15 * (MANY - FEW)


@LINUX
def test_files_do_not_stay_resident(table, monkeypatch):
    """A file of 16 MiB, of which nearly all would be mapped after one label of each batch."""
    monkeypatch.setattr(arrow_rows, "_RESIDENT", 2**20)
    options = table(1000, padding=2**14)
    (path,) = Path(options.dataset).glob("**/*.arrow")
    assert path.stat().st_size > 15 * 2**20
    images = opened(options)
    assert resident(path) < 2 * 2**20
    for index in range(len(images)):
        images.table.read(int(images.source_index[index]))
        if index % 100 == 0:
            assert resident(path) < 2 * 2**20


@LINUX
def test_the_index_of_tar_files_does_not_stay_resident(tmp_path, monkeypatch):
    """3 MiB, most of them captions."""
    monkeypatch.setattr(arrow_rows, "_RESIDENT", 2**17)
    for shard in range(20):
        members = {f"{n:03d}.png": encoded(pixels(n % 8)) for n in range(300)}
        members |= {f"{n:03d}.cls": str(n % 3).encode() for n in range(300)}
        members |= {f"{n:03d}.txt": b"x" * 500 for n in range(300)}
        write_tar(tmp_path / f"{shard:02d}.tar", dict(sorted(members.items())))
    options = ImageOptions(dataset=str(tmp_path), image_size=8, channels=3, cache_mb=0)
    images = opened(options)
    (path,) = tmp_path.glob(".latent*")
    assert path.stat().st_size > 3 * 2**20
    assert resident(path) < 2**20
    for index in range(0, len(images), 10):
        images.read([index])
    assert resident(path) < 2**20


def test_labels_are_those_of_the_column_as_a_list():
    """Part by part, with values that are no class among them."""
    random = np.random.default_rng(0)
    for values in (["b", "a10", None, "a9", ""], [3, -1, None, 12], [1.0, float("nan"), None, 7.0]):
        column = [values[number] for number in random.integers(0, len(values), 5000)]
        rows = in_memory(pyarrow.table({"label": column}))
        chosen = np.sort(random.choice(5000, 3000, replace=False))
        for each, expected in (
            (rows, column),
            (rows.choose([chosen[:10], chosen[10:]]), [column[row] for row in chosen]),
        ):
            labels = read_labels({"train": each, "other": rows}, "train", None)
            assert labels.numbers is not None
            names = [labels.names[number] if number >= 0 else None for number in labels.numbers]
            known = [value not in (None, "", -1) and value == value for value in expected]
            wanted = [int(v) if isinstance(v, float) and k else v for v, k in zip(expected, known, strict=True)]  # fmt: skip
            assert names == [str(v) if k else None for v, k in zip(wanted, known, strict=True)]


@pytest.mark.parametrize("classes", [1, 127, 128, 129, 40_000])
def test_labels_take_the_smallest_type_that_holds_them(classes):
    features = Features({"label": ClassLabel(num_classes=classes)})
    column = pyarrow.table({"label": [classes - 1, -1, None, 0]})
    rows = in_memory(column.cast(features.arrow_schema))
    numbers = read_labels({"train": rows}, "train", None).numbers
    assert numbers is not None
    assert numbers.tolist() == [classes - 1, -1, -1, 0]
    assert numbers.itemsize == (1 if classes <= 128 else 2 if classes <= 2**15 else 4)


@pytest.mark.parametrize("count", [0, 1, 100, 65_536, 200_000])
def test_the_rows_of_a_part_are_found_piece_by_piece(count):
    whole = parts_of_rows(count, ("validation", "test"))
    for part in ("train", "validation", "test"):
        pieces = [*rows_of_part(count, ("validation", "test"), part)]
        found = np.concatenate([np.zeros(0, np.int64), *pieces])
        np.testing.assert_array_equal(found, np.flatnonzero(whole == part))
