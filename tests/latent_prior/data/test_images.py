import dataclasses

import numpy as np
import pytest
import torch
from PIL import Image

from latent_prior.data.images import (
    crop_windows,
    grid,
    open_images,
    open_stream,
    random_offsets,
    save_png,
    square_size,
    to_float,
    to_pil,
    to_uint8,
)
from latent_prior.options import ImageOptions
from tests.latent_prior.samples import encoded, pixels, write

ORDER = [0, 3, 6, 9, 1, 4, 7, 10, 2, 5, 8, 11]  # images of the folder, class by class


@pytest.fixture
def corrupt(folder):
    """The folder with two unreadable files: image 3 (row 1) and image 7 (row 6)."""
    write(folder / "ant" / "03.png", b"no image")
    write(folder / "bee" / "07.png", encoded(pixels(7))[:-30])
    return folder


def test_float_and_uint8_are_inverse():
    every = torch.arange(256, dtype=torch.uint8).reshape(1, 1, 16, 16)
    assert torch.equal(to_uint8(to_float(every)), every)
    assert to_float(every).min() == -1
    assert to_float(every).max() == 1
    assert to_float(every).dtype == torch.float32


def test_uint8_rounds_and_clamps_and_leaves_its_input_alone():
    values = torch.tensor([-7.0, -1.0, 0.0, 0.999, 1.0, 7.0])
    before = values.clone()
    assert to_uint8(values).tolist() == [0, 0, 128, 255, 255, 255]
    assert torch.equal(values, before)
    assert to_uint8(values.to(torch.bfloat16)).tolist() == [0, 0, 128, 255, 255, 255]


def test_truncating_instead_of_rounding_would_darken():
    """`((x + 1) * 127.5).to(torch.uint8)`, as in several peers, loses half a level on average."""
    every = torch.arange(256, dtype=torch.uint8)
    noisy = to_float(every) - 1e-4
    assert not torch.equal(((noisy + 1) * 127.5).to(torch.uint8), every)
    assert torch.equal(to_uint8(noisy), every)


@pytest.mark.parametrize("channels", [1, 3])
def test_png_and_pil_keep_every_pixel(tmp_path, channels):
    image = torch.randint(0, 256, (channels, 5, 7), dtype=torch.uint8)
    save_png(image, tmp_path / "new" / "a.png")
    found = np.asarray(Image.open(tmp_path / "new" / "a.png")).reshape(5, 7, channels)
    np.testing.assert_array_equal(found, image.permute(1, 2, 0))
    assert to_pil(image).mode == {1: "L", 3: "RGB"}[channels]
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["a.png"]


@pytest.mark.parametrize("channels", [1, 3])
def test_a_grid_holds_its_images_row_by_row(channels):
    images = torch.randint(0, 256, (5, channels, 4, 4), dtype=torch.uint8)
    picture = grid(images, 3)
    assert picture.shape == (channels, 2 * 5 + 1, 3 * 5 + 1)
    for number, image in enumerate(images):
        top, left = 1 + 5 * (number // 3), 1 + 5 * (number % 3)
        assert torch.equal(picture[:, top : top + 4, left : left + 4], image)


def test_images_come_as_they_lie_on_disk(folder, options):
    images = open_images(options(folder), "train")
    assert len(images) == 12
    assert images.channels == 3
    for place, number in enumerate(ORDER):
        np.testing.assert_array_equal(images.array(place), pixels(number))
    batch = images.read([5, 0])
    assert batch.shape == (2, 3, 8, 8)
    assert batch.dtype == torch.uint8
    np.testing.assert_array_equal(batch[0].permute(1, 2, 0), pixels(ORDER[5]))
    assert images.labels.tolist() == [0] * 4 + [1] * 4 + [2] * 4
    assert images.source_index.tolist() == list(range(12))


@pytest.mark.parametrize(
    "settings",
    [{"image_size": 8}, {"image_size": 5}, {"image_size": 8, "resize": 11}, {"image_size": 6, "channels": 1}],
)  # fmt: skip
def test_cached_equals_uncached(folder, options, settings):
    cached = open_images(options(folder, **settings), "train")
    fresh = open_images(options(folder, cache_mb=0, **settings), "train")
    assert cached.cached is not None
    assert fresh.cached is None
    indices = torch.tensor([11, 0, 3, 3])
    assert torch.equal(cached.read(indices), fresh.read(indices))
    side = settings.get("resize", settings["image_size"])
    assert cached.read(indices).shape == (4, settings.get("channels", 3), side, side)


def test_images_are_rgb_if_one_is(tmp_path, options):
    for number in range(3):
        write(tmp_path / f"{number}.png", encoded(pixels(number)[..., 0]))
    assert open_images(options(tmp_path), "train").read([0, 2]).shape == (2, 1, 8, 8)
    write(tmp_path / "9.png", encoded(pixels(9)))
    assert open_images(options(tmp_path), "train").read([0, 3]).shape == (2, 3, 8, 8)
    assert open_images(options(tmp_path, channels=1), "train").read([0, 3]).shape == (2, 1, 8, 8)


def test_a_corrupt_file_is_named_and_fatal(corrupt, options):
    for settings in ({"image_size": 8}, {"image_size": 8, "cache_mb": 0}, {}):
        with pytest.raises(ValueError, match=r"ant/03\.png cannot be read as an image .*skip"):
            open_images(options(corrupt, **settings), "train").read(range(12))


@pytest.mark.parametrize("settings", [{"image_size": 8}, {"image_size": 8, "cache_mb": 0}, {}])
def test_corrupt_files_are_skipped_and_counted(corrupt, options, settings, caplog):
    caplog.set_level("INFO", "latent_prior")
    images = open_images(options(corrupt, on_corrupt="skip", **settings), "train")
    assert images.skipped == 2
    assert len(images) == 10
    assert images.source_index.tolist() == [0, 2, 3, 4, 5, 7, 8, 9, 10, 11]
    assert images.labels.tolist() == [0] * 3 + [1] * 3 + [2] * 4
    batch = images.read(range(10))
    assert [int(image[0, 0, 0]) for image in batch] == [n for n in ORDER if n not in (3, 7)]
    assert "left out 2 of 12 images" in caplog.text


def test_a_first_image_that_is_corrupt_is_no_obstacle_to_skipping(folder, options):
    write(folder / "ant" / "00.png", b"")
    assert open_images(options(folder, on_corrupt="skip", image_size=8), "train").channels == 3


def test_nothing_readable_is_told(tmp_path, options):
    write(tmp_path / "a.png", b"")
    for settings in ({}, {"channels": 3}, {"channels": 3, "image_size": 8}):
        with pytest.raises(ValueError, match="not one image can be read"):
            open_images(options(tmp_path, on_corrupt="skip", **settings), "train")


def test_empty_cells_of_a_table_are_corrupt_images(tmp_path, options):
    import datasets

    cells = [{"bytes": encoded(pixels(0)), "path": None}, None, {"bytes": None, "path": None}]
    cells += [{"bytes": None, "path": str(tmp_path / "gone.png")}]
    (tmp_path / "p").mkdir()
    datasets.Dataset.from_dict({"image": cells}).to_parquet(tmp_path / "p" / "train.parquet")
    with pytest.raises(ValueError, match=r"row 1 of split train of .* \(the cell is empty\)"):
        open_images(options(tmp_path / "p", image_size=8), "train")
    assert open_images(options(tmp_path / "p", on_corrupt="skip"), "train").skipped == 3
    skipping = options(tmp_path / "p", on_corrupt="skip", image_size=8, channels=3)
    assert len(open_stream(skipping, "train").first(9)) == 1


def test_mixed_sizes_need_an_image_size(folder, options):
    write(folder / "cow" / "11.png", encoded(pixels(11, size=9)))
    images = open_images(options(folder), "train")
    with pytest.raises(ValueError, match=r"cow/11\.png .*set --image_size"):
        images.read([0, 11])
    with pytest.raises(ValueError, match=r"cow/11\.png has 9 x 9 pixels.*set --image_size"):
        square_size(images)
    assert open_images(options(folder, image_size=8), "train").read([0, 11]).shape[-2:] == (8, 8)


def test_the_size_of_square_images(folder, options):
    assert square_size(open_images(options(folder), "train")) == 8
    write(folder / "ant" / "00.png", encoded(pixels(0)[:4]))
    with pytest.raises(ValueError, match="the images are 4 x 8: set --image_size"):
        square_size(open_images(options(folder), "train"))


def slow_window(image, size, padding, top, left):
    """Reference: pad one image by repeating its edge, then slice."""
    padded = np.pad(image, [(0, 0), (padding, padding), (padding, padding)], mode="edge")
    return padded[:, top : top + size, left : left + size]


@pytest.mark.parametrize(("size", "padding"), [(6, 0), (8, 2), (8, 3), (5, 1), (8, 0)])
def test_windows_equal_a_slow_reference(size, padding):
    images = torch.randint(0, 256, (7, 3, 8, 8), dtype=torch.uint8)
    offsets = torch.randint(8 + 2 * padding - size + 1, (7, 2))
    found = crop_windows(images, size, padding, offsets)
    for image, window, (top, left) in zip(images, found, offsets.tolist(), strict=True):
        np.testing.assert_array_equal(window, slow_window(image, size, padding, top, left))


def test_without_offsets_the_centre_is_cut():
    images = torch.arange(49, dtype=torch.uint8).reshape(1, 1, 7, 7)
    assert torch.equal(crop_windows(images, 3, 5, None), images[..., 2:5, 2:5])
    assert torch.equal(crop_windows(images, 7, 2, None), images)


def test_offsets_reach_every_window_and_no_further():
    chosen = ImageOptions(image_size=6, resize=8, crop_padding=1)
    offsets = random_offsets(2000, chosen, torch.Generator().manual_seed(0))
    assert offsets.shape == (2000, 2)
    assert set(map(tuple, offsets.tolist())) == {(i, j) for i in range(5) for j in range(5)}
    fixed = dataclasses.replace(chosen, resize=None, crop_padding=0)
    assert (random_offsets(10, fixed, torch.Generator()) == 0).all()


def test_a_stream_equals_the_table(folder, options):
    chosen = options(folder, image_size=6, resize=7, channels=3)
    images = open_images(chosen, "train")
    stream = open_stream(chosen, "train")
    assert len(stream) == 12
    assert stream.fingerprint == images.table.contents()
    for row, array in enumerate(stream.first(20)):
        np.testing.assert_array_equal(array, images.array(row))


def test_a_stream_names_or_skips_corrupt_files(corrupt, options):
    chosen = options(corrupt, image_size=8, channels=3)
    with pytest.raises(ValueError, match=r"ant/03\.png cannot be read as an image"):
        open_stream(chosen, "train").first(12)
    skipping = dataclasses.replace(chosen, on_corrupt="skip")
    found, images = open_stream(skipping, "train").first(12), open_images(skipping, "train")
    assert len(found) == len(images) == 10
    for row, array in enumerate(found):
        np.testing.assert_array_equal(array, images.array(row))


def test_large_sets_are_decoded_with_a_bar_and_small_ones_without(folder, options, capsys):
    open_images(options(folder, image_size=8), "train")
    assert capsys.readouterr().err == ""
