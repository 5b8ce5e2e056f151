"""Find a pipeline's best sampler settings.

    python evaluation/sweep.py --pipeline DIR --guidance_scale 1 1.5 2 --output_dir DIR

Writes sweep.json, sweep.md, heatmap.png and images drawn with the best settings, and makes these
the default of the pipeline folder. Several processes share the images; start them as for score.py.
"""

from __future__ import annotations

from dataclasses import dataclass, field, fields
from typing import Literal

from latent_prior.cli import answer_early, parse_config, run
from latent_prior.evaluation.options import SWEPT, Candidate, ReferenceOptions, ScoreOptions
from latent_prior.options import option


@dataclass(kw_only=True)
class SweepOptions(ReferenceOptions):
    """Find the sampler settings with the lowest distance and make them a pipeline's default.

    Every combination of the values is measured on a few images drawn with the same random numbers,
    and the best one again on many. Repeating the command resumes it; other values add to the sweep.
    """

    pipeline: str = option(path=True)
    """Pipeline folder; `sampler` in its pipeline.json becomes the best settings found."""
    output_dir: str = option(path=True)
    """Folder for sweep.json, sweep.md, heatmap.png and the images of the best settings."""
    guidance_scale: list[float] = option(factory=list)
    """Values to try; empty keeps the pipeline's own, here and below."""
    temperature: list[float] = option(factory=list)
    """Values to try."""
    top_k: list[int] = option(factory=list)
    """Values to try; 0 means all codes."""
    top_p: list[float] = option(factory=list)
    """Values to try; 1 means all codes."""
    minimise: Literal["sliced_wasserstein", "kid", "distance"] = "sliced_wasserstein"
    """Lowest for the best settings: the sliced Wasserstein distance or, noisier, KID; the Frechet
    distance favours samples without variety unless num_images is several times the features."""
    num_images: int = option(200, at_least=2)
    """Images for each combination."""
    full_images: int = option(1000, at_least=2)
    """Images drawn and scored with the best settings."""
    reference_split: str = "validation"
    """Split of the reference. Report scores on another one: settings chosen on it flatter it."""
    seed: int = option(0, at_least=0)
    """Seed of the images, which are those of generate.py with this seed, and of the measures."""

    def __post_init__(self) -> None:
        """Check what can be checked without the pipeline and the images."""
        super().__post_init__()
        for name, values in self.grid().items():
            for value in values:
                if values.count(value) > 1:
                    raise ValueError(f"--{name} names {value:g} twice")
        if not self.grid():
            flags = ", ".join(f"--{name}" for name in SWEPT)
            raise ValueError(f"there is nothing to try: give values to one of {flags}")

    def grid(self) -> dict[str, list[float]]:
        """The settings to vary, with their values."""
        return {name: getattr(self, name) for name in SWEPT if getattr(self, name)}

    def score_options(self) -> ScoreOptions:
        """How the reference and the images of the best settings are read."""
        shared = {each.name: getattr(self, each.name) for each in fields(ReferenceOptions)}
        return ScoreOptions(
            candidates=["best=."], output_dir=self.output_dir, seed=self.seed, **shared
        )


answer_early(__name__, SweepOptions)

import dataclasses
import itertools
from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from accelerate import Accelerator
from numpy.typing import NDArray

from latent_prior.calls import takes_options
from latent_prior.evaluation.features.extract import extract, gather_in_order
from latent_prior.evaluation.features.networks import FeatureNetwork, load_network
from latent_prior.evaluation.features.reference_cache import load_reference
from latent_prior.evaluation.measures import fid
from latent_prior.evaluation.measures.inputs import ReferenceStatistics
from latent_prior.evaluation.measures.kid import kernel_distance
from latent_prior.evaluation.measures.sliced_wasserstein import SlicedReference
from latent_prior.evaluation.report.sweep_table import draw_heatmap, markdown, terminal_table
from latent_prior.evaluation.sets import open_candidate, open_reference, open_split, tell_data_sets
from latent_prior.files import whole_file
from latent_prior.folders import whole_folder
from latent_prior.machine import is_main_process, versions
from latent_prior.pipelines import Pipeline, Sampler
from latent_prior.pipelines.card import write_card
from latent_prior.pipelines.image_folder import fill_folder, generation_settings, sample_images
from latent_prior.pipelines.index import INDEX_FILE, read_index
from latent_prior.processes import share, start_processes
from latent_prior.progress import Progress
from latent_prior.records import check_output_dir, convert_record, write_record

JSON_FILE, MARKDOWN_FILE, PICTURE_FILE = "sweep.json", "sweep.md", "heatmap.png"


@dataclass(frozen=True, eq=False)
class Objective:
    """Scores features; the lowest score is best."""

    network: FeatureNetwork
    reference: ReferenceStatistics
    options: SweepOptions
    accelerator: Accelerator

    @property
    def column(self) -> str:
        """Key of what is minimised."""
        minimise = self.options.minimise
        return self.network.column if minimise == "distance" else minimise

    @property
    def title(self) -> str:
        """Heading of what is minimised."""
        titles = {"kid": "KID", "sliced_wasserstein": "SWD", "distance": self.network.title}
        return titles[self.options.minimise]

    captions: Sequence[str] = ()
    """One of each reference image, if it has some."""

    def prompts_for(self, pipe: Pipeline, count: int) -> list[str | None]:
        """The reference's captions in turn, for a prior that reads captions; otherwise none.

        Raises:
            ValueError: the reference has no captions.
        """
        if pipe.prompt_reader is None:
            return []
        if not self.captions:
            raise ValueError(
                f"--reference {self.options.reference} has no captions to ask the pipeline for: "
                "name images with captions"
            )
        return [self.captions[number % len(self.captions)] for number in range(count)]

    @cached_property
    def _gaussian(self) -> fid.Reference:
        return fid.Reference(self.reference.statistics)

    @cached_property
    def _slices(self) -> SlicedReference:
        assert self.reference.features is not None
        return SlicedReference(self.reference.features, self.options.seed)

    def __call__(self, features: NDArray[np.float32]) -> dict[str, float]:
        """The score of features (N, D), with its standard error if it is KID."""
        if self.options.minimise == "distance":
            statistics = fid.statistics(features)
            return {self.column: fid.frechet_distance(self._gaussian, statistics)}
        if self.options.minimise == "sliced_wasserstein":
            return {self.column: self._slices.distance(features)}
        assert self.reference.features is not None
        kid, error = kernel_distance(self.reference.features, features, seed=self.options.seed)
        return {"kid": kid, "kid_stderr": error}


@dataclass(frozen=True)
class Swept:
    """The result of a sweep; printed, it is the table of the terminal.

    Attributes:
        folder: of sweep.json, sweep.md and the pictures.
        rows: the settings of each combination and what they measure.
        best: the best row again, measured on many images.
        table: the main columns.
    """

    folder: Path
    rows: list[dict[str, Any]]
    best: dict[str, Any]
    table: str = field(repr=False)

    def __str__(self) -> str:
        return self.table


@takes_options(SweepOptions)
def sweep(options: SweepOptions) -> Swept:
    """Find the best sampler settings, and make them the default of the pipeline folder.

    Raises:
        ValueError: options, the pipeline, the reference or the output folder are at fault.
    """
    folder = Path(options.output_dir)
    check_output_dir(folder, JSON_FILE, {}, "sweep results")
    if not (Path(options.pipeline) / INDEX_FILE).is_file():
        raise ValueError(
            f"--pipeline {options.pipeline} is no pipeline folder, so its default settings cannot be written"
        )
    accelerator = start_processes(cpu_threads=options.cpu_threads, seed=options.seed)
    pipe = Pipeline.from_pretrained(options.pipeline).to(accelerator.device)
    combinations = combine(pipe, options)
    objective = open_objective(pipe, options, accelerator)
    protocol = describe_protocol(pipe, objective)
    stored = check_output_dir(folder, JSON_FILE, protocol, "sweep results", section="protocol")
    rows = [] if stored is None else stored_rows(folder / JSON_FILE, stored, objective.column)
    measured = [row["settings"] for row in rows]
    missing = [settings for settings in combinations if settings not in measured]
    with Progress(
        "sweeping settings",
        len(combinations),
        shown=accelerator.is_main_process,
        start=len(combinations) - len(missing),
        images=options.num_images,
    ) as line:
        for settings in missing:
            features = features_of(pipe, settings, objective)
            rows.append({"settings": settings, **objective(features)})
            if accelerator.is_main_process:
                write_sweep(folder, protocol, rows, objective, None)
            line.advance()
    best = min(rows, key=lambda row: row[objective.column])
    full = full_run(pipe, best["settings"], objective)
    if accelerator.is_main_process:
        write_sweep(folder, protocol, rows, objective, full)
        set_default(Path(options.pipeline), best["settings"])
    accelerator.wait_for_everyone()
    column, title = objective.column, objective.title
    table = terminal_table(protocol, rows, full, column, title, folder / MARKDOWN_FILE)
    return Swept(folder, rows, full, table)


def stored_rows(path: Path, stored: Mapping[str, Any], column: str) -> list[dict[str, Any]]:
    """The rows of a sweep.json, each with settings and a figure in the column.

    Raises:
        ValueError: naming the file, the row and the way out.
    """
    way_out = "choose another folder"
    rows = convert_record(stored.get("rows"), list[dict[str, Any]], f"{path}: rows", way_out)
    for number, row in enumerate(rows):
        where = f"{path}: rows[{number}]"
        convert_record(row.get("settings"), dict[str, Any], f"{where}: settings", way_out)
        Sampler.from_dict(row["settings"], f"{where}: settings", way_out)
        for name, figure in row.items():
            if name != "settings":
                convert_record(figure, float, f"{where}: {name}", way_out)
        convert_record(row.get(column), float, f"{where}: {column}", way_out)
    return rows


def combine(pipe: Pipeline, options: SweepOptions) -> list[dict[str, Any]]:
    """Every combination of values, completed with the pipeline's other settings.

    Raises:
        ValueError: nothing to sample from, or a setting out of range or without effect.
    """
    if pipe.prior is None and pipe.code_spec.kind == "codes":
        raise ValueError(f"--pipeline {options.pipeline} has no prior to sample from")
    grid = options.grid()
    conditional = bool(pipe.class_names) or pipe.prompt_reader is not None
    if "guidance_scale" in grid and pipe.prior is not None and not conditional:
        raise ValueError(
            "--guidance_scale has no effect on a prior without classes and captions; leave it out"
        )
    combinations = []
    for values in itertools.product(*grid.values()):
        sampler = pipe.resolve(dict(zip(grid, values, strict=True)), "--").to_dict()
        combinations.append({name: sampler[name] for name in pipe.settings})
    return combinations


def open_objective(pipe: Pipeline, options: SweepOptions, accelerator: Accelerator) -> Objective:
    """The feature network and the statistics of the reference.

    Raises:
        ValueError: either is missing, or the reference is statistics, which only the Frechet
            distance can be computed from.
    """
    tell_data_sets(options.score_options())
    images = None if options.published else open_reference(options.score_options())
    with accelerator.local_main_process_first():  # weights are downloaded once
        network = load_network(options.features, accelerator.device)
    reference = load_reference(network, images, options, accelerator)
    if options.minimise != "distance" and reference.features is None:
        raise ValueError(
            f"--minimise {options.minimise} needs the reference's features, but {options.reference} has only "
            "statistics: name a data set, or choose --minimise distance"
        )
    captions: list[str] = []
    if images is not None and pipe.prompt_reader is not None:
        of_reference = dataclasses.replace(
            options.score_options().image_options(options.reference), caption_column=None
        )
        captioned = open_split(of_reference, options.reference_split, "--reference")
        if captioned.has_captions:
            captions = [several[0] for several in captioned.captions(images.chosen.tolist())]
    return Objective(network, reference, options, accelerator, captions)


def features_of(
    pipe: Pipeline, settings: Mapping[str, Any], objective: Objective
) -> NDArray[np.float32]:
    """Features (N, D) of the first N images with these settings, the same in every process."""
    options, accelerator = objective.options, objective.accelerator
    labels = pipe.label_numbers(None, options.num_images)
    prompts = objective.prompts_for(pipe, options.num_images)
    features = (
        objective.network(sample_images(pipe, numbers, labels, settings, options.seed, prompts))
        for numbers in share(options.num_images, options.batch_size, accelerator)
    )
    return gather_in_order(features, objective.network.dimension, accelerator)


def full_run(pipe: Pipeline, settings: Mapping[str, Any], objective: Objective) -> dict[str, Any]:
    """Draw many images into a folder and score them.

    Raises:
        ValueError: the folder holds something else.
    """
    options, accelerator = objective.options, objective.accelerator
    name = "_".join(f"{key}_{settings[key]}" for key in SWEPT if key in settings)
    folder = Path(options.output_dir) / name
    labels = pipe.label_numbers(None, options.full_images)
    prompts = objective.prompts_for(pipe, options.full_images)
    fill_folder(
        folder,
        generation_settings(pipe, settings, options.seed),
        lambda numbers: sample_images(pipe, numbers, labels, settings, options.seed, prompts),
        labels,
        class_names=pipe.class_names,
        models=list(pipe.components.values()),
        batch_size=options.batch_size,
        accelerator=accelerator,
        prompts=prompts,
    )
    best = open_candidate(Candidate("best", str(folder), None), options.score_options())
    features = extract(objective.network, best, options.batch_size, accelerator)
    row = {"settings": dict(settings), "num_images": len(features), "images": str(folder)}
    return row | objective(features)


def describe_protocol(pipe: Pipeline, objective: Objective) -> dict[str, Any]:
    """Everything that the numbers depend on except the settings, JSON-ready."""
    options, network, reference = objective.options, objective.network, objective.reference
    return {
        "autoencoder_fingerprint": pipe.autoencoder.fingerprint,
        "prior_fingerprint": None if pipe.prior is None else pipe.prior.fingerprint,
        "num_images": options.num_images,
        "minimise": options.minimise,
        "seed": options.seed,
        "reference": reference.source,
        "reference_images": reference.num_images,
        "reference_sha256": reference.key,
        "features": network.name,
        "feature_weights": network.weights,
        "feature_dimension": network.dimension,
        "resizer": network.resizer,
        "image_size": options.image_size,
        "channels": options.channels,
        "versions": versions(),
    }


def write_sweep(
    folder: Path,
    protocol: Mapping[str, Any],
    rows: Sequence[dict[str, Any]],
    objective: Objective,
    full: Mapping[str, Any] | None,
) -> None:
    """Write sweep.json and, after the full run, sweep.md and the heat map."""
    column, title = objective.column, objective.title
    if full is not None:
        with whole_file(folder / MARKDOWN_FILE) as path:
            path.write_text(markdown(protocol, rows, full, column, title), encoding="utf-8")
        with whole_file(folder / PICTURE_FILE) as path:
            draw_heatmap(rows, column, title, path)
    write_record(
        folder / JSON_FILE, {"protocol": protocol, "rows": rows, "best": full}, sealed=True
    )


def set_default(folder: Path, settings: Mapping[str, Any]) -> None:
    """Make settings the default of a pipeline folder and rewrite its card."""
    with whole_folder(folder, "pipeline", keep=True) as changed:
        index = read_index(changed)
        index.sampler = dataclasses.replace(index.sampler, **settings)
        write_record(changed / INDEX_FILE, index)
        write_card(changed)


def main(argv: Sequence[str] | None = None) -> None:
    """Entry point."""
    swept = sweep(options=parse_config(SweepOptions, argv))
    if is_main_process():
        print(swept)


if __name__ == "__main__":
    run(main)
