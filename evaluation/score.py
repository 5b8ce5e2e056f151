"""Score sets of images against a reference: `python evaluation/score.py --candidates samples=FOLDER --output_dir DIR`.

With `--pipeline` an autoencoder's reconstructions are scored beside them, or alone; with `--compare` the tables of
several calls become one. Writes scores.json (protocol and rows), scores.md (the table) and report.html (table, charts
and pictures). Several processes share the images: start them with `accelerate launch`, or on a CPU with
`ACCELERATE_USE_CPU=true torchrun --standalone --nproc_per_node 2 evaluation/score.py ...`.
"""

from __future__ import annotations

from latent_prior.cli import answer_early, command_line, parse_config, run
from latent_prior.evaluation.options import RECONSTRUCTIONS, ScoreOptions

answer_early(__name__, ScoreOptions)

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from accelerate import Accelerator
from numpy.typing import NDArray

from latent_prior.evaluation.class_accuracy import Classifier, open_class_images, train_classifier
from latent_prior.evaluation.classes import own_classes
from latent_prior.evaluation.features.extract import extract, extract_reconstructions
from latent_prior.evaluation.features.networks import FeatureNetwork, load_network
from latent_prior.evaluation.features.reference_cache import (
    ReferenceStatistics,
    published_statistics,
    reference_statistics,
)
from latent_prior.evaluation.judge import Judge
from latent_prior.evaluation.measures.reconstruction import Reconstructing
from latent_prior.evaluation.measures.table import Row
from latent_prior.evaluation.report.compare import compare
from latent_prior.evaluation.report.files import (
    Grid,
    check_sizes,
    terminal_table,
    write_report,
)
from latent_prior.evaluation.report.pictures import (
    pictured,
    pictured_pairs,
    pictured_reconstructions,
)
from latent_prior.evaluation.sets import ScoredSet, open_candidate, open_reference
from latent_prior.losses.perceptual import PerceptualDistance, make_perceptual
from latent_prior.machine import versions
from latent_prior.processes import start_processes


@dataclass(frozen=True)
class Autoencoder:
    """A pipeline, its autoencoder's fingerprint, the reference as it wants to see it, and LPIPS's network if asked for."""

    pipeline: Reconstructing
    fingerprint: str
    originals: ScoredSet
    perceptual: PerceptualDistance | None = None


@dataclass(frozen=True)
class Sets:
    """Everything that is read.

    Attributes:
        reference: the images that candidates are compared with; None where published statistics take their place.
        training: the images that the generators have learnt from, where nearest ones are looked up.
        candidates: in the order of the table.
        labels: for each of them the class of every image, where it has classes.
        autoencoder: the pipeline whose reconstructions are scored, if one is.
    """

    reference: ScoredSet | None
    training: ScoredSet | None
    candidates: list[ScoredSet]
    labels: list[NDArray[np.int64] | None]
    autoencoder: Autoencoder | None


def main(argv: Sequence[str] | None = None) -> None:
    """Score, print the table, write the files.

    Raises:
        ValueError: for input that cannot be scored; nothing is written then.
    """
    options = parse_config(ScoreOptions, argv)
    output_dir = Path(options.output_dir)
    if output_dir.exists() and not output_dir.is_dir():
        raise ValueError(f"--output_dir {output_dir} is a file; name a folder")
    if options.compare:
        compare([Path(path) for path in options.compare], output_dir)
        return
    accelerator = start_processes(cpu_threads=options.cpu_threads, seed=options.seed)
    sets = open_sets(options, accelerator)
    class_images = None
    if options.class_accuracy:
        assert sets.reference is not None
        class_images = open_class_images(options, [sets.reference, *sets.candidates])
    with accelerator.local_main_process_first():  # so that weights are downloaded once
        network = load_network(options.features, accelerator.device)
    judge = prepare(sets, network, options, accelerator)
    classifier, ceiling = None, None
    if class_images is not None:
        assert sets.reference is not None
        classifier = train_classifier(class_images, options.seed, accelerator)
        ceiling = classifier.accuracy(sets.reference, options.batch_size, accelerator)
    output_dir.mkdir(parents=True, exist_ok=True)
    rows, pairs = score(sets, judge, classifier, options, accelerator)
    if accelerator.is_main_process:
        protocol = describe_protocol(options, sets, judge.reference, network)
        if classifier is not None and ceiling is not None:
            protocol["classifier"] = classifier.protocol(options.train_split, ceiling)
        scored = sets.candidates if sets.reference is None else [sets.reference, *sets.candidates]
        grids = [pictured(one) for one in scored]
        if sets.autoencoder is not None:
            pipeline, originals = sets.autoencoder.pipeline, sets.autoencoder.originals
            grids.append(pictured_reconstructions(pipeline, originals, accelerator.device))
        write_report(output_dir, protocol, rows, network.column, network.title, grids, pairs)
        print(terminal_table(rows, network.column, network.title, output_dir))
    accelerator.end_training()


def open_sets(options: ScoreOptions, accelerator: Accelerator) -> Sets:
    """Open everything that is read, so that mistakes are told before any work is done.

    Raises:
        ValueError: a set is missing or too small, its labels are wrong, or candidates hold different numbers of images.
    """
    reference = None if options.published else open_reference(options)
    candidates = [open_candidate(candidate, options) for candidate in options.parsed_candidates()]
    for candidate in candidates:
        if candidate.split is None and candidate.images.skipped:  # splits report it themselves
            accelerator.print(
                f"{candidate.source}: left out {candidate.images.skipped} images that cannot be read"
            )
    autoencoder = open_autoencoder(options, reference, accelerator)
    sizes = [(candidate.name, len(candidate)) for candidate in candidates]
    if autoencoder is not None:
        sizes.append((RECONSTRUCTIONS, len(autoencoder.originals)))
    check_sizes(sizes)
    training = None
    if options.nearest:
        trained_on = replace(options, reference_split=options.train_split, num_images=None)
        training = open_reference(trained_on)
    labels = [own_classes(candidate) for candidate in candidates]
    return Sets(reference, training, candidates, labels, autoencoder)


def prepare(
    sets: Sets, network: FeatureNetwork, options: ScoreOptions, accelerator: Accelerator
) -> Judge:
    """What candidates are measured by: statistics of the reference, and features of the training images.

    Raises:
        ValueError: an image cannot be read, or there are no such published statistics.
    """
    if sets.reference is None:
        assert options.published is not None
        with accelerator.local_main_process_first():
            reference = published_statistics(options.published, network)
    else:
        reference = reference_statistics(network, sets.reference, options.batch_size, accelerator)
    trained_on = None
    if sets.training is not None:
        trained_on = reference_statistics(network, sets.training, options.batch_size, accelerator)
    return Judge(
        network,
        reference,
        None if trained_on is None else trained_on.features,
        options,
    )


def score(
    sets: Sets,
    judge: Judge,
    classifier: Classifier | None,
    options: ScoreOptions,
    accelerator: Accelerator,
) -> tuple[list[Row], list[Grid]]:
    """One row for each candidate and one for the reconstructions, and pairs of nearest images; empty but in the main process.

    With a classifier, candidates whose classes are known get their class accuracy.

    Raises:
        ValueError: naming an image that cannot be read.
    """
    rows, pairs = [], []
    main = accelerator.is_main_process
    for candidate, labels in zip(sets.candidates, sets.labels, strict=True):
        found = extract(judge.network, candidate, options.batch_size, accelerator)
        accuracy = None
        if classifier is not None:
            accuracy = classifier.accuracy(candidate, options.batch_size, accelerator)
        if main:
            rows.append(judge.candidate(candidate, found, labels, accuracy))
            if sets.training is not None and judge.trained_on is not None:
                pairs.append(pictured_pairs(candidate, found, sets.training, judge.trained_on))
    if sets.autoencoder is not None:
        given_back = extract_reconstructions(
            judge.network,
            sets.autoencoder.pipeline,
            sets.autoencoder.originals,
            sets.autoencoder.perceptual,
            options.batch_size,
            accelerator,
        )
        if main:
            rows.append(judge.reconstructions(given_back))
    return rows, pairs


def open_autoencoder(
    options: ScoreOptions, reference: ScoredSet | None, accelerator: Accelerator
) -> Autoencoder | None:
    """The pipeline whose reconstructions are scored, if one is.

    Raises:
        ValueError: no such pipeline, or weights of a perceptual network are missing.
    """
    if options.pipeline is None:
        return None
    from latent_prior.pipelines import Pipeline

    assert reference is not None, "options refuse a pipeline beside published statistics"
    perceptual = make_perceptual(options.perceptual, accelerator.device, "--perceptual")
    pipeline = Pipeline.from_pretrained(options.pipeline).to(accelerator.device)
    spec = pipeline.code_spec
    originals = reference.resized(spec.image_size, spec.image_channels)
    return Autoencoder(pipeline, spec.autoencoder_fingerprint, originals, perceptual)


def describe_protocol(
    options: ScoreOptions, sets: Sets, reference: ReferenceStatistics, network: FeatureNetwork
) -> dict[str, Any]:
    """Everything a reader needs to get the same numbers, JSON-ready."""
    images = sets.reference
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
        "autoencoder_fingerprint": None
        if sets.autoencoder is None
        else sets.autoencoder.fingerprint,
        "candidates": {candidate.name: candidate.protocol() for candidate in sets.candidates},
        "versions": versions(),
        "command": command_line(),
    }


if __name__ == "__main__":
    run(main)
