"""Score sets of images against a reference set.

    python evaluation/score.py --candidates NAME=FOLDER --output_dir DIR

With `--pipeline` an autoencoder's reconstructions are scored too, or alone; `--compare` merges the
tables of several calls. Writes scores.json (protocol and rows), scores.md (the table) and
report.html (table, charts and images). Several processes share the images: start them with
`accelerate launch`, or on a CPU with
`ACCELERATE_USE_CPU=true torchrun --standalone --nproc_per_node 2 evaluation/score.py ...`.
"""

from __future__ import annotations

from latent_prior.cli import answer_early, command_line, parse_config, run
from latent_prior.evaluation.options import RECONSTRUCTIONS, ScoreOptions

answer_early(__name__, ScoreOptions)

import logging
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from accelerate import Accelerator

from latent_prior.calls import takes_options
from latent_prior.evaluation.class_accuracy import Classifier, open_class_images, train_classifier
from latent_prior.evaluation.features.extract import (
    extract,
    extract_attributes,
    extract_reconstructions,
)
from latent_prior.evaluation.features.networks import FeatureNetwork, load_network
from latent_prior.evaluation.features.reference_cache import load_reference, reference_statistics
from latent_prior.evaluation.judge import Judge
from latent_prior.evaluation.measures.table import Row
from latent_prior.evaluation.report.compare import compare
from latent_prior.evaluation.report.files import (
    JSON_FILE,
    check_sizes,
    terminal_table,
    write_report,
)
from latent_prior.evaluation.report.html import Grid
from latent_prior.evaluation.report.pictures import pairs_grid, reconstruction_grid, set_grid
from latent_prior.evaluation.report.scores import read_scores
from latent_prior.evaluation.sets import (
    ScoredSet,
    open_candidate,
    open_reference,
    tell_data_sets,
)
from latent_prior.files import check_folder_path
from latent_prior.losses.perceptual import PerceptualDistance, make_perceptual
from latent_prior.machine import is_main_process, versions
from latent_prior.pipelines import Pipeline
from latent_prior.processes import start_processes

_log = logging.getLogger("latent_prior")


@dataclass(frozen=True)
class Sets:
    """Everything that is read."""

    reference: ScoredSet | None  # None: published statistics
    training: ScoredSet | None = None  # for `--nearest`
    candidates: Sequence[ScoredSet] = ()
    pipeline: Pipeline | None = None
    originals: ScoredSet | None = None  # the reference at the size and channels of the pipeline
    perceptual: PerceptualDistance | None = None


@dataclass(frozen=True)
class Scored:
    """A report; printed, it is the table of the terminal.

    Attributes:
        folder: of scores.json, scores.md and report.html.
        protocol: what the numbers depend on, as in scores.json.
        rows: as in scores.json, one for each set of images.
        table: the main columns.
    """

    folder: Path
    protocol: dict[str, Any]
    rows: list[dict[str, Any]]
    table: str = field(repr=False)

    @classmethod
    def open(cls, folder: Path) -> Scored:
        """The report in a folder."""
        found = read_scores(folder / JSON_FILE)
        table = terminal_table(found.rows, found.column, found.title, folder)
        return cls(folder, found.protocol, [row.to_json() for row in found.rows], table)

    def __str__(self) -> str:
        return self.table


@takes_options(ScoreOptions)
def score(options: ScoreOptions) -> Scored:
    """Score sets of images against a reference, and write the report.

    Raises:
        ValueError: for input that cannot be scored; nothing is written then.
    """
    output_dir = Path(options.output_dir)
    check_folder_path(output_dir, "--output_dir ")
    if options.compare:
        compare([Path(path) for path in options.compare], output_dir)
        return Scored.open(output_dir)
    accelerator = start_processes(cpu_threads=options.cpu_threads, seed=options.seed)
    sets = open_sets(options, accelerator)
    labelled = None
    if options.class_accuracy:
        assert sets.reference is not None, "options refuse class_accuracy of published statistics"
        labelled = open_class_images(options, [sets.reference, *sets.candidates])
    with accelerator.local_main_process_first():  # weights are downloaded once
        network = load_network(options.features, accelerator.device)
    judge = prepare(sets, network, options, accelerator)
    classifier = None if labelled is None else train_classifier(labelled, options.seed, accelerator)
    protocol = describe_protocol(options, sets, judge)
    if classifier is not None and sets.reference is not None:
        ceiling = classifier.accuracy(sets.reference, options.batch_size, accelerator)
        protocol["classifier"] = classifier.protocol(options.train_split, ceiling)
    output_dir.mkdir(parents=True, exist_ok=True)
    rows, pairs = score_sets(sets, judge, classifier, accelerator)
    if accelerator.is_main_process:
        grids = [set_grid(each) for each in (sets.reference, *sets.candidates) if each is not None]
        if sets.pipeline is not None and sets.originals is not None:
            device = accelerator.device
            grids.append(reconstruction_grid(sets.pipeline, sets.originals, device))
        write_report(output_dir, protocol, rows, network.column, network.title, grids, pairs)
    accelerator.wait_for_everyone()
    return Scored.open(output_dir)


def open_sets(options: ScoreOptions, accelerator: Accelerator) -> Sets:
    """Open everything that is read, so that mistakes are reported before any work is done.

    Raises:
        ValueError: a set is missing or too small, its labels are wrong, the candidates differ in
            their numbers of images, or the pipeline or the weights of LPIPS are missing.
    """
    tell_data_sets(options)
    reference = None if options.published else open_reference(options)
    candidates = [open_candidate(candidate, options) for candidate in options.parsed_candidates()]
    for candidate in candidates:
        if candidate.split is None and candidate.images.skipped:  # splits report it themselves
            skipped = candidate.images.skipped
            if accelerator.is_main_process:
                _log.info("%s: left out %d images that cannot be read", candidate.source, skipped)
    sets = Sets(reference, candidates=candidates)
    sizes = [(candidate.name, len(candidate)) for candidate in candidates]
    if reference is not None and options.pipeline is not None:
        perceptual = make_perceptual(options.perceptual, accelerator.device, "--perceptual")
        pipeline = Pipeline.from_pretrained(options.pipeline).to(accelerator.device)
        spec = pipeline.code_spec
        originals = reference.resized(spec.image_size, spec.image_channels)
        sets = replace(sets, pipeline=pipeline, originals=originals, perceptual=perceptual)
        sizes.append((RECONSTRUCTIONS, len(originals)))
    check_sizes(sizes)
    if options.nearest:
        training = replace(options, reference_split=options.train_split, num_images=None)
        sets = replace(sets, training=open_reference(training))
    return sets


def prepare(
    sets: Sets, network: FeatureNetwork, options: ScoreOptions, accelerator: Accelerator
) -> Judge:
    """Statistics of the reference, and features of the training images.

    Raises:
        ValueError: an image cannot be read, or there are no such published statistics.
    """
    reference = load_reference(network, sets.reference, options, accelerator)
    training = None
    if sets.training is not None:
        training = reference_statistics(network, sets.training, options.batch_size, accelerator)
    return Judge(network, reference, None if training is None else training.features, options)


def score_sets(
    sets: Sets, judge: Judge, classifier: Classifier | None, accelerator: Accelerator
) -> tuple[list[Row], list[Grid]]:
    """A row for each candidate and for the reconstructions, and pairs of nearest images.

    Both lists are empty in other processes than the main one.

    Raises:
        ValueError: an image cannot be read.
    """
    rows, pairs = [], []
    network, batch_size = judge.network, judge.options.batch_size
    for candidate in sets.candidates:
        features = extract(network, candidate, batch_size, accelerator)
        accuracy = None
        if classifier is not None:
            accuracy = classifier.accuracy(candidate, batch_size, accelerator)
        attributes = extract_attributes(candidate, batch_size, accelerator)
        if accelerator.is_main_process:
            row = judge.candidate(candidate, features, accuracy, attributes)
            note = None if classifier is None else classifier.note(candidate)
            rows.append(row if note is None else replace(row, notes=(*row.notes, note)))
            if sets.training is not None and judge.training is not None:
                pairs.append(pairs_grid(candidate, features, sets.training, judge.training))
    if sets.pipeline is not None and sets.originals is not None:
        reconstructions = extract_reconstructions(
            network, sets.pipeline, sets.originals, sets.perceptual, batch_size, accelerator
        )
        if accelerator.is_main_process:
            rows.append(judge.reconstructions(*reconstructions))
    return rows, pairs


def describe_protocol(options: ScoreOptions, sets: Sets, judge: Judge) -> dict[str, Any]:
    """Everything needed to reproduce the numbers, JSON-ready."""
    images, reference, network = sets.reference, judge.reference, judge.network
    return {
        "reference": reference.source if images is None else images.source,
        "reference_split": None if images is None else images.split,
        "reference_sha256": reference.key,
        "num_images": reference.num_images,
        "num_images_skipped": None if images is None else images.images.skipped,
        "features": network.name,
        "feature_weights": network.weights,
        "feature_dimension": network.dimension,
        "resizer": network.resizer,
        "kid_subsets": options.kid_subsets,
        "kid_subset_size": options.kid_subset_size,
        "seed": options.seed,
        "image_size": options.image_size,
        "channels": options.channels,
        "image_column": options.image_column,
        "label_column": options.label_column,
        "on_corrupt": options.on_corrupt,
        "train_split": options.train_split if options.nearest else None,
        "classifier": None,
        "perceptual": None if options.perceptual == "none" else options.perceptual,
        "pipeline": options.pipeline,
        "autoencoder_fingerprint": sets.pipeline
        and sets.pipeline.code_spec.autoencoder_fingerprint,
        "candidates": {candidate.name: candidate.protocol() for candidate in sets.candidates},
        "versions": versions(),
        "command": command_line(),
    }


def main(argv: Sequence[str] | None = None) -> None:
    """Entry point."""
    scored = score(options=parse_config(ScoreOptions, argv))
    if is_main_process():
        print(scored)


if __name__ == "__main__":
    run(main)
