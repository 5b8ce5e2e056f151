"""Shared by all experiments: data sets, options, a user's commands, and their results.

Repeating an experiment continues where it stopped.
"""

from __future__ import annotations

import fcntl
import json
import subprocess
import sys
import threading
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, Literal, NamedTuple, TypeVar

import yaml

from latent_prior.machine import available_cores
from latent_prior.markdown import markdown_table
from latent_prior.options import Options, option

ROOT = Path(__file__).parents[1]
STAGE1, STAGE2, GAN = "stage1_autoencoders", "stage2_prior", "evaluation/gan_baseline"
LATENT_MEMBERS = ("vae", "vae_grid", "vaegan")

Flags = Mapping[str, object]


class DataSet(NamedTuple):
    """A data set, as its experiments need it.

    Attributes:
        images: its name if it is embedded; otherwise `--dataset` names its folder.
        budget: training seconds of a contestant in the league.
        first_share: the autoencoder's share of them; the prior needs most.
        classifier: whether the class of an image is measured: the classifier is trained in minutes.
        views: flags of `encode.py` for more than one view of an image that the prior learns from.
    """

    images: str | None
    budget: float
    first_share: float
    classifier: bool
    views: Mapping[str, object] = {}


DataName = Literal["mnist", "cifar10", "shapes"]
DATA: dict[DataName, DataSet] = {
    "mnist": DataSet("mnist5k", 600, 0.2, classifier=True),
    "cifar10": DataSet(None, 1200, 0.15, classifier=False),
    "shapes": DataSet("shapes", 600, 0.25, classifier=True, views={"crops": 5, "crop_padding": 2}),
}


@dataclass(kw_only=True)
class ExperimentOptions(Options):
    """Options of every experiment."""

    data: DataName = "mnist"
    """Data set whose presets are trained."""
    dataset: str | None = None
    """Images to use instead of the presets' `dataset`; cifar10 needs its folder here."""
    features: str = "efficientnet_lite0"
    """Feature network of the scores, as in `evaluation/score.py`."""
    score_images: int = option(1000, at_least=1)
    """Images in every set that is scored."""
    threads: int | None = option(None, at_least=1)
    """Threads of every run on a CPU; null takes all cores."""
    jobs: int | None = option(1, at_least=1)
    """Runs at the same time, 1 for timings; null: as many as cores / threads, 1 on a GPU."""
    output_dir: str = option()
    """Folder of all files; each data set has its own in it."""

    def __post_init__(self) -> None:
        """Check the numbers, and that there are images."""
        super().__post_init__()
        if self.dataset is None and DATA[self.data].images is None:
            raise ValueError(f"--data {self.data} needs its images: --dataset FOLDER")


Name = TypeVar("Name", bound=str)
Result = TypeVar("Result")
AnyOptions = TypeVar("AnyOptions", bound=ExperimentOptions)


class Experiment(Generic[AnyOptions]):
    """The project's commands with one experiment's options; all files are in `folder`."""

    def __init__(self, options: AnyOptions) -> None:
        self.options = options
        self.folder = Path(options.output_dir, options.data)
        self.data = DATA[options.data]
        self.images = (
            options.dataset or self.data.images or ""
        )  # options refuse that there are none
        self._running: set[subprocess.Popen[bytes]] = set()
        self._starting = threading.Lock()
        self._ended = False

    @property
    def jobs(self) -> int:
        """Runs at the same time."""
        import torch

        cores = available_cores()
        free = 1 if torch.cuda.is_available() else max(1, cores // (self.options.threads or cores))
        return self.options.jobs or free

    def in_parallel(
        self, make: Callable[[Name], Result], names: Iterable[Name]
    ) -> dict[Name, Result]:
        """Results by name, `--jobs` of them at the same time.

        An error or a signal ends the commands of the others too, which save what they have.
        """
        with ThreadPoolExecutor(self.jobs) as pool:
            futures = {name: pool.submit(make, name) for name in names}
            try:
                for future in as_completed(futures.values()):
                    future.result()
            except BaseException:
                pool.shutdown(wait=False, cancel_futures=True)
                with self._starting:
                    self._ended = True
                    for process in self._running:
                        process.terminate()
                raise
            return {name: future.result() for name, future in futures.items()}

    def command(self, script: str, run: Path, flags: Flags) -> None:
        """Run a script of the project as a user would; its output is appended to RUN.log.

        A flag that is None is left out, a list is several values.

        Raises:
            ValueError: the script failed.
        """
        run.parent.mkdir(parents=True, exist_ok=True)
        words = [sys.executable, str(ROOT / script)]
        if script != "pipelines/assemble.py":
            flags = {**flags, "cpu_threads": self.options.threads}
        for name, value in flags.items():
            if value is not None:
                words += [f"--{name}", *map(str, value if isinstance(value, list) else [value])]
        log = run.with_suffix(".log")
        with log.open("a") as file:
            # The lock is the command's too: one that outlived a killed experiment is waited for.
            fcntl.flock(file, fcntl.LOCK_EX)
            with self._starting:
                if self._ended:
                    raise ValueError(
                        f"{script} for {run.name} was not started: the experiment ends"
                    )
                process = subprocess.Popen(words, stdout=file, stderr=file)
                self._running.add(process)
            code = process.wait()
            with self._starting:
                self._running.remove(process)
        if code:
            raise ValueError(f"{script} for {run.name} ended with code {code}; see {log}")

    def training_flags(self, room: str, preset: str) -> dict[str, object]:
        """The flags of every training from a preset of this data set."""
        config = ROOT / room / "configs" / f"{self.options.data}_{preset}.yaml"
        return {"config": config, "dataset": None if room == STAGE2 else self.options.dataset}

    def train(self, room: str, preset: str, run: Path, flags: Flags) -> None:
        """Train from a preset, unless the training has come to its end."""
        flags = {**self.training_flags(room, preset), **flags, "output_dir": run}
        if not finished(run, flags.get("max_steps")):
            self.command(f"{room}/train.py", run, flags)

    def encode(self, member: str, run: Path, codes: Path, seed: int = 0) -> None:
        """Encode the images with the autoencoder in `run`, unless they are."""
        flags = {
            "autoencoder": run / "model",
            "dataset": self.images,
            "output_dir": codes,
            "seed": seed,
            # Sampled latents: what the decoder was trained on and the likelihood is defined for.
            "posterior": "sample" if member in LATENT_MEMBERS else None,
            **self.data.views,
        }
        if not (codes / "code_spec.json").is_file():
            self.command(f"{STAGE1}/encode.py", run, flags)

    def assemble(self, autoencoder: Path, pipeline: Path, run: Path, parts: Flags) -> None:
        """Make a pipeline of an autoencoder, a `prior` and settings of the sampler."""
        flags = {"autoencoder": autoencoder / "model", "output_dir": pipeline, **parts}
        self.command("pipelines/assemble.py", run, flags)

    def generate(self, flag: str, model: Path, samples: Path, run: Path, seed: int = 0) -> None:
        """Generate the images that are scored, by a `pipeline` or a `gan`."""
        script = f"{GAN}/generate.py" if flag == "gan" else "pipelines/generate.py"
        flags = {flag: model, "num_images": self.options.score_images, "output_dir": samples}
        self.command(script, run, {**flags, "seed": seed})

    def score(self, run: Path, folder: Path, flags: Flags) -> None:
        """Score `candidates`, a `pipeline` or both against the test images, or another split."""
        shared = {"reference": self.images, "features": self.options.features}
        shared |= {"num_images": str(self.options.score_images), "output_dir": str(folder)}
        self.command("evaluation/score.py", run, {**shared, **flags})

    @property
    def class_accuracy(self) -> str | None:
        """The flag's value."""
        return "true" if self.data.classifier else None

    def write_rows(self, name: str, rows: object, text: str) -> None:
        """NAME.json and NAME.md, whose text is printed too."""
        (self.folder / f"{name}.json").write_text(json.dumps(rows, indent=2) + "\n")
        (self.folder / f"{name}.md").write_text(text + "\n")
        print(text)


def finished(run: Path, max_steps: object) -> bool:
    """Whether a training has come to its end; starting it again would only take time."""
    config = run / "config.yaml"
    if not config.is_file():
        return False
    last = yaml.safe_load(config.read_text())["max_steps"]
    return max_steps in (None, last) and (run / f"checkpoints/step-{last:09d}").is_dir()


def last_metrics(run: Path) -> dict[str, Any]:
    """The last value of every metric that a training wrote."""
    lines = (run / "metrics.jsonl").read_text().splitlines()
    return {name: value for line in lines for name, value in json.loads(line).items()}


def read_scores(folder: Path) -> dict[str, dict[str, Any]]:
    """The rows of a scores.json by name, with the feature distance as `distance`."""
    scores = json.loads((folder / "scores.json").read_text())
    key = scores["distance"]["key"]
    return {row["name"]: row | {"distance": row[key]} for row in scores["rows"]}


def table(
    rows: Sequence[Any], columns: Mapping[str, Callable[[Any], str]], *, left: int = 1
) -> str:
    """A Markdown table whose cells are made from the rows."""
    cells = [[cell(row) for cell in columns.values()] for row in rows]
    return "\n".join(markdown_table(list(columns), cells, left=left))
