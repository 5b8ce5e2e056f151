"""Shared by league.py and ablation.py: contestants trained within equal budgets, for several seeds.

A budget counts the clock of optimizer steps, all stages together: processor seconds on a CPU, so
that other programs change little, wall-clock seconds on a GPU. Encoding, evaluation and sampling
are free. The reference load is timed around every training, so the budget is known in reference
seconds too. Samplers are chosen on the validation split.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, NamedTuple, TypeVar

from experiments import (  # fmt: skip
    DATA,
    GAN,
    STAGE1,
    STAGE2,
    DataName,
    Experiment,
    ExperimentOptions,
    Flags,
    read_scores,
)
from plans import LOADS_PER_SECOND, MARKS, PROBE, Plan, Segment, planned_steps, step_costs

from latent_prior.options import option
from latent_prior.records import check_output_dir, write_record

Name = Literal["vae", "vae_grid", "vqvae", "vqvae2", "vqgan", "sngan", "r3gan"]
TITLES: dict[Name, str] = {
    "vae": "VAE, N(0, I)",
    "vae_grid": "VAE + prior",
    "vqvae": "VQ-VAE + prior",
    "vqvae2": "VQ-VAE-2 + prior",
    "vqgan": "VQ-VAE-GAN + prior",
    "sngan": "GAN (`sngan`)",
    "r3gan": "GAN (`r3gan`)",
}
ROOMS = {"stage1": STAGE1, "stage2": STAGE2, "gan": GAN}
BASELINE = "real_train"
"""The row of training images."""
SWEEP = {"guidance_scale": [1, 1.5, 2], "temperature": [0.8, 0.9, 1]}


@dataclass(kw_only=True)
class ContestOptions(ExperimentOptions):
    """Options of everything that trains contestants within a budget."""

    budget: float | None = option(None, above=0)
    """Training seconds of each contestant; null takes the data set's: 600, for cifar10 1,200."""
    seeds: list[int] = field(default_factory=lambda: [0, 1, 2])
    """Seeds of training and sampling; each contestant runs once for every one."""
    sweep_images: int = option(400, at_least=0)
    """Images per sampler setting in the sweep (validation split); 0 keeps the default sampler."""
    threads: int | None = option(1, at_least=1)
    """Threads of every run on a CPU; null takes all cores."""
    jobs: int | None = option(None, at_least=1)
    """Contestants at the same time; null is one for each share of `threads` cores, 1 on a GPU."""

    def __post_init__(self) -> None:
        """Check the seeds."""
        super().__post_init__()
        if not self.seeds or min(self.seeds) < 0 or len({*self.seeds}) < len(self.seeds):
            raise ValueError(f"--seeds must be different numbers of at least 0, not {self.seeds}")


class Stage(NamedTuple):
    """A training: its key in `ROOMS`, its preset, its share of the budget, flags that differ."""

    name: str
    preset: str
    share: float = 1.0
    flags: Mapping[str, object] = {}

    @property
    def late_critic(self) -> bool:
        """Whether a critic joins in halfway, as in a VQGAN's autoencoder."""
        own = "critic.start_step" in self.flags
        return self.name == "stage1" and self.preset == "vqgan" and not own


class Contestant(NamedTuple):
    """Trainings in their order; `shares` names a contestant whose first one is used."""

    name: str
    stages: tuple[Stage, ...]
    shares: str | None = None


def stages_of(name: Name, data: DataName) -> tuple[Stage, ...]:
    """The trainings of a contestant of the league, in their order."""
    if name in ("sngan", "r3gan"):
        return (Stage("gan", name),)
    if name == "vae":
        return (Stage("stage1", "vae"),)
    first = DATA[data].first_share
    return Stage("stage1", name, first), Stage("stage2", name, 1 - first)


AnyContestOptions = TypeVar("AnyContestOptions", bound=ContestOptions)


class Contest(Experiment[AnyContestOptions]):
    """A folder for each contestant and seed, with a run for each of its trainings."""

    split: Literal["validation", "test"]
    """What the images are scored against."""
    reference_clock: bool
    """Whether budgets are reference seconds; otherwise those of the clock."""
    scored_too: Flags
    """Further flags of `score.py`."""

    def __init__(self, options: AnyContestOptions, contestants: Sequence[Contestant]) -> None:
        import torch

        super().__init__(options)
        self.contestants = {each.name: each for each in contestants}
        self.budget = options.budget or self.data.budget
        gpu = torch.cuda.is_available()  # there, other programs do not slow the clock down
        self.limit, self.clock = ("max_seconds", "seconds") if gpu else ("max_cpu_seconds", "cpu_seconds")  # fmt: skip

    @property
    def runs(self) -> dict[str, tuple[Contestant, int]]:
        """Contestant and seed by the name of a run's folder; those of the first seed come first."""
        contestants = self.contestants.values()
        return {f"{c.name}-{seed}": (c, seed) for seed in self.options.seeds for c in contestants}

    def stage_folder(self, run: str, stage: Stage) -> Path:
        """Where a training of a run is, which may be another run's."""
        contestant, seed = self.runs[run]
        shared = contestant.shares is not None and stage.name == "stage1"
        return self.folder / (f"{contestant.shares}-{seed}" if shared else run) / stage.name

    def prepare(self) -> None:
        """Record what a repeated command must not change.

        Raises:
            ValueError: a run in the folder was made with other options.
        """
        names = ("dataset", "features", "score_images", "sweep_images", "threads")
        shared = {name: getattr(self.options, name) for name in names} | {"budget": self.budget}
        for run, (contestant, _) in self.runs.items():
            stages = [{**stage._asdict(), "flags": {**stage.flags}} for stage in contestant.stages]
            settings = {**shared, "shares": contestant.shares, "stages": stages}
            check_output_dir(self.folder / run, "settings.json", settings, "a run")
            (self.folder / run).mkdir(parents=True, exist_ok=True)
            write_record(self.folder / run / "settings.json", settings)

    def make(self, run: str) -> None:
        """Train a contestant with one seed and generate its images."""
        folder, (contestant, seed) = self.folder / run, self.runs[run]
        if (folder / ".done").is_file():
            return
        for stage in contestant.stages:
            self.train_stage(run, stage)
        if contestant.stages[0].name == "gan":
            self.generate("gan", folder / "gan/model", folder / "samples", folder / "samples", seed)
        else:
            self.sample(run)
        (folder / ".done").touch()

    def sample(self, run: str) -> None:
        """Generate the images of a two-stage model; a prior's sampler is chosen beforehand."""
        folder, (contestant, seed) = self.folder / run, self.runs[run]
        autoencoder = self.stage_folder(run, contestant.stages[0])
        pipeline, samples = folder / "pipeline", folder / "samples"
        has_prior = len(contestant.stages) > 1
        if not pipeline.is_dir():
            prior = {"prior": folder / "stage2/model"} if has_prior else {}
            self.assemble(autoencoder, pipeline, pipeline, prior)
        if not has_prior or not self.options.sweep_images:
            self.generate("pipeline", pipeline, samples, samples, seed)
            return
        swept = {
            "pipeline": pipeline, "reference": self.images, "reference_split": "validation",
            "features": self.options.features, "num_images": self.options.sweep_images,
            "full_images": self.options.score_images, "output_dir": folder / "sweep",
            "seed": seed, **SWEEP,
        }  # fmt: skip
        self.command("evaluation/sweep.py", folder / "sweep", swept)

    def images_of(self, run: str) -> Path:
        """Folder of a run's images; a sweep generates those of its best settings itself."""
        sweep = self.folder / run / "sweep/sweep.json"
        if not sweep.is_file():
            return self.folder / run / "samples"
        return Path(json.loads(sweep.read_text())["best"]["images"])

    def train_stage(self, run: str, stage: Stage) -> None:
        """One training, of as many steps as fit into its share of the budget."""
        folder, (contestant, seed) = self.stage_folder(run, stage), self.runs[run]
        if (folder / ".done").is_file():
            return
        room = ROOMS[stage.name]
        flags = {**self.training_flags(room, stage.preset), "seed": seed, **stage.flags}
        if stage.name == "stage2":
            autoencoder = self.stage_folder(run, contestant.stages[0])
            codes = autoencoder.with_name("codes")
            self.encode(contestant.stages[0].preset, autoencoder, codes, seed)
            flags |= {"codes": codes, "autoencoder": autoencoder / "model"}
        self.train_within(self.budget * stage.share, f"{room}/train.py", folder, stage, flags)
        (folder / ".done").touch()

    def train_within(
        self, budget: float, script: str, folder: Path, stage: Stage, flags: dict[str, object]
    ) -> None:
        """A training that goes on until its budget is spent, planned anew at every stop."""
        path = folder.with_name(f"{stage.name}_plan.json")
        plan = Plan.read(path)
        if not plan.loads:
            plan.loads.append(self.seconds_per_load(folder))
            # A critic that joins in halfway: half of the steps are of either kind.
            for start in (1_000_000, 0) if stage.late_critic else (None,):
                probed = {**flags, "critic.start_step": start}
                plan.step_seconds.append(self.step_seconds(script, folder, probed, budget))
            plan.write(path)
        first = plan.loads[0] * LOADS_PER_SECOND if self.reference_clock else 1.0
        costs = step_costs([seconds / first for seconds in plan.step_seconds], budget)
        if stage.late_critic:
            flags["critic.start_step"] = int(costs.change)
        for mark in MARKS[len(plan.segments) :]:
            last, pace = plan.last, plan.pace if self.reference_clock else 1.0
            spent = plan.reference_seconds() if self.reference_clock else last.seconds
            steps = planned_steps(costs, budget, last.steps, spent)
            limits = {self.limit: last.seconds + max(0.0, mark * budget - spent) * pace}
            limits |= {"max_steps": steps, "evaluate_every": max(1, steps // 4)}
            self.command(script, folder, {**flags, **limits, "output_dir": folder})
            trained = cost_of(folder)
            plan.loads.append(self.seconds_per_load(folder))
            plan.segments.append(Segment(steps, trained["steps"], trained[self.clock]))
            plan.write(path)
            if trained["steps"] == steps:
                break

    def step_seconds(self, script: str, folder: Path, flags: Flags, budget: float) -> float:
        """How long a step of a training takes."""
        probe = folder.with_name(f"{folder.name}_probe")
        shutil.rmtree(probe, ignore_errors=True)
        endless = dict.fromkeys(("max_steps", "evaluate_every", "checkpoint_every"), 1_000_000)
        limits = {self.limit: budget * PROBE, "output_dir": probe}
        self.command(script, probe, {**flags, **endless, **limits})
        trained = cost_of(probe)
        shutil.rmtree(probe)
        return float(trained[self.clock]) / trained["steps"]

    def seconds_per_load(self, folder: Path) -> float:
        """The reference load, timed where the training is and by the same clock."""
        output = folder.with_name("reference_load.json")
        self.command("benchmarks/reference_load.py", output, {"output": output})
        return float(json.loads(output.read_text())["seconds_per_load"])

    def score_all(self) -> dict[str, dict[str, Any]]:
        """The scores of all runs, and of training images as a baseline, by the runs' names."""
        folder = self.folder / "scores"
        sources = {BASELINE: f"{self.images}[train]"}
        sources |= {run: str(self.images_of(run)) for run in self.runs}
        file = folder / "scores.json"
        scored = read_scores(folder) if file.is_file() else {}
        ended = [(self.folder / run / ".done").stat().st_mtime for run in self.runs]
        # A run that was deleted and made again has the name of the one before.
        if [*scored] != [*sources] or file.stat().st_mtime < max(ended):
            candidates = [f"{name}={source}" for name, source in sources.items()]
            flags = {"candidates": candidates, "reference_split": self.split}
            self.score(folder, folder, {**flags, **self.scored_too})
            scored = read_scores(folder)
        return scored


def cost_of(folder: Path) -> dict[str, Any]:
    """Steps, images and seconds of the training in a folder."""
    trained: dict[str, Any] = json.loads((folder / "model/config.json").read_text())["training"]
    return trained
