"""The league: two-stage models and GANs, each trained for the same time on the same images, in one table and one report.

    python benchmarks/league.py --data mnist
    python benchmarks/league.py --data cifar10 --dataset FOLDER

A contestant's budget is what its trainings may spend on optimizer steps, those of both stages together: processor seconds
on a CPU, so that neither the machine's other programs nor a second contestant beside it change the result, seconds of the
clock on a GPU. How many steps that is, is measured first, so that each learning rate schedule comes to its end; the limit
itself is kept by `--max_cpu_seconds` and `--max_seconds`. Encoding, evaluation and sampling are free. Every run is made
by the commands a user types, and repeating this goes on where it stopped.
"""

from __future__ import annotations

import json
import shutil
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, NamedTuple

from latent_prior.cli import answer_early, parse_config, run

Name = Literal["vae", "vae_prior", "vqvae", "vqvae2", "vqgan", "sngan", "r3gan"]


@dataclass(kw_only=True)
class LeagueOptions:
    """Train every contestant for the same time and put them into one table."""

    data: Literal["mnist", "cifar10"] = "mnist"
    """Whose presets are trained."""
    dataset: str | None = None
    """Images in place of the preset's `dataset`; cifar10 needs its folder here."""
    budget: float | None = None
    """Training seconds of each contestant; null is 600 for mnist and 1,200 for cifar10."""
    contestants: list[Name] = field(
        default_factory=lambda: ["vae", "vae_prior", "vqvae", "vqvae2", "vqgan", "sngan", "r3gan"]
    )
    """Who takes part: a `vae` sampled from N(0, I), four autoencoders with a prior, and two GANs."""
    features: str = "efficientnet_lite0"
    """Feature network of the scores, as in `evaluation/score.py`."""
    score_images: int = 1000
    """Images in every set that is scored."""
    sweep_images: int = 200
    """Images per setting of the sweep that chooses a prior's sampler, on the training split; 0 keeps the sampler's defaults."""
    threads: int = 1
    """Threads of every run on a CPU."""
    jobs: int | None = None
    """Contestants at the same time; null is as many as their threads find cores, and 1 on a GPU."""
    output_dir: str = "runs/league"
    """Folder of the runs and the report; each data set has its own in it."""


answer_early(__name__, LeagueOptions)

import numpy as np
import torch
from families import ROOT, call
from PIL import Image

from latent_prior.data.images import grid, save_png
from latent_prior.machine import available_cores

PROBE = 1 / 40  # of the budget, spent beforehand on measuring how long a step takes
PLANNED = 0.97  # of the budget: a step may take a little longer than it did in the probe
STAGE1, STAGE2 = "stage1_autoencoders", "stage2_prior"
GAN = "evaluation/gan_baseline"
COLUMNS = 20  # of the picture


class Stage(NamedTuple):
    """A training: the folder of its script, its preset, flags that differ from it, and its share of the budget."""

    room: str
    preset: str
    flags: dict[str, str]
    share: float


@dataclass(frozen=True)
class Contestant:
    """What is trained, in this order, and the settings of the sampler that are tried."""

    stages: tuple[Stage, ...]
    sweep: dict[str, list[str]] = field(default_factory=dict)


def contestants(data: str) -> dict[str, Contestant]:
    """Every contestant by name."""
    # A VAE that is to be sampled from N(0, I) pays for it in its reconstructions; with a prior it need not.
    sharper = {"model.scale": "0.2"} if data == "mnist" else {}
    first = (
        0.35 if data == "mnist" else 0.5
    )  # the autoencoder's share; textures are harder than strokes
    guided = {"guidance_scale": ["1", "1.5", "2"], "temperature": ["0.8", "0.9", "1"]}

    def pair(member: str, prior: str, flags: dict[str, str]) -> Contestant:
        autoencoder = Stage(STAGE1, f"{data}_{member}", flags, first)
        return Contestant((autoencoder, Stage(STAGE2, prior, {}, 1 - first)), guided)

    return {
        "vae": Contestant((Stage(STAGE1, f"{data}_vae", {}, 1.0),)),
        "vae_prior": pair("vae", f"{data}_vae", sharper),
        "vqvae": pair("vqvae", f"{data}_vqvae", {}),
        "vqvae2": pair("vqvae2", f"{data}_vqvae2", {}),
        "vqgan": pair("vqgan", f"{data}_vqgan", {}),
        "sngan": Contestant((Stage(GAN, f"{data}_sngan", {}, 1.0),)),
        "r3gan": Contestant((Stage(GAN, f"{data}_r3gan", {}, 1.0),)),
    }


def main() -> None:
    """Entry point.

    Raises:
        ValueError: options are at fault, or a command failed.
    """
    options = parse_config(LeagueOptions)
    if options.data == "cifar10" and options.dataset is None:
        raise ValueError("--data cifar10 needs its images: --dataset FOLDER")
    folder = Path(options.output_dir, options.data)
    entries = contestants(options.data)
    jobs = options.jobs or (
        1 if torch.cuda.is_available() else max(1, available_cores() // options.threads)
    )
    with ThreadPoolExecutor(jobs) as pool:
        list(
            pool.map(lambda name: make(folder / name, entries[name], options), options.contestants)
        )
    score(folder, options)
    picture(folder, options)
    print((folder / "scores" / "scores.md").read_text())
    print(f"report: {folder / 'scores' / 'report.html'}")


def make(folder: Path, contestant: Contestant, options: LeagueOptions) -> None:
    """Train a contestant and draw its images."""
    seconds = options.budget or (600.0 if options.data == "mnist" else 1200.0)
    for number, stage in enumerate(contestant.stages):
        run_folder = folder / Path(stage.room).name
        words = {"config": str(ROOT / f"{stage.room}/configs/{stage.preset}.yaml"), **stage.flags}
        if stage.room == STAGE2:
            encode(folder, contestant.stages[0].preset, options)
            words |= {"codes": str(folder / "codes"), "autoencoder": str(folder / STAGE1 / "model")}
        elif options.dataset is not None:
            words["dataset"] = options.dataset
        train(run_folder, stage, words, seconds * stage.share, options)
        assert number == 0 or stage.room == STAGE2
    draw(folder, contestant, options)


def train(
    run_folder: Path, stage: Stage, words: dict[str, str], seconds: float, options: LeagueOptions
) -> None:
    """One training, of as many steps as fit into `seconds`."""
    if (run_folder / ".done").is_file():
        return
    script = f"{stage.room}/train.py"
    plan = run_folder.with_name(run_folder.name + "_plan.json")
    if not plan.is_file():
        probes = probe_flags(stage)
        lengths = [
            step_seconds(script, words | flags, run_folder.with_name("probe"), seconds, options)
            for flags in probes
        ]
        steps = int(PLANNED * seconds / (sum(lengths) / len(lengths)))
        plan.write_text(json.dumps({"max_steps": steps, "step_seconds": lengths}) + "\n")
    steps = json.loads(plan.read_text())["max_steps"]
    if late_critic(stage):
        words = words | {"critic.start_step": str(steps // 2)}
    words = words | {
        "max_steps": str(steps),
        "evaluate_every": str(max(1, steps // 4)),
        limit(): str(seconds),
    }
    call(script, words | {"output_dir": str(run_folder)} | threads(options), run_folder)
    (run_folder / ".done").touch()


def late_critic(stage: Stage) -> bool:
    """Whether a critic joins in halfway: that of a VQGAN's autoencoder."""
    return stage.room == STAGE1 and stage.preset.endswith("_vqgan")


def probe_flags(stage: Stage) -> list[dict[str, str]]:
    """Trainings whose mean step takes as long as the real one's: a VQGAN's critic plays in the second half only."""
    if not late_critic(stage):
        return [{}]
    return [{"critic.start_step": "0"}, {"critic.start_step": "1000000"}]


def step_seconds(
    script: str, words: dict[str, str], folder: Path, seconds: float, options: LeagueOptions
) -> float:
    """How long a step of this training takes."""
    shutil.rmtree(folder, ignore_errors=True)
    many = dict.fromkeys(("max_steps", "evaluate_every", "checkpoint_every"), "1000000")
    words = words | many | {limit(): str(seconds * PROBE), "output_dir": str(folder)}
    call(script, words | threads(options), folder)
    spent = budget_of(folder / "model")
    shutil.rmtree(folder)
    return float(spent["seconds" if torch.cuda.is_available() else "cpu_seconds"]) / spent["steps"]


def budget_of(model: Path) -> dict[str, Any]:
    """What the training of a saved model has cost."""
    spent: dict[str, Any] = json.loads((model / "config.json").read_text())["training"]
    return spent


def encode(folder: Path, preset: str, options: LeagueOptions) -> None:
    """The images as codes or latents."""
    if (folder / "codes/code_spec.json").is_file():
        return
    words = {
        "autoencoder": str(folder / STAGE1 / "model"),
        "dataset": options.dataset or "mnist5k",
        "output_dir": str(folder / "codes"),
        # What the decoder was trained on.
        **({"posterior": "sample"} if preset.endswith("_vae") else {}),
    }
    call("stage1_autoencoders/encode.py", words | threads(options), folder / STAGE1)


def draw(folder: Path, contestant: Contestant, options: LeagueOptions) -> None:
    """The images that are scored."""
    words = {"num_images": str(options.score_images), "output_dir": str(folder / "samples")}
    if contestant.stages[0].room == GAN:
        words["gan"] = str(folder / Path(GAN).name / "model")
        call(f"{GAN}/generate.py", words | threads(options), folder / "samples")
        return
    pipeline = folder / "pipeline"
    if not pipeline.is_dir():
        parts = {"autoencoder": str(folder / STAGE1 / "model"), "output_dir": str(pipeline)}
        parts |= {"prior": str(folder / STAGE2 / "model")} if len(contestant.stages) > 1 else {}
        call("pipelines/assemble.py", parts, pipeline)
    if contestant.sweep and options.sweep_images:
        swept = {
            "pipeline": str(pipeline), "reference": options.dataset or "mnist5k", "reference_split": "train",
            "features": options.features, "num_images": str(options.sweep_images),
            "full_images": str(options.score_images), "output_dir": str(folder / "sweep"),
        }  # fmt: skip
        call("evaluation/sweep.py", swept | threads(options), folder / "sweep", contestant.sweep)
        return
    call(
        "pipelines/generate.py",
        words | {"pipeline": str(pipeline)} | threads(options),
        folder / "samples",
    )


def score(folder: Path, options: LeagueOptions) -> None:
    """All contestants against the test images, with the training images as the row to be reached."""
    images = options.dataset or "mnist5k"
    words = {
        "reference": images, "features": options.features, "num_images": str(options.score_images),
        "nearest": "true", "output_dir": str(folder / "scores"),
        # The classifier is made for minutes on small sets.
        **({"class_accuracy": "true"} if options.data == "mnist" else {}),
    }  # fmt: skip
    candidates = [f"real_train={images}[train]"]
    candidates += [f"{name}={drawn(folder / name)}" for name in options.contestants]
    call(
        "evaluation/score.py",
        words | threads(options),
        folder / "scores",
        {"candidates": candidates},
    )


def picture(folder: Path, options: LeagueOptions) -> None:
    """The first images of every contestant, two rows each, in the order of the table."""
    shown = []
    for name in options.contestants:
        for number in range(2 * COLUMNS):
            with Image.open(drawn(folder / name) / f"{number:06d}.png") as image:
                pixels = np.atleast_3d(np.array(image))
                shown.append(torch.from_numpy(pixels).permute(2, 0, 1))
    save_png(grid(torch.stack(shown), COLUMNS), folder / "league.png")


def drawn(folder: Path) -> Path:
    """Where a contestant's images are: a sweep draws those of the best settings itself."""
    sweep = folder / "sweep/sweep.json"
    if not sweep.is_file():
        return folder / "samples"
    return Path(json.loads(sweep.read_text())["best"]["images"])


def limit() -> str:
    """The flag that ends a training: another program on the machine does not slow a GPU down."""
    return "max_seconds" if torch.cuda.is_available() else "max_cpu_seconds"


def threads(options: LeagueOptions) -> dict[str, str]:
    """The flag for the threads of a run."""
    return {"cpu_threads": str(options.threads)}


if __name__ == "__main__":
    run(main)
