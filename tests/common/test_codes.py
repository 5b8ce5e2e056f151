import dataclasses
import json

import datasets
import numpy as np
import pytest
import torch

from common.codes import (
    SPEC_FILE,
    CodeSpec,
    Level,
    check_same_codes,
    codes_features,
    join_shards,
    measure_latents,
    open_codes,
    smallest_integer_type,
    write_shard,
    write_spec,
)

SPEC = CodeSpec(
    kind="codes",
    levels=(Level("top", 2, 3, vocabulary=4), Level("bottom", 4, 6, vocabulary=300)),
    image_size=24,
    image_channels=3,
    autoencoder_type="latent_prior_vqvae",
    autoencoder_fingerprint="a" * 64,
    class_names=("ant", "bee"),
)
LATENTS = dataclasses.replace(
    SPEC, kind="latents", levels=(Level("latents", 4, 4, channels=2),), class_names=(),
    latent_shift=(0.5, -0.25), latent_scale=(1.0, 2.0),
)  # fmt: skip


def columns(count: int, start: int = 0) -> dict[str, np.ndarray]:
    random = np.random.default_rng(start)
    return {
        "top": random.integers(0, 4, (count, 2, 3)),
        "bottom": random.integers(0, 300, (count, 4, 6)),
        "label": np.arange(count) % 2,
        "view": np.zeros(count, np.uint16),
        "source_index": np.arange(start, start + count),
    }


def write_codes(folder, *parts, spec=SPEC, split="train"):
    shards = []
    for number, part in enumerate(parts):
        shards.append(folder.with_name(f"{folder.name}-{number}.arrow"))
        write_shard(shards[-1], spec, part)
    join_shards(folder, {split: shards}, spec, {"flip": True})
    return folder


@pytest.mark.parametrize("spec", [SPEC, LATENTS])
def test_a_spec_survives_json(spec, tmp_path):
    assert CodeSpec.from_dict(spec.to_dict()) == spec
    assert CodeSpec.from_dict(json.loads(json.dumps(spec.to_dict()))) == spec
    write_spec(spec, tmp_path)
    assert CodeSpec.from_dict(json.loads((tmp_path / SPEC_FILE).read_text())) == spec
    assert hash(CodeSpec.from_dict(spec.to_dict())) == hash(spec)


def test_lengths_count_all_levels():
    assert SPEC.length == 6 + 24
    assert [level.length for level in SPEC.levels] == [6, 24]


@pytest.mark.parametrize(
    "change",
    [{"levels": None}, {"levels": [{"name": "a"}]}, {"levels": [3]}, {"unknown": 1}],
)
def test_a_spec_with_other_fields_is_refused(change):
    with pytest.raises(ValueError, match="not a code spec"):
        CodeSpec.from_dict({**SPEC.to_dict(), **change})
    with pytest.raises(ValueError, match="not a code spec"):
        CodeSpec.from_dict({"kind": "codes"})


@pytest.mark.parametrize(
    ("vocabulary", "kind"),
    [(1, "uint8"), (256, "uint8"), (257, "uint16"), (65536, "uint16"), (65537, "uint32")],
)
def test_the_smallest_integer_type(vocabulary, kind):
    assert smallest_integer_type(vocabulary) == kind
    assert np.iinfo(kind).max >= vocabulary - 1


def test_the_same_codes_pass_whatever_the_class_names():
    check_same_codes(SPEC, dataclasses.replace(SPEC, class_names=()), "a", "b")


@pytest.mark.parametrize(
    "change",
    [
        {"autoencoder_fingerprint": "b" * 64}, {"image_size": 48}, {"image_channels": 1}, {"kind": "latents"},
        {"levels": SPEC.levels[:1]}, {"autoencoder_type": "other"},
    ],
)  # fmt: skip
def test_other_codes_are_told_with_both_fingerprints(change):
    other = dataclasses.replace(SPEC, **change)
    with pytest.raises(ValueError, match=next(iter(change))) as refused:
        check_same_codes(SPEC, other, "the prior", "the pipeline")
    for part in ("the prior", "the pipeline", "a" * 12, other.autoencoder_fingerprint[:12]):
        assert part in str(refused.value)


def test_codes_come_back_row_by_row(tmp_path):
    parts = [columns(5), columns(3, 5), columns(1, 8)]
    splits, spec = open_codes(write_codes(tmp_path / "codes", *parts))
    assert spec == SPEC
    train = splits["train"]
    assert len(train) == 9
    for name, kind in (("top", np.uint8), ("bottom", np.uint16)):
        assert train.maps[name].dtype == kind
        np.testing.assert_array_equal(
            train.maps[name], np.concatenate([part[name] for part in parts])
        )
    assert train.labels.tolist() == [0, 1, 0, 1, 0, 0, 1, 0, 0]
    assert train.source_index.tolist() == list(range(9))
    assert train.view.tolist() == [0] * 9


def test_others_can_read_the_codes(tmp_path):
    folder = write_codes(tmp_path / "codes", columns(5))
    rows = datasets.load_from_disk(str(folder))["train"]
    assert rows.features["label"].names == ["ant", "bee"]
    assert rows.features == codes_features(SPEC)
    np.testing.assert_array_equal(np.asarray(rows[2]["bottom"]), columns(5)["bottom"][2])
    description = json.loads(rows.info.description)
    assert CodeSpec.from_dict(description["code_spec"]) == SPEC
    assert description["encode"] == {"flip": True}
    assert CodeSpec.from_dict(json.loads((folder / SPEC_FILE).read_text())) == SPEC


def test_latents_keep_their_type(tmp_path):
    latents = np.random.default_rng(0).normal(size=(3, 2, 4, 4)).astype(np.float16)
    rows = {"latents": latents, "view": np.zeros(3, np.uint16), "source_index": np.arange(3)}
    splits, spec = open_codes(write_codes(tmp_path / "codes", rows, spec=LATENTS))
    assert spec == LATENTS
    assert splits["train"].labels is None
    np.testing.assert_array_equal(splits["train"].maps["latents"], latents)
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
    nameless = dataclasses.replace(chosen, labels=None)
    assert nameless.batch(torch.tensor([0]))["labels"].tolist() == [-1]
    assert nameless.rows(np.array([0])).labels is None


def test_a_split_without_labels_beside_one_with_labels_has_unknown_ones(tmp_path):
    unlabelled = {name: values for name, values in columns(3).items() if name != "label"}
    splits, _ = open_codes(write_codes(tmp_path / "codes", unlabelled))
    assert splits["train"].labels.tolist() == [-1, -1, -1]


@pytest.mark.parametrize("value", [-1, 4])
def test_a_code_outside_its_vocabulary_is_not_written(tmp_path, value):
    rows = columns(3)
    rows["top"][1, 1, 1] = value
    with pytest.raises(AssertionError, match=r"top holds values outside \[0, 4\)"):
        write_shard(tmp_path / "a.arrow", SPEC, rows)


def test_a_code_outside_its_vocabulary_is_not_read(tmp_path):
    wider = dataclasses.replace(SPEC, levels=(Level("top", 2, 3, vocabulary=5), SPEC.levels[1]))
    rows = columns(3)
    rows["top"][1, 1, 1] = 4
    folder = write_codes(tmp_path / "codes", rows, spec=wider)
    change_spec(folder, levels=SPEC.to_dict()["levels"])
    with pytest.raises(ValueError, match="column top holds code 4, outside its vocabulary of 4"):
        open_codes(folder)


def test_labels_outside_the_classes_are_not_read(tmp_path):
    folder = write_codes(tmp_path / "codes", columns(3))
    change_spec(folder, class_names=["ant"])
    with pytest.raises(ValueError, match="holds labels outside its 1 classes"):
        open_codes(folder)


def change_spec(folder, **changes):
    """What a meddling hand does to the spec inside a codes dataset."""
    path = folder / "train" / "dataset_info.json"
    info = json.loads(path.read_text())
    description = json.loads(info["description"])
    description["code_spec"] |= changes
    path.write_text(json.dumps({**info, "description": json.dumps(description)}))


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


def test_no_folder_at_all_is_told(tmp_path):
    with pytest.raises(ValueError, match="there is no codes dataset"):
        open_codes(tmp_path / "nowhere")


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
    """Mean and deviation of each channel in float64, of shards of different sizes and an empty one."""
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


def test_measures_of_latents_are_no_part_of_the_hand_over():
    """An autoencoder's own spec has none; the data set's has."""
    bare = dataclasses.replace(LATENTS, latent_shift=None, latent_scale=None)
    check_same_codes(bare, LATENTS, "the autoencoder", "the prior")


def test_the_shape_of_one_image():
    assert [level.shape for level in SPEC.levels] == [(2, 3), (4, 6)]
    assert LATENTS.levels[0].shape == (2, 4, 4)
    assert LATENTS.levels[0].length == 16
