"""Find a pipeline's best sampler settings: `python evaluation/sweep.py --pipeline DIR --guidance_scale 1 1.5 2 --temperature 0.9 1 --output_dir DIR`.

Writes sweep.json, sweep.md and heatmap.png, images of the best settings with their score, and those settings into the
pipeline folder. Several processes share the images, started as those of score.py.
"""

from __future__ import annotations

from latent_prior.cli import answer_early, parse_config, run
from latent_prior.evaluation.sweep_options import SWEPT, SweepOptions

answer_early(__name__, SweepOptions)

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from accelerate import Accelerator
from numpy.typing import NDArray
from tqdm import tqdm

from latent_prior.evaluation.features.extract import extract, gather_in_order
from latent_prior.evaluation.features.networks import FeatureNetwork, load_network
from latent_prior.evaluation.features.reference_cache import (
    ReferenceStatistics,
    published_statistics,
    reference_statistics,
)
from latent_prior.evaluation.measures import fid
from latent_prior.evaluation.options import Candidate
from latent_prior.evaluation.report.sweep_table import draw_heatmap, markdown
from latent_prior.evaluation.sets import open_candidate, open_reference
from latent_prior.files import check_output_dir, read_json, whole_file, write_json
from latent_prior.machine import versions
from latent_prior.pipelines import Pipeline, Sampler
from latent_prior.pipelines.card import INDEX_FILE, write_card
from latent_prior.pipelines.numbered import draw, fill_folder
from latent_prior.processes import share, start_processes

JSON_FILE, MARKDOWN_FILE, PICTURE_FILE = "sweep.json", "sweep.md", "heatmap.png"


@dataclass(frozen=True, eq=False)
class Measuring:
    """What images are measured by.

    Attributes:
        network: the feature network.
        reference: what they are compared with.
        options: of the call.
        accelerator: the processes.
    """

    network: FeatureNetwork
    reference: ReferenceStatistics
    options: SweepOptions
    accelerator: Accelerator

    @property
    def column(self) -> str:
        """Key of what is minimised."""
        return "kid" if self.options.minimise == "kid" else self.network.column

    @property
    def title(self) -> str:
        """Heading of what is minimised."""
        return "KID" if self.options.minimise == "kid" else self.network.title

    @cached_property
    def _prepared(self) -> fid.Reference:
        return fid.Reference(self.reference.statistics)

    def __call__(self, found: NDArray[np.float32]) -> dict[str, float]:
        """Scores of features (N, D)."""
        if self.options.minimise == "distance":
            return {self.column: self._prepared.distance(fid.statistics(found))}
        assert self.reference.features is not None
        kid, error = fid.kernel_distance(self.reference.features, found, seed=self.options.seed)
        return {"kid": kid, "kid_stderr": error}


def main(argv: Sequence[str] | None = None) -> None:
    """Measure, write the files, change the pipeline's default.

    Raises:
        ValueError: options, the pipeline, the reference or the output folder are at fault.
    """
    options = parse_config(SweepOptions, argv)
    if not (Path(options.pipeline) / INDEX_FILE).is_file():
        raise ValueError(
            f"--pipeline {options.pipeline} is no pipeline folder: its default settings are to be written"
        )
    accelerator = start_processes(cpu_threads=options.cpu_threads, seed=options.seed)
    pipe = Pipeline.from_pretrained(options.pipeline).to(accelerator.device)
    combinations = combine(pipe, options)
    measuring = open_measuring(options, accelerator)
    protocol = describe_protocol(pipe, measuring)
    folder = Path(options.output_dir)
    stored = check_output_dir(folder, JSON_FILE, protocol, "sweep results", section="protocol")
    rows = [] if stored is None else stored["rows"]
    known = [row["settings"] for row in rows]
    waiting = [each for each in combinations if each not in known]
    for settings in tqdm(waiting, desc="settings", disable=not accelerator.is_main_process):
        found = features_of(pipe, settings, measuring)
        rows.append({"settings": settings, **measuring(found)})
        if accelerator.is_main_process:
            write_sweep(folder, protocol, rows, measuring, None)
    best = min(rows, key=lambda row: row[measuring.column])
    full = full_run(pipe, best["settings"], measuring)
    if accelerator.is_main_process:
        write_sweep(folder, protocol, rows, measuring, full)
        set_default(Path(options.pipeline), best["settings"])
        print((folder / MARKDOWN_FILE).read_text(encoding="utf-8"))
    accelerator.end_training()


def combine(pipe: Pipeline, options: SweepOptions) -> list[dict[str, Any]]:
    """Every combination of values, each with all the settings that have an effect.

    Raises:
        ValueError: nothing to sample from, or a setting out of its range or without effect.
    """
    if pipe.prior is None and pipe.code_spec.kind == "codes":
        raise ValueError(f"--pipeline {options.pipeline} has no prior to sample from")
    grid = options.grid()
    if "guidance_scale" in grid and pipe.prior is not None and not pipe.class_names:
        raise ValueError("--guidance_scale has no effect on a prior without classes; leave it out")
    combinations = []
    for values in itertools.product(*grid.values()):
        sampler = pipe.resolve(dict(zip(grid, values, strict=True)), "--").to_dict()
        combinations.append({name: sampler[name] for name in pipe.settings})
    return combinations


def open_measuring(options: SweepOptions, accelerator: Accelerator) -> Measuring:
    """The feature network and the statistics of the reference.

    Raises:
        ValueError: either is missing, or the reference holds no images to compute KID from.
    """
    score = options.score_options()
    images = None if score.published else open_reference(score)
    with accelerator.local_main_process_first():  # so that weights are downloaded once
        network = load_network(options.features, accelerator.device)
    if images is None:
        assert score.published is not None
        with accelerator.local_main_process_first():
            reference = published_statistics(score.published, network)
    else:
        reference = reference_statistics(network, images, options.batch_size, accelerator)
    if options.minimise == "kid" and reference.features is None:
        raise ValueError(
            f"--minimise kid needs the reference's features, and {options.reference} publishes none"
        )
    return Measuring(network, reference, options, accelerator)


def features_of(
    pipe: Pipeline, settings: Mapping[str, Any], measuring: Measuring
) -> NDArray[np.float32]:
    """Features (N, D) of the first N images drawn with these settings, the same in every process."""
    options, accelerator = measuring.options, measuring.accelerator
    labels = pipe.label_numbers(None, options.num_images)
    features = [np.empty((0, measuring.network.dimension), np.float32)]
    for numbers in share(options.num_images, options.batch_size, accelerator):
        own = [labels[number] for number in numbers]
        features.append(measuring.network(draw(pipe, numbers, own, settings, options.seed)))
    return gather_in_order(np.concatenate(features), accelerator)


def full_run(pipe: Pipeline, settings: Mapping[str, Any], measuring: Measuring) -> dict[str, Any]:
    """Draw many images into a folder and score them.

    Raises:
        ValueError: the folder holds something else.
    """
    options, accelerator = measuring.options, measuring.accelerator
    name = "_".join(f"{key}_{settings[key]}" for key in SWEPT if key in settings)
    folder = Path(options.output_dir) / name
    labels = pipe.label_numbers(None, options.full_images)
    fill_folder(folder, pipe, labels, settings, options.seed, options.batch_size, accelerator)
    best = open_candidate(Candidate("best", str(folder), None), options.score_options())
    found = extract(measuring.network, best, options.batch_size, accelerator)
    return {
        "settings": dict(settings),
        "num_images": len(found),
        "images": str(folder),
        **measuring(found),
    }


def describe_protocol(pipe: Pipeline, measuring: Measuring) -> dict[str, Any]:
    """Everything that the numbers depend on beside the settings, JSON-ready."""
    options, network, reference = measuring.options, measuring.network, measuring.reference
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
    measuring: Measuring,
    full: Mapping[str, Any] | None,
) -> None:
    """Write sweep.json, and once the full run is done sweep.md and the heat map."""
    content = {"protocol": protocol, "rows": rows, "best": full}
    if full is not None:
        with whole_file(folder / MARKDOWN_FILE) as path:
            path.write_text(
                markdown(protocol, rows, full, measuring.column, measuring.title), encoding="utf-8"
            )
        with whole_file(folder / PICTURE_FILE) as path:
            draw_heatmap(rows, measuring.column, measuring.title, path)
    write_json(folder / JSON_FILE, content)


def set_default(folder: Path, settings: Mapping[str, Any]) -> None:
    """Write settings into a pipeline folder as its default, and its card anew."""
    index = read_json(folder / INDEX_FILE)
    index["sampler"] = Sampler(**{**index["sampler"], **settings}).to_dict()
    write_json(folder / INDEX_FILE, index)
    write_card(folder)


if __name__ == "__main__":
    run(main)
