import dataclasses
import errno
import importlib
import os
import re
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import pytest
import yaml

from latent_prior.cli import command_line, dump_config, fail, flags, parse_config, run

ALL_OPTIONS = [
    ("latent_prior.stage1_autoencoders.options", "TrainOptions"),
    ("latent_prior.stage1_autoencoders.options", "EncodeOptions"),
    ("latent_prior.stage2_prior.options", "TrainOptions"),
    ("latent_prior.pipelines.options", "AssembleOptions"),
    ("latent_prior.pipelines.options", "GenerateOptions"),
    ("latent_prior.pipelines.options", "LatentOptions"),
    ("latent_prior.evaluation.options", "ScoreOptions"),
]
# What options need besides a text for every field without a default.
LEAST = {
    "LatentOptions": {"operation": "reconstruct", "autoencoder": "x"},
    "ScoreOptions": {"candidates": ["a=b"]},
}


@dataclass(kw_only=True)
class Inner:
    """A nested group."""

    width: int = 32
    """Channels."""
    sizes: list[int] = field(default_factory=lambda: [1, 2])
    """Some numbers."""

    def __post_init__(self):
        if self.width < 1:
            raise ValueError(f"--width must be at least 1, not {self.width}")


@dataclass(kw_only=True)
class Options:
    """Do something."""

    name: str
    """Any text."""
    column: str | None = None
    """Text or nothing."""
    rate: float = 0.5
    """A number."""
    steps: int = 10
    """A count."""
    limit: float | None = 1.0
    """A number or nothing."""
    flip: bool = False
    """A switch."""
    blocks: int | list[int] = 1
    """A count, or several."""
    kind: Literal["no", "yes", "maybe"] = "yes"
    """A word."""
    channels: Literal[1, 3] | None = None
    """A number of few."""
    words: list[str] = field(default_factory=list)
    """Some words."""
    model: Inner = field(default_factory=Inner)
    """A nested group."""


@dataclass(kw_only=True)
class Named:
    """A group with a required option."""

    name: str
    """Any text."""


@dataclass(kw_only=True)
class Pair:
    """Two groups."""

    first: Named
    """A group."""
    second: Named
    """Another group."""
    title: str
    """Any text."""


@pytest.fixture
def preset(tmp_path):
    def write(text: str) -> str:
        path = tmp_path / "preset.yaml"
        path.write_text(text)
        return str(path)

    return write


@pytest.fixture
def refused(capsys, monkeypatch):
    """The one line on stderr with which a command line is refused."""
    monkeypatch.setattr(sys, "argv", ["script.py"])

    def parse(*words: str) -> str:
        with pytest.raises(SystemExit) as stopped:
            parse_config(Options, ["--name", "x", *words])
        said = capsys.readouterr()
        assert stopped.value.code == 2
        assert said.out == ""
        assert said.err.startswith("script.py: error: ")
        assert said.err.count("\n") == 1
        return said.err.removeprefix("script.py: error: ").strip()

    return parse


def parse(*words: str) -> Options:
    return parse_config(Options, ["--name", "x", *words])


def test_a_flag_beats_the_preset_in_any_order(preset):
    path = preset("steps: 1\nrate: 0.25\nmodel:\n  width: 8\n")
    for words in (["--steps", "2", "--config", path], ["--config", path, "--steps", "2"]):
        options = parse(*words, "--model.sizes", "5", "6")
        assert (options.steps, options.rate) == (2, 0.25)
        assert options.model == Inner(width=8, sizes=[5, 6])


def test_dotted_keys_of_a_preset_mean_the_same_as_nested_ones(preset):
    assert parse("--config", preset("model.width: 8")).model.width == 8


def test_forms_of_a_flag():
    assert parse("--steps=3").steps == 3
    assert parse("--flip").flip is True
    assert parse("--flip", "false").flip is False
    assert parse("--flip=true").flip is True
    assert parse("--words", "a=x", "b=y").words == ["a=x", "b=y"]
    assert parse("--words").words == []
    assert parse("--words", "1", "-1").words == ["1", "-1"]
    assert parse("--model.sizes", "[3, 4]").model.sizes == [3, 4]
    assert parse("--steps", "1", "--steps", "-2").steps == -2
    for words, value in ((["3"], 3), (["3", "4"], [3, 4]), (["[3]"], [3])):
        assert parse("--blocks", *words).blocks == value


@pytest.mark.parametrize("none", ["null", "None"])
def test_null_is_nothing_where_nothing_is_allowed_and_text_elsewhere(none):
    assert parse("--limit", none, "--channels", none, "--column", none) == Options(
        name="x", limit=None
    )
    assert parse_config(Options, ["--name", none]).name == none


@pytest.mark.parametrize(
    "text", ["2024", "no", "1e-4", "true", "012", "a: b", "[x]", "include_x", "~", "12:30"]
)
def test_text_that_looks_like_something_else_stays_text(text):
    options = parse_config(Options, ["--name", text, "--column", text, "--words", text])
    assert (options.name, options.column, options.words) == (text, text, [text])


def test_numbers_are_read_as_people_write_them(preset):
    for word, value in (("1e-4", 1e-4), ("5", 5.0), (".5", 0.5), ("1.5E+2", 150.0)):
        assert parse("--rate", word).rate == value
        assert parse("--config", preset(f"rate: {word}")).rate == value
    assert isinstance(parse("--rate", "5").rate, float)


def test_words_of_yaml_1_1_are_no_traps(preset):
    """PyYAML reads `no` as False, which refuses the very default of --mixed_precision."""
    assert yaml.safe_load("no") is False
    assert parse("--kind", "no").kind == "no"
    options = parse("--config", preset("kind: no\ncolumn: off\nname: 2024\nflip: true\nlimit:\n"))
    assert (options.kind, options.column, options.flip, options.limit) == ("no", "off", True, None)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--stepz", "3"], "unknown option --stepz (did you mean steps?)"),
        (["--model.wdth", "3"], "unknown option --model.wdth (did you mean model.width?)"),
        (["--qqqq", "3"], "unknown option --qqqq; --help lists them all"),
        (["--model", "3"], "unknown option --model"),
        (["--steps", "1.5"], "--steps takes a whole number, not 1.5"),
        (["--steps", "many"], "--steps takes a whole number, not 'many'"),
        (["--steps", "true"], "--steps takes a whole number, not true"),
        (["--steps", "null"], "--steps takes a whole number, not null"),
        (["--steps", "["], "--steps takes a whole number, not '['"),
        (["--rate", "nan"], "--rate takes a number, not 'nan'"),
        (["--rate", "1e999"], "--rate takes a number, not Infinity"),
        (["--flip", "perhaps"], "--flip takes true or false, not 'perhaps'"),
        (["--flip", "1"], "--flip takes true or false, not 1"),
        (["--kind", "none"], "--kind takes one of no, yes, maybe, not 'none'"),
        (["--channels", "2"], "--channels takes one of 1, 3 or null, not 2"),
        (["--channels", "true"], "--channels takes one of 1, 3 or null, not true"),
        (["--model.sizes", "1", "a"], "--model.sizes takes a list, each a whole number, not"),
        (["--model.width", "0"], "--width must be at least 1, not 0"),
        (["--steps"], "--steps takes one value, not 0"),
        (["--steps", "1", "2"], "--steps takes one value, not 2"),
        (["--words", "a", "--words", "b"], "--words is given twice"),
        (
            ["--config", "nowhere.yaml"],
            "--config: there is no file nowhere.yaml and no preset of that name",
        ),
        (["--config"], "--config takes one value, not 0"),
    ],
)
def test_a_mistake_is_one_line_that_names_the_flag(refused, words, message):
    assert message in refused(*words)


def test_a_word_before_any_flag_is_a_mistake(capsys):
    with pytest.raises(SystemExit):
        parse_config(Options, ["folder", "--name", "x"])
    assert "unexpected word 'folder'" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("stepz: 3", "unknown key 'stepz' in"),
        ("model:\n  wdth: 3", "(did you mean model.width?)"),
        ("width: 3", "(did you mean model.width?)"),
        ("model: 3", "unknown key 'model' in"),
        ("steps: 1.5", "--steps takes a whole number, not 1.5"),
        ("flip: no", "--flip takes true or false, not 'no'"),
        ("model:\n  sizes: 3", "--model.sizes takes a list"),
        ("- a", "is not a mapping"),
        ("a: [", "is not YAML"),
        ("name: !!python/object/apply:os.system [ls]", "is not YAML"),
    ],
)
def test_a_mistake_in_a_preset_is_one_line(refused, preset, text, message):
    assert message in refused("--config", preset(text))


def test_missing_options_are_named(capsys):
    with pytest.raises(SystemExit):
        parse_config(Options, [])
    assert capsys.readouterr().err.endswith("error: --name is required\n")
    with pytest.raises(SystemExit):
        parse_config(Pair, ["--first.name", "x"])
    assert capsys.readouterr().err.endswith("error: --second.name, --title are required\n")


def test_dry_run_prints_a_preset_that_means_the_same(capsys, preset):
    words = ["--rate", "1e-05", "--kind", "no", "--words", "2024", "--model.width", "3"]
    with pytest.raises(SystemExit) as stopped:
        parse(*words, "--dry_run")
    assert stopped.value.code == 0
    assert parse_config(Options, ["--config", preset(capsys.readouterr().out)]) == parse(*words)


@pytest.mark.parametrize(("module", "name"), ALL_OPTIONS)
@pytest.mark.parametrize("flag", ["--help", "-h"])
def test_help_describes_every_flag(capsys, module, name, flag):
    options_class = getattr(importlib.import_module(module), name)
    with pytest.raises(SystemExit) as stopped:
        parse_config(options_class, [flag])
    text = capsys.readouterr().out
    assert stopped.value.code == 0
    described = dict(re.findall(r"\n  --([\w.]+) .*\n        (\S.*)", text))
    names = {flag.name for flag in flags(options_class, {})}
    for flag_name in names:
        assert len(described[flag_name]) > 10, flag_name
    assert set(described) == names | {"config"}


@pytest.mark.parametrize(("module", "name"), ALL_OPTIONS)
def test_defaults_are_what_their_types_say(module, name):
    """Every option of the project survives the way to a preset and back."""
    options_class = getattr(importlib.import_module(module), name)
    required = {
        f.name: "x"
        for f in dataclasses.fields(options_class)
        if f.default is dataclasses.MISSING and f.default_factory is dataclasses.MISSING
    }
    required |= LEAST.get(name, {})
    words = [word for key, value in required.items()
             for word in (f"--{key}", *([value] if isinstance(value, str) else value))]  # fmt: skip
    options = parse_config(options_class, words)
    assert options == options_class(**required)
    assert yaml.safe_load(yaml.safe_dump(dump_config(options))) == dump_config(options)


def test_a_script_answers_before_torch_is_imported():
    root = Path(__file__).parents[2]
    code = (
        "import runpy, sys\nsys.argv = ['train.py', '--stepz']\n"
        f"try: runpy.run_path({str(root / 'stage1_autoencoders' / 'train.py')!r}, run_name='__main__')\n"
        "except SystemExit as stopped: print(stopped.code, 'torch' in sys.modules)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, cwd=root, check=True
    )
    assert done.stdout.strip() == "2 False"
    assert done.stderr.startswith("train.py: error: unknown option --stepz")


def run_and_read(error: BaseException, capsys) -> str:
    def main() -> None:
        raise error

    with pytest.raises(SystemExit) as stopped:
        run(main)
    assert stopped.value.code == 2
    said = capsys.readouterr().err
    assert said.count("\n") == 1
    return said


def wrapped(error: BaseException, cause: BaseException) -> BaseException:
    error.__cause__ = cause
    return error


ROOT = Path(__file__).parents[2]


# What torchrun tells the second process of the first of two machines.
GROUP = {"LOCAL_RANK": "1", "LOCAL_WORLD_SIZE": "3", "WORLD_SIZE": "6"}


@pytest.mark.parametrize("start", [ROOT, ROOT / "src" / "latent_prior", Path()], ids=str)
def test_a_command_is_recorded_as_it_is_typed_in_a_checkout(monkeypatch, start):
    """Started there, by an absolute path, or with `-m`, which puts the module's file first."""
    monkeypatch.chdir(ROOT)
    for name in (*GROUP, "ACCELERATE_USE_CPU", "ACCELERATE_MIXED_PRECISION"):
        monkeypatch.delenv(name, raising=False)
    script, words = str(start / "pipelines" / "generate.py"), ["--labels", "a b", "--seed", "3"]
    monkeypatch.setattr(sys, "argv", [script, *words])
    expected = "pipelines/generate.py --labels 'a b' --seed 3"
    assert command_line() == f"python {expected}"
    for name, value in GROUP.items():
        monkeypatch.setenv(name, value)
    assert command_line() == f"torchrun --nnodes 2 --nproc_per_node 3 {expected}"
    monkeypatch.setenv("WORLD_SIZE", "3")
    monkeypatch.setenv("ACCELERATE_USE_CPU", "true")
    launched = "ACCELERATE_USE_CPU=true torchrun --standalone --nproc_per_node 3"
    assert command_line() == f"{launched} {expected}"
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "no")
    assert command_line() == f"accelerate launch {expected}"
    monkeypatch.setattr(sys, "argv", ["/usr/bin/pytest", *words])
    assert command_line() is None


def test_a_name_that_is_too_long_is_one_line(capsys):
    with pytest.raises(SystemExit) as stopped:
        run(lambda: Path("x" * 100_000).stat())
    assert stopped.value.code == 2
    message = capsys.readouterr().err
    assert os.strerror(errno.ENAMETOOLONG) in message
    assert len(message) < 500


def test_errors_for_the_user_become_one_line(capsys):
    assert "a b" in run_and_read(ValueError("a\n  b"), capsys)
    full = os.strerror(errno.ENOSPC)
    text = "Error while serializing: I/O error: No space left on device (os error 28)"
    for error in (
        OSError(errno.ENOSPC, full),
        wrapped(RuntimeError("unexpected pos 704 vs 598"), OSError(errno.ENOSPC, full)),
        Exception(text),
    ):
        assert f"{full}; nothing incomplete was kept" in run_and_read(error, capsys)
    assert "a.png" in run_and_read(PermissionError(errno.EACCES, "no", "a.png"), capsys)


def test_errors_of_the_program_are_not_dressed_up():
    for error in (KeyError("x"), OSError(errno.EIO, "broken"), RuntimeError("a"), AssertionError()):
        with pytest.raises(type(error)):
            run(lambda error=error: (_ for _ in ()).throw(error))


def test_fail_ends_with_code_2(capsys):
    with pytest.raises(SystemExit) as stopped:
        fail("one\ntwo")
    assert stopped.value.code == 2
    assert capsys.readouterr().err.endswith("error: one two\n")


# Groups whose fields hang on a choice


class Shape:
    """Abstract: what the choice is about."""

    asked: list[str] = []  # noqa: RUF012

    @classmethod
    def get_choice_class(cls, name: str) -> type:
        cls.asked.append(name)
        return {"round": Round, "square": Square}[name]

    @classmethod
    def get_known_choices(cls) -> dict[str, Any]:
        return {"round": 0, "square": 0}

    @classmethod
    def get_choice_name(cls, subcls: type) -> str:
        for name, known in (("round", Round), ("square", Square)):
            if subcls is known:
                return name
        raise ValueError("no such shape")

    @classmethod
    def default_choice_name(cls) -> str:
        return "round"


@dataclass(kw_only=True)
class Round(Shape):
    """A circle."""

    radius: float = 1.0
    """Half of its width."""


@dataclass(kw_only=True)
class Square(Shape):
    """A square."""

    side: int = 2
    """Its width."""
    corners: list[int] = field(default_factory=list)
    """Some of its corners."""
    filled: bool = False
    """A switch."""

    def __post_init__(self):
        if self.side < 1:
            raise ValueError(f"--shape.side must be at least 1, not {self.side}")


@dataclass(kw_only=True)
class Drawing:
    """Draw something."""

    colour: str = "red"
    """Any text."""
    shape: Shape = field(default_factory=Round)
    """What is drawn."""


@pytest.fixture
def no_drawing(capsys):
    """The one line with which a drawing is refused."""

    def draw(*words: str) -> str:
        Shape.asked.clear()
        with pytest.raises(SystemExit) as stopped:
            parse_config(Drawing, words)
        said = capsys.readouterr()
        assert stopped.value.code == 2
        assert said.out == ""
        assert said.err.count("\n") == 1
        return said.err

    return draw


def test_the_type_says_whose_fields_the_flags_are():
    assert parse_config(Drawing, []).shape == Round()
    assert parse_config(Drawing, ["--shape.radius", "2"]).shape == Round(radius=2.0)
    for words in (
        ["--shape.type", "square", "--shape.side", "3", "--shape.corners", "1", "2", "--shape.filled"],
        ["--shape.filled", "--shape.corners", "1", "2", "--shape.side=3", "--shape.type=square"],
    ):  # fmt: skip
        assert parse_config(Drawing, words).shape == Square(side=3, corners=[1, 2], filled=True)
    assert parse_config(Drawing, ["--shape.type", "square", "--shape.corners", "7"]).shape.corners == [7]  # fmt: skip


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--shape.type", "oval"], "--shape.type takes one of round, square, not 'oval'"),
        (["--shape.type"], "--shape.type takes one value, not 0"),
        (["--shape.type", "round", "square"], "--shape.type takes one value, not 2"),
        (["--shape", "round"], "unknown option --shape (did you mean shape."),
        (["--shape.side", "3"], "unknown option --shape.side"),
        (["--shape.type", "square", "--shape.radius", "3"], "unknown option --shape.radius"),
        (["--shape.type", "square", "--shape.sid", "3"], "(did you mean shape.side?)"),
        (["--shape.type", "square", "--shape.side", "many"], "--shape.side takes a whole number"),
        (["--shape.type", "square", "--shape.side"], "--shape.side takes one value, not 0"),
        (["--shape.type", "square", "--shape.side", "0"], "--shape.side must be at least 1, not 0"),
        (["--shape.type", "square", "--shape.corners", "a"], "--shape.corners takes a list"),
        (["--colr", "blue"], "unknown option --colr (did you mean colour?)"),
    ],
)
def test_a_mistake_about_a_choice_is_one_line(no_drawing, words, message):
    assert message in no_drawing(*words)


def test_mistakes_elsewhere_are_answered_before_the_choice_is_looked_up(no_drawing):
    """The class of a choice may be costly to import."""
    for words in (["--colr", "blue"], ["--colour"], ["--shape.type", "oval"], ["--config", "x"]):
        no_drawing("--shape.side", "3", *words)
        assert Shape.asked == []


def test_a_preset_chooses_and_a_flag_chooses_over_it(preset, no_drawing):
    square = preset("colour: blue\nshape:\n  type: square\n  side: 5\n")
    assert parse_config(Drawing, ["--config", square]).shape == Square(side=5)
    words = ["--shape.side", "6", "--config", square, "--shape.filled"]
    assert parse_config(Drawing, words).shape == Square(side=6, filled=True)
    # The preset's fields are then those of no such class.
    said = no_drawing("--config", square, "--shape.type", "round")
    assert "unknown key 'shape.side' in" in said
    only = preset("shape.type: square")
    assert parse_config(Drawing, ["--config", only]).shape == Square()
    assert parse_config(Drawing, ["--config", only, "--shape.type", "round"]).shape == Round()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("shape: {type: oval}", "--shape.type takes one of round, square, not 'oval'"),
        ("shape: square", "unknown key 'shape' in"),
        ("shape: {type: square, radius: 1}", "unknown key 'shape.radius' in"),
        ("shape: {side: 3}", "unknown key 'shape.side' in"),
        ("shape: {type: square, side: wide}", "--shape.side takes a whole number, not 'wide'"),
    ],
)
def test_a_mistake_about_a_choice_in_a_preset_is_one_line(no_drawing, preset, text, message):
    assert message in no_drawing("--config", preset(text))


def test_a_dumped_choice_means_the_same_as_a_preset(capsys, preset):
    words = ["--shape.type", "square", "--shape.side", "4", "--colour", "no"]
    options = parse_config(Drawing, words)
    assert dump_config(options) == {
        "colour": "no",
        "shape": {"type": "square", "side": 4, "corners": [], "filled": False},
    }
    assert parse_config(Drawing, ["--config", preset(yaml.safe_dump(dump_config(options)))]) == options  # fmt: skip
    with pytest.raises(SystemExit):
        parse_config(Drawing, [*words, "--dry_run"])
    assert yaml.safe_load(capsys.readouterr().out) == dump_config(options)
    assert dump_config(Drawing())["shape"] == {"type": "round", "radius": 1.0}


def help_of(options_class: type, capsys, *words: str) -> dict[str, str]:
    with pytest.raises(SystemExit) as stopped:
        parse_config(options_class, [*words, "--help"])
    assert stopped.value.code == 0
    return dict(re.findall(r"\n  --([\w.]+) .*\n        (\S[^\n]*)", capsys.readouterr().out))


def test_help_shows_the_fields_of_the_chosen_one(capsys, preset):
    shown = help_of(Drawing, capsys)
    assert (
        shown["shape.type"]
        == "What is drawn. The flags below are those of the chosen one. (default: 'round')"
    )
    assert shown.keys() - {"config"} == {"colour", "shape.type", "shape.radius"}
    for words in (["--shape.type", "square"], ["--config", preset("shape: {type: square}")]):
        shown = help_of(Drawing, capsys, *words)
        assert shown.keys() - {"config"} == {
            "colour", "shape.type", "shape.side", "shape.corners", "shape.filled",
        }  # fmt: skip


def test_flags_before_and_after_the_choice():
    assert {flag.name: flag.kind for flag in flags(Drawing)} == {
        "colour": str, "shape.type": Literal["round", "square"], "shape.*": Any,
    }  # fmt: skip
    assert "shape.radius" in [flag.name for flag in flags(Drawing, {})]
    assert "shape.side" in [flag.name for flag in flags(Drawing, {"shape.type": "square"})]


# The family and the presets


@pytest.mark.parametrize("member", ["vae", "vqvae", "vqvae2", "vaegan", "vqgan"])
def test_every_member_has_its_flags_and_survives_a_preset(member, capsys, preset):
    options_class = importlib.import_module("latent_prior.stage1_autoencoders.options").TrainOptions
    words = ["--output_dir", "x", "--model.type", member]
    options = parse_config(options_class, words)
    dumped = dump_config(options)
    assert dumped["model"]["type"] == member
    assert parse_config(options_class, ["--config", preset(yaml.safe_dump(dumped))]) == options
    shown = help_of(options_class, capsys, "--model.type", member)
    assert {f"model.{name}" for name in dumped["model"]} <= shown.keys()
    assert ("model.latent_dim" in shown) == (member in ("vae", "vaegan"))
    assert ("model.codebook_size" in shown) == (member not in ("vae", "vaegan"))
    assert all(len(sentence) > 10 for sentence in shown.values())


def test_a_flag_of_another_member_is_unknown(capsys):
    options_class = importlib.import_module("latent_prior.stage1_autoencoders.options").TrainOptions
    for member, flag, meant in (
        ("vqvae", "codebook_dim", "codebook_size"),
        ("vae", "codebook_size", None),
        ("vqvae", "latent_dims", None),
        ("vqgan", "num_levels", "residual_stages"),
    ):
        with pytest.raises(SystemExit):
            parse_config(options_class, ["--model.type", member, f"--model.{flag}", "3"])
        said = capsys.readouterr().err
        assert f"unknown option --model.{flag}" in said
        assert meant is None or meant in said or "did you mean" in said


ROOMS = {
    "stage1": "latent_prior.stage1_autoencoders.options",
    "stage2": "latent_prior.stage2_prior.options",
    "gan": "latent_prior.evaluation.gan_baseline.options",
}


@pytest.fixture
def resolve(capsys):
    """The options that `--config` resolves to, or the one line with which it is refused."""

    def parse(room: str, config: str) -> Any:
        options_class = importlib.import_module(ROOMS[room]).TrainOptions
        words = ["--config", config, "--output_dir", "x"]
        words += ["--codes", "x"] if room == "stage2" else []
        try:
            return parse_config(options_class, words)
        except SystemExit:
            return capsys.readouterr().err

    return parse


@pytest.mark.parametrize(
    ("room", "name"),
    [("stage1", "mnist_vqvae"), ("stage2", "mnist_vqvae"), ("gan", "mnist_sngan")],
)
def test_a_shipped_preset_is_found_by_its_name_from_any_folder(
    resolve, room, name, tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    package = Path(importlib.import_module(ROOMS[room]).__file__).parent
    assert resolve(room, name) == resolve(room, str(package / "configs" / f"{name}.yaml"))
    # A file of that name wins.
    (tmp_path / name).write_text("max_steps: 3")
    assert resolve(room, name).max_steps == 3


@pytest.mark.parametrize(
    ("room", "name", "close"),
    [
        ("stage1", "mnist_vqva", "mnist_vqvae"),
        ("stage1", "stage1_autoencoders/configs/mnist.yaml", "mnist_vqvae"),
        ("stage1", "folder64.yaml", "folder64_vqvae"),
        ("stage1", "mnist_vqvae.yaml", "mnist_vqvae"),
        ("stage2", "stage2_prior/configs/mnist.yaml", "mnist_vqvae"),
        ("stage2", "folder64", "folder64_vqvae"),
        ("gan", "mnist.yaml", "mnist_sngan"),
    ],
)
def test_an_unknown_preset_is_one_line_with_close_names(
    resolve, room, name, close, tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    message = resolve(room, name)
    assert f"--config: there is no file {name} and no preset of that name (did you" in message
    assert re.search(rf"\b{close}\b", message.partition("(did you mean")[2])
    assert message.count("\n") == 1


def test_help_names_the_shipped_presets_and_ranges(capsys):
    options_class = importlib.import_module(ROOMS["gan"]).TrainOptions
    with pytest.raises(SystemExit):
        parse_config(options_class, ["--help"])
    text = " ".join(capsys.readouterr().out.split())
    for preset_path in (
        Path(importlib.import_module(ROOMS["gan"]).__file__).parent / "configs"
    ).iterdir():
        assert preset_path.stem in text
    assert re.search(r"\(default: [0-9.]+, at least 0 and below 1\)", text)
    with pytest.raises(SystemExit):
        parse_config(Options, ["--help"])
    assert "a YAML file. A flag" in capsys.readouterr().out


PRESETS = sorted(Path(__file__).parents[2].glob("*/configs/*.yaml"))


def test_there_is_a_preset_for_every_member_and_data_set():
    names = {path.stem for path in PRESETS if path.parts[-3] == "stage1_autoencoders"}
    members = ("vae", "vae_grid", "vqvae", "vqvae2", "vaegan", "vqgan")
    assert names >= {
        f"{data}_{member}" for data in ("mnist", "shapes", "cifar10") for member in members
    }


@pytest.mark.parametrize("path", PRESETS, ids=lambda path: f"{path.parts[-3]}/{path.stem}")
def test_every_preset_is_one_that_runs(path, capsys):
    """Its first line is the command, its keys are options, its values fit each other."""
    room = path.parts[-3]
    options_class = importlib.import_module(f"latent_prior.{room}.options").TrainOptions
    words = ["--config", str(path), "--output_dir", "x"]
    words += [] if room == "stage1_autoencoders" else ["--codes", "x"]
    with pytest.raises(SystemExit) as stopped:
        parse_config(options_class, [*words, "--dry_run"])
    said = capsys.readouterr()
    assert stopped.value.code == 0, said.err
    resolved = yaml.safe_load(said.out)
    first = path.read_text().splitlines()[0]
    assert first.startswith(
        f"# accelerate launch {room}/train.py --config {room}/configs/{path.name} "
    )
    if room == "stage1_autoencoders":
        assert path.stem.removesuffix("_grid").rpartition("_")[2] == resolved["model"]["type"]
