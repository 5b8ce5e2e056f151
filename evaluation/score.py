"""Score sets of images against a reference: `python evaluation/score.py --candidates samples=FOLDER --output_dir DIR`.

With `--pipeline` an autoencoder's reconstructions are scored beside them, or alone.
Writes scores.json (protocol and rows), scores.md (the table) and report.html (table and pictures). Several processes
share the images: start them with `accelerate launch`, or on a CPU with
`ACCELERATE_USE_CPU=true torchrun --standalone --nproc_per_node 2 evaluation/score.py ...`.
"""

from __future__ import annotations

from common.cli import parse_config, run
from evaluation.options import RECONSTRUCTIONS, ScoreOptions

if __name__ == "__main__":
    parse_config(ScoreOptions)  # --help and mistakes are answered before torch is imported

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from accelerate import Accelerator
from numpy.typing import NDArray

from common.processes import start_processes
from evaluation import fid
from evaluation.classifier import Classifier, open_class_images, train_classifier
from evaluation.extract import as_batch, extract, extract_reconstructions
from evaluation.features import FeatureNetwork, load_network
from evaluation.reconstruction import Reconstructing, mean_psnr, reconstruct
from evaluation.report import HTML_FILE, Grid, Row, markdown, picture, write_report
from evaluation.sets import ScoredSet, open_candidate, open_reference
from evaluation.versions import versions

PICTURED = 60  # images of each set in report.html


@dataclass(frozen=True)
class Autoencoder:
    """A pipeline, its autoencoder's fingerprint, and the reference as it wants to see it."""

    pipeline: Reconstructing
    fingerprint: str
    originals: ScoredSet


def main(argv: Sequence[str] | None = None) -> None:
    """Score, print the table, write the files.

    Raises:
        ValueError: for input that cannot be scored; nothing is written then.
    """
    options = parse_config(ScoreOptions, argv)
    output_dir = Path(options.output_dir)
    if output_dir.exists() and not output_dir.is_dir():
        raise ValueError(f"--output_dir {output_dir} is a file; name a folder")
    accelerator = start_processes(cpu_threads=options.cpu_threads, seed=options.seed)
    reference = open_reference(options)
    candidates = [open_candidate(candidate, options) for candidate in options.parsed_candidates()]
    for candidate in candidates:
        if candidate.split is None and candidate.images.skipped:  # splits report it themselves
            accelerator.print(
                f"{candidate.source}: left out {candidate.images.skipped} images that cannot be read"
            )
    class_images = (
        open_class_images(options, [reference, *candidates]) if options.class_accuracy else None
    )
    autoencoder = open_autoencoder(options.pipeline, reference, accelerator)
    with accelerator.local_main_process_first():  # so that weights are downloaded once
        network = load_network(options.features, accelerator.device)
    classifier, ceiling = None, None
    if class_images is not None:
        classifier = train_classifier(class_images, options.seed, accelerator)
        ceiling = classifier.accuracy(reference, options.batch_size, accelerator)
    output_dir.mkdir(parents=True, exist_ok=True)
    rows = score(options, reference, candidates, autoencoder, network, accelerator, classifier)
    if accelerator.is_main_process:
        protocol = describe_protocol(options, reference, candidates, autoencoder, network)
        if classifier is not None and ceiling is not None:
            protocol["classifier"] = classifier.protocol(options.class_split, ceiling)
        grids = [_pictured(scored) for scored in (reference, *candidates)]
        if autoencoder is not None:
            grids.append(_pictured_reconstructions(autoencoder, accelerator))
        write_report(output_dir, protocol, rows, network.column, network.title, grids)
        print(markdown(protocol, rows, network.title))
        print(f"Pictures: {output_dir / HTML_FILE}")
    accelerator.end_training()


def score(
    options: ScoreOptions,
    reference: ScoredSet,
    candidates: Sequence[ScoredSet],
    autoencoder: Autoencoder | None,
    network: FeatureNetwork,
    accelerator: Accelerator,
    classifier: Classifier | None = None,
) -> list[Row]:
    """One row for each candidate and one for the reconstructions; empty but in the main process.

    With a classifier, candidates whose classes are known get their class accuracy.

    Raises:
        ValueError: naming an image that cannot be read.
    """
    expected = extract(network, reference, options.batch_size, accelerator)
    statistics = fid.statistics(expected)
    rows = []
    for candidate in candidates:
        found = extract(network, candidate, options.batch_size, accelerator)
        accuracy = None
        if classifier is not None:
            accuracy = classifier.accuracy(candidate, options.batch_size, accelerator)
        if accelerator.is_main_process:
            row = _compare(candidate.name, expected, statistics, found, options)
            rows.append(replace(row, class_accuracy=accuracy))
    if autoencoder is not None:
        given_back = extract_reconstructions(
            network, autoencoder.pipeline, autoencoder.originals, options.batch_size, accelerator
        )
        if accelerator.is_main_process:
            psnr = mean_psnr(given_back.psnr)
            ssim = (
                None if given_back.ssim is None else float(given_back.ssim.mean(dtype=np.float64))
            )
            rows.append(
                _compare(
                    RECONSTRUCTIONS,
                    expected,
                    statistics,
                    given_back.features,
                    options,
                    psnr=psnr,
                    ssim=ssim,
                )
            )
    return rows


def open_autoencoder(
    folder: str | None, reference: ScoredSet, accelerator: Accelerator
) -> Autoencoder | None:
    """The pipeline whose reconstructions are scored, if one is.

    Raises:
        ValueError: no such pipeline.
    """
    if folder is None:
        return None
    from pipelines import Pipeline

    pipeline = Pipeline.from_pretrained(folder).to(accelerator.device)
    spec = pipeline.code_spec
    originals = reference.resized(spec.image_size, spec.image_channels)
    return Autoencoder(pipeline, spec.autoencoder_fingerprint, originals)


def describe_protocol(
    options: ScoreOptions,
    reference: ScoredSet,
    candidates: Sequence[ScoredSet],
    autoencoder: Autoencoder | None,
    network: FeatureNetwork,
) -> dict[str, Any]:
    """Everything a reader needs to get the same numbers, JSON-ready."""
    return {
        "reference": reference.source,
        "reference_split": reference.split,
        "num_images": len(reference),
        "num_images_skipped": reference.images.skipped,
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
        "classifier": None,
        "pipeline": options.pipeline,
        "autoencoder_fingerprint": None if autoencoder is None else autoencoder.fingerprint,
        "candidates": {candidate.name: candidate.protocol() for candidate in candidates},
        "versions": versions(),
    }


def _compare(
    name: str,
    expected: NDArray[np.float32],
    statistics: fid.Gaussian,
    found: NDArray[np.float32],
    options: ScoreOptions,
    *,
    psnr: float | None = None,
    ssim: float | None = None,
) -> Row:
    distance = fid.frechet_distance(*statistics, *fid.statistics(found))
    kid, error = fid.kernel_distance(
        expected, found, options.kid_subsets, options.kid_subset_size, options.seed
    )
    return Row(name, len(found), distance, kid, error, psnr, ssim)


def _positions(scored: ScoredSet) -> NDArray[np.int64]:
    """Spread over the whole set, whose order may go by class."""
    return np.unique(np.linspace(0, len(scored) - 1, PICTURED).astype(np.int64))


def _pictured(scored: ScoredSet) -> Grid:
    split = f", {scored.split}" if scored.split else ""
    return picture(scored.name, f"{scored.source}{split}", scored.arrays(_positions(scored)))


def _pictured_reconstructions(autoencoder: Autoencoder, accelerator: Accelerator) -> Grid:
    images = as_batch(autoencoder.originals, _positions(autoencoder.originals))
    given_back = reconstruct(autoencoder.pipeline, images, accelerator.device)
    return picture(
        RECONSTRUCTIONS,
        "in the places of their originals above",
        list(given_back.permute(0, 2, 3, 1).numpy()),
    )


if __name__ == "__main__":
    run(main)
