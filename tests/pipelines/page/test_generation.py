import base64
import io
import re
import shlex

import numpy as np
import pytest
import torch
from PIL import Image

from latent_prior.pipelines import Pipeline, generate
from latent_prior.pipelines.page.generation import Asked
from latent_prior.pipelines.page.pictures import gallery, text
from latent_prior.pipelines.page.shown import Shown


def asked(shown, **values):
    return Asked(shown, {"num_images": 3, "seed": 5, **values})


def shown_pixels(html):
    """The images in a piece of the page."""
    found = re.findall(r'<img src="data:image/png;base64,([^"]+)"', html)
    return [np.asarray(Image.open(io.BytesIO(base64.b64decode(each)))) for each in found]


@pytest.mark.parametrize("kind", ["codes", "masked", "two maps", "text", "latents alone"])
def test_the_last_of_a_stream_is_a_call_bit_for_bit(pipes, kind):
    pipe = pipes[kind]
    settings = {"temperature": 0.8}
    if pipe.class_names:
        settings |= {"labels": ["bee", 0, -1], "guidance_scale": 2.0}
    if pipe.prompt_reader is not None:
        settings["prompt"] = "a red star"
    call = pipe(3, generator=[1, 2, 3], output_type="pt", **settings)
    outputs = list(pipe.stream(3, generator=[1, 2, 3], output_type="pt", updates=4, **settings))
    assert len(outputs) == 1 if pipe.prior is None else 2 <= len(outputs) <= 4
    assert torch.equal(outputs[-1].images, call.images)
    assert outputs[-1].labels == call.labels
    for name, values in call.codes.items():
        assert torch.equal(outputs[-1].codes[name], values)
    if len(outputs) > 1:
        assert any((values == -1).any() for values in outputs[0].codes.values())


def test_what_is_not_sampled_yet_is_grey(pipes):
    pipe = pipes["codes"]
    for output in pipe.stream(2, generator=0, output_type="pt", updates=5):
        hidden = (output.codes["codes"] == -1).repeat_interleave(2, 1).repeat_interleave(2, 2)
        assert (output.images[hidden.unsqueeze(1).expand_as(output.images)] == 0).all()
        known = output.images[~hidden.unsqueeze(1).expand_as(output.images)]
        assert (known != 0).float().mean() > 0.9


def test_latents_fill_from_their_mean(parts):
    grid = parts["autoencoder"]("vae", latent_dim=None)
    pipe = Pipeline(grid, latent_prior_over(grid))
    outputs = list(pipe.stream(2, generator=3, output_type="pt", updates=4))
    assert all(bool(output.images.isfinite().all()) for output in outputs)
    (first,) = outputs[0].codes.values()
    assert first.isnan().any()
    assert torch.equal(outputs[-1].images, pipe(2, generator=3, output_type="pt").images)


def latent_prior_over(grid):
    from latent_prior.stage2_prior.prior import PriorConfig, TransformerPrior

    (level,) = grid.code_spec.levels
    spec = grid.code_spec.to_dict() | {
        "latent_shift": [0.1] * level.channels,
        "latent_scale": [0.5] * level.channels,
    }
    shape = {"width": 16, "depth": 1, "heads": 2, "condition": "none"}
    return TransformerPrior(PriorConfig(code_spec=spec, **shape)).eval()


@pytest.mark.parametrize(
    ("kind", "values"),
    [
        ("codes", {"label": "bee", "guidance_scale": 2.5, "top_p": 0.9, "temperature": 0.7}),
        ("codes", {"label": "-1"}),
        ("codes", {"label": "each in turn", "guidance_interval": "0.1 0.8", "guidance_scale": 3.0}),
        ("masked", {"label": "car", "steps": 3, "choice_temperature": 2.0}),
        ("text", {"prompt": 'a red star\'s "point" {}', "top_k": 5}),
        ("latents alone", {"temperature": 0.5}),
    ],
)
def test_command_and_python_make_the_same_images(pipes, kind, values, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    pipes[kind].save_pretrained("my pipeline")
    request = asked(Shown(Pipeline.from_pretrained("my pipeline"), "my pipeline"), **values)
    *_, last = request.stream()
    expected = [np.asarray(image) for image in last.images]
    for name, value in request.settings.items():
        assert name in values, (name, value)
    space = {}
    exec(compile(request.python(), "copied", "exec"), space)
    program, *words = shlex.split(request.command().partition("generate.py")[2])
    generate.main([program, *words, "--cpu_threads", "1"])
    for number, pixels in enumerate(expected):
        for folder in (".", "generated"):
            assert np.array_equal(np.asarray(Image.open(f"{folder}/{number:06d}.png")), pixels)


@pytest.mark.parametrize(
    ("kind", "values", "sentence"),
    [
        ("codes", {"seed": -1}, "seed must be at least 0, not -1"),
        ("codes", {"seed": None}, "seed must be a whole number, not None"),
        ("codes", {"num_images": 17}, "num_images must be at most 16 on this page, not 17"),
        ("codes", {"num_images": 0}, "num_images must be at least 1, not 0"),
        ("codes", {"top_p": 0}, "top_p must lie in (0, 1]"),
        ("codes", {"guidance_interval": "a b"}, "guidance_interval must be two rising shares"),
        ("codes", {"label": "dog"}, "dog"),
        ("text", {"prompt": "red " * 300}, "the prompt has 1199 letters: shorten it"),
        ("text", {"prompt": "red " * 200}, "shorten it"),
        ("codes alone", {}, "this pipeline has no prior to sample from"),
    ],
)
def test_errors_have_the_words_of_the_command_line(shown, kind, values, sentence):
    with pytest.raises(ValueError, match=re.escape(sentence)):
        asked(shown(kind), **values).stream()


def test_large_images_are_drawn_a_few_at_a_time(shown, parts):
    large = Pipeline(parts["autoencoder"]("vqvae", image_size=256))
    assert Shown(large, "x").most == 4
    assert shown("codes").most == 16


def test_the_gallery_shows_the_pixels_and_no_one_elses_markup():
    images = [Image.fromarray(np.full((4, 4), value, np.uint8)) for value in (0, 200)]
    html = gallery(images, ["<b>{{x}}${y}", "two"])
    assert [pixels[0, 0] for pixels in shown_pixels(html)] == [0, 200]
    assert "<b>" not in html
    assert "{" not in text("{{x}}${y}")
    assert "$" not in text("{{x}}${y}")
