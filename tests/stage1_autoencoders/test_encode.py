import json
import os
import shutil
import sys

import numpy as np
import pytest
import torch
from datasets import ClassLabel, load_from_disk
from PIL import Image

from latent_prior.data.codes_dataset import open_codes
from latent_prior.data.images import crop_windows, open_images, to_float
from latent_prior.manifests import MANIFEST
from latent_prior.options import ImageOptions
from latent_prior.pipelines import Pipeline
from latent_prior.stage1_autoencoders import encode, load_autoencoder
from tests.conftest import caption_rows, write_captions
from tests.latent_prior.data.shards.conftest import write_shards

NAMES = ["apple", "bee", "car"]


@pytest.fixture
def write(call, images, autoencoder_folder, tmp_path):
    """`write(...)` encodes the 40 shapes; returns the train split and the new folder."""

    def into(name="codes", **flags):
        folder = tmp_path / name
        settings = {"dataset": images, "batch_size": 16, "shard_images": 9, **flags}
        call(encode, autoencoder=autoencoder_folder, output_dir=folder, **settings)
        return load_from_disk(str(folder))["train"], folder

    return into


@pytest.fixture(scope="module")
def autoencoder(autoencoder_folder):
    return load_autoencoder(autoencoder_folder)


def rows(split):
    """Every row as plain Python values."""
    return split.with_format(None).to_list()


def assert_same_rows(one, two):
    """Every column, whatever the batches were."""
    assert len(one) == len(two)
    for name in one.column_names:
        found, expected = column(one, name), column(two, name)
        assert same_codes(found, expected) if name == "codes" else (found == expected).all(), name


def same_codes(one, two):
    """In batches of other sizes a vector between two codes may go to either: one in 1,000."""
    return (one != two).mean() <= 1e-3


def column(split, name):
    return np.asarray(split.with_format(None)[name][:])


def encode_alone(autoencoder, images):
    """The slow way: one uint8 image (C, 16, 16) at a time."""
    with torch.no_grad():
        maps = [autoencoder.encode(to_float(image[None]))["codes"][0] for image in images]
    return torch.stack(maps).numpy()


def test_a_row_for_each_image_with_its_code(write, images, autoencoder):
    split, folder = write()
    assert len(split) == 40
    assert split.column_names == ["codes", "label", "view", "source_index"]
    assert split.features["codes"].dtype == "uint8"  # 16 codes
    assert split.features["codes"].shape == (8, 8)
    assert split.features["label"] == ClassLabel(names=NAMES)
    assert column(split, "source_index").tolist() == list(range(40))
    assert set(column(split, "view")) == {0}
    pictures = open_images(ImageOptions(dataset=str(images), image_size=16, channels=3), "train")
    assert np.array_equal(column(split, "label"), pictures.labels.numpy())
    assert same_codes(column(split, "codes"), encode_alone(autoencoder, pictures.read(range(40))))
    assert len(np.unique(column(split, "codes"))) > 4
    assert not [path for path in folder.parent.iterdir() if path != folder]


def test_the_dataset_says_what_it_holds(write, autoencoder):
    split, folder = write()
    inside = json.loads(split.info.description)
    beside = json.loads((folder / "code_spec.json").read_text())
    assert inside["code_spec"] == beside
    assert beside["class_names"] == NAMES
    assert beside["autoencoder_fingerprint"] == autoencoder.fingerprint
    assert inside["encode"]["shard_images"] == 9
    opened, spec = open_codes(folder)
    assert spec.to_dict() == beside
    assert np.array_equal(opened["train"].column("codes"), column(split, "codes"))


def test_a_large_codebook_takes_a_wider_type(call, parts, images, tmp_path):
    parts["vqvae"](codebook_size=300).save_pretrained(tmp_path / "wide")
    call(encode, autoencoder=tmp_path / "wide", dataset=images, output_dir=tmp_path / "codes")
    split = load_from_disk(str(tmp_path / "codes"))["train"]
    assert split.features["codes"].dtype == "uint16"


def test_views_are_the_images_a_user_would_cut(write, images, autoencoder):
    """View 0 is the plain image, 1 its mirror image, then each window and its mirror image."""
    split, _ = write(crops=2, flip=True, crop_padding=3, seed=5)
    plain, _ = write("plain")
    assert len(split) == 40 * 6
    codes = column(split, "codes").reshape(40, 6, 8, 8)
    assert column(split, "view").reshape(40, 6).tolist() == [[0, 1, 2, 3, 4, 5]] * 40
    assert np.array_equal(column(split, "source_index"), np.repeat(np.arange(40), 6))
    assert np.array_equal(column(split, "label"), np.repeat(column(plain, "label"), 6))
    assert np.array_equal(codes[:, 0], column(plain, "codes"))

    pictures = open_images(ImageOptions(dataset=str(images), image_size=16, channels=3), "train")
    whole = pictures.read(range(40))
    assert same_codes(codes[:, 1], encode_alone(autoencoder, whole.flip(-1)))
    # Every window is one of the 7 x 7 there are, and its mirror image stands beside it.
    padded = torch.nn.functional.pad(whole.float(), (3, 3, 3, 3), mode="replicate").byte()
    corners = [(top, left) for top in range(7) for left in range(7)]
    chosen = set()
    for image in range(4):
        windows = [padded[image, :, t : t + 16, l : l + 16] for t, l in corners]
        possible = encode_alone(autoencoder, windows)
        mirrored = encode_alone(autoencoder, [window.flip(-1) for window in windows])
        for view in (2, 4):
            fits = (possible == codes[image, view]).all((1, 2))
            assert fits.any()
            assert (mirrored[fits] == codes[image, view + 1]).all((1, 2)).any()
            chosen.add(int(fits.argmax()))
    assert len(chosen) > 4


def test_windows_of_a_larger_image_need_no_padding(write, images, autoencoder):
    split, _ = write(resize=20, crops=1)
    codes = column(split, "codes").reshape(40, 2, 8, 8)
    options = ImageOptions(dataset=str(images), image_size=16, channels=3, resize=20)
    larger = open_images(options, "train").read(range(40))
    assert larger.shape[-1] == 20
    centre = crop_windows(larger, 16, 0, None)
    assert torch.equal(centre, larger[..., 2:18, 2:18])
    assert same_codes(codes[:, 0], encode_alone(autoencoder, centre))
    for image in range(3):
        corners = [(t, l) for t in range(5) for l in range(5)]
        windows = [larger[image, :, t : t + 16, l : l + 16] for t, l in corners]
        assert (encode_alone(autoencoder, windows) == codes[image, 1]).all((1, 2)).any()


def test_rows_do_not_depend_on_how_the_work_is_cut(write):
    flags = {"crops": 1, "flip": True, "crop_padding": 2}
    one, _ = write("one", batch_size=40, shard_images=1000, **flags)
    two, _ = write("two", batch_size=7, shard_images=10, cache_mb=0, **flags)
    assert_same_rows(one, two)
    other, _ = write("other", seed=1, **flags)
    assert rows(other) != rows(one)


@pytest.fixture
def two_splits(parts, tmp_path):
    for split, count in (("train", 12), ("validation", 6), ("test", 5)):
        parts["images"](tmp_path / "data" / split, count)
    return tmp_path / "data"


def test_a_data_set_of_test_images_alone_is_encoded_on_request(
    call, refused, parts, autoencoder_folder, tmp_path
):
    parts["images"](tmp_path / "data" / "test", 6)
    flags = {"autoencoder": autoencoder_folder, "dataset": tmp_path / "data"}
    assert "unless it is asked for: --split test" in refused(
        encode, output_dir=tmp_path / "codes", **flags
    )
    call(encode, output_dir=tmp_path / "codes", split="test", **flags)
    assert len(load_from_disk(str(tmp_path / "codes"))["test"]) == 6


def test_splits_are_kept_and_only_training_images_are_augmented(
    call, two_splits, autoencoder_folder, tmp_path
):
    flags = {"autoencoder": autoencoder_folder, "dataset": two_splits, "flip": True}
    call(encode, output_dir=tmp_path / "all", **flags)
    splits = load_from_disk(str(tmp_path / "all"))
    assert {name: len(split) for name, split in splits.items()} == {"train": 24, "validation": 6}
    call(encode, output_dir=tmp_path / "test", split="test", **flags)
    assert list(load_from_disk(str(tmp_path / "test"))) == ["test"]


@pytest.fixture
def append(call, two_splits, autoencoder_folder, tmp_path):
    """`append(name, split)` encodes one split of three into a folder; None takes the default."""

    def into(name, split, **flags):
        settings = {"dataset": two_splits, "autoencoder": autoencoder_folder, **flags}
        call(encode, output_dir=tmp_path / name, split=split, **settings)
        return tmp_path / name

    return into


def test_a_split_is_added_to_those_that_are_there(append, monkeypatch):
    """Nothing is encoded again, and every split is what it would be alone."""
    encoded = []
    monkeypatch.setattr(
        encode,
        "encode_images",
        lambda a, images, split, *others: (
            encoded.append(split) or encode_images(a, images, split, *others)
        ),
    )
    folder = append("codes", "train", flip=True)
    (folder / "notes.txt").write_text("mine")
    before = open_codes(folder)[0]["train"].table.fingerprint
    written = (folder / "train" / "state.json").stat().st_mtime_ns
    for split in ("test", None, "train", "validation"):  # None adds validation
        append("codes", split, flip=True)
    assert encoded == ["train", "test", "validation"]
    splits, _ = open_codes(folder)
    assert {name: len(split) for name, split in splits.items()} == {
        "train": 24, "test": 5, "validation": 6
    }  # fmt: skip
    assert splits["train"].table.fingerprint == before
    assert (folder / "train" / "state.json").stat().st_mtime_ns == written
    assert (folder / "notes.txt").read_text() == "mine"
    assert "notes.txt" not in (folder / MANIFEST).read_text()
    settings = json.loads((folder / "encode.json").read_text())
    assert list(settings["images_fingerprint"]) == ["train", "test", "validation"]
    together = load_from_disk(str(folder))
    for name in splits:
        alone = load_from_disk(str(append(f"alone-{name}", name, flip=True)))[name]
        assert rows(alone) == rows(together[name])
    assert not [path for path in folder.parent.iterdir() if path.name.startswith(".")]


@pytest.mark.parametrize(
    ("flags", "culprit"),
    [
        ({"flip": True}, "with flip = False"),
        ({"autoencoder": "other"}, "with autoencoder_fingerprint = "),
        ({"dataset": "other"}, "with dataset = "),
    ],
)
def test_a_split_of_something_else_is_not_added(
    append, refused, parts, two_splits, autoencoder_folder, tmp_path, flags, culprit
):
    folder = append("codes", "train")
    parts["vqvae"](seed=4).save_pretrained(tmp_path / "other")
    parts["images"](tmp_path / "images" / "test", 3)
    others = {"autoencoder": tmp_path / "other", "dataset": tmp_path / "images"}
    settings = {"dataset": two_splits, "autoencoder": autoencoder_folder}
    settings |= {name: others.get(name, value) for name, value in flags.items()}
    assert culprit in refused(encode, output_dir=folder, split="test", **settings)


def test_a_split_with_other_images_than_before_is_refused(append, refused, two_splits, autoencoder_folder):  # fmt: skip
    folder = append("codes", "train")
    append("codes", "test")
    path = next((two_splits / "test").rglob("*.png"))
    Image.new("RGB", (16, 16), (1, 2, 3)).save(path)
    flags = {"dataset": two_splits, "autoencoder": autoencoder_folder, "output_dir": folder}
    assert "with images_fingerprint = " in refused(encode, split="test", **flags)
    append("codes", "train")  # those are the same


def test_a_split_with_other_classes_is_not_added(append, refused, two_splits, autoencoder_folder):
    folder = append("codes", "train")
    (two_splits / "test" / "apple").rename(two_splits / "test" / "ant")
    flags = {"dataset": two_splits, "autoencoder": autoencoder_folder, "output_dir": folder}
    assert "other classes than those of test" in refused(encode, split="test", **flags)


def test_damaged_codes_get_no_new_manifest(append, refused, two_splits, autoencoder_folder):
    folder = append("codes", "train")
    path = next(folder.rglob("*.arrow"))
    path.write_bytes(path.read_bytes()[:-100])
    flags = {"dataset": two_splits, "autoencoder": autoencoder_folder, "output_dir": folder}
    with pytest.raises(ValueError, match=str(path)):
        append("codes", "test")
    assert str(path) in refused(encode, split="train", **flags)


def test_an_interrupted_run_goes_on_to_the_same_rows(write, monkeypatch):
    whole, _ = write("whole", crops=1, crop_padding=2)

    def dies(path, spec, columns):
        if columns["source_index"][0] == 18:  # the third of five shards
            raise KeyboardInterrupt
        write_shard(path, spec, columns)

    write_shard = encode.write_shard
    with monkeypatch.context() as patched:
        patched.setattr(encode, "write_shard", dies)
        with pytest.raises(KeyboardInterrupt):
            write("stopped", crops=1, crop_padding=2)
    encoded = []
    monkeypatch.setattr(
        encode,
        "encode_images",
        lambda a, images, split, first, options, line: (
            encoded.append(first) or encode_images(a, images, split, first, options, line)
        ),
    )
    again, folder = write("stopped", crops=1, crop_padding=2)
    assert encoded == [18, 27, 36]
    assert rows(again) == rows(whole)
    assert {path.name for path in folder.parent.iterdir()} == {"whole", "stopped"}
    encoded.clear()
    write("stopped", crops=1, crop_padding=2)
    assert encoded == []


encode_images = encode.encode_images


@pytest.fixture
def stopped(write, call, monkeypatch):
    """A run of five shards that was stopped before it joined them: its flags and its shards."""

    def dies(folder, shards, spec, settings):
        raise KeyboardInterrupt

    def into(**flags):
        with monkeypatch.context() as patched:
            patched.setattr(encode, "join_shards", dies)
            with pytest.raises(KeyboardInterrupt):
                write("codes", **flags)

    return into


@pytest.mark.parametrize("how", ["empty", "half", "bit", "folder", "other rows", "fifo", "link"])
def test_a_damaged_shard_is_encoded_again(write, stopped, tmp_path, caplog, how):
    whole, _ = write("whole")
    stopped()
    first, second = sorted((tmp_path / ".codes.shards").glob("*.arrow"))[:2]
    content = first.read_bytes()
    if how in ("folder", "fifo", "link"):
        first.unlink()
        if how == "folder":
            (first / "inner").mkdir(parents=True)
        elif how == "fifo":
            os.mkfifo(first)
        else:
            first.symlink_to(tmp_path / "nowhere")
    else:
        changed = bytearray(content)
        changed[-900] ^= 4
        first.write_bytes(
            {"empty": b"", "half": content[:-900], "bit": changed}.get(how, second.read_bytes())
        )
    again, folder = write()
    assert rows(again) == rows(whole)
    assert f"{first} is damaged" in caplog.text
    assert {path.name for path in folder.parent.iterdir()} == {"whole", "codes"}


def test_shards_of_other_images_are_thrown_away(write, stopped, images, tmp_path):
    data = shutil.copytree(images, tmp_path / "data")
    stopped(dataset=data)
    shutil.copy(data / "bee" / "019.png", data / "apple" / "000a.png")
    split, _ = write(dataset=data)
    shutil.rmtree(tmp_path / "codes")
    fresh, _ = write(dataset=data)
    assert len(split) == 41
    assert rows(split) == rows(fresh)


@pytest.mark.parametrize("how", ["file", "link", "settings", "read-only"])
def test_what_lies_in_place_of_the_shards_is_cleared_away(write, stopped, tmp_path, how):
    whole, _ = write("whole")
    shards, precious = tmp_path / ".codes.shards", tmp_path / "precious"
    precious.mkdir()
    (precious / "a").write_text("mine")
    if how == "file":
        shards.write_text("x")
    elif how == "link":
        shards.symlink_to(precious)
    else:
        stopped(seed=4)
        if how == "settings":
            (shards / "encode.json").write_text("{")
        shards.chmod(0o500 if how == "read-only" else 0o700)
    again, _ = write()
    assert rows(again) == rows(whole)
    assert {path.name for path in tmp_path.iterdir()} == {"whole", "codes", "precious"}
    assert (precious / "a").read_text() == "mine"


def test_finished_codes_of_other_images_are_not_taken_for_these(write, refused, images, tmp_path):
    data = shutil.copytree(images, tmp_path / "data")
    _, folder = write(dataset=data)
    shutil.copy(data / "bee" / "019.png", data / "apple" / "000a.png")
    flags = json.loads((folder / "encode.json").read_text())
    said = refused(encode, autoencoder=flags["autoencoder"], dataset=data, output_dir=folder)
    assert f"--output_dir {folder} holds codes with images_fingerprint" in said


@pytest.mark.parametrize(
    "name", ["train/data-00000-of-00001.arrow", "dataset_dict.json", "code_spec.json", "train"]
)
def test_damaged_codes_are_not_already_there(write, images, autoencoder_folder, refused, name):
    _, folder = write()
    path = folder / name
    if path.is_dir():
        shutil.rmtree(path)
    elif path.suffix == ".arrow":
        path.write_bytes(path.read_bytes()[:-100])
    else:
        path.unlink()
    flags = {"autoencoder": autoencoder_folder, "dataset": images, "output_dir": folder}
    said = refused(encode, **flags)
    assert str(path) in said
    assert f"to make it anew, delete --output_dir {folder} first" in said


def test_leftovers_beside_finished_codes_are_cleared_away(write, tmp_path):
    """A process that is killed after it renamed the codes leaves its shards."""
    write()
    (tmp_path / ".codes.shards").mkdir()
    (tmp_path / ".codes.shards" / "train-000000.arrow").write_text("x")
    (tmp_path / ".codes.partial").mkdir()
    write()
    assert [path.name for path in tmp_path.iterdir()] == ["codes"]


def test_shards_of_other_settings_are_thrown_away(write, monkeypatch):
    whole, _ = write("whole", crops=1, crop_padding=2)

    def dies(folder, shards, spec, settings):
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(encode, "join_shards", dies)
        with pytest.raises(KeyboardInterrupt):
            write("codes", crops=1, crop_padding=1)
    split, _ = write("codes", crops=1, crop_padding=2)
    assert rows(split) == rows(whole)


@pytest.mark.parametrize(
    "flags", [{"flip": True}, {"crops": 1, "crop_padding": 1}, {"seed": 1}, {"on_corrupt": "skip"}]
)
def test_codes_of_other_settings_are_not_overwritten(
    write, refused, images, autoencoder_folder, flags
):
    _, folder = write()
    said = refused(
        encode, autoencoder=autoencoder_folder, dataset=images, output_dir=folder, **flags
    )
    assert str(folder) in said
    assert any(name in said for name in flags)


def test_codes_of_another_autoencoder_are_not_overwritten(write, refused, images, parts, tmp_path):
    _, folder = write()
    parts["vqvae"](seed=4).save_pretrained(tmp_path / "other")
    said = refused(encode, autoencoder=tmp_path / "other", dataset=images, output_dir=folder)
    assert "autoencoder_fingerprint" in said


def test_harmless_flags_may_change(write):
    split, folder = write()
    before = (folder / "code_spec.json").stat().st_mtime_ns
    again, _ = write(batch_size=3, shard_images=100, cache_mb=1)
    assert (folder / "code_spec.json").stat().st_mtime_ns == before
    assert rows(again) == rows(split)


def test_the_command_is_recorded_and_is_no_setting(write, monkeypatch):
    """Codes of another spelling, or of a version that recorded none, are the same codes."""
    monkeypatch.setattr(sys, "argv", [encode.__file__, "--batch_size=16", "--crops", "0"])
    split, folder = write()
    settings = json.loads((folder / "encode.json").read_text())
    assert settings["command"].endswith(" stage1_autoencoders/encode.py --batch_size=16 --crops 0")
    assert json.loads(split.info.description)["encode"] == settings
    monkeypatch.setattr(sys, "argv", [encode.__file__, "--batch_size", "16"])
    written = (folder / "code_spec.json").stat().st_mtime_ns
    write()
    del settings["command"], settings["images_fingerprint"]
    (folder / "encode.json").write_text(json.dumps(settings))
    (folder / MANIFEST).unlink()
    write()
    assert (folder / "code_spec.json").stat().st_mtime_ns == written


@pytest.fixture
def damaged(images, tmp_path):
    """A copy of the images with one that cannot be read, in the middle."""
    folder = shutil.copytree(images, tmp_path / "damaged")
    path = folder / "bee" / "019.png"
    path.write_bytes(path.read_bytes()[:50])
    return folder, path


def test_a_corrupt_image_is_named(refused, damaged, autoencoder_folder, tmp_path):
    folder, path = damaged
    flags = {"autoencoder": autoencoder_folder, "dataset": folder, "cache_mb": 2048}
    said = refused(encode, output_dir=tmp_path / "codes", **flags)
    assert str(path) in said
    assert "--on_corrupt skip" in said


def test_a_corrupt_image_is_named_when_it_is_met_on_the_way(
    call, damaged, autoencoder_folder, tmp_path
):
    """Encoded shards are kept, but there is no dataset."""
    folder, path = damaged
    flags = {"autoencoder": autoencoder_folder, "dataset": folder}
    for size, kept in ((100, ["damaged"]), (9, [".codes.shards", "damaged"])):
        with pytest.raises(ValueError, match=str(path)):
            call(encode, output_dir=tmp_path / "codes", shard_images=size, **flags)
        assert sorted(path.name for path in tmp_path.iterdir()) == kept
    shutil.copy(folder / "bee" / "001.png", path)
    call(encode, output_dir=tmp_path / "codes", shard_images=9, **flags)
    assert [path.name for path in sorted(tmp_path.iterdir())] == ["codes", "damaged"]


def test_skipping_a_corrupt_image_keeps_the_numbers_of_the_others(write, damaged, capfd):
    folder, path = damaged
    whole, _ = write("whole")
    capfd.readouterr()
    split, _ = write("skipped", dataset=folder, on_corrupt="skip")
    assert "left out 1 of 40" in capfd.readouterr().out
    # Files are listed class by class, so the place of the file is its place among all of them.
    place = sorted(folder.rglob("*.png")).index(path)
    assert [row["source_index"] for row in rows(split)] == [n for n in range(40) if n != place]
    assert rows(split) == [row for row in rows(whole) if row["source_index"] != place]


@pytest.mark.parametrize("mode", ["L", "RGBA", "P"])
def test_images_of_any_kind_become_what_the_autoencoder_takes(
    call, parts, autoencoder_folder, tmp_path, mode
):
    parts["images"](tmp_path / "odd", 6, size=24, mode=mode)
    flags = {"autoencoder": autoencoder_folder, "dataset": tmp_path / "odd"}
    call(encode, output_dir=tmp_path / "codes", **flags)
    assert len(load_from_disk(str(tmp_path / "codes"))["train"]) == 6


def test_images_without_classes_have_no_labels(call, autoencoder_folder, tmp_path):
    (tmp_path / "flat").mkdir()
    for number in range(3):
        Image.new("RGB", (16, 16), (number * 80, 0, 0)).save(tmp_path / "flat" / f"{number}.png")
    flags = {"autoencoder": autoencoder_folder, "dataset": tmp_path / "flat"}
    call(encode, output_dir=tmp_path / "codes", **flags)
    split = load_from_disk(str(tmp_path / "codes"))["train"]
    assert split.column_names == ["codes", "view", "source_index"]
    assert open_codes(tmp_path / "codes")[1].class_names == ()


@pytest.mark.parametrize(
    ("flags", "culprit"),
    [
        ({"image_size": 32}, "--image_size 32"),
        ({"channels": 1}, "--channels 1"),
        ({"channels": 2}, "--channels"),
        ({"crops": 1}, "--crops"),
        ({"crops": -1}, "--crops"),
        ({"batch_size": 0}, "--batch_size"),
        ({"split": "validation"}, "'validation'"),
        ({"dataset": "./nowhere"}, "nowhere"),
        ({"dataset": "no_such_dataset"}, "no_such_dataset"),
        ({"dataset": "mnist5k", "split": "dev"}, "'dev'"),
        ({"image_column": "picture"}, "--image_column picture"),
        ({"label_column": "class"}, "--label_column class"),
        ({"autoencoder": "./nowhere"}, "./nowhere"),
        ({"flipp": True}, "did you mean flip"),
        ({"on_corrupt": "ignore"}, "--on_corrupt"),
        ({"config": "missing.yaml"}, "missing.yaml"),
        ({"cpu_threads": 0}, "--cpu_threads"),
    ],
)
def test_wrong_input_is_one_sentence(refused, images, autoencoder_folder, tmp_path, flags, culprit):
    settings = {"autoencoder": autoencoder_folder, "dataset": images, **flags}
    said = refused(encode, output_dir=tmp_path / "codes", **settings)
    assert culprit in said


def test_an_empty_folder_is_one_sentence(refused, autoencoder_folder, tmp_path):
    (tmp_path / "empty" / "class").mkdir(parents=True)
    said = refused(
        encode,
        autoencoder=autoencoder_folder,
        dataset=tmp_path / "empty",
        output_dir=tmp_path / "codes",
    )
    assert str(tmp_path / "empty") in said


def test_a_folder_of_something_else_is_left_alone(refused, images, autoencoder_folder, tmp_path):
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis" / "chapter.txt").write_text("precious")
    said = refused(
        encode, autoencoder=autoencoder_folder, dataset=images, output_dir=tmp_path / "thesis"
    )
    assert "thesis" in said


def test_two_processes_write_the_rows_of_one(one_and_two):
    one, two = (load_from_disk(str(one_and_two[n] / "codes"))["train"] for n in "12")
    assert len(one) == 40 * 4
    assert rows(one) == rows(two)
    assert one.features == two.features
    assert one.info.description.replace(str(one_and_two["1"]), "") == two.info.description.replace(
        str(one_and_two["2"]), ""
    ).replace(str(one_and_two["1"]), "")


# Latents


@pytest.fixture(scope="module")
def vae_folders(parts, tmp_path_factory):
    """Untrained VAEs with a flat latent and with a grid, two channels of each far from N(0, 1)."""
    root = tmp_path_factory.mktemp("vaes")
    for name, shape in (("flat", {}), ("grid", {"latent_dim": None})):
        model = parts["autoencoder"]("vae", **shape)
        with torch.no_grad():
            last = model.to_posterior[1] if name == "flat" else model.encoder.head[-1]
            last.weight.mul_(3)
            last.bias[:2] += torch.tensor([2.0, -1.0])
        model.save_pretrained(root / name)
    return root


@pytest.fixture
def write_latents(call, images, vae_folders, tmp_path):
    """`write_latents(...)` encodes the 40 shapes; returns splits, spec and the new folder."""

    def into(name="latents", kind="grid", **flags):
        settings = {"dataset": images, "batch_size": 16, "shard_images": 9, **flags}
        call(encode, autoencoder=vae_folders / kind, output_dir=tmp_path / name, **settings)
        return *open_codes(tmp_path / name), tmp_path / name

    return into


def test_latents_beyond_half_precision_are_refused(call, images, vae_folders, tmp_path):
    model = load_autoencoder(vae_folders / "grid")
    with torch.no_grad():
        model.encoder.head[-1].bias[0] = 1e5
    model.save_pretrained(tmp_path / "loud")
    with pytest.raises(ValueError, match=r"loud: latents of image 0 are not finite in float16 "):
        call(encode, autoencoder=tmp_path / "loud", dataset=images, output_dir=tmp_path / "codes")
    assert not (tmp_path / "codes").exists()


@pytest.mark.parametrize(("kind", "shape"), [("flat", (6, 1, 1)), ("grid", (4, 8, 8))])
def test_latents_are_the_means_in_half_precision(write_latents, vae_folders, images, kind, shape):
    splits, spec, folder = write_latents(kind=kind)
    found = splits["train"].column("latents")
    assert found.dtype == np.float16
    assert found.shape == (40, *shape)
    assert spec.kind == "latents"
    model = load_autoencoder(vae_folders / kind)
    pixels = open_images(ImageOptions(dataset=str(images), image_size=16, channels=3), "train")
    whole = to_float(pixels.read(range(40)))
    with torch.no_grad():
        expected = model.posterior(whole).mean
        shown = model(whole).images
    np.testing.assert_allclose(found, expected, rtol=2e-3, atol=1e-3)
    decoded = Pipeline(model).decode({"latents": torch.from_numpy(found).float()})
    torch.testing.assert_close(decoded, shown.clamp(-1, 1), rtol=0, atol=0.02)
    split = load_from_disk(str(folder))["train"]
    assert split.features["latents"].dtype == "float16"
    assert split.features["latents"].shape == shape
    assert split.column_names == ["latents", "label", "view", "source_index"]


@pytest.mark.parametrize("kind", ["flat", "grid"])
def test_the_spec_tells_shift_and_scale_of_the_training_latents(write_latents, two_splits, kind):
    """Measured per channel, over all places and views of the split that a prior learns from."""
    splits, spec, folder = write_latents(kind=kind, dataset=two_splits, flip=True)
    latents = splits["train"].column("latents").astype(np.float64)
    assert len(latents) == 24
    np.testing.assert_allclose(spec.latent_shift, latents.mean((0, 2, 3)), rtol=1e-9)
    np.testing.assert_allclose(spec.latent_scale, latents.std((0, 2, 3)), rtol=1e-6)
    assert abs(spec.latent_shift[0]) > 0.5
    both = np.concatenate([latents, splits["validation"].column("latents")])
    assert not np.allclose(spec.latent_shift, both.mean((0, 2, 3)), rtol=1e-4)
    beside = json.loads((folder / "code_spec.json").read_text())
    assert beside["latent_scale"] == list(spec.latent_scale)
    alone, of_test, _ = write_latents("test", kind=kind, dataset=two_splits, split="test")
    expected = alone["test"].column("latents").astype(np.float64).mean((0, 2, 3))
    np.testing.assert_allclose(of_test.latent_shift, expected, rtol=1e-9)


def test_a_split_is_added_to_latents_without_moving_their_scale(
    call, refused, vae_folders, two_splits, tmp_path
):
    flags = {"autoencoder": vae_folders / "grid", "dataset": two_splits}
    call(encode, output_dir=tmp_path / "latents", split="train", **flags)
    _, before = open_codes(tmp_path / "latents")
    call(encode, output_dir=tmp_path / "latents", split="test", **flags)
    splits, spec = open_codes(tmp_path / "latents")
    assert list(splits) == ["train", "test"]
    assert spec == before
    call(encode, output_dir=tmp_path / "test", split="test", **flags)
    assert "of the split train" in refused(
        encode, output_dir=tmp_path / "test", split="train", **flags
    )


def test_an_autoencoder_alone_knows_no_shift(vae_folders):
    assert load_autoencoder(vae_folders / "flat").code_spec.latent_shift is None


@pytest.mark.parametrize("posterior", ["mean", "sample"])
def test_latents_do_not_depend_on_how_the_work_is_cut(write_latents, posterior):
    flags = {"posterior": posterior, "crops": 1, "flip": True, "crop_padding": 2}
    one, its, _ = write_latents("one", batch_size=40, shard_images=1000, **flags)
    two, other, _ = write_latents("two", batch_size=7, shard_images=10, cache_mb=0, **flags)
    found = [splits["train"].column("latents").astype(np.float32) for splits in (one, two)]
    # In another batch a convolution may round differently, and half precision to the next number.
    np.testing.assert_allclose(found[0], found[1], rtol=2e-3, atol=1e-3)
    np.testing.assert_allclose(its.latent_scale, other.latent_scale, rtol=1e-4)


def test_draws_depend_on_seed_row_and_view(write_latents, vae_folders, images, tmp_path):
    flags = {"posterior": "sample", "flip": True}
    drawn, _, _ = write_latents("drawn", **flags)
    latents = drawn["train"].column("latents").astype(np.float32).reshape(40, 2, 4, 8, 8)
    other, _, _ = write_latents("other", seed=1, **flags)
    assert not np.allclose(latents[:, 0], other["train"].column("latents")[::2], atol=0.1)
    means, _, _ = write_latents("means", flip=True)
    mean = means["train"].column("latents").astype(np.float32).reshape(40, 2, 4, 8, 8)
    model = load_autoencoder(vae_folders / "grid")
    pictures = open_images(ImageOptions(dataset=str(images), image_size=16, channels=3), "train")
    whole = to_float(pictures.read(range(40)))
    deviations = [
        model.posterior(pixels).log_variance.div(2).exp().detach().numpy()
        for pixels in (whole, whole.flip(-1))
    ]
    noise = (latents - mean) / np.stack(deviations, axis=1)
    assert abs(noise.mean()) < 0.02
    assert noise.std() == pytest.approx(1, abs=0.02)
    # No two rows and no two views share their noise.
    flat = noise.reshape(80, -1)
    correlation = flat @ flat.T / flat.shape[1] - np.diag((flat**2).mean(1))
    assert abs(correlation).max() < 0.4


def test_a_draw_is_that_of_the_row_whatever_is_left_out(write_latents, images, tmp_path):
    """Rows are counted in the data set, not among the images that could be read."""
    whole, _, _ = write_latents("whole", posterior="sample")
    folder = shutil.copytree(images, tmp_path / "damaged")
    (folder / "apple" / "003.png").write_bytes(b"no image")
    rest, _, _ = write_latents("rest", posterior="sample", dataset=folder, on_corrupt="skip")
    kept = np.isin(whole["train"].source_index, rest["train"].source_index)
    assert kept.sum() == 39
    np.testing.assert_allclose(
        whole["train"].column("latents")[kept].astype(np.float32),
        rest["train"].column("latents").astype(np.float32),
        rtol=2e-3,
        atol=1e-3,
    )


@pytest.mark.parametrize("posterior", ["mean", "sample"])
def test_interrupted_latents_go_on_to_the_same_rows_and_scale(
    write_latents, monkeypatch, posterior
):
    whole, spec, _ = write_latents("whole", posterior=posterior)

    def dies(path, spec, columns):
        if columns["source_index"][0] == 18:  # the third of five shards
            raise KeyboardInterrupt
        write_shard(path, spec, columns)

    write_shard = encode.write_shard
    with monkeypatch.context() as patched:
        patched.setattr(encode, "write_shard", dies)
        with pytest.raises(KeyboardInterrupt):
            write_latents("stopped", posterior=posterior)
    again, its, folder = write_latents("stopped", posterior=posterior)
    assert np.array_equal(again["train"].column("latents"), whole["train"].column("latents"))
    assert its == spec
    assert {path.name for path in folder.parent.iterdir()} == {"whole", "stopped"}


def test_draws_are_not_mixed_with_means(write_latents, refused, images, vae_folders):
    _, _, folder = write_latents()
    flags = {"autoencoder": vae_folders / "grid", "dataset": images, "posterior": "sample"}
    said = refused(encode, output_dir=folder, **flags)
    assert "posterior" in said
    assert str(folder) in said


@pytest.mark.parametrize("member", ["vqvae", "vqvae2", "vqgan"])
def test_codes_cannot_be_drawn(refused, images, parts, tmp_path, member):
    parts["autoencoder"](member).save_pretrained(tmp_path / "model")
    flags = {"autoencoder": tmp_path / "model", "dataset": images, "posterior": "sample"}
    said = refused(encode, output_dir=tmp_path / "codes", **flags)
    assert said.startswith("--posterior sample: ")
    assert "has no posterior" in said


def test_two_processes_draw_the_latents_of_one(one_and_two):
    one, two = (open_codes(one_and_two[n] / "latents") for n in "12")
    assert len(one[0]["train"]) == 40 * 4
    for level in one[1].levels:
        assert np.array_equal(*(splits["train"].column(level.name) for splits, _ in (one, two)))
    assert one[1] == two[1]


# Captions


@pytest.fixture
def captioned(images, tmp_path):
    """`captioned({file: captions})`: the 40 shapes with a metadata file, backwards."""

    def make(change=(), name="captioned"):
        folder = tmp_path / name
        if not folder.exists():
            shutil.copytree(images, folder)
        write_captions(folder, change)
        return folder

    return make


def assert_captions_belong_to_images(split, folder):
    """By the place of each file among all of them, as `source_index` counts."""
    expected = list(caption_rows(folder).values())
    assert column(split, "source_index").size
    assert [row["captions"] for row in rows(split)] == [
        expected[place] for place in column(split, "source_index")
    ]


@pytest.mark.parametrize("kind", ["tar", "parquet"])
def test_codes_of_shards_have_their_classes_and_captions(write, tmp_path, kind):
    write_shards(tmp_path / "shards", kind, 40)
    text = {"caption_column": "said"} if kind == "parquet" else {}
    split, _ = write(dataset=tmp_path / "shards", **text)
    assert [row["label"] for row in rows(split)] == [number % 3 for number in range(40)]
    assert split.features["label"].names == ["0", "1", "2"]
    said = "{}!" if kind == "parquet" else "picture {}"
    assert [row["captions"] for row in rows(split)] == [
        [said.format(number)] for number in range(40)
    ]


@pytest.mark.parametrize("cache_mb", [0, 2048])
def test_every_view_has_the_captions_of_its_image(write, captioned, cache_mb):
    folder = captioned()
    split, codes = write(dataset=folder, crops=1, flip=True, crop_padding=2, cache_mb=cache_mb)
    assert split.column_names == ["codes", "label", "captions", "view", "source_index"]
    assert len(split) == 160
    assert_captions_belong_to_images(split, folder)
    opened = open_codes(codes)[0]["train"]
    assert opened.has_captions
    assert opened.captions(range(160)) == [row["captions"] for row in rows(split)]
    once = [text for texts in caption_rows(folder).values() for text in texts]
    assert list(opened.distinct_captions()) == once
    plain, _ = write("plain", dataset=folder, caption_column="none", crops=1, flip=True, crop_padding=2)  # fmt: skip
    assert "captions" not in plain.column_names
    assert_same_rows(plain, split.remove_columns("captions"))


def test_what_is_left_out_moves_no_caption(write, captioned, capfd):
    """An image that cannot be read, one without a row, and one with an empty caption."""
    folder = captioned({"apple/003.png": [""], "car/020.png": None})
    (folder / "bee" / "019.png").write_bytes(b"no image")
    split, _ = write(dataset=folder, on_corrupt="skip", flip=True)
    said = capfd.readouterr().out
    assert "left out 2 of 40 images without usable captions" in said
    assert "left out 1 of 38 images that cannot be read" in said
    assert "40 images, 16 x 16, RGB, 1 unreadable, 3 classes, captions of 38" in said
    assert len(split) == 74
    assert_captions_belong_to_images(split, folder)


def test_two_processes_write_the_captions_of_one(one_and_two):
    for folder in one_and_two.values():
        split = load_from_disk(str(folder / "codes"))["train"]
        assert_captions_belong_to_images(split, folder.parent / "captioned")


def test_an_interrupted_run_goes_on_to_the_same_captions(write, captioned, stopped):
    folder = captioned()
    stopped(dataset=folder)
    split, _ = write(dataset=folder)
    assert_captions_belong_to_images(split, folder)


def test_shards_of_other_captions_are_thrown_away(write, captioned, stopped):
    folder = captioned({"bee/019.png": ["old"]})
    stopped(dataset=folder)
    captioned()
    split, _ = write(dataset=folder)
    assert_captions_belong_to_images(split, folder)


def test_finished_codes_of_other_captions_are_not_taken_for_these(
    write, refused, captioned, autoencoder_folder
):
    folder = captioned()
    _, codes = write(dataset=folder)
    write(dataset=folder)
    captioned({"bee/019.png": ["new"]})
    flags = {"autoencoder": autoencoder_folder, "dataset": folder, "output_dir": codes}
    said = refused(encode, **flags)
    assert f"--output_dir {codes} holds codes with captions = " in said
    settings = json.loads((codes / "encode.json").read_text())
    del settings["captions"]  # as versions before captions wrote it
    (codes / "encode.json").write_text(json.dumps(settings))
    assert "holds codes with captions = None" in refused(encode, **flags)


def test_codes_from_before_captions_are_still_those_of_images_without(write):
    _, folder = write()
    settings = json.loads((folder / "encode.json").read_text())
    assert settings.pop("captions") is settings.pop("caption_column") is None
    (folder / "encode.json").write_text(json.dumps(settings))
    (folder / MANIFEST).unlink()
    written = (folder / "code_spec.json").stat().st_mtime_ns
    write()
    assert (folder / "code_spec.json").stat().st_mtime_ns == written


def test_a_split_without_captions_beside_one_with_them(
    call, two_splits, autoencoder_folder, tmp_path
):
    rows = [f"{path.relative_to(two_splits / 'train')},a" for path in two_splits.glob("train/*/*")]
    text = "\n".join(["file_name,text", *rows])
    (two_splits / "train" / "metadata.csv").write_text(text)
    flags = {"autoencoder": autoencoder_folder, "dataset": two_splits}
    call(encode, output_dir=tmp_path / "codes", **flags)
    splits, _ = open_codes(tmp_path / "codes")
    assert list(splits["train"].distinct_captions()) == ["a"] * 12
    assert not splits["validation"].has_captions
    assert len(load_from_disk(str(tmp_path / "codes"))["validation"]) == 6


def test_the_drawn_shapes_have_captions(call, autoencoder_folder, tmp_path):
    flags = {"autoencoder": autoencoder_folder, "dataset": "shapes", "split": "validation"}
    call(encode, output_dir=tmp_path / "codes", **flags)
    split = load_from_disk(str(tmp_path / "codes"))["validation"]
    assert len(split) == 823
    for row in rows(split):
        (caption,) = row["captions"]
        name, place = split.features["label"].int2str(row["label"]).split(", ")
        assert f"{name} at the {place} on a " in caption


@pytest.mark.parametrize(
    ("change", "flags", "culprit"),
    [
        ({"bee/019.png": [""]}, {}, "bee/019.png has a caption without text"),
        ({"bee/019.png": None}, {}, "bee/019.png has no caption"),
        ({"bee/xyz.png": ["a"]}, {}, "names 'bee/xyz.png', which is no image"),
        ({"../xyz.png": ["a"]}, {}, "names '../xyz.png', a file outside"),
        ({"bee/019.png": ["x" * 70_000]}, {}, "bee/019.png has captions of 70,000 bytes"),
        ({}, {"caption_column": "txt"}, "--caption_column txt: there is no such column"),
        ({}, {"label_column": "txt"}, "--label_column txt: there is no such column"),
    ],
    ids=["empty", "null", "missing", "outside", "long", "caption column", "label column"],
)
def test_wrong_captions_are_one_sentence(
    refused, captioned, autoencoder_folder, tmp_path, change, flags, culprit
):
    settings = {"autoencoder": autoencoder_folder, "dataset": captioned(change), **flags}
    said = refused(encode, output_dir=tmp_path / "codes", **settings)
    assert culprit in said
