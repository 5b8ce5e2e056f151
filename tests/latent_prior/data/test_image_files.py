import io

import numpy as np
import pytest
from PIL import Image

from latent_prior.data.image_files import UNREADABLE, decode_image, resize_and_crop
from tests.latent_prior.samples import encoded

COLOURS = np.random.default_rng(0).integers(0, 256, (6, 5, 3), dtype=np.uint8)
GREYS = COLOURS[..., 0]


def test_lossless_colour_comes_back_exactly():
    for kind in ("png", "bmp", "tiff", "ppm"):
        np.testing.assert_array_equal(decode_image(encoded(COLOURS, kind), None), COLOURS)


def test_grey_stays_grey_or_becomes_three_equal_channels():
    data = encoded(GREYS)
    np.testing.assert_array_equal(decode_image(data, None), GREYS[..., None])
    np.testing.assert_array_equal(decode_image(data, 3), np.repeat(GREYS[..., None], 3, axis=2))


def test_colour_as_grey_is_its_luma():
    luma = COLOURS @ np.array([0.299, 0.587, 0.114])
    assert np.abs(decode_image(encoded(COLOURS), 1)[..., 0] - luma).max() <= 0.51


@pytest.mark.parametrize("alpha", [0, 64, 128, 255])
def test_transparency_lies_over_white(alpha):
    rgba = np.dstack([COLOURS, np.full(GREYS.shape, alpha, np.uint8)])
    over_white = COLOURS * (alpha / 255) + 255 * (1 - alpha / 255)
    assert np.abs(decode_image(encoded(rgba), None) - over_white).max() <= 1


def test_pil_alone_shows_the_hidden_colour_instead():
    """`Image.convert("RGB")` drops the alpha channel: cut-outs get the noise that lies under it."""
    rgba = np.dstack([COLOURS, np.zeros(GREYS.shape, np.uint8)])
    dropped = np.asarray(Image.open(io.BytesIO(encoded(rgba))).convert("RGB"))
    assert not np.array_equal(dropped, decode_image(encoded(rgba), None))
    assert (decode_image(encoded(rgba), None) == 255).all()


def test_grey_with_transparency_stays_grey():
    image = Image.fromarray(np.dstack([GREYS, np.full(GREYS.shape, 128, np.uint8)]), "LA")
    found = decode_image(encoded(image), None)
    assert found.shape == (6, 5, 1)
    assert np.abs(found[..., 0] - (GREYS * (128 / 255) + 255 * (127 / 255))).max() <= 1
    marked = decode_image(encoded(Image.fromarray(GREYS), transparency=int(GREYS[0, 0])), None)
    assert marked.shape == (6, 5, 1)
    assert marked[0, 0, 0] == 255


def test_palettes_are_resolved():
    image = Image.fromarray(COLOURS).quantize(16)
    expected = np.asarray(image.convert("RGB"))
    np.testing.assert_array_equal(decode_image(encoded(image), None), expected)
    np.testing.assert_array_equal(decode_image(encoded(image, "gif"), None), expected)


@pytest.mark.parametrize("transparency", [3, bytes([255, 128, 0, 255])])
def test_transparent_palette_entries_lie_over_white(transparency):
    image = Image.new("P", (4, 1))
    image.putpalette([10, 20, 30, 40, 50, 60, 70, 80, 90, 100, 110, 120])
    image.putdata([0, 1, 2, 3])
    found = decode_image(encoded(image, transparency=transparency), None)[0]
    alphas = np.array([255, 255, 255, 0] if transparency == 3 else list(transparency)) / 255
    colours = np.arange(10, 130, 10).reshape(4, 3)
    expected = colours * alphas[:, None] + 255 * (1 - alphas[:, None])
    assert np.abs(found - expected).max() <= 1


def test_16_bits_are_scaled_and_not_cut():
    deep = np.array([[0, 257, 128 * 257, 65535]], dtype=np.uint16)
    found = decode_image(encoded(deep), None)
    np.testing.assert_array_equal(found[..., 0], [[0, 1, 128, 255]])
    np.testing.assert_array_equal(decode_image(encoded(deep, "tiff"), None), found)
    cut = np.asarray(Image.open(io.BytesIO(encoded(deep))).convert("L"))  # what PIL does by itself
    assert not np.array_equal(cut, found[..., 0])


def test_one_bit_images_are_black_and_white():
    bits = np.array([[0, 1, 1, 0]], dtype=bool)
    np.testing.assert_array_equal(decode_image(encoded(Image.fromarray(bits)), None)[0, :, 0],
                                  [0, 255, 255, 0])  # fmt: skip


def test_cmyk_becomes_rgb():
    image = Image.new("CMYK", (16, 16), (255, 0, 0, 0))
    found = decode_image(encoded(image, "jpeg", quality=100), None)
    assert found.shape == (16, 16, 3)
    assert np.abs(found.astype(int) - [0, 255, 255]).max() <= 4


@pytest.mark.parametrize("orientation", range(1, 9))
def test_camera_rotation_is_applied(orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    array = np.zeros((16, 32, 3), np.uint8)
    array[:8, :16] = 255  # the first quarter is white
    found = decode_image(encoded(array, "jpeg", exif=exif, quality=100), None)
    upright = {
        1: array, 2: array[:, ::-1], 3: array[::-1, ::-1], 4: array[::-1], 5: array.transpose(1, 0, 2),
        6: np.rot90(array, -1), 7: np.rot90(array, 2).transpose(1, 0, 2), 8: np.rot90(array),
    }[orientation]  # fmt: skip
    assert np.abs(found.astype(int) - upright).max() < 60


def test_damaged_files_raise_what_the_caller_expects():
    random = np.random.default_rng(0)
    whole = [
        encoded(COLOURS),
        encoded(COLOURS, "jpeg"),
        encoded(COLOURS, "gif"),
        encoded(COLOURS, "bmp"),
    ]
    readable = 0
    for _ in range(400):
        data = bytearray(whole[random.integers(len(whole))])
        if random.random() < 0.5:
            data = data[: random.integers(len(data))]
        else:
            data[random.integers(len(data))] = random.integers(256)
        try:
            assert decode_image(bytes(data), None).dtype == np.uint8
            readable += 1
        except UNREADABLE:
            pass
    assert 0 < readable < 400


def test_resizing_is_antialiased():
    """A checkerboard of pixels becomes grey; nearest or plain bilinear keeps black or white."""
    board = (np.indices((64, 64)).sum(0) % 2 * 255).astype(np.uint8)[..., None]
    small = resize_and_crop(board, 8)
    assert small.shape == (8, 8, 1)
    assert np.abs(small.astype(int) - 127).max() <= 3
    assert set(np.unique(board[::8, ::8])) == {0}


@pytest.mark.parametrize("shape", [(20, 10), (10, 20), (11, 37), (9, 8)])
def test_the_centre_is_cut_out(shape):
    height, width = shape
    ramp = np.broadcast_to(np.linspace(0, 255, width), (height, width)).astype(np.uint8)
    side = min(shape)
    cropped = resize_and_crop(np.repeat(ramp[..., None], 3, axis=2), side)
    assert cropped.shape == (side, side, 3)
    left = (width - side) // 2
    np.testing.assert_array_equal(cropped[0, :, 0], ramp[0, left : left + side])


def test_the_right_size_is_left_alone():
    assert resize_and_crop(COLOURS[:5], 5) is not None
    np.testing.assert_array_equal(resize_and_crop(COLOURS[:5], 5), COLOURS[:5])


def test_enlarging_keeps_a_constant_image_constant():
    flat = np.full((3, 7, 3), 77, np.uint8)
    assert (resize_and_crop(flat, 12) == 77).all()
