import pytest

from latent_prior.data import found as found_module
from latent_prior.data.found import found, tell_found
from latent_prior.options import ImageOptions
from tests.latent_prior.samples import CLASSES, encoded, pixels, write


def test_what_is_in_a_folder_is_one_line(folder, options):
    assert (
        found(options(folder))
        == "train: 12 images, 8 x 8, RGB, 3 classes; validation: none; test: none"
    )


def test_what_is_not_used_is_told(tmp_path, options):
    for number in range(6):
        write(tmp_path / f"{number}.png", encoded(pixels(number)))
    for number in range(13):
        write(tmp_path / f"{number}.heic", b"")
    write(tmp_path / "no_ending", b"")
    write(tmp_path / "labels.csv", b"file,class\n")
    line = found(options(tmp_path))
    assert line.startswith(
        "train: 6 images, 8 x 8, RGB, no classes; validation: none; test: none; "
    )
    assert "labels.csv is not read; 15 files ignored (.heic, .csv, without ending)" in line


def test_mixed_colours_sizes_and_depths(tmp_path, options):
    write(tmp_path / "a.png", encoded(pixels(0)[..., 0]))
    write(tmp_path / "b.png", encoded(pixels(1, size=9)))
    write(tmp_path / "x" / "c.png", b"damaged")
    line = found(options(tmp_path))
    assert "3 images, 8 x 8 to 9 x 9, RGB (1 of them grey), 1 unreadable, no classes" in line
    assert line.endswith("no classes, because images of train lie at different depths")
    assert "grey (1 of them RGB)" in found(options(tmp_path, channels=1))


def test_of_a_large_set_some_headers_are_read(folder, options, monkeypatch):
    monkeypatch.setattr(found_module, "MOST_HEADERS", 5)
    assert "12 images, 8 x 8, RGB, by 5 headers, 3 classes" in found(options(folder))


def test_classes_without_images_and_images_without_a_class(tmp_path, options):
    import datasets

    cells = [{"bytes": encoded(pixels(n)), "path": None} for n in range(4)]
    rows = datasets.Dataset.from_dict({"image": cells, "label": [0, 0, 2, -1]})
    rows = rows.cast_column("label", datasets.ClassLabel(names=[*CLASSES, "doe"]))
    rows.save_to_disk(tmp_path / "d")
    line = found(options(tmp_path / "d"))
    assert "4 classes (2 of them with images), 1 without a class" in line


def test_every_split_is_told_and_only_by_the_main_process(monkeypatch, caplog):
    caplog.set_level("INFO", "latent_prior")
    line = (
        "train: 3,600 images, 28 x 28, grey, 10 classes; "
        "validation: 400 images, 28 x 28, grey, 10 classes; test: 1,000 images"
    )
    tell_found(ImageOptions(channels=1))
    assert caplog.messages == [line.replace("10 classes", "by 2,048 headers, 10 classes", 1)]
    monkeypatch.setenv("RANK", "1")
    tell_found(ImageOptions())
    assert len(caplog.messages) == 1


def test_what_is_held_out_is_told(tmp_path, options):
    for number in range(80):
        write(tmp_path / f"{number}.png", encoded(pixels(number)))
    line = found(options(tmp_path))
    counts = [int(part.split()[1]) for part in line.split("; ")[:3]]
    assert sum(counts) == 80
    assert line.endswith(f"; test: {counts[2]} images; validation and test are held out of train")


def test_labels_that_are_none_are_told(tmp_path, options):
    import datasets

    cells = [{"bytes": encoded(pixels(n)), "path": None} for n in range(2)]
    datasets.Dataset.from_dict({"image": cells, "label": [0.5, 1.0]}).save_to_disk(tmp_path / "d")
    assert found(options(tmp_path / "d")).endswith(
        "no classes, because the column label holds fractions such as 0.5"
    )


def test_an_unclear_folder_is_refused(tmp_path, options):
    for name in ("train/0.png", "test/0.png", "other/0.png"):
        write(tmp_path / name, encoded(pixels(0)))
    with pytest.raises(ValueError, match="is named like a split"):
        found(options(tmp_path))
