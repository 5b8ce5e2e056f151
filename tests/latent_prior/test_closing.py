"""What to type next: the line runs, and a chain of such lines ends with scores."""

import json
import shlex
import sys
from pathlib import Path

import pytest

from latent_prior import __main__ as console
from latent_prior.closing import beside, next_command, recorded_flags, score_flags
from latent_prior.evaluation import score
from latent_prior.evaluation.gan_baseline import generate as generate_gan
from latent_prior.evaluation.gan_baseline import train as train_gan
from latent_prior.options import EMBEDDED
from latent_prior.pipelines import assemble, generate
from latent_prior.stage1_autoencoders import encode
from latent_prior.stage1_autoencoders import train as train_autoencoder
from latent_prior.stage2_prior import train as train_prior
from tests.conftest import TINY_PRIOR

MODULES = {
    "train-autoencoder": train_autoencoder, "encode": encode, "train-prior": train_prior, "assemble": assemble,
    "generate": generate, "score": score, "train-gan": train_gan, "generate-gan": generate_gan,
}  # fmt: skip
SHORT = {
    "train-autoencoder": {"max_steps": 2},
    "train-prior": {**TINY_PRIOR, "max_steps": 2, "batch_size": 8},
    "generate": {"num_images": 12},
    "generate-gan": {"num_images": 12},
    "score": {"kid_subsets": 2, "kid_subset_size": 4},
}  # fmt: skip


@pytest.fixture
def typed(monkeypatch, capsys, fresh_processes):
    """`typed(verb, words)` runs a verb in this process; returns the words of its closing line."""

    def start(verb: str, words: list[str]) -> list[str] | None:
        fresh_processes()
        monkeypatch.setattr(sys, "argv", [f"latent-prior {verb}", *words])
        MODULES[verb].main(words)
        said = capsys.readouterr().out.splitlines()
        lines = [line for line in said if line.startswith("next: ")]
        assert lines in ([], said[-1:])
        pages = [line for line in said if line.startswith("page: latent-prior app --pipeline ")]
        assert len(pages) == (verb == "assemble")
        return shlex.split(lines[0].removeprefix("next: ")) if lines else None

    return start


def shortened(verb: str) -> list[str]:
    """Flags for a run of seconds."""
    flags = {**SHORT.get(verb, {}), **({} if verb == "assemble" else {"cpu_threads": 1})}
    return [word for name, value in flags.items() for word in (f"--{name}", str(value))]


def without(words: list[str], verb: str) -> list[str]:
    """The words without the flags that `shortened` sets."""
    kept: list[str] = []
    for word in words:
        if kept and kept[-1] in shortened(verb)[::2]:
            kept.pop()
        else:
            kept.append(word)
    return kept


def follow(typed, verb: str, words: list[str], capsys) -> list[str]:
    """Type what each closing line says until there is none; returns the verbs."""
    verbs = []
    while True:
        verbs.append(verb)
        following = typed(verb, [*without(words, verb), *shortened(verb)])
        if following is None:
            return verbs
        program, verb, *words = following
        assert program == "latent-prior"
        with pytest.raises(SystemExit) as stopped:
            MODULES[verb].main([*words, "--dry_run"])
        assert stopped.value.code == 0
        capsys.readouterr()


def test_the_closing_lines_lead_from_images_to_scores(typed, parts, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    images = parts["images"](tmp_path / "data" / "my images", 120)
    flags = {**parts["vqvae_flags"], "dataset": images, "image_size": 16, "batch_size": 8, "output_dir": "runs/mine/vqvae"}  # fmt: skip
    words = [word for name, value in flags.items() for word in (f"--{name}", str(value))]
    verbs = follow(typed, "train-autoencoder", words, capsys)
    assert verbs == ["train-autoencoder", "encode", "train-prior", "assemble", "generate", "score"]
    (row,) = json.loads(Path("runs/mine/scores/scores.json").read_text())["rows"]
    assert (row["name"], row["num_images"]) == ("two_stage", 12)


def test_a_script_is_named_as_it_was_typed(monkeypatch):
    for name in ("LOCAL_RANK", "ACCELERATE_MIXED_PRECISION"):
        monkeypatch.delenv(name, raising=False)
    root = console.PACKAGE.parents[1]
    flags = {"pipeline": "a b", "left_out": None, "random_codes": True}
    ending = "--pipeline 'a b' --random_codes"
    script = "pipelines/generate.py"
    for program, start in [
        ("latent-prior encode", "latent-prior generate"),
        ("stage1_autoencoders/encode.py", "python pipelines/generate.py"),
        (f"{root}/stage2_prior/train.py", f"python {root}/pipelines/generate.py"),
        ("train.py", f"python {root}/pipelines/generate.py"),
    ]:
        monkeypatch.chdir(root / "stage2_prior" if program == "train.py" else root)
        monkeypatch.setattr(sys, "argv", [program])
        assert next_command(script, flags) == f"{start} {ending}", program
        monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "no")
        launched = start.replace("python ", "accelerate launch ", 1)
        launched = launched.replace("latent-prior", "accelerate launch -m latent_prior")
        assert next_command(script, flags) == f"{launched} {ending}"
        assert next_command("pipelines/assemble.py", {}) == start.replace("generate", "assemble")
        monkeypatch.delenv("ACCELERATE_MIXED_PRECISION")
    monkeypatch.setattr(sys, "argv", ["notebook"])
    assert next_command(script, flags) is None


def model(folder: Path, command: object) -> Path:
    folder.mkdir(parents=True)
    config = {"image_size": 32, "training": {"command": command}}
    (folder / "config.json").write_text(json.dumps(config))
    return folder


def test_a_recorded_command_gives_its_flags_and_those_of_its_preset(tmp_path):
    room = "stage1_autoencoders"
    words = "python stage1_autoencoders/train.py --config configs/shapes_vqvae.yaml --seed=3"
    found = recorded_flags(model(tmp_path / "a", words), room)
    assert (found["config"], found["dataset"], found["seed"]) == ("shapes_vqvae", "shapes", "3")
    assert recorded_flags(model(tmp_path / "b", "x --config mine.yaml --flip"), room) == {
        "flip": ""
    }
    for number, command in enumerate([None, 3, "an 'open quote"]):
        assert recorded_flags(model(tmp_path / str(number), command), room) == {}
    assert recorded_flags(tmp_path / "nowhere", room) == {}


def test_images_whose_place_is_not_known_are_not_scored(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    room, codes = "stage1_autoencoders", tmp_path / "codes"
    cut = model(tmp_path / "a", "train.py --dataset faces")
    assert score_flags(tmp_path / "samples", "x", cut, room, codes) is None
    codes.mkdir()
    (codes / "encode.json").write_text(json.dumps({"dataset": "/data/faces"}))
    found = score_flags(tmp_path / "samples", "x", cut, room, codes)
    assert found is not None
    assert (found["reference"], found["image_size"]) == ("/data/faces", 32)
    known = score_flags(tmp_path / "samples", "x", model(tmp_path / "b", "train.py --seed 1"), room)
    assert known is not None
    assert (known["reference"], known["image_size"]) == ("mnist5k", None)


@pytest.mark.parametrize("name", EMBEDDED)
def test_embedded_images_are_known_by_their_name(tmp_path, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    trained = model(tmp_path / "a", f"train.py --dataset {name}")
    found = score_flags(tmp_path / "samples", "x", trained, "stage1_autoencoders")
    assert found is not None
    assert (found["reference"], found["image_size"]) == (name, None)


def test_a_folder_that_is_taken_is_not_proposed(tmp_path):
    assert beside(tmp_path / "vqvae", "codes") == tmp_path / "codes"
    (tmp_path / "codes").mkdir()
    assert beside(tmp_path / "vqvae", "codes") == tmp_path / "vqvae-codes"
