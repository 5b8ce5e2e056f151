import dataclasses
from dataclasses import dataclass
from typing import ClassVar, Literal

import pytest

from latent_prior.cli import parse_config
from latent_prior.options import ImageOptions, Options, Range, RunOptions, changeable, option
from latent_prior.stage1_autoencoders.options import TrainOptions
from latent_prior.stage1_autoencoders.vqgan import VQGANOptions


@pytest.mark.parametrize(
    ("limits", "inside", "outside", "words"),
    [
        (Range(at_least=1), [1, 1.5, 10**9], [0, 0.999, -1], "at least 1"),
        (Range(above=0), [1e-9, 3], [0, 0.0, -1], "above 0"),
        (Range(at_most=4), [4, -9], [4.1, 5], "at most 4"),
        (Range(below=1), [0.99, -1], [1, 1.0], "below 1"),
        (Range(at_least=0, below=1), [0, 0.5], [-0.1, 1], "at least 0 and below 1"),
        (Range(above=0, at_most=1), [0.5, 1], [0, 1.1], "above 0 and at most 1"),
        (Range(), [0, -1e9, 1e9], [], ""),
    ],
)
def test_a_range_contains_its_numbers_and_names_its_ends(limits, inside, outside, words):
    assert all(number in limits for number in inside)
    assert not any(number in limits for number in outside)
    assert str(limits) == words


def test_no_range_with_an_end_contains_nan():
    for limits in (Range(at_least=0), Range(above=0), Range(at_most=0), Range(below=0)):
        assert float("nan") not in limits


@dataclass(kw_only=True)
class Paint(Options):
    """Options of every kind."""

    flag_prefix: ClassVar[str] = "paint."

    colour: Literal["red", "blue"] = "red"
    width: int = option(2, at_least=1, at_most=9)
    depth: int | None = option(None, at_least=1)
    layers: list[int] = option(factory=lambda: [1, 2], at_least=1, may_change=True)
    tools: list[Literal["brush", "knife"]] = option(factory=list)
    coats: Literal[1, 3] | None = option(None, may_change=True)
    plain: float = -1.0


@dataclass(kw_only=True)
class Fresco(Paint):
    """A subclass that narrows a choice and adds a required option."""

    colour: Literal["red", "green"] = "red"
    wall: str = option()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"width": 0}, "--paint.width must be at least 1 and at most 9, not 0"),
        ({"width": 10}, "--paint.width must be at least 1 and at most 9, not 10"),
        ({"depth": 0}, "--paint.depth must be at least 1, not 0"),
        ({"layers": [1, 0]}, r"--paint.layers must be at least 1, not \[1, 0\]"),
        ({"colour": "green"}, "--paint.colour must be one of red, blue, not 'green'"),
        ({"colour": None}, "--paint.colour must be one of red, blue, not None"),
        ({"coats": 2}, "--paint.coats must be one of 1, 3, None, not 2"),
        (
            {"tools": ["brush", "pen"]},
            r"--paint.tools must be one of brush, knife, not \['brush', ",
        ),
        ({"tools": [["brush"]]}, "--paint.tools must be one of brush, knife, not"),
    ],
)
def test_options_refuse_numbers_out_of_range_and_unknown_words(settings, message):
    with pytest.raises(ValueError, match=f"^{message}"):
        Paint(**settings)


def test_options_accept_defaults_none_and_empty_lists():
    assert Paint(depth=None, layers=[], tools=[], coats=None).width == 2
    assert Paint().layers == [1, 2]
    assert Paint().layers is not Paint().layers
    Paint(width=9, depth=1, layers=[1], tools=["knife", "brush"], coats=3, plain=float("nan"))


def test_a_subclass_may_narrow_a_choice():
    Fresco(wall="x", colour="green")
    with pytest.raises(ValueError, match=r"--paint.colour must be one of red, green, not 'blue'"):
        Fresco(wall="x", colour="blue")
    with pytest.raises(TypeError, match="wall"):
        Fresco()


@dataclass(kw_only=True)
class Wall(Options):
    """Options that depend on a choice."""

    used_by: ClassVar[str] = "kind"

    kind: Literal["brick", "wood", "glass"] = "brick"
    grain: str | None = option(None, only_for=["wood"])
    colours: list[str] = option(factory=list, only_for=["brick", "wood"])


def test_an_option_without_effect_is_refused():
    Wall(kind="glass", grain=None, colours=[])
    Wall(kind="wood", grain="fine", colours=["red"])
    with pytest.raises(ValueError, match=r"^--grain is for --kind wood, not for brick$"):
        Wall(grain="fine")
    with pytest.raises(ValueError, match=r"^--colours is for --kind brick or wood, not for glass$"):
        Wall(kind="glass", colours=["red"])


def test_changeable_options_are_named_by_their_fields():
    assert changeable(Paint) == changeable(Paint()) == {"layers", "coats"}
    assert {"cpu_threads", "max_steps", "output_dir"} <= changeable(RunOptions)
    assert "learning_rate" in changeable(RunOptions)  # what a diverged run needs
    adversarial = TrainOptions(output_dir="x", model=VQGANOptions())
    assert {n for n in changeable(adversarial) if "." in n} == {"critic.learning_rate"}
    assert not {"batch_size", "schedule", "seed"} & changeable(RunOptions)


@pytest.mark.parametrize(
    ("flag", "value"),
    [
        ("batch_size", 0), ("accumulation_steps", 0), ("log_every", 0), ("checkpoint_every", 0),
        ("checkpoints_to_keep", 0), ("evaluate_every", 0), ("cpu_threads", 0), ("max_steps", -1), ("warmup_steps", -1),
        ("weight_decay", -0.1), ("weight_decay", float("nan")), ("final_learning_rate", -1.0), ("seed", -1),
        ("learning_rate", 0.0), ("learning_rate", float("nan")), ("gradient_clip", 0.0), ("max_seconds", 0.0),
        ("beta1", 1.0), ("beta2", -0.1), ("ema_decay", 1.0), ("accumulation_steps", 3),
    ],
)  # fmt: skip
def test_a_run_refuses_what_it_cannot_do(flag, value):
    with pytest.raises(ValueError, match=f"--{flag} "):
        RunOptions(**{"output_dir": "x", flag: value})


def test_a_tracker_that_is_not_installed_is_refused_before_any_work(monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ValueError, match=r"--report_to wandb needs: pip install"):
        RunOptions(output_dir="x", report_to="wandb")


def test_the_limits_themselves_are_allowed():
    RunOptions(
        output_dir="x", max_steps=0, warmup_steps=0, beta1=0.0, ema_decay=0.0, max_seconds=None
    )


@pytest.mark.parametrize(
    ("settings", "flag"),
    [
        ({"image_size": 0}, "image_size"),
        ({"resize": 0, "image_size": 8}, "resize"),
        ({"crop_padding": -1}, "crop_padding"),
        ({"resize": 8, "image_size": 9}, "resize"),
    ],
)
def test_images_refuse_impossible_sizes(settings, flag):
    with pytest.raises(ValueError, match=f"--{flag} "):
        ImageOptions(**settings)


def test_every_check_runs_again_on_a_changed_copy():
    with pytest.raises(ValueError, match="--image_size"):
        dataclasses.replace(ImageOptions(image_size=8), image_size=-1)


@dataclass(kw_only=True)
class Places(Options):
    """Options that are paths."""

    folder: str = option(path=True)
    others: list[str] = option(factory=list, path=True)
    maybe: str | None = option(None, path=True)
    word: str = "~/no path"


def test_paths_are_expanded_once(monkeypatch, tmp_path):
    """From flags, presets and Python; what has no last part of its own becomes absolute."""
    monkeypatch.setenv("HOME", "/home/me")
    monkeypatch.chdir(tmp_path)
    places = Places(folder="~/x", others=["~", "a/b", "user/set"], maybe="~/y")
    assert places.folder == "/home/me/x"
    assert places.others == ["/home/me", "a/b", "user/set"]
    assert places.maybe == "/home/me/y"
    assert places.word == "~/no path"
    assert dataclasses.replace(places) == places
    for dots, expected in ((".", tmp_path), ("..", tmp_path.parent), ("a/..", tmp_path)):
        assert Places(folder=dots).folder == str(expected)


def test_paths_in_presets_and_flags(monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", "/home/me")
    preset = tmp_path / "a.yaml"
    preset.write_text("dataset: ~/images\noutput_dir: runs/x\n")
    found = parse_config(TrainOptions, ["--config", str(preset)])
    assert (found.dataset, found.output_dir) == ("/home/me/images", "runs/x")
    found = parse_config(TrainOptions, ["--output_dir=~/run"])
    assert (found.dataset, found.output_dir) == ("mnist5k", "/home/me/run")


@pytest.mark.parametrize("path", ["a\0b", "~nobody-of-this-name/x"])
def test_what_is_no_path_names_the_flag(path):
    with pytest.raises(ValueError, match="--folder "):
        Places(folder=path)


@pytest.mark.parametrize("url", ["s3://bucket/run", "file:///tmp/run", "memory://run"])
def test_results_go_to_a_local_folder(url):
    """A path would be made of it: the folder `s3:` here, which nobody looks into."""
    with pytest.raises(ValueError, match=rf"^--output_dir {url}: results are written to a local"):
        RunOptions(output_dir=url)
