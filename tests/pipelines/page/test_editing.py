"""The tabs latent, complete and compare."""

import re

import gradio
import numpy as np
import pytest
import torch
from PIL import Image

from latent_prior.pipelines import operations
from latent_prior.pipelines.page.comparison import (
    Comparison,
    Contestant,
    Round,
    open_folder,
    wilson,
)
from latent_prior.pipelines.page.completing import Completion, as_mask
from latent_prior.pipelines.page.latent_space import OTHERS, LatentSpace
from latent_prior.pipelines.page.uploads import read_upload
from latent_prior.seeds import generator
from tests.pipelines.page.test_generation import shown_pixels

EVERY = ["codes", "masked", "two maps", "text", "codes alone", "latents alone"]


@pytest.fixture
def files(tmp_path):
    """Two pictures, of sizes and modes of their own."""
    random = np.random.default_rng(0)
    for name, shape in (("a", (40, 50, 4)), ("b", (30, 20))):
        Image.fromarray(random.integers(0, 256, shape, np.uint8)).save(tmp_path / f"{name}.png")
    return str(tmp_path / "a.png"), str(tmp_path / "b.png")


def pixels_of(images):
    return [image.permute(1, 2, 0).add(1).mul(127.5).round().numpy() for image in images]


@pytest.mark.parametrize("kind", EVERY)
def test_the_way_between_two_images_is_that_of_the_operation(shown, files, kind):
    pipe, tab = shown(kind).pipe, LatentSpace(shown(kind))
    _, html = tab.between(*files, "spherical")
    start, end = (read_upload(path, pipe.code_spec, "it") for path in files)
    expected = operations.interpolate(pipe, start, end, steps=7, method="spherical")[0]
    found = shown_pixels(html)
    assert len(found) == 7
    for a, b in zip(found, pixels_of(expected), strict=True):
        assert np.abs(a - b).max() <= 1
    with pytest.raises(ValueError, match="the other image is missing"):
        tab.between(files[0], None, "linear")


@pytest.mark.parametrize("kind", EVERY)
def test_a_dimension_changes_both_ways_from_the_reconstruction(shown, files, kind):
    pipe, tab = shown(kind).pipe, LatentSpace(shown(kind))
    said, html = tab.along(files[0], tab.dimensions - 1, 2.0)
    found = shown_pixels(html)
    middle = pixels_of(pipe.reconstruct(read_upload(files[0], pipe.code_spec, "it")))[0]
    assert np.abs(found[3] - middle).max() <= 1
    assert ("this image" in said) == (kind == "codes alone")
    assert re.findall(r"<figcaption>([^<]+)", html) == ["-2.0", "-1.3", "-0.7", "+0.0", "+0.7", "+1.3", "+2.0"]  # fmt: skip
    for wrong in (-1, tab.dimensions):
        with pytest.raises(ValueError, match=f"dimension {wrong} is out of range"):
            tab.along(files[0], wrong, 2.0)


def test_an_attribute_moves_an_image_along_the_difference_of_two_means(shown, files):
    pipe, tab = shown("codes").pipe, LatentSpace(shown("codes"))
    means = [pipe.embed(drawn)["vectors"].mean(0) for drawn in (tab.drawn("bee"), tab.drawn(OTHERS, "bee"))]  # fmt: skip
    image = read_upload(files[0], pipe.code_spec, "it")
    for strength in (0.0, 2.0):
        _, html = tab.moved(files[0], "bee", OTHERS, strength)
        *_, moved = shown_pixels(html)
        vectors = pipe.embed(image)["vectors"] + strength * (means[0] - means[1])
        expected = pixels_of(pipe.decode_vectors({"vectors": vectors}))[0]
        assert np.abs(moved - expected).max() <= 1
    with pytest.raises(ValueError, match="away from bee is the same class"):
        tab.moved(files[0], "bee", "bee", 1.0)


@pytest.mark.parametrize("kind", ["codes", "masked", "two maps", "text", "latents alone"])
def test_completions_keep_what_is_visible(shown, files, kind):
    pipe, tab = shown(kind).pipe, Completion(shown(kind))
    said, editor = tab.open(files[0])
    (image,) = shown_pixels(editor)
    assert said == ""
    assert '<canvas width="16" height="16"' in editor
    painted = "0" * 128 + "1" * 128
    subject = {"codes": "bee", "two maps": "-1", "text": "a red star"}.get(kind)
    asked = (3, 5, subject) if pipe.prior else ()
    said, html = tab.complete(painted, files[0], *asked)
    assert said == "Completed 50% of the image."
    given, *completed = shown_pixels(html)
    assert len(completed) == (3 if pipe.prior else 1)
    assert all(np.array_equal(each[:8], image[:8]) for each in (given, *completed))
    assert len(np.unique(given[8:])) == 1
    if pipe.prior:
        labels = {} if kind in ("text", "masked") else {"labels": subject}
        prompt = {"prompt": subject} if kind == "text" else {}
        mask = torch.arange(16).view(16, 1).expand(16, 16) >= 8
        one = pipe.complete(
            read_upload(files[0], pipe.code_spec, "it"), mask, output_type="pt", **labels, **prompt,
            generator=[generator(5, "image", 0)],
        )  # fmt: skip
        assert np.abs(completed[0] - pixels_of(one.images)[0]).max() <= 1


@pytest.mark.parametrize(
    ("painted", "sentence"),
    [
        (None, "nothing is hidden"),
        ("0" * 256, "nothing is hidden"),
        ("1" * 255, "the mask must have a 0 or 1 for each of 16 x 16 pixels"),
        ("1" * 255 + "x", "the mask must have a 0 or 1"),
    ],
)
def test_a_mask_that_is_none_is_refused(shown, files, painted, sentence):
    with pytest.raises(ValueError, match=sentence):
        Completion(shown("codes")).complete(painted, files[0])
    assert as_mask("01" * 128, 16).sum() == 128


def plain(name, value):
    return Contestant(name, lambda: Image.new("L", (4, 4), value))


def test_the_blind_test_counts_and_says_whose_it_was():
    tab = Comparison((plain("mine", 10), plain("real", 200)))
    _, html, state, *_ = tab.begin()
    assert "Which one is real?" in html
    assert "mine" not in html
    right = 0
    for number in range(20):
        side = [int(pixels[0, 0]) for pixels in shown_pixels(html)].index(200)
        chosen = side if number % 4 else 1 - side
        right += chosen == side
        said, html, state, *buttons = tab.answer(state, chosen)
        assert said.startswith("Right." if chosen == side else "Wrong, that was mine.")
        assert f"in {right} of {number + 1}" in said
    assert (state.wins, state.answers) == (15, 20)
    assert [button.visible for button in buttons] == [False, True, True]
    assert all(isinstance(button, gradio.Button) for button in buttons)
    assert "75%, 95% interval 53% to 89%" in said
    with pytest.raises(ValueError, match="there are no images yet"):
        tab.answer(Round(), 0)
    assert "prefer" in Comparison((plain("a", 1), plain("b", 2))).question


def test_both_sides_are_equally_often_the_first():
    tab = Comparison((plain("a", 1), plain("b", 2)))
    left = sum(tab.begin()[2].order[0] == 0 for _ in range(400))
    assert 130 < left < 270  # 7 deviations


@pytest.mark.parametrize(("wins", "answers"), [(0, 5), (3, 10), (50, 50), (400, 1000)])
def test_the_interval_holds_the_shares_that_a_test_would_not_reject(wins, answers):
    """Wilson's: both ends lie 1.96 of their own deviations away."""
    low, high = wilson(wins, answers)
    assert 0 <= low <= wins / answers <= high <= 1
    for end in (low, high):
        if 0 < end < 1:
            deviation = (end * (1 - end) / answers) ** 0.5
            assert abs(wins / answers - end) / deviation == pytest.approx(1.96)
    assert wilson(0, 0) == (0.0, 1.0)


def test_folders_are_opened_at_the_pipelines_size(shown, images, tmp_path):
    spec = shown("codes").pipe.code_spec
    contestant = open_folder(f"real={images}", spec)
    assert contestant.name == "real"
    assert contestant.image().size == (16, 16)
    assert len({contestant.image().tobytes() for _ in range(20)}) > 1
    assert open_folder("digits=mnist5k[test]", spec).image().mode == "RGB"
    with pytest.raises(ValueError, match="--images nowhere: expected NAME=FOLDER"):
        open_folder("nowhere", spec)
    with pytest.raises(ValueError, match="--images real: "):
        open_folder(f"real={tmp_path / 'none'}", spec)
