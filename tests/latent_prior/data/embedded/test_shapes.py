import multiprocessing
from pathlib import Path

import datasets
import numpy as np
import pytest

from latent_prior.data.embedded import shapes
from latent_prior.data.images import open_images
from latent_prior.data.sources import open_source
from latent_prior.options import ImageOptions


@pytest.fixture(scope="module")
def opened():
    """The data set as its folder stores it."""
    return datasets.load_from_disk(str(shapes.shapes_folder()))


def test_the_splits_have_all_classes_in_every_stretch(opened):
    assert {split: len(rows) for split, rows in opened.items()} == {"train": 8000, "test": 2000}
    assert len(set(shapes.CLASS_NAMES)) == 4 * 6 * 4
    for rows in opened.values():
        assert rows["label"][:] == [number % 96 for number in range(len(rows))]
        assert rows.features["label"].names == list(shapes.CLASS_NAMES)


@pytest.mark.parametrize("number", [0, 1, 95, 96, 1999])
def test_a_row_depends_on_its_split_and_number_alone(opened, number):
    drawn = shapes.drawing("test", number)
    assert drawn == shapes.drawing("test", number) != shapes.drawing("train", number)
    row = opened["test"][number]
    np.testing.assert_array_equal(np.asarray(row["image"]), np.asarray(drawn.picture()))
    assert row["caption"] == drawn.caption
    for name in ("shape", "colour", "place", "size", "background"):
        assert opened["test"].features[name].int2str(row[name]) == getattr(drawn, name)
    for name in ("x", "y", "radius", "angle"):
        assert row[name] == pytest.approx(getattr(drawn, name), rel=1e-6)


def test_rows_never_change():
    """Numbers of the first rows, which no version of a library may move."""
    first = [shapes.drawing(split, 0) for split in ("train", "test")]
    assert [each.caption for each in first] == [
        "a large red circle at the top left on a grey background",
        "a large red circle at the top left on a pink background",
    ]
    assert [round(each.x, 4) for each in first] == [9.1266, 12.8783]


def test_captions_and_classes_say_what_the_columns_say(opened):
    names = {key: opened["test"].features[key] for key in ("shape", "colour", "place", "size", "background", "label")}  # fmt: skip
    for row in opened["test"].remove_columns("image").select(range(200)):
        said = {key: feature.int2str(row[key]) for key, feature in names.items()}
        assert said["label"] == f"{said['colour']} {said['shape']}, {said['place']}"
        assert row["caption"] == (
            f"a {said['size']} {said['colour']} {said['shape']} at the {said['place']} "
            f"on a {said['background']} background"
        )


def test_what_is_not_in_the_class_varies_within_it(opened):
    rows = [shapes.drawing("train", 96 * number) for number in range(80)]
    assert {each.size for each in rows} == set(shapes.SIZES)
    assert {each.background for each in rows} == set(shapes.BACKGROUNDS)
    assert len({(each.x, each.y, each.radius, each.angle) for each in rows}) == 80


def test_shapes_lie_within_their_quarter_and_the_image():
    for number in range(2000):
        drawn = shapes.drawing("train", number)
        assert min(drawn.x, drawn.y) - drawn.radius + 1e-9 >= 0.5
        assert max(drawn.x, drawn.y) + drawn.radius <= shapes.SIDE - 0.5 + 1e-9
        vertical = "top" if drawn.y < shapes.SIDE / 2 else "bottom"
        assert drawn.place == f"{vertical} {'left' if drawn.x < shapes.SIDE / 2 else 'right'}"
        assert min(abs(drawn.x - shapes.SIDE / 2), abs(drawn.y - shapes.SIDE / 2)) >= 3 - 1e-9


def test_splits_share_no_image(opened):
    train, test = ({row["bytes"] for row in rows.cast_column("image", datasets.Image(decode=False))["image"]} for rows in opened.values())  # fmt: skip
    assert not train & test
    assert len(train) == 8000


def test_edges_are_smooth():
    array = np.asarray(shapes.drawing("train", 0).picture()).reshape(-1, 3)
    assert len(np.unique(array, axis=0)) > 10


def test_it_is_a_source_like_others(tmp_path, monkeypatch):
    images = open_images(ImageOptions(dataset="shapes"), "test")
    assert (len(images), images.channels, images.class_names) == (2000, 3, shapes.CLASS_NAMES)
    assert images.array(0).shape == (32, 32, 3)
    assert images.table.name_of(3) == "row 3 of split test of shapes"
    with pytest.raises(ValueError, match="--dataset shapes has no split 'nope'"):
        open_images(ImageOptions(dataset="shapes"), "nope")
    monkeypatch.chdir(tmp_path)
    (tmp_path / "shapes").mkdir()
    with pytest.raises(ValueError, match="--dataset shapes: the folder holds no images"):
        open_source(ImageOptions(dataset="shapes")).table("train")


def test_the_fingerprint_does_not_depend_on_pixels(opened):
    """Versions of PIL may round a grey level otherwise; the data set is still the same."""
    source = open_source(ImageOptions(dataset="shapes"))
    prints = {source.table(split).contents() for split in ("train", "test")}
    assert len(prints) == 2
    assert source.blocks("test").contents() in prints


def small(monkeypatch, cache):
    monkeypatch.setenv("LATENT_PRIOR_CACHE", str(cache))
    monkeypatch.setattr(shapes, "SPLITS", {"train": 6, "test": 2})


def test_processes_that_draw_at_the_same_time_end_with_one_folder(tmp_path, monkeypatch):
    small(monkeypatch, tmp_path)
    with multiprocessing.get_context("fork").Pool(3) as pool:
        found = pool.starmap(shapes.shapes_folder, [()] * 3)
    assert set(found) == {tmp_path / f"shapes-{shapes.VERSION}"}
    assert list(tmp_path.iterdir()) == found[:1]
    before = {path: path.stat().st_mtime_ns for path in found[0].rglob("*")}
    shapes.shapes_folder()
    assert {path: path.stat().st_mtime_ns for path in found[0].rglob("*")} == before


def test_a_folder_that_another_process_finished_first_stays(tmp_path, monkeypatch):
    small(monkeypatch, tmp_path)
    draw_all = shapes.draw_all
    other = tmp_path / f"shapes-{shapes.VERSION}"

    def slow(name):
        draw_all(name).save_to_disk(other)
        return draw_all(name)

    monkeypatch.setattr(shapes, "draw_all", slow)
    assert shapes.shapes_folder() == other
    assert list(tmp_path.iterdir()) == [other]


def test_a_cache_that_cannot_be_used_is_told(tmp_path, monkeypatch):
    file = tmp_path / "file"
    file.write_text("")
    small(monkeypatch, file)
    with pytest.raises(ValueError, match=r"shapes-.* cannot be written .*LATENT_PRIOR_CACHE"):
        shapes.shapes_folder()
    small(monkeypatch, tmp_path)
    for arrow in Path(shapes.shapes_folder()).rglob("*.arrow"):
        arrow.write_bytes(b"x")
    with pytest.raises(ValueError, match=r"--dataset shapes: .* cannot be read .*delete it"):
        open_source(ImageOptions(dataset="shapes")).table("train")


def test_a_caption_says_which_class_it_asks_for():
    for number in range(300):
        drawn = shapes.drawing("test", number)
        assert shapes.class_of(drawn.caption) == shapes.CLASS_NAMES[drawn.label]
    for other in ("", "a red circle", "a small red circle at the top left on a red background"):
        assert shapes.class_of(other) is None


def test_shapes_text_trains_on_no_combination_that_it_tests():
    opened = datasets.load_from_disk(str(shapes.shapes_folder("shapes_text")))
    names = ("shape", "colour", "place", "size")
    seen, unseen = (
        set(zip(*(opened[split][name][:] for name in names), strict=True))
        for split in ("train", "test")
    )
    assert (len(seen), len(unseen)) == (192 - 32, 32)
    assert not seen & unseen
    for position, count in enumerate((4, 6, 4, 2)):  # every word is seen with others
        assert len({each[position] for each in seen}) == count
    assert sum(map(len, opened.values())) < 10_000
    whole = open_images(ImageOptions(dataset="shapes_text"), "test")
    assert whole.has_captions
    assert whole.fingerprint != open_images(ImageOptions(dataset="shapes"), "test").fingerprint
