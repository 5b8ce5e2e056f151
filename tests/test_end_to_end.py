"""The whole way from a folder of images to a table of scores, as a user types it."""

import csv
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import datasets
import numpy as np
import pytest
from PIL import Image

from latent_prior.evaluation import score
from latent_prior.pipelines import Pipeline, assemble, generate
from latent_prior.stage1_autoencoders import MODELS, encode
from latent_prior.stage1_autoencoders import train as train_autoencoder
from latent_prior.stage2_prior import train as train_prior

ROOT = Path(__file__).parents[1]
BIN = Path(sys.executable).parent
LAUNCH = [str(BIN / "accelerate"), "launch"]
SHORT = {"max_steps": 4, "batch_size": 8, "warmup_steps": 1}


@pytest.fixture(scope="session")
def shapes(parts, tmp_path_factory):
    """40 RGBA PNG files of 64 x 64 in class sub-folders."""
    return parts["images"](tmp_path_factory.mktemp("data") / "shapes", 40, size=64, mode="RGBA")


def steps(data, parts, **of_stage):
    """(script, flags) of every command, with relative paths into the folder it is typed in."""
    vqvae = {**parts["vqvae_flags"], "image_size": 64, "model.multipliers": [1, 1, 1, 2]}
    vqvae["model.blocks"] = [0, 0, 0, 1]
    images = {"dataset": data, **of_stage.get("images", {})}
    return [
        (train_autoencoder, {**vqvae, **SHORT, **images, "output_dir": "runs/vqvae"}),
        (
            encode,
            {**images, "autoencoder": "runs/vqvae/model", "flip": True, "output_dir": "runs/codes"},
        ),
        (
            train_prior,
            {**parts["prior_flags"], **SHORT, "codes": "runs/codes", "output_dir": "runs/prior"},
        ),
        (
            assemble,
            {
                "autoencoder": "runs/vqvae/model",
                "prior": "runs/prior/model",
                "output_dir": "runs/pipeline",
            },
        ),
        (
            generate,
            {"pipeline": "runs/pipeline", "num_images": 12, "output_dir": "runs/samples"},
        ),
        (
            score,
            {
                "reference": data,
                "reference_split": "train",
                "candidates": ["samples=runs/samples", f"real={data}[train]"],
                "features": "efficientnet_lite0",
                "num_images": 12,
                "pipeline": "runs/pipeline",
                "output_dir": "runs/scores",
                **{k: v for k, v in images.items() if k not in ("dataset", "split")},
            },
        ),
    ]


def check_results(runs, *, images, classes):
    splits = datasets.load_from_disk(str(runs / "codes"))
    assert len(splits["train"]) == 2 * images
    assert splits["train"].features["label"].names == classes
    assert len(list((runs / "samples").glob("0*.png"))) == 12
    with (runs / "samples/labels.csv").open(newline="") as file:
        assert [row["class"] for row in csv.DictReader(file)] == classes * 4
    scores = json.loads((runs / "scores/scores.json").read_text())
    rows = {row["name"]: row for row in scores["rows"]}
    assert rows.keys() == {"samples", "real", "reconstructions"}
    assert {row["num_images"] for row in rows.values()} == {12}
    assert all(np.isfinite(row["fd_effnet_lite0"]) for row in rows.values())
    assert rows["real"]["fd_effnet_lite0"] < 1e-3 < rows["samples"]["fd_effnet_lite0"]
    assert rows["reconstructions"]["psnr"] > 0
    assert scores["protocol"]["features"] == "efficientnet_lite0"
    page = (runs / "scores/report.html").read_text()
    assert "data:image/png;base64," in page
    # Base64 spells any four letters now and then, so the pictures are left out.
    words = re.sub(r"data:image/png;base64,[\w+/=]*", "", page)
    assert "http" not in words.replace("http://www.w3.org", "")
    assert "samples" in (runs / "scores/scores.md").read_text()


# Runs scripts with their words as `python script.py ...` does, in one process that imports torch.
SEVERAL_SCRIPTS = """
import json, runpy, sys
for words in json.loads(sys.argv[1]):
    sys.argv = words
    try:
        runpy.run_path(words[0], run_name="__main__")
    except SystemExit as stopped:
        if stopped.code:
            raise
"""


@pytest.mark.slow
def test_the_commands_as_a_user_types_them(shapes, parts, tmp_path):
    """From a folder other than the project's or the data's; the pipeline in Python at the end.

    The first command is started by `accelerate launch`, the others share a process.
    """
    typed = []
    for module, flags in steps(shapes, parts):
        words = [str(module.__file__)]
        for name, value in flags.items():
            values = value if isinstance(value, list) else [] if value is True else [value]
            words += [f"--{name}", *map(str, values)]
        typed.append((words, str(flags["output_dir"])))
    launched, *others = typed
    scripts = [sys.executable, "-c", SEVERAL_SCRIPTS, json.dumps([words for words, _ in others])]
    for command, commands in (([*LAUNCH, *launched[0]], [launched]), (scripts, others)):
        done = subprocess.run(
            command, cwd=tmp_path, capture_output=True, text=True, timeout=600, check=False
        )
        assert done.returncode == 0, f"{command}\n{done.stderr[-3000:]}"
        assert "Traceback" not in done.stderr
        assert all(output_dir in done.stdout for _, output_dir in commands)
    assert [path.name for path in tmp_path.iterdir()] == ["runs"]
    check_results(tmp_path / "runs", images=40, classes=["apple", "bee", "car"])
    pipe = Pipeline.from_pretrained(tmp_path / "runs/pipeline")
    assert pipe(2, labels="bee").images[0].size == (64, 64)


@pytest.fixture
def parquet(shapes, tmp_path):
    """The images as a parquet folder with unusual column names and one cell that is no image."""
    files = sorted(shapes.rglob("*.png"))
    content = [path.read_bytes() for path in files]
    content[7] = content[7][:200]
    table = datasets.Dataset.from_dict(
        {
            "picture": [{"bytes": data, "path": None} for data in content],
            "kind": [path.parent.name for path in files],
        },
        features=datasets.Features({"picture": datasets.Image(), "kind": datasets.Value("string")}),
    )
    (tmp_path / "parquet").mkdir()
    table.to_parquet(str(tmp_path / "parquet" / "train.parquet"))
    return tmp_path / "parquet"


def test_a_parquet_folder_differs_by_flags_only(
    parquet, parts, call, refused, tmp_path, monkeypatch
):
    work = tmp_path / "work"
    work.mkdir()
    monkeypatch.chdir(work)
    columns = {"image_column": "picture", "label_column": "kind"}
    first = steps(parquet, parts, images=columns)[0]
    said = refused(train_autoencoder, **{**first[1], "output_dir": work / "refused"})
    assert "row 7 of split train" in said
    for module, flags in steps(parquet, parts, images={**columns, "on_corrupt": "skip"}):
        call(module, **flags)
    check_results(work / "runs", images=39, classes=["apple", "bee", "car"])


def test_the_embedded_digits_go_the_whole_way(call, parts, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    vqvae = {**parts["vqvae_flags"], **SHORT, "validation_split": "validation"}
    vqvae["validation_images"] = 20
    call(train_autoencoder, output_dir="vqvae", **vqvae)
    call(encode, output_dir="codes", autoencoder="vqvae/model", split="validation")
    rows = datasets.load_from_disk("codes")["validation"]
    assert len(rows) == 400
    assert np.bincount(rows.with_format(None)["label"][:]).tolist() == [40] * 10
    call(
        train_prior,
        output_dir="prior",
        codes="codes",
        split="validation",
        **parts["prior_flags"],
        **SHORT,
    )
    call(assemble, output_dir="pipeline", autoencoder="vqvae/model", prior="prior/model")
    pipe = Pipeline.from_pretrained("pipeline")
    assert pipe(10).labels == list(range(10))
    assert pipe(1, labels="7").images[0].size == (28, 28)


@pytest.mark.parametrize("member", MODELS)
def test_every_member_goes_the_whole_way(member, images, parts, call, tmp_path, monkeypatch):
    """By the same commands; a member with latents needs no prior to draw images."""
    monkeypatch.chdir(tmp_path)
    data = {"dataset": images, "image_size": 16}
    call(train_autoencoder, output_dir="model", **parts["family_flags"][member], **SHORT, **data)
    call(encode, output_dir="codes", autoencoder="model/model", dataset=images, flip=True)
    splits = datasets.load_from_disk("codes")
    assert len(splits["train"]) == 80
    prior = None
    if json.loads(Path("codes/code_spec.json").read_text())["kind"] == "codes":
        call(train_prior, output_dir="prior", codes="codes", **parts["prior_flags"], **SHORT)
        prior = "prior/model"
    call(assemble, output_dir="pipeline", autoencoder="model/model", prior=prior)
    call(generate, output_dir="samples", pipeline="pipeline", num_images=6)
    pictures = [
        np.asarray(Image.open(path), dtype=float) for path in Path("samples").glob("0*.png")
    ]
    assert {picture.shape for picture in pictures} == {(16, 16, 3)}
    assert len({picture.tobytes() for picture in pictures}) == 6


# Fills a small disk up to `pages` free pages, runs a command on it, makes room and runs it again.
ON_A_FULL_DISK = """
import contextlib, importlib, io, json, os, sys, traceback
from pathlib import Path
from latent_prior.cli import run
disk, answers = Path(sys.argv[1]), []
for module, words, pages in json.loads(sys.argv[2]):
    main = importlib.import_module(module).main
    sys.argv = [module.rpartition(".")[2] + ".py"]
    free = os.statvfs(disk).f_bavail
    (disk / "filler").write_bytes(bytes(4096 * (free - pages)))
    codes, said = [], io.StringIO()
    for attempt in range(2):
        with contextlib.redirect_stderr(said if attempt == 0 else io.StringIO()):
            try:
                run(lambda: main(words))
                codes.append(0)
            except SystemExit as stopped:
                codes.append(stopped.code)
            except BaseException:
                codes.append(traceback.format_exc())
        if attempt == 0:
            left = [str(path) for path in disk.rglob("*partial*")]
            (disk / "filler").unlink()
    answers.append([module, codes, said.getvalue().splitlines()[-1:], left])
print(json.dumps(answers))
"""


def may_mount() -> bool:
    if shutil.which("unshare") is None:
        return False
    return (
        subprocess.run(["unshare", "-rm", "true"], capture_output=True, check=False).returncode == 0
    )


@pytest.mark.slow
@pytest.mark.skipif(not may_mount(), reason="needs the right to mount a small disk")
def test_a_full_disk_is_one_sentence_and_the_command_can_be_repeated(
    images, autoencoder_folder, pipeline_folder, parts, call, tmp_path
):
    disk = tmp_path / "disk"
    disk.mkdir()
    call(encode, autoencoder=autoencoder_folder, dataset=images, output_dir=tmp_path / "codes")
    data = {"dataset": images, "image_size": 16}
    prior = {**parts["prior_flags"], "codes": tmp_path / "codes"}
    candidates = {"reference": images, "reference_split": "train", "candidates": [f"a={images}"]}
    commands = [
        (train_autoencoder, {**parts["vqvae_flags"], **SHORT, **data}, 8),
        (encode, {"autoencoder": autoencoder_folder, "dataset": images}, 1),
        (encode, {"autoencoder": autoencoder_folder, "dataset": images, "seed": 1}, 6),
        (train_prior, {**prior, **SHORT}, 8),
        (assemble, {"autoencoder": pipeline_folder / "autoencoder"}, 3),
        (generate, {"pipeline": pipeline_folder, "num_images": 12}, 5),
        (score, {**candidates, "features": "efficientnet_lite0"}, 2),
    ]
    work = []
    for number, (module, flags, pages) in enumerate(commands):
        words = [f"--output_dir={disk / str(number)}"]
        for name, value in flags.items():
            words += [f"--{name}", *map(str, value if isinstance(value, list) else [value])]
        work.append((module.__name__, words, pages))
    mount = f'mount -t tmpfs -o size=4m none {disk} && exec "$@"'
    done = subprocess.run(
        [
            "unshare",
            "-rm",
            "sh",
            "-c",
            mount,
            "sh",
            sys.executable,
            "-c",
            ON_A_FULL_DISK,
            str(disk),
            json.dumps(work),
        ],
        cwd=ROOT,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=900,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    for module, codes, said, left in json.loads(done.stdout.splitlines()[-1]):
        assert codes == [2, 0], (module, codes)
        assert said[0].startswith(f"{module.rpartition('.')[2]}.py: error: "), said
        assert "No space left on device" in said[0], said
        assert left == [], module


def test_the_samples_are_pictures(pipeline_folder, call, tmp_path):
    """Not blank: an image varies, and images differ from each other."""
    call(generate, pipeline=pipeline_folder, num_images=6, output_dir=tmp_path / "samples")
    pictures = [
        np.asarray(Image.open(path), dtype=float) for path in (tmp_path / "samples").glob("0*.png")
    ]
    assert min(picture.std() for picture in pictures) > 1
    assert np.std(pictures, axis=0).mean() > 1
