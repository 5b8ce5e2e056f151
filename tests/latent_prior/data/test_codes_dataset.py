import dataclasses
import json
import os
import tracemalloc

import datasets
import numpy as np
import pyarrow
import pytest
import torch

from latent_prior.data import codes_dataset
from latent_prior.data.codes import SPEC_FILE, CodeSpec, Level, write_spec
from latent_prior.data.codes_dataset import (
    codes_features,
    join_shards,
    measure_latents,
    open_codes,
    write_shard,
)
from latent_prior.folders import whole_folder
from tests.latent_prior.code_samples import LATENTS, SPEC, columns, write_codes


def test_others_can_read_the_codes(tmp_path):
    folder = write_codes(tmp_path / "codes", columns(5))
    rows = datasets.load_from_disk(str(folder))["train"]
    assert rows.features["label"].names == ["ant", "bee"]
    assert rows.features == codes_features(SPEC, captions=False)
    np.testing.assert_array_equal(np.asarray(rows[2]["bottom"]), columns(5)["bottom"][2])
    description = json.loads(rows.info.description)
    assert CodeSpec.from_dict(description["code_spec"]) == SPEC
    assert description["encode"] == {"flip": True}
    assert CodeSpec.from_dict(json.loads((folder / SPEC_FILE).read_text())) == SPEC


@pytest.mark.parametrize("value", [-1, 4])
def test_a_code_outside_its_vocabulary_is_not_written(tmp_path, value):
    rows = columns(3)
    rows["top"][1, 1, 1] = value
    with pytest.raises(AssertionError, match=r"top holds values outside \[0, 4\)"):
        write_shard(tmp_path / "a.arrow", SPEC, rows)


def latent_columns(count: int, seed: int) -> dict[str, np.ndarray]:
    """Two channels far apart, in half precision."""
    noise = np.random.default_rng(seed).normal(size=(count, 2, 4, 4))
    latents = np.array([5.0, -0.25])[:, None, None] + np.array([0.5, 30.0])[:, None, None] * noise
    return {
        "latents": latents.astype(np.float16),
        "view": np.zeros(count, np.uint16),
        "source_index": np.arange(count),
    }


def test_latents_are_measured_over_all_shards(tmp_path):
    """Mean and deviation of each channel in float64, over shards of several sizes, one empty."""
    parts = [latent_columns(count, seed) for seed, count in enumerate((5, 1, 0, 17))]
    paths = [tmp_path / f"{number}.arrow" for number in range(4)]
    for path, part in zip(paths, parts, strict=True):
        write_shard(path, LATENTS, part)
    found = measure_latents(
        paths, dataclasses.replace(LATENTS, latent_shift=None, latent_scale=None)
    )
    latents = np.concatenate([part["latents"] for part in parts]).astype(np.float64)
    np.testing.assert_allclose(found.latent_shift, latents.mean((0, 2, 3)), rtol=1e-12)
    np.testing.assert_allclose(found.latent_scale, latents.std((0, 2, 3)), rtol=1e-9)
    assert dataclasses.replace(found, latent_shift=None, latent_scale=None) == dataclasses.replace(
        LATENTS, latent_shift=None, latent_scale=None
    )


def test_a_channel_that_never_moves_has_no_scale(tmp_path):
    rows = latent_columns(6, 0)
    rows["latents"][:, 0] = 0.1
    write_shard(tmp_path / "a.arrow", LATENTS, rows)
    found = measure_latents([tmp_path / "a.arrow"], LATENTS)
    assert found.latent_scale[0] == pytest.approx(0, abs=1e-7)


def test_codes_come_back_row_by_row(tmp_path):
    parts = [columns(5), columns(3, 5), columns(1, 8)]
    splits, spec = open_codes(write_codes(tmp_path / "codes", *parts))
    assert spec == SPEC
    train = splits["train"]
    assert len(train) == 9
    for name, kind in (("top", np.uint8), ("bottom", np.uint16)):
        assert train.column(name).dtype == kind
        np.testing.assert_array_equal(
            train.column(name), np.concatenate([part[name] for part in parts])
        )
    assert train.labels.tolist() == [0, 1, 0, 1, 0, 0, 1, 0, 0]
    assert train.source_index.tolist() == list(range(9))
    assert train.view.tolist() == [0] * 9


def test_a_split_in_several_files(tmp_path):
    folder = write_codes(tmp_path / "codes", columns(50))
    datasets.load_from_disk(folder).save_to_disk(tmp_path / "other", num_shards={"train": 3})
    write_spec(SPEC, tmp_path / "other")
    assert len(list((tmp_path / "other").rglob("*.arrow"))) == 3
    split = open_codes(tmp_path / "other")[0]["train"]
    order = torch.randperm(50)
    np.testing.assert_array_equal(split.batch(order)["top"], columns(50)["top"][order])


@pytest.mark.parametrize("value", [np.inf, np.nan])
def test_latents_that_are_not_finite_are_refused(tmp_path, value):
    rows = latent_columns(3, 0)
    rows["latents"][2, 0, 1, 1] = value
    split = open_codes(write_codes(tmp_path / "codes", rows, spec=LATENTS))[0]["train"]
    with pytest.raises(ValueError, match=r"arrow: column latents holds numbers that are not fini"):
        split.batch(torch.tensor([0]))


def test_latents_keep_their_type(tmp_path):
    latents = np.random.default_rng(0).normal(size=(3, 2, 4, 4)).astype(np.float16)
    rows = {"latents": latents, "view": np.zeros(3, np.uint16), "source_index": np.arange(3)}
    splits, spec = open_codes(write_codes(tmp_path / "codes", rows, spec=LATENTS))
    assert spec == LATENTS
    assert splits["train"].labels is None
    np.testing.assert_array_equal(splits["train"].column("latents"), latents)
    batch = splits["train"].batch(torch.tensor([2]))
    assert batch["latents"].dtype == torch.float32
    np.testing.assert_array_equal(batch["latents"], latents[2:].astype(np.float32))


def test_batches_and_rows(tmp_path):
    train = open_codes(write_codes(tmp_path / "codes", columns(6)))[0]["train"]
    batch = train.batch(torch.tensor([4, 1, 1]))
    assert batch["bottom"].dtype == batch["labels"].dtype == torch.int64
    np.testing.assert_array_equal(batch["bottom"], columns(6)["bottom"][[4, 1, 1]])
    assert batch["labels"].tolist() == [0, 1, 1]
    chosen = train.rows(train.labels == 1)
    assert chosen.source_index.tolist() == [1, 3, 5]


@pytest.mark.parametrize(
    "choices",
    [
        [np.arange(2100) % 3 > 0, np.array([5, 1399, 700, 5])],
        [np.arange(2100) % 2 == 0, np.arange(1050) > 900],
        [np.arange(1000, 2100), np.arange(1100) % 7 == 0, np.array([3, 1, 2])],
        [np.array([7]), np.array([True])],
        [np.array([2099, 0]), np.array([1, 1, 0])],
        [np.zeros(2100, bool), np.zeros(0, bool)],
        [np.ones(2100, bool), np.arange(2100)[::-1]],
    ],
    ids=["uneven", "every_second", "tail", "one", "repeated", "none", "backwards"],
)
def test_rows_of_rows_are_those_of_numpy(tmp_path, choices):
    """By index and by mask, over the ends of Arrow's chunks of a thousand rows."""
    rows = columns(2100)
    split = open_codes(write_codes(tmp_path / "codes", rows))[0]["train"]
    places = np.arange(2100)
    for chosen in choices:
        split, places = split.rows(chosen), places[chosen]
        assert len(split) == len(places)
        assert split.source_index.tolist() == places.tolist()
        assert split.labels.tolist() == (places % 2).tolist()
        assert split.view.tolist() == [0] * len(places)
        order = torch.arange(len(places)).flip(0)
        batch = split.batch(order)
        for name in ("top", "bottom"):
            np.testing.assert_array_equal(split.column(name), rows[name][places])
            np.testing.assert_array_equal(batch[name], rows[name][places[::-1]])
        assert batch["labels"].tolist() == (places[::-1] % 2).tolist()


def test_all_and_evenly_spaced_rows_need_no_list(tmp_path):
    split = open_codes(write_codes(tmp_path / "codes", columns(2100)))[0]["train"]
    assert split.rows(split.view == 0).chosen == range(2100)
    assert split.rows(split.labels == 1).chosen == range(1, 2100, 2)
    assert split.rows(np.arange(2100) % 3 > 0).chosen.itemsize == 2


@pytest.mark.parametrize("place", [-1, 3])
def test_a_row_outside_the_chosen_ones_is_refused(tmp_path, place):
    """Row 3 of the chosen three is there in the file, but not to be learned from."""
    split = open_codes(write_codes(tmp_path / "codes", columns(6)))[0]["train"]
    for chosen in ([1, 2, 3], [0, 1, 4]):
        with pytest.raises(IndexError, match="of 3"):
            split.rows(np.array(chosen)).batch(torch.tensor([0, place]))


def test_codes_without_classes_have_no_labels(tmp_path):
    rows = {name: values for name, values in columns(3).items() if name != "label"}
    nameless = dataclasses.replace(SPEC, class_names=())
    split = open_codes(write_codes(tmp_path / "codes", rows, spec=nameless))[0]["train"]
    assert split.labels is None
    assert split.rows(np.array([0])).labels is None
    assert split.batch(torch.tensor([0, 2]))["labels"].tolist() == [-1, -1]


def test_distinct_labels_are_those_of_the_chosen_rows(tmp_path, monkeypatch):
    monkeypatch.setattr(codes_dataset, "_LABELS", 3)
    rows = columns(8) | {"label": np.array([-1, 0, 1, -1, 0, 0, 1, 0])}
    split = open_codes(write_codes(tmp_path / "codes", rows))[0]["train"]
    assert split.labels.dtype == np.int64
    for chosen in (range(8), [0, 3], [1, 4, 5, 7], [6, 3]):
        part = split.rows(np.array(chosen))
        assert part.distinct_labels().tolist() == np.unique(rows["label"][chosen]).tolist()


def test_shards_of_any_size_become_files_of_a_size(tmp_path, monkeypatch):
    """In the order of the rows, whatever the number of files."""
    parts = [columns(5), columns(3, 5), columns(1, 8), columns(4, 9)]
    one = write_codes(tmp_path / "one", *parts)
    size = os.path.getsize(tmp_path / "one-0.arrow")
    monkeypatch.setattr(codes_dataset, "_FILE", size + 1)
    two = write_codes(tmp_path / "two", *parts)
    files = [f"data-0000{number}-of-00002.arrow" for number in range(2)]
    assert sorted(path.name for path in two.rglob("*.arrow")) == files
    both = (datasets.load_from_disk(folder)["train"].with_format(None) for folder in (one, two))
    first, second = (rows.to_list() for rows in both)
    assert first == second
    assert [row["source_index"] for row in second] == list(range(13))


def test_codes_stay_on_disk(tmp_path):
    """4 MB of codes: neither opening, nor choosing, nor a batch allocates what grows with them."""
    wide = dataclasses.replace(
        SPEC, levels=(Level("codes", 16, 16, vocabulary=1024),), class_names=()
    )
    rows = {
        "codes": np.random.default_rng(0).integers(0, 1024, (8000, 16, 16)),
        "view": np.zeros(8000, np.uint16),
        "source_index": np.arange(8000),
    }
    folder = write_codes(tmp_path / "codes", rows, spec=wide)
    before = pyarrow.total_allocated_bytes()
    tracemalloc.start()
    try:
        split = open_codes(folder)[0]["train"]
        batch = split.rows(np.arange(8000) % 3 > 0).batch(torch.tensor([5, 4000]))
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 2**20 < rows["codes"].astype(np.uint16).nbytes
    assert pyarrow.total_allocated_bytes() < before + 2**20
    np.testing.assert_array_equal(batch["codes"], rows["codes"][[8, 6001]])


@pytest.mark.parametrize("shape", [(3, 2), (6, 1), (2, 2)])
def test_maps_of_another_shape_are_not_read(tmp_path, shape):
    folder = write_codes(tmp_path / "codes", columns(3))
    levels = SPEC.to_dict()["levels"]
    levels[0] |= {"height": shape[0], "width": shape[1]}
    change_spec(folder, levels=levels)
    with pytest.raises(ValueError, match=r"column top has another shape .*; encode again"):
        open_codes(folder)


def test_a_split_without_labels_beside_one_with_labels_has_unknown_ones(tmp_path):
    unlabelled = {name: values for name, values in columns(3).items() if name != "label"}
    splits, _ = open_codes(write_codes(tmp_path / "codes", unlabelled))
    assert splits["train"].labels.tolist() == [-1, -1, -1]


def test_a_code_outside_its_vocabulary_is_not_read(tmp_path):
    wider = dataclasses.replace(SPEC, levels=(Level("top", 2, 3, vocabulary=5), SPEC.levels[1]))
    rows = columns(3)
    rows["top"][1, 1, 1] = 4
    folder = write_codes(tmp_path / "codes", rows, spec=wider)
    change_spec(folder, levels=SPEC.to_dict()["levels"])
    split = open_codes(folder)[0]["train"]
    for read in (lambda: split.batch(torch.tensor([0])), lambda: split.labels):
        with pytest.raises(ValueError, match="arrow: column top holds code 4, outside its voc"):
            read()


def test_labels_outside_the_classes_are_not_read(tmp_path):
    folder = write_codes(tmp_path / "codes", columns(3))
    change_spec(folder, class_names=["ant"])
    split = open_codes(folder)[0]["train"]
    with pytest.raises(ValueError, match="arrow holds labels outside its 1 classes"):
        split.batch(torch.tensor([0]))


@pytest.mark.parametrize(
    "damage", ["spec", "truncated", "no_description", "no_column", "no_splits", "gone"]
)
def test_a_damaged_folder_is_told(tmp_path, damage):
    folder = write_codes(tmp_path / "codes", columns(50))
    arrow = next(folder.rglob("*.arrow"))
    if damage == "spec":
        (folder / SPEC_FILE).unlink()
    elif damage == "truncated":
        arrow.write_bytes(arrow.read_bytes()[:-2000])
    elif damage == "gone":
        arrow.unlink()
    elif damage == "no_description":
        info = folder / "train" / "dataset_info.json"
        info.write_text(json.dumps({**json.loads(info.read_text()), "description": ""}))
    else:
        rows = datasets.load_from_disk(str(folder))["train"]
        folder = tmp_path / "other"
        if damage == "no_column":
            datasets.DatasetDict({"train": rows.remove_columns("bottom")}).save_to_disk(folder)
        else:
            rows.save_to_disk(folder)
        write_spec(SPEC, folder)
    with pytest.raises(ValueError, match=f"--codes {folder}: .*(encode again|encode.py)"):
        open_codes(folder)


@pytest.fixture
def recorded(tmp_path):
    """Codes with a manifest, in two Arrow files of 25 rows."""
    plain = write_codes(tmp_path / "plain", columns(50))
    with whole_folder(tmp_path / "codes", "codes") as folder:
        datasets.load_from_disk(plain).save_to_disk(folder, num_shards={"train": 2})
        write_spec(SPEC, folder)
    return tmp_path / "codes"


def read_codes(folder):
    split = open_codes(folder)[0]["train"]
    return split.batch(torch.arange(len(split)))


def test_a_flipped_bit_is_refused_wherever_it_is(recorded):
    rows = columns(50)
    files = [path for path in sorted(recorded.rglob("*")) if path.is_file()]
    random = np.random.default_rng(0)
    for path in files:
        content = path.read_bytes()
        for place in random.integers(0, 8 * len(content), 40):
            flipped = bytearray(content)
            flipped[place // 8] ^= 1 << place % 8
            path.write_bytes(flipped)
            with pytest.raises(ValueError, match=str(recorded)):
                read_codes(recorded)
        path.write_bytes(content)
    batch = read_codes(recorded)
    np.testing.assert_array_equal(batch["bottom"], rows["bottom"])
    np.testing.assert_array_equal(batch["labels"], rows["label"])


def test_an_arrow_file_is_compared_with_its_digest_when_it_is_first_read(recorded):
    first, second = sorted(recorded.rglob("*.arrow"))
    content = bytearray(second.read_bytes())
    content[content.rindex(bytes([0, 0, 1]))] ^= 1  # among the row numbers
    second.write_bytes(content)
    split = open_codes(recorded)[0]["train"]
    assert split.batch(torch.tensor([3, 24]))["labels"].tolist() == [1, 0]
    for read in (lambda: split.batch(torch.tensor([3, 25])), lambda: split.view):
        with pytest.raises(ValueError, match=f"{second} is damaged or was exchanged"):
            read()
    assert split.batch(torch.tensor([5]))["labels"].tolist() == [1]
    second.write_bytes(first.read_bytes())
    with pytest.raises(ValueError, match=f"{second} is damaged or was exchanged"):
        open_codes(recorded)[0]["train"].batch(torch.tensor([30]))


@pytest.mark.parametrize(
    "name", ["code_spec.json", "train/dataset_info.json", "train/state.json", "dataset_dict.json"]
)
def test_a_file_of_other_codes_is_refused(recorded, tmp_path, name):
    other = dataclasses.replace(SPEC, autoencoder_fingerprint="b" * 64)
    with whole_folder(tmp_path / "other", "codes") as folder:
        write_codes(folder / "unpacked", columns(40), columns(9), spec=other)
        rows = datasets.load_from_disk(folder / "unpacked")["train"]
        datasets.DatasetDict({"train": rows, "test": rows}).save_to_disk(folder)
        write_spec(other, folder)
    (recorded / name).write_bytes((tmp_path / "other" / name).read_bytes())
    with pytest.raises(ValueError, match=f"{recorded / name} is damaged or was exchanged"):
        open_codes(recorded)


@pytest.mark.parametrize("name", ["code_spec.json", "train/state.json", "arrow"])
def test_a_fifo_in_a_codes_dataset_is_not_waited_for(recorded, name):
    path = next(recorded.rglob("*.arrow")) if name == "arrow" else recorded / name
    path.unlink()
    os.mkfifo(path)
    with pytest.raises(ValueError, match=f"{recorded}.*{path.name}"):
        open_codes(recorded)


def test_codes_from_before_manifests_are_read_with_a_warning(tmp_path, caplog):
    folder = write_codes(tmp_path / "codes", columns(3))
    np.testing.assert_array_equal(open_codes(folder)[0]["train"].column("top"), columns(3)["top"])
    assert f"{folder} has no manifest.json" in caplog.text


def test_no_folder_at_all_is_told(tmp_path):
    with pytest.raises(ValueError, match="there is no codes dataset"):
        open_codes(tmp_path / "nowhere")


def captioned(count, start=0, views=1):
    """Rows of `SPEC` with one caption or two, which views of an image share."""
    texts = [[f"a {n}", f"🐝 {n}"][: 1 + n % 2] for n in range(start, start + count)]
    rows = columns(count * views, start)
    rows["source_index"] = np.arange(start, start + count).repeat(views)
    return rows | {"captions": [each for each in texts for _ in range(views)]}


def test_captions_come_back_row_by_row(tmp_path):
    parts = [captioned(5), captioned(1300, 5)]
    folder = write_codes(tmp_path / "codes", *parts)
    expected = parts[0]["captions"] + parts[1]["captions"]
    split = open_codes(folder)[0]["train"]
    assert split.has_captions
    assert split.captions(range(1305)) == expected
    order = torch.randperm(1305)
    assert split.captions(order) == [expected[n] for n in order]
    odd = split.rows(split.labels == 1)
    assert odd.captions([1, 0]) == [expected[n] for n in np.flatnonzero(split.labels == 1)[[1, 0]]]
    assert split.captions([]) == odd.captions([]) == []
    for index in (-1, 1305):
        with pytest.raises(IndexError, match="of 1305"):
            split.captions([0, index])
    stored = datasets.load_from_disk(folder)["train"]
    assert stored.features == codes_features(SPEC, captions=True)
    assert stored["captions"][:] == expected


def test_captions_of_each_image_once(tmp_path, monkeypatch):
    folder = write_codes(tmp_path / "codes", captioned(700, views=3), captioned(4, 700, views=2))
    split = open_codes(folder)[0]["train"]
    expected = [text for row in captioned(704)["captions"] for text in row]
    monkeypatch.setattr(codes_dataset, "_ROWS", 256)  # three views lie across its ends
    assert list(split.distinct_captions()) == expected
    assert list(split.rows(split.view == 0).distinct_captions()) == expected
    assert list(split.rows(split.source_index >= 700).distinct_captions()) == expected[-6:]


def test_codes_without_captions_say_so(tmp_path):
    split = open_codes(write_codes(tmp_path / "codes", columns(3)))[0]["train"]
    assert not split.has_captions
    for read in (lambda: split.captions([0]), lambda: next(split.distinct_captions())):
        with pytest.raises(ValueError, match="the codes have no captions; encode images that have"):
            read()


def test_one_split_may_have_captions_alone(tmp_path):
    paths = {"train": tmp_path / "a.arrow", "test": tmp_path / "b.arrow"}
    write_shard(paths["train"], SPEC, captioned(3))
    write_shard(paths["test"], SPEC, columns(3))
    join_shards(tmp_path / "codes", {name: [path] for name, path in paths.items()}, SPEC, {})
    splits = open_codes(tmp_path / "codes")[0]
    assert splits["train"].captions([2]) == [["a 2"]]
    assert not splits["test"].has_captions
    assert set(datasets.load_from_disk(tmp_path / "codes")) == {"train", "test"}


def test_captions_stay_on_disk(tmp_path):
    """5 MB of captions, of which a batch and a walk over all keep little."""
    rows = columns(5000) | {"captions": [[f"{n} " + "x" * 1000] for n in range(5000)]}
    folder = write_codes(tmp_path / "codes", rows)
    before = pyarrow.total_allocated_bytes()
    tracemalloc.start()
    try:
        split = open_codes(folder)[0]["train"]
        assert split.captions(torch.tensor([4999])) == [rows["captions"][4999]]
        assert sum(len(text) for text in split.distinct_captions()) > 5_000_000
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 2**21
    assert pyarrow.total_allocated_bytes() < before + 2**20


def test_damaged_captions_are_told(tmp_path):
    """In a folder from before manifests, which would name the file at once."""
    folder = write_codes(tmp_path / "codes", columns(3) | {"captions": [["abcdef"]] * 3})
    arrow = next(folder.rglob("*.arrow"))
    content = arrow.read_bytes()
    arrow.write_bytes(content.replace(b"abcdef", b"abc\xffef"))
    split = open_codes(folder)[0]["train"]
    for read in (lambda: split.captions([0]), lambda: split.batch(torch.tensor([0]))):
        with pytest.raises(ValueError, match=r"arrow: column captions is damaged .*; encode again"):
            read()


def test_a_changed_caption_changes_the_fingerprint_and_is_refused(tmp_path):
    with whole_folder(tmp_path / "codes", "codes") as folder:
        write_codes(folder, captioned(9))
    split = open_codes(tmp_path / "codes")[0]["train"]
    with whole_folder(tmp_path / "other", "codes") as folder:
        write_codes(folder, captioned(9) | {"captions": [["b"]] * 9})
    assert open_codes(tmp_path / "other")[0]["train"].table.fingerprint != split.table.fingerprint
    arrow = next((tmp_path / "codes").rglob("*.arrow"))
    arrow.write_bytes(arrow.read_bytes().replace(b"a 4", b"a 5"))
    with pytest.raises(ValueError, match="arrow is damaged or was exchanged"):
        open_codes(tmp_path / "codes")[0]["train"].captions([0])


def change_spec(folder, **changes):
    """What a meddling hand does to the spec inside a codes dataset."""
    path = folder / "train" / "dataset_info.json"
    info = json.loads(path.read_text())
    description = json.loads(info["description"])
    description["code_spec"] |= changes
    path.write_text(json.dumps({**info, "description": json.dumps(description)}))
    (folder / SPEC_FILE).write_text(json.dumps(description["code_spec"]))
