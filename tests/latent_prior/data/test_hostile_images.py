"""Images that mean harm: small files of many pixels, other programs, damage of any kind."""

import contextlib
import io
import os
import random
import resource
import struct
import subprocess
import sys
import time
import warnings
import zlib
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from PIL import Image

from latent_prior.data.image_files import (
    FORMATS,
    UNREADABLE,
    PixelBudget,
    decode_image,
    read_header,
    read_image,
)
from latent_prior.data.images import open_images, square_size
from latent_prior.data.listing import IMAGE_SUFFIXES
from latent_prior.options import MAX_PIXELS
from tests.latent_prior.samples import encoded, pixels, write

COLOURS = pixels(0, 24)
RGB, GREY = Image.fromarray(COLOURS), Image.fromarray(COLOURS[..., 0])


def png(width, height, *, samples=b"\0", chunks=b""):
    """A grey PNG of any size in its header; `samples` are its compressed bytes."""

    def chunk(kind, data):
        return (
            struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        )

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0))
    data = chunk(b"IDAT", zlib.compress(samples))
    return b"\x89PNG\r\n\x1a\n" + header + chunks + data + chunk(b"IEND", b"")


def icon(frame):
    """An .ico file that declares 16 x 16 pixels and holds something else."""
    entry = struct.pack("<BBBBHHII", 16, 16, 0, 0, 1, 32, len(frame), 22)
    return struct.pack("<HHH", 0, 1, 1) + entry + frame


@pytest.mark.parametrize(
    "data",
    [
        png(13_300, 13_300), png(1, 80_000_000), png(20_000, 20_000), png(2**31 - 1, 2**31 - 1),
        icon(png(13_300, 13_300)),
    ],
    ids=["square", "thin", "beyond PIL", "beyond all", "icon"],
)  # fmt: skip
def test_too_many_pixels_are_refused_by_the_header(tmp_path, data, options):
    write(tmp_path / "0.png", encoded(pixels(0)))
    write(tmp_path / "x.png", data)
    sentence = rf"x\.png cannot be read .*pixels.* more than --max_pixels {MAX_PIXELS} allows.*skip"
    for settings in ({"image_size": 8}, {"image_size": 8, "cache_mb": 0, "channels": 1}):
        with pytest.raises(ValueError, match=sentence):
            open_images(options(tmp_path, **settings), "train").read([0, 1])
    with pytest.raises(ValueError, match=sentence):
        square_size(open_images(options(tmp_path), "train"))
    kept = open_images(options(tmp_path, image_size=8, on_corrupt="skip"), "train")
    assert (len(kept), kept.skipped) == (1, 1)


def test_the_limit_is_an_option(tmp_path, options):
    write(tmp_path / "0.png", encoded(pixels(0)))
    assert len(open_images(options(tmp_path, image_size=8, max_pixels=64), "train")) == 1
    with pytest.raises(ValueError, match=r"its 8 x 8 pixels are more than --max_pixels 63 allows"):
        open_images(options(tmp_path, image_size=8, max_pixels=63), "train")


@pytest.mark.parametrize("shape", [(1, 50_000), (50_000, 1)])
def test_long_thin_images_are_cropped_without_the_whole(shape):
    """Resized to a height of 256, the whole would have 3.3 gigapixels."""
    line = np.zeros(shape, np.uint8)
    line[shape[0] // 2, shape[1] // 2] = 255
    cropped = read_image(encoded(line), 1, 256)
    assert cropped.shape == (256, 256, 1)
    assert 0 < cropped.mean() < 255


def test_a_crop_equals_the_crop_of_the_whole():
    """Up to rounding: the resizer's box has 24 bits."""
    array = pixels(0, 60)[:, :23]
    image = Image.fromarray(array).resize((16, round(60 * 16 / 23)), Image.Resampling.BICUBIC)
    top = (image.height - 16) // 2
    expected = np.asarray(image.crop((0, top, 16, top + 16)), dtype=int)
    assert np.abs(read_image(encoded(array), 3, 16) - expected).max() <= 1


def test_a_large_photograph_is_decoded_at_a_reduced_scale():
    """And looks the same."""
    ramp = np.linspace(0, 255, 5120).astype(np.uint8)
    data = encoded(np.broadcast_to(ramp, (3600, 5120)), "jpeg", quality=95)
    small = read_image(data, 1, 64)
    array = decode_image(data, 1)
    assert array.shape == (3600, 5120, 1)
    expected = Image.fromarray(array[..., 0]).resize((91, 64), Image.Resampling.BICUBIC)
    assert np.abs(small[..., 0] - np.asarray(expected, dtype=int)[:, 13:77]).max() <= 2


def test_threads_do_not_multiply_the_memory():
    budget, held = PixelBudget(10), []

    def decode(pixels):
        with budget.take(pixels):
            held.append(budget.used)
            time.sleep(0.001)

    with ThreadPoolExecutor(8) as threads:
        list(threads.map(decode, [3, 4, 6, 10, 25, 1, 9] * 8))
    assert max(used for used in held if used != 25) <= 10
    assert budget.used == 0
    assert {25, 10} <= set(held)


MEASURE = """
import resource, sys
from latent_prior.data.image_files import decode_image, read_image
data = [open(path, "rb").read() for path in sys.argv[1:]]
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
resource.setrlimit(resource.RLIMIT_DATA, (2**30 + 2**28, 2**30 + 2**28))
for each in data:
    try:
        read_image(each, 3, 64)
    except ValueError as error:
        assert "needs more memory" not in str(error), error
print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) // 1024)
"""


def test_no_image_takes_a_gigabyte(tmp_path):
    """The largest image that is allowed, text and profiles that inflate, and headers that lie."""

    def inflating(kind, name):
        content = name + zlib.compress(bytes(200 << 20), 9)
        return (
            struct.pack(">I", len(content))
            + kind
            + content
            + struct.pack(">I", zlib.crc32(kind + content))
        )

    side = int(MAX_PIXELS**0.5)
    files = {
        "largest": png(side, side, samples=bytes((side + 1) * side)),
        "text": png(16, 16, chunks=inflating(b"zTXt", b"Comment\0\0")),
        "profile": png(16, 16, chunks=inflating(b"iCCP", b"icc\0\0")),
        "short": png(side, side),
        "gif": b"GIF89a" + struct.pack("<HH", 65_535, 65_535) + encoded(RGB, "gif")[10:],
        "bmp": encoded(RGB, "bmp")[:18] + struct.pack("<ii", 2**30, 2**30) + encoded(RGB, "bmp")[26:],
        "tga": encoded(RGB, "tga")[:12] + struct.pack("<HH", 65_535, 800) + encoded(RGB, "tga")[16:],
        "webp": b"RIFF" + struct.pack("<I", 22) + b"WEBPVP8L" + struct.pack("<IBI", 9, 0x2F, 0xFFFFFFF) + b"\0" * 8,
        "icon": icon(png(13_300, 13_300)),
    }  # fmt: skip
    paths = [str(write(tmp_path / name, data)) for name, data in files.items()]
    measured = subprocess.run([sys.executable, "-c", MEASURE, *paths], capture_output=True, text=True, check=False)  # fmt: skip
    assert measured.returncode == 0, measured.stderr
    assert int(measured.stdout) < 1024


def test_no_other_program_is_started(tmp_path, monkeypatch, options):
    """PIL gives PostScript to Ghostscript, an interpreter that a file can command."""
    started = tmp_path / "started"
    for tool in ("gs", "djpeg"):  # doubles
        script = write(tmp_path / "bin" / tool, f"#!/bin/sh\necho >> {started}\nexit 1\n".encode())
        script.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}:{os.environ['PATH']}")
    eps = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 16 16\n%%EndComments\nshowpage\n%%EOF\n"
    write(tmp_path / "images" / "x.png", eps)
    with pytest.raises(
        ValueError, match=r"x\.png cannot be read .*no image that one of the decoders PNG, JPEG"
    ):
        open_images(options(tmp_path / "images", image_size=8), "train")
    assert not started.exists()
    assert "EPS" not in FORMATS


def test_every_ending_that_counts_as_an_image_has_a_decoder():
    decoders = {Image.registered_extensions()[suffix] for suffix in IMAGE_SUFFIXES}
    assert decoders <= set(FORMATS)


@pytest.mark.parametrize(
    "data", [b"", b"hello", b"<svg/>", b"PK\3\4" + bytes(60), png(8, 8)], ids=range(5)
)
def test_reasons_name_no_object_of_python(data):
    with pytest.raises(ValueError, match=r"^[^<\n]+$"):
        decode_image(data, None)


def test_animations_show_their_first_frame():
    frames = [Image.fromarray(np.full((8, 8), 40 * number, np.uint8)) for number in range(1, 4)]
    for kind in ("gif", "webp", "tiff", "png", "avif"):
        data = encoded(frames[0], kind, save_all=True, append_images=frames[1:])
        assert np.abs(decode_image(data, 1).astype(int) - 40).max() <= 2


@pytest.mark.parametrize("kind", ["tiff", "tga", "webp", "png", "jpeg", "avif"])
@pytest.mark.parametrize("orientation", [1, 3, 5, 6, 8])
def test_sizes_are_those_a_viewer_shows(kind, orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    if kind == "tga":  # knows no rotation
        orientation, exif = 1, None
    data = encoded(Image.fromarray(COLOURS[:10]), kind, exif=exif)
    height, width = decode_image(data, None).shape[:2]
    assert read_header(io.BytesIO(data))[:2] == (width, height)
    assert (width, height) == ((10, 24) if orientation >= 5 else (24, 10))


def test_floats_are_scaled_by_their_range():
    levels = np.array([[0, 0.25, 0.5, 1]], np.float32)
    shown = decode_image(encoded(Image.fromarray(levels), "tiff"), None)
    np.testing.assert_array_equal(shown[..., 0], [[0, 64, 128, 255]])
    shown = decode_image(encoded(Image.fromarray(levels * 255), "tiff"), None)
    np.testing.assert_array_equal(shown[..., 0], [[0, 64, 128, 255]])


@pytest.mark.parametrize("value", [-0.1, 256, np.nan, np.inf, -np.inf])
def test_floats_of_another_range_are_refused(value):
    levels = np.array([[0.5, value, 0.5]], np.float32)
    with pytest.raises(ValueError, match=r"its values are|are not finite"):
        decode_image(encoded(Image.fromarray(levels), "tiff"), None)


@pytest.mark.parametrize("value", [-1, 65_536])
def test_integers_of_32_bits_are_read_as_16(value):
    levels = np.array([[0, 257, 65_535]], np.int32)
    shown = decode_image(encoded(Image.fromarray(levels), "tiff"), None)
    np.testing.assert_array_equal(shown[..., 0], [[0, 1, 255]])
    levels[0, 0] = value
    with pytest.raises(ValueError, match=rf"its values are .*{value}"):
        decode_image(encoded(Image.fromarray(levels), "tiff"), None)


@pytest.mark.parametrize(
    "mode", ["CMYK", "YCbCr", "LAB", "PA", "La", "RGBa", "RGBX", "HSV", "I;16B"]
)
@pytest.mark.parametrize("channels", [1, 3, None])
def test_other_modes_are_right(mode, channels):
    from latent_prior.data.image_files import to_array

    flat = Image.new("RGB", (5, 4), (200, 100, 50))
    if mode in ("PA", "La"):
        image, expected = Image.new("LA", (5, 4), (77, 255)).convert(mode), (77, 77, 77)
    elif mode == "I;16B":
        image, expected = Image.new(mode, (5, 4), 77 * 257), (77, 77, 77)
    elif mode == "LAB":
        from PIL import ImageCms

        profiles = (ImageCms.createProfile("sRGB"), ImageCms.createProfile("LAB"))
        image = ImageCms.profileToProfile(flat, *profiles, outputMode="LAB")
        expected = (200, 100, 50)
    else:
        start = flat.convert("RGBA") if mode == "RGBa" else flat
        image, expected = start.convert(mode), (200, 100, 50)
    if channels == 1:
        expected = (round(np.dot(expected, (0.299, 0.587, 0.114))),)
    shown = to_array(image, channels)
    assert np.abs(shown[0, 0].astype(int) - expected[: shown.shape[-1]]).max() <= 3


def mutated(data, chance):
    """A few bytes changed, added or removed, mostly at the beginning."""
    changed = bytearray(data)
    for _ in range(chance.choice((1, 2, 4, 16))):
        what, at = (
            chance.random(),
            chance.randrange(min(len(changed), chance.choice((40, 200, 10**6)))),
        )
        if what < 0.6:
            changed[at] = chance.randrange(256)
        elif what < 0.75:
            del changed[at : at + chance.randrange(1, 9)]
        elif what < 0.9:
            changed[at:at] = chance.choice((bytes(4), b"\xff" * 4, b"\x7f\xff\xff\xff"))
        else:
            del changed[at:]
        changed = changed or bytearray(b"\0")
    return bytes(changed)


EXIF = Image.Exif()
EXIF[0x0112], EXIF[0x010E] = 6, "x" * 40
WHOLE = {
    "png": encoded(RGB, exif=EXIF), "palette": encoded(RGB.quantize(8), transparency=0),
    "deep": encoded(Image.fromarray(COLOURS[..., 0].astype(np.uint16) * 257)),
    "jpeg": encoded(RGB, "jpeg", exif=EXIF), "cmyk": encoded(RGB.convert("CMYK"), "jpeg"),
    "gif": encoded(RGB.quantize(8), "gif", transparency=1), "webp": encoded(RGB, "webp", exif=EXIF),
    "avif": encoded(RGB, "avif", exif=EXIF), "bmp": encoded(RGB, "bmp"), "dib": encoded(GREY, "dib"),
    "ico": encoded(RGB.resize((16, 16)), "ico"), "icon": encoded(RGB.resize((16, 16)), "ico", bitmap_format="bmp"),
    "tiff": encoded(RGB, "tiff", exif=EXIF), "lzw": encoded(RGB, "tiff", compression="tiff_lzw"),
    "float": encoded(GREY.convert("F"), "tiff"), "jp2": encoded(RGB, "jpeg2000"), "ppm": encoded(RGB, "ppm"),
    "tga": encoded(RGB, "tga", compression="tga_rle"),
}  # fmt: skip


@pytest.mark.parametrize("kind", WHOLE)
def test_damage_of_any_kind_is_a_sentence(kind):
    chance, sentences = random.Random(kind), []
    assert decode_image(WHOLE[kind], 3).shape[-1] == 3
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # PIL's, of what it could not read
        for _ in range(150):
            data = mutated(WHOLE[kind], chance)
            try:
                assert read_image(data, 3, 16, max_pixels=2**20).shape == (16, 16, 3)
            except UNREADABLE as error:
                sentences.append(str(error))
            with contextlib.suppress(UNREADABLE):
                read_header(io.BytesIO(data), max_pixels=2**20)
    assert sentences
    assert not any("object at 0x" in sentence or "\n" in sentence for sentence in sentences)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss < 2**22  # KiB
