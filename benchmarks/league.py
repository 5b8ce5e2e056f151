"""The league: two-stage models and GANs with equal training time, in one table and one report.

    python benchmarks/league.py --data mnist
    python benchmarks/league.py --data cifar10 --dataset FOLDER

A contestant's budget is the time of its optimizer steps, both stages together: processor seconds on
a CPU, so that other programs do not change the result, wall-clock seconds on a GPU. A probe first
measures how many steps fit, so that each learning rate schedule ends with the budget;
`--max_cpu_seconds` and `--max_seconds` enforce it. Encoding, evaluation and sampling are free.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, NamedTuple, get_args

from experiments import GAN, SHARPER, STAGE1, STAGE2, Experiment, ExperimentOptions, Flags

from latent_prior.cli import answer_early, parse_config, run
from latent_prior.options import option

Name = Literal["vae", "vae_prior", "vqvae", "vqvae2", "vqgan", "sngan", "r3gan"]


@dataclass(kw_only=True)
class LeagueOptions(ExperimentOptions):
    """Train every contestant for the same time and put them into one table."""

    budget: float | None = option(None, above=0)
    """Training seconds of each contestant; null is 600 for mnist and 1,200 for cifar10."""
    contestants: list[Name] = field(default_factory=lambda: list(get_args(Name)))
    """Contestants: a `vae` sampled from N(0, I), four autoencoders with a prior, and two GANs."""
    sweep_images: int = option(200, at_least=0)
    """Images per sampler setting in the sweep (validation split); 0 keeps the default sampler."""
    threads: int | None = option(1, at_least=1)
    """Threads of every run on a CPU; null takes all cores."""
    jobs: int | None = option(None, at_least=1)
    """Contestants at the same time; null is one for each share of `threads` cores, 1 on a GPU."""
    output_dir: str = "runs/league"
    """Folder of the runs and the report; each data set has its own in it."""


answer_early(__name__, LeagueOptions)

import numpy as np
import torch
from PIL import Image

from latent_prior.data.images import grid, save_png
from latent_prior.evaluation.report.compare import show

PROBE = 1 / 40  # of the budget, spent beforehand on measuring how long a step takes
PLANNED = 0.97  # of the budget: a step may take a little longer than in the probe
COLUMNS = 20  # of the picture
SWEEP = {"guidance_scale": [1, 1.5, 2], "temperature": [0.8, 0.9, 1]}


class Stage(NamedTuple):
    """A training: its script's folder, its preset, its share of the budget, flags that differ."""

    room: str
    preset: str
    share: float = 1.0
    flags: Mapping[str, object] = {}

    @property
    def late_critic(self) -> bool:
        """Whether a critic joins in halfway, as in a VQGAN's autoencoder."""
        return self.room == STAGE1 and self.preset == "vqgan"


def stages_of(contestant: Name, data: str) -> tuple[Stage, ...]:
    """The trainings of a contestant, in their order."""
    if contestant in ("sngan", "r3gan"):
        return (Stage(GAN, contestant),)
    if contestant == "vae":
        return (Stage(STAGE1, "vae"),)
    member = contestant.removesuffix("_prior")
    first = 0.35 if data == "mnist" else 0.5  # the autoencoder's share: textures are harder
    sharper = SHARPER[data] if member == "vae" else {}
    return Stage(STAGE1, member, first, sharper), Stage(STAGE2, member, 1 - first)


class League(Experiment[LeagueOptions]):
    """A folder for each contestant, with a run for each of its trainings."""

    def __init__(self, options: LeagueOptions) -> None:
        super().__init__(options)
        self.budget = options.budget or (600.0 if options.data == "mnist" else 1200.0)
        gpu = torch.cuda.is_available()  # there, other programs do not slow the clock down
        self.limit, self.clock = ("max_seconds", "seconds") if gpu else ("max_cpu_seconds", "cpu_seconds")  # fmt: skip

    def make(self, name: Name) -> None:
        """Train a contestant and generate its images."""
        folder, stages = self.folder / name, stages_of(name, self.options.data)
        for stage in stages:
            flags: dict[str, object] = {}
            if stage.room == STAGE2:
                autoencoder, codes = folder / STAGE1, folder / "codes"
                self.encode(stages[0].preset, autoencoder, codes)
                flags = {"codes": codes, "autoencoder": autoencoder / "model"}
            self.train_stage(folder, stage, flags)
        samples = folder / "samples"
        if stages[0].room == GAN:
            self.generate("gan", folder / "gan_baseline/model", samples, samples)
            return
        pipeline = folder / "pipeline"
        if not pipeline.is_dir():
            prior = {"prior": folder / STAGE2 / "model"} if len(stages) > 1 else {}
            self.assemble(folder / STAGE1, pipeline, pipeline, prior)
        if len(stages) > 1 and self.options.sweep_images:
            swept = {
                "pipeline": pipeline, "reference": self.images, "reference_split": "validation",
                "features": self.options.features, "num_images": self.options.sweep_images,
                "full_images": self.options.score_images, "output_dir": folder / "sweep", **SWEEP,
            }  # fmt: skip
            self.command("evaluation/sweep.py", folder / "sweep", swept)
        else:
            self.generate("pipeline", pipeline, samples, samples)

    def train_stage(self, folder: Path, stage: Stage, inputs: Flags) -> None:
        """One training, of as many steps as fit into its share of the budget."""
        run_folder = folder / Path(stage.room).name
        if (run_folder / ".done").is_file():
            return
        seconds = self.budget * stage.share
        flags = {**self.training_flags(stage.room, stage.preset), **stage.flags, **inputs}
        plan = run_folder.with_name(f"{run_folder.name}_plan.json")
        if not plan.is_file():
            # A critic that joins in halfway: half of the steps are of either kind.
            starts = [0, 1_000_000] if stage.late_critic else [None]
            times = [
                self.step_seconds(folder, stage, {**flags, "critic.start_step": start}, seconds)
                for start in starts
            ]
            steps = int(PLANNED * seconds / (sum(times) / len(times)))
            plan.write_text(json.dumps({"max_steps": steps, "step_seconds": times}) + "\n")
        steps = json.loads(plan.read_text())["max_steps"]
        flags |= {"critic.start_step": steps // 2 if stage.late_critic else None}
        flags |= {"max_steps": steps, "evaluate_every": max(1, steps // 4)}
        flags |= {self.limit: seconds, "output_dir": run_folder}
        self.command(f"{stage.room}/train.py", run_folder, flags)
        (run_folder / ".done").touch()

    def step_seconds(self, folder: Path, stage: Stage, flags: Flags, seconds: float) -> float:
        """How long a step of a training takes."""
        probe = folder / "probe"
        shutil.rmtree(probe, ignore_errors=True)
        endless = dict.fromkeys(("max_steps", "evaluate_every", "checkpoint_every"), 1_000_000)
        limits = {self.limit: seconds * PROBE, "output_dir": probe}
        self.command(f"{stage.room}/train.py", probe, {**flags, **endless, **limits})
        spent = json.loads((probe / "model/config.json").read_text())["training"]
        shutil.rmtree(probe)
        return float(spent[self.clock]) / spent["steps"]

    def images_of(self, name: str) -> Path:
        """Folder of a contestant's images; a sweep generates those of its best settings itself."""
        sweep = self.folder / name / "sweep/sweep.json"
        if not sweep.is_file():
            return self.folder / name / "samples"
        return Path(json.loads(sweep.read_text())["best"]["images"])

    def score_all(self) -> Path:
        """Score all contestants against the test images, with training images as a baseline."""
        candidates = [f"real_train={self.images}[train]"]
        candidates += [f"{name}={self.images_of(name)}" for name in self.options.contestants]
        flags = {"candidates": candidates, "nearest": "true", "class_accuracy": self.class_accuracy}
        self.score(self.folder / "scores", self.folder / "scores", flags)
        return self.folder / "scores/scores.json"

    def picture(self) -> None:
        """The first images of every contestant, two rows each, in the order of the table."""
        pictures = []
        for name in self.options.contestants:
            for number in range(2 * COLUMNS):
                with Image.open(self.images_of(name) / f"{number:06d}.png") as image:
                    pixels = np.atleast_3d(np.array(image))
                    pictures.append(torch.from_numpy(pixels).permute(2, 0, 1))
        save_png(grid(torch.stack(pictures), COLUMNS), self.folder / "league.png")


def main() -> None:
    """Entry point.

    Raises:
        ValueError: options are at fault, or a command failed.
    """
    league = League(parse_config(LeagueOptions))
    league.in_parallel(league.make, league.options.contestants)
    scores = league.score_all()
    league.picture()
    show(scores)


if __name__ == "__main__":
    run(main)
