import numpy as np
import pytest
import torch
from PIL import Image

from latent_prior.pipelines.page.codebook import Codebook
from latent_prior.pipelines.page.reconstruction import Reconstruction
from latent_prior.pipelines.page.uploads import read_upload
from tests.pipelines.page.test_generation import shown_pixels


@pytest.fixture
def picture(tmp_path):
    """A file of a size and mode of its own."""
    path = tmp_path / "picture.png"
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (40, 50, 4), np.uint8)).save(path)
    return str(path)


@pytest.mark.parametrize(("kind", "maps"), [("codes", 1), ("two maps", 2), ("latents alone", 0)])
def test_the_images_are_the_pipelines_and_each_map_has_a_colour_for_each_code(
    shown, picture, kind, maps
):
    pipe = shown(kind).pipe
    said, html, details, codes = Reconstruction(shown(kind)).reconstruct(picture)
    original, reconstruction, *coloured = shown_pixels(html)
    image = read_upload(picture, pipe.code_spec, "the image")
    assert np.array_equal(original, ((image[0] + 1) * 127.5).round().permute(1, 2, 0).numpy())
    expected = pipe.reconstruct(image)[0].add(1).mul(127.5).round().permute(1, 2, 0)
    assert np.array_equal(reconstruction, expected.numpy())
    assert len(coloured) == maps
    if not maps:
        assert (codes, details, said) == (None, "", "")
        assert 'class="codes"' not in html
        return
    for level, pixels in zip(pipe.code_spec.levels, coloured, strict=True):
        values = codes[level.name][0].numpy()
        colours = {int(code): tuple(pixels[values == code][0]) for code in np.unique(values)}
        assert len(set(colours.values())) == len(colours)
        assert all((pixels[values == code] == colour).all() for code, colour in colours.items())


def test_neighbours_are_the_nearest_vectors_each_decoded_in_its_place(shown, picture):
    tab, pipe = Reconstruction(shown("codes")), shown("codes").pipe
    *_, codes = tab.reconstruct(picture)
    before = codes["codes"].clone()
    html = tab.neighbours(codes, {"level": "codes", "row": 3, "column": 7})
    assert torch.equal(codes["codes"], before)
    code = int(before[0, 3, 7])
    vectors = pipe.autoencoder.quantizer.entries()
    nearest = (vectors - vectors[code]).norm(dim=1).argsort()[1:8].tolist()
    patches = shown_pixels(html)
    assert len(patches) == 8
    for found, each in zip(patches, [code, *nearest], strict=True):
        changed = before.clone()
        changed[0, 3, 7] = each
        expected = pipe.decode({"codes": changed})[0, :, 4:10, 12:16].add(1).mul(127.5).round()
        assert np.abs(found - expected.permute(1, 2, 0).numpy()).max() <= 1
        assert str(each) in html
    others = int((before == code).sum()) - 1
    assert ("nowhere else" if not others else f"at {others} other place") in html


@pytest.mark.parametrize("kind", ["codes", "two maps"])
def test_a_codebook_is_what_its_level_embeds(pipes, kind):
    pipe = pipes[kind]
    for level in pipe.code_spec.levels:
        book = Codebook(pipe, level.name)
        assert len(book.vectors) == level.vocabulary
        near = book.nearest(0, 3)
        assert [each for each, _ in near] == (book.vectors - book.vectors[0]).norm(dim=1).argsort()[
            1:4
        ].tolist()
        assert len(book.colours.unique(dim=0)) == level.vocabulary


@pytest.mark.parametrize(
    "place",
    [None, {}, {"level": "other", "row": 0, "column": 0}, {"level": "codes", "row": 8, "column": 0},
     {"level": "codes", "row": -1, "column": 0}, {"level": "codes", "row": "1", "column": 0}],
)  # fmt: skip
def test_a_place_that_is_none_is_refused(shown, picture, place):
    tab = Reconstruction(shown("codes"))
    *_, codes = tab.reconstruct(picture)
    with pytest.raises(ValueError, match=r"there is no|must be a whole number|the map has"):
        tab.neighbours(codes, place)
    with pytest.raises(ValueError, match="there is no image"):
        tab.neighbours(None, {"level": "codes", "row": 0, "column": 0})


def test_no_file_is_an_empty_tab_and_others_are_named(shown, tmp_path):
    tab = Reconstruction(shown("codes"))
    assert tab.reconstruct(None) == ("", "", "", None)
    (tmp_path / "song.png").write_text("la la la")
    with pytest.raises(ValueError, match="the image cannot be read as an image: it is no image"):
        tab.reconstruct(str(tmp_path / "song.png"))
    Image.new("1", (60_000, 300)).save(tmp_path / "huge.png")
    with pytest.raises(ValueError, match="60000 x 300 pixels are more than this page's 16777216"):
        tab.reconstruct(str(tmp_path / "huge.png"))
    with (tmp_path / "long.png").open("wb") as file:
        file.truncate((20 << 20) + 1)
    with pytest.raises(ValueError, match="the image is larger than 20 MB: make it smaller"):
        tab.reconstruct(str(tmp_path / "long.png"))
