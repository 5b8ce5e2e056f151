import csv
import json
import shutil

import numpy as np
import pytest
import torch
from PIL import Image

from latent_prior.data.images import open_images, to_uint8
from latent_prior.data.listing import files_below, images_among
from latent_prior.options import ImageOptions
from latent_prior.pipelines import (
    Pipeline,
    directions,
    image_folder,
    latents,
    operations,
    sheets,
)
from latent_prior.pipelines.options import LatentOptions

# Each operation with the file names of its images for rows 4 and 9 (arithmetic: and 12).
STEPS = [f"step{step:03d}" for step in range(4)]
OPERATIONS = {
    "interpolate": (
        {"images": [4, 9], "steps": 4},
        ["000004-000009"],
        ["start", *STEPS, "end"],
    ),
    "attribute": (
        {"images": [4, 9], "attribute": "bee", "strength": [-1.5, 0, 2]},
        ["000004", "000009"],
        ["original", "strength-1.5", "strength+0", "strength+2"],
    ),
    "traverse": (
        {"images": [4, 9], "dimensions": [3, 0], "steps": 4},
        [f"{row}_{d}" for row in ("000004", "000009") for d in ("dimension003", "dimension000")],
        STEPS,
    ),
    "arithmetic": ({"images": [4, 9, 12]}, ["000004-000009+000012"], ["a", "b", "c", "result"]),
    "complete": ({"images": [4, 9]}, ["000004", "000009"], ["original", "given", "completed"]),
}


@pytest.fixture
def make(call, pipeline_folder, images, tmp_path):
    """`make(operation, ...)` runs the command and returns its folder."""

    def into(operation, name="out", **flags):
        folder = tmp_path / name
        parts = {"pipeline": None if "autoencoder" in flags else pipeline_folder, "dataset": images}
        call(latents, operation=operation, output_dir=folder, **parts | flags)
        return folder

    return into


@pytest.fixture
def source(images):
    """`source(rows)`: images of the data set, float in [-1, 1]."""
    opened = open_images(ImageOptions(dataset=str(images), image_size=16), "train")
    return lambda rows: opened.read(rows).float() / 127.5 - 1


def files(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def pixels(path):
    with Image.open(path) as image:
        return np.asarray(image)


def array(image):
    return to_uint8(image).permute(1, 2, 0).numpy()


def close(path, image):
    """Equal up to the rounding of a pixel."""
    return np.abs(pixels(path).astype(int) - array(image).astype(int)).max() <= 1


@pytest.mark.parametrize("operation", OPERATIONS)
def test_every_member_does_everything(make, member_folder, source, operation):
    flags, rows, columns = OPERATIONS[operation]
    folder = make(operation, pipeline=member_folder, **flags)
    names = {f"{row}_{column}.png" for row in rows for column in columns}
    assert set(files(folder)) == names | {"grid.png", "latents.json", "manifest.json"}
    settings = json.loads((folder / "latents.json").read_text())
    assert (settings["rows"], settings["columns"]) == (rows, columns)
    assert settings["operation"] == operation
    assert len(settings["autoencoder_fingerprint"]) == 64
    sheet = pixels(folder / "grid.png")
    for down, row in enumerate(rows):
        for right, column in enumerate(columns):
            cell = sheet[1 + 17 * down : 17 + 17 * down, 1 + 17 * right : 17 + 17 * right]
            assert np.array_equal(cell, pixels(folder / f"{row}_{column}.png"))
    if operation != "traverse":
        first = pixels(folder / f"{rows[0]}_{columns[0]}.png")
        assert np.array_equal(first, array(source([4])[0]))


def test_a_bare_autoencoder_will_do(make, autoencoder_folder, pipeline_folder):
    alone = make("interpolate", "alone", autoencoder=autoencoder_folder)
    assert files(alone) == files(make("interpolate", "pipeline"))


def test_interpolation_goes_from_image_to_image(make, source, pipeline_folder):
    folder = make("interpolate", images=[7, 2, 5], steps=3, method="spherical")
    pipe = Pipeline.from_pretrained(pipeline_folder)
    expected = operations.interpolate(
        pipe, source([7, 2]), source([2, 5]), steps=3, method="spherical"
    )
    for place, row in enumerate(("000007-000002", "000002-000005")):
        for step in range(3):
            assert close(folder / f"{row}_step{step:03d}.png", expected[place, step])


@pytest.mark.parametrize("direction", ["mean", "probe"])
def test_an_attribute_is_learnt_from_the_labels(make, source, pipeline_folder, direction):
    pipe = Pipeline.from_pretrained(pipeline_folder)
    everything, labels = source(list(range(40))), torch.arange(40) % 3
    # The files of a class lie together, class after class.
    labels = labels.sort().values
    against_rest = directions.attribute_direction(
        pipe, [(everything, (labels == 1).long())], method=direction
    )
    folder = make("attribute", attribute="bee", direction=direction, num_images=3, batch_size=7)
    expected = operations.move(pipe, source([0, 1, 2]), against_rest, [-2.0, -1, 0, 1, 2])
    for place in range(3):
        for column, strength in enumerate(("-2", "-1", "+0", "+1", "+2")):
            path = folder / f"{place:06d}_strength{strength}.png"
            assert close(path, expected[place, column])
    pair = directions.attribute_direction(
        pipe, [(everything, torch.where(labels == 0, 0, torch.where(labels == 1, 1, -1)))], method=direction
    )  # fmt: skip
    folder = make("attribute", "pair", attribute="1", against="apple", direction=direction, num_images=3)  # fmt: skip
    expected = operations.move(pipe, source([0, 1, 2]), pair, [2.0])
    assert close(folder / "000001_strength+2.png", expected[1, 0])


def test_traversals_begin_with_the_dimensions_that_vary_most(make, source, pipeline_folder):
    pipe = Pipeline.from_pretrained(pipeline_folder)
    vectors = pipe.embed(source(list(range(40))))["vectors"]
    varies = vectors.double().std((0, 2, 3), correction=0)
    rows = json.loads((make("traverse") / "latents.json").read_text())["rows"]
    assert rows == [f"000000_dimension{d:03d}" for d in varies.argsort(descending=True).tolist()]


def test_a_large_set_is_measured_in_part_evenly_spread(images, monkeypatch):
    options = LatentOptions(autoencoder="x", operation="traverse", output_dir="x", batch_size=4)
    opened = open_images(ImageOptions(dataset=str(images), image_size=16), "train")
    part = list(sheets.batches_of(opened, options, 10))
    assert [len(pixels) for pixels, _ in part] == [4, 4, 2]
    assert torch.equal(torch.cat([labels for _, labels in part]).bincount(), torch.tensor([4, 3, 3]))  # fmt: skip
    whole = list(sheets.batches_of(opened, options))
    assert sum(len(pixels) for pixels, _ in whole) == 40


def test_arithmetic_on_the_means_of_classes(make, source, pipeline_folder):
    folder = make("arithmetic", labels=["car", "0", "bee"], batch_size=7)
    pipe = Pipeline.from_pretrained(pipeline_folder)
    vectors = pipe.embed(source(list(range(40))))["vectors"]
    apple, bee, car = vectors[:14].mean(0), vectors[14:27].mean(0), vectors[27:].mean(0)
    for column, vector in (("a", car), ("b", apple), ("c", bee), ("result", car - apple + bee)):
        expected = pipe.decode_vectors({"vectors": vector[None]})[0]
        assert close(folder / f"class2-class0+class1_{column}.png", expected)


def test_completions_depend_on_seed_and_row_alone(make, source):
    few = make("complete", images=[9, 4], mask="right", seed=3)
    many = make("complete", "many", images=[1, 4, 9, 2], mask="right", seed=3, batch_size=3)
    other = make("complete", "other", images=[9, 4], mask="right", seed=4)
    for row in ("000004", "000009"):
        name = f"{row}_completed.png"
        # The batches have different sizes: a value may be rounded to the next of the 256.
        assert abs(pixels(few / name).astype(int) - pixels(many / name)).max() <= 1
        assert (few / name).read_bytes() != (other / name).read_bytes()
        original, given, completed = (
            pixels(few / f"{row}_{column}.png") for column in ("original", "given", "completed")
        )
        assert np.array_equal(completed[:, :8], original[:, :8])
        assert np.array_equal(given[:, :8], original[:, :8])
        assert len(np.unique(given[:, 8:].reshape(-1, 3), axis=0)) == 1


def test_a_completion_takes_class_sampler_and_mask(make):
    settings = {"images": [4, 9], "seed": 3, "mask": "top", "guidance_scale": 4}
    plain = make("complete", "plain", **settings)
    known = json.loads((plain / "latents.json").read_text())
    assert known["temperature"] == 0.9  # the pipeline's own default
    assert len(known["prior_fingerprint"]) == 64
    for name, flags in {
        "label": {"labels": ["car"]},
        "labels": {"labels": ["0", "bee"]},
        "greedy": {"temperature": 0},
        "mask": {"mask": [2, 3, 9, 12]},
        "raw": {"paste": "false"},
    }.items():
        other = make("complete", name, **settings | flags)
        assert files(other)["grid.png"] != files(plain)["grid.png"], name
        if name == "mask":
            given, original = (pixels(other / f"000004_{c}.png") for c in ("given", "original"))
            changed = (given != original).any(-1)
            assert changed[3:12, 2:9].mean() > 0.9
            changed[3:12, 2:9] = False
            assert not changed.any()


def test_reconstructions_have_the_names_of_their_rows(make, source, pipeline_folder, images):
    folder = make("reconstruct", images=[8, 3, 30])
    names = ["000008.png", "000003.png", "000030.png"]
    others = {"grid.png", "labels.csv", "latents.json", "manifest.json"}
    assert set(files(folder)) == {*names} | others
    given_back = Pipeline.from_pretrained(pipeline_folder).reconstruct(source([8, 3, 30]))
    sheet = pixels(folder / "grid.png")
    for place, name in enumerate(names):
        assert close(folder / name, given_back[place])
        across = slice(1 + 17 * place, 17 + 17 * place)
        assert np.array_equal(sheet[1:17, across], array(source([8, 3, 30])[place]))
        assert np.array_equal(sheet[18:34, across], pixels(folder / name))
    with (folder / "labels.csv").open(newline="") as file:
        rows = [(row["file"], row["class"]) for row in csv.DictReader(file)]
    assert rows == list(zip(names, ("apple", "apple", "car"), strict=True))
    assert [path.name for path in images_among(files_below(folder))] == sorted(
        names
    )  # what is scored


def test_all_images_are_reconstructed_and_some_are_shown(make, monkeypatch):
    monkeypatch.setattr(latents, "GRID_IMAGES", 15)
    folder = make("reconstruct", batch_size=7)
    assert len(list(folder.glob("0*.png"))) == 40
    assert pixels(folder / "grid.png").shape == (4 * 17 + 1, 10 * 17 + 1, 3)
    labels = [path.parent.name for path in images_among(files_below(folder))]
    assert len(labels) == 40


def test_a_stopped_reconstruction_goes_on(make, monkeypatch):
    whole = files(make("reconstruct", "whole"))

    def dies(image, path):
        if path.name == "000023.png":
            raise KeyboardInterrupt
        save(image, path)

    save = image_folder.save_png
    with monkeypatch.context() as patched:
        patched.setattr(image_folder, "save_png", dies)
        with pytest.raises(KeyboardInterrupt):
            make("reconstruct", "stopped")
    folder = make("reconstruct", "stopped")
    assert files(folder) == whole


def test_a_stopped_sheet_leaves_nothing(make, monkeypatch, tmp_path):
    def dies(image, path):
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(latents, "save_png", dies)
        with pytest.raises(KeyboardInterrupt):
            make("interpolate")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("operation", ["reconstruct", "interpolate"])
def test_repeating_the_command_changes_nothing_and_other_settings_are_not_mixed(
    make, refused, pipeline_folder, images, operation
):
    folder = make(operation, images=[1, 2])
    (folder / "note.txt").write_text("mine")
    before = files(folder)
    make(operation, images=[1, 2], batch_size=1)
    assert files(folder) == before
    flags = {"pipeline": pipeline_folder, "dataset": images, "operation": operation}
    said = refused(latents, **flags, images=[1, 3], output_dir=folder)
    assert "images = [1, 2]" in said
    assert files(folder) == before


@pytest.mark.parametrize("operation", ["reconstruct", "interpolate"])
def test_images_that_were_added_are_told(
    make, refused, pipeline_folder, images, operation, tmp_path
):
    data = shutil.copytree(images, tmp_path / "data")
    folder = make(operation, dataset=data)
    shutil.copy(data / "bee" / "019.png", data / "apple" / "000a.png")
    flags = {"pipeline": pipeline_folder, "dataset": data, "operation": operation}
    said = refused(latents, **flags, output_dir=folder)
    assert f"--output_dir {folder} holds images with images_fingerprint" in said


def test_other_images_of_the_direction_are_told(make, refused, pipeline_folder, images, tmp_path):
    data = tmp_path / "data"
    for split in ("train", "test"):
        shutil.copytree(images, data / split)
    flags = {"dataset": data, "attribute": "bee", "fit_split": "test"}
    folder = make("attribute", **flags)
    (data / "test" / "bee" / "019.png").unlink()
    flags |= {"pipeline": pipeline_folder, "operation": "attribute"}
    assert "with fit_fingerprint" in refused(latents, **flags, output_dir=folder)


def test_damaged_reconstructions_are_made_again(make):
    folder = make("reconstruct", num_images=12, batch_size=5)
    before = files(folder)
    (folder / "000003.png").write_bytes(before["000007.png"])
    (folder / "000011.png").write_bytes(b"")
    make("reconstruct", num_images=12, batch_size=5)
    assert files(folder) == before


def test_a_damaged_sheet_is_told(make, refused, pipeline_folder, images):
    folder = make("interpolate", num_images=2)
    path = next(folder.glob("0*.png"))
    path.write_bytes(path.read_bytes()[:-9])
    flags = {"pipeline": pipeline_folder, "dataset": images, "operation": "interpolate"}
    said = refused(latents, **flags, num_images=2, output_dir=folder)
    assert f"{path} is damaged or was exchanged" in said
    assert f"delete --output_dir {folder} first" in said


def test_a_folder_of_something_else_is_left_alone(refused, pipeline_folder, images, tmp_path):
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis" / "chapter.txt").write_text("precious")
    flags = {"pipeline": pipeline_folder, "dataset": images, "operation": "reconstruct"}
    assert "thesis" in refused(latents, **flags, output_dir=tmp_path / "thesis")


def test_rows_are_those_of_the_source_when_an_image_is_left_out(make, images, tmp_path):
    broken = shutil.copytree(images, tmp_path / "broken")
    next(iter(sorted((broken / "apple").iterdir()))).write_bytes(b"no image")
    flags = {"images": [1, 13], "dataset": broken, "on_corrupt": "skip"}
    damaged, sound = make("reconstruct", **flags), make("reconstruct", "sound", images=[1, 13])
    for name in ("000001.png", "000013.png"):
        assert (damaged / name).read_bytes() == (sound / name).read_bytes()
    with pytest.raises(ValueError, match="no readable row 0"):
        make("reconstruct", "none", **flags | {"images": [0]})


@pytest.mark.parametrize(
    ("flags", "culprit"),
    [
        ({"operation": "invert"}, "--operation takes one of reconstruct, interpolate"),
        ({"pipeline": None}, "either --pipeline or --autoencoder"),
        ({"autoencoder": "x"}, "either --pipeline or --autoencoder"),
        ({"pipeline": "./nowhere"}, "./nowhere"),
        ({"dataset": "./nowhere"}, "there is no folder nowhere"),
        ({"split": "test"}, "no split 'test'"),
        ({"images": [3, 40]}, "no readable row 40, its last is 39"),
        ({"images": [-1, 2]}, "--images must be at least 0"),
        ({"images": [2, 2]}, "row 2 is given twice"),
        ({"images": [2, 3], "num_images": 2}, "--num_images has no effect"),
        ({"num_images": 41}, "holds 40 images, not 41"),
        ({"num_images": 0}, "--num_images must be at least 1"),
        ({"num_images": 1}, "at least two images"),
        ({"steps": 1}, "--steps must be at least 2"),
        ({"method": "cubic"}, "--method takes one of linear, spherical"),
        ({"strength": [1]}, "--strength is for --operation attribute, not for interpolate"),
        ({"labels": ["bee"]}, "--labels is for --operation arithmetic or complete"),
        ({"seed": 1}, "--seed is for --operation complete"),
        ({"fit_split": "test"}, "--fit_split is for --operation attribute or traverse"),
        ({"image_size": 32}, "--image_size 32: the autoencoder was trained with image_size 16"),
        ({"channels": 1}, "--channels 1: the autoencoder was trained with channels 3"),
        ({"batch_size": 0}, "--batch_size must be at least 1"),
        ({"operation": "attribute"}, "needs --attribute"),
        ({"operation": "attribute", "attribute": "dog"}, "--attribute: label 'dog'"),
        ({"operation": "attribute", "attribute": "-1"}, "--attribute: label '-1'"),
        ({"operation": "attribute", "attribute": "1", "against": "3"}, "--against: label '3'"),
        ({"operation": "attribute", "attribute": "1", "against": "1"}, "the same class"),
        ({"operation": "attribute", "attribute": "bee", "against": "1"}, "the same class"),
        ({"operation": "attribute", "attribute": "1", "strength": []}, "--strength is empty"),
        ({"operation": "attribute", "attribute": "1", "fit_split": "test"}, "no split 'test'"),
        ({"operation": "traverse", "dimensions": [1, 4]}, "--dimensions 4: there are 4, from 0"),
        ({"operation": "traverse", "dimensions": [-1]}, "--dimensions must be at least 0"),
        ({"operation": "traverse", "span": 0}, "--span must be above 0"),
        ({"operation": "arithmetic", "num_images": 2}, "needs three images, not 2"),
        ({"operation": "arithmetic", "labels": ["0", "1"]}, "needs three classes, not 2"),
        ({"operation": "arithmetic", "labels": ["0", "1", "dog"]}, "--labels: label 'dog'"),
        ({"operation": "arithmetic", "labels": ["0"], "images": [1]}, "instead of --images"),
        ({"operation": "complete", "mask": "middle"}, "--mask middle: expected one of left"),
        ({"operation": "complete", "mask": [1, 2, 3]}, "--mask 1 2 3: expected"),
        ({"operation": "complete", "mask": [4, 0, 4, 9]}, "--mask 4 0 4 9: expected left < right"),
        ({"operation": "complete", "mask": [0, 0, 17, 9]}, "within the image of 16 x 16"),
        ({"operation": "complete", "labels": ["dog"]}, "label 'dog' is out of range"),
        ({"operation": "complete", "labels": ["0", "1"]}, "8 images need one label, or one each"),
        ({"operation": "complete", "top_p": 2}, "top_p must lie in"),
        ({"operation": "complete", "mask_": 2}, "did you mean mask"),
    ],
)
def test_wrong_input_is_one_sentence(refused, pipeline_folder, images, tmp_path, flags, culprit):
    given = {"pipeline": pipeline_folder, "dataset": images, "operation": "interpolate"}
    said = refused(latents, **{**given, "output_dir": tmp_path / "new", **flags})
    assert culprit in said


def test_completion_says_what_it_lacks_or_does_not_need(
    refused, autoencoder_folder, parts, images, tmp_path
):
    flags = {"dataset": images, "operation": "complete", "output_dir": tmp_path / "new"}
    said = refused(latents, **flags, autoencoder=autoencoder_folder)
    assert "no prior to sample the hidden codes from; assemble one with a prior" in said
    folder = tmp_path / "vae"
    parts["autoencoder"]("vae").save_pretrained(folder)
    for extra in ({"labels": ["0"]}, {"temperature": 1.0}):
        said = refused(latents, **flags, autoencoder=folder, **extra)
        assert f"--{next(iter(extra))} is for a prior over codes" in said


def test_images_without_labels_have_no_attributes(refused, parts, autoencoder_folder, tmp_path):
    plain = tmp_path / "plain"
    plain.mkdir()
    for path in parts["images"](tmp_path / "classes", 4).rglob("*.png"):
        path.rename(plain / path.name)
    given = {"autoencoder": autoencoder_folder, "dataset": plain, "output_dir": tmp_path / "new"}
    for flags in (
        {"operation": "attribute", "attribute": "0"},
        {"operation": "arithmetic", "labels": ["0", "1", "2"]},
    ):
        assert "split 'train' of" in (said := refused(latents, **given, **flags))
        assert said.endswith("has no labels")


def test_the_named_parts_of_an_image():
    def box(size, *mask):
        return LatentOptions(
            autoencoder="x", operation="complete", output_dir="x", mask=list(mask)
        ).mask_box(size)

    assert box(16, "left") == (0, 0, 8, 16)
    assert box(16, "right") == (8, 0, 16, 16)
    assert box(15, "top") == (0, 0, 15, 7)
    assert box(15, "bottom") == (0, 8, 15, 15)
    assert box(16, "center") == (4, 4, 12, 12)
    assert box(16, "1", "2", "3", "16") == (1, 2, 3, 16)
    with pytest.raises(ValueError, match="of 8 x 8 pixels"):
        box(8, "1", "2", "3", "16")


def test_two_processes_write_what_one_writes(
    make, two_processes, pipeline_folder, images, tmp_path
):
    given = {"pipeline": pipeline_folder, "dataset": images, "batch_size": 7}
    one = {name: make(name, name, batch_size=7) for name in ("reconstruct", "interpolate")}
    two = {name: tmp_path / "two" / name for name in one}
    two_processes(
        [
            ("latent_prior.pipelines.latents", {**given, "operation": name, "output_dir": folder})
            for name, folder in two.items()
        ]
    )
    for name, folder in one.items():
        assert files(two[name]) == files(folder)
