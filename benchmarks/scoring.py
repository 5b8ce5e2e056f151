"""Time of scoring against its lower bound, the forward passes of the feature network.

    python benchmarks/scoring.py --features inception_size --num_images 256 --rows 10000
    python benchmarks/scoring.py --features efficientnet_lite0 --num_images 2048 --rows 10000

Forward passes over prepared batches, and the same batches from PNG files to features, take turns;
the ratio is that of the sums. The row of the table (distance, its extrapolation, KID, precision,
recall, density, coverage) is timed on random features against an equally large reference.
"""

from __future__ import annotations

import json
import statistics
import tempfile
import warnings
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from accelerate import Accelerator
from measuring import MeasuringOptions, clock, write_json
from PIL import Image

from latent_prior.cli import parse_config, run
from latent_prior.evaluation.features.extract import stream
from latent_prior.evaluation.features.networks import FeatureNetwork, load_network
from latent_prior.evaluation.judge import Judge
from latent_prior.evaluation.measures import fid
from latent_prior.evaluation.measures.inputs import ReferenceStatistics
from latent_prior.evaluation.options import Candidate, ScoreOptions
from latent_prior.evaluation.sets import open_candidate
from latent_prior.processes import share

BATCHES_A_TURN = 2


@dataclass(kw_only=True)
class ScoringOptions(MeasuringOptions):
    """Measure scoring."""

    features: Literal["efficientnet_lite0", "inception_size"] = "inception_size"
    """Feature network; `inception_size` is an untrained Inception v3, as costly as clean-fid's."""
    num_images: int = 256
    """Images of 32 x 32 pixels that become features."""
    rows: int = 10_000
    """Images of the set whose row is timed."""
    batch_size: int = 64
    """Images per forward pass."""
    threads: int = 1
    """Threads."""


@dataclass
class Line:
    """Seconds per image; `row` is the time of all measures divided by the images of the set."""

    features: str
    threads: int
    forward: float
    from_files: float
    ratio: float
    row: float
    whole_ratio: float


def main() -> None:
    """Entry point."""
    options = parse_config(ScoringOptions)
    torch.set_num_threads(options.threads)
    with tempfile.TemporaryDirectory() as temporary:
        network = open_network(options, Path(temporary))
        forward, from_files = time_features(network, Path(temporary), options)
    row = time_row(network, options.rows) / options.rows
    line = Line(
        options.features, options.threads, forward, from_files, from_files / forward,
        row, (from_files + row) / forward,
    )  # fmt: skip
    print(json.dumps(asdict(line), indent=2))
    write_json(options.output, line)


def open_network(options: ScoringOptions, folder: Path) -> FeatureNetwork:
    """The network, by the way that a user's own one goes."""
    if options.features == "efficientnet_lite0":
        return load_network(options.features)
    from torchvision.models import inception_v3

    model = inception_v3(weights=None, init_weights=False, aux_logits=False).eval()
    model.fc = torch.nn.Identity()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # TorchScript is deprecated
        torch.jit.trace(model, torch.zeros(1, 3, 299, 299)).save(str(folder / "inception.pt"))
    return load_network(str(folder / "inception.pt"))


def time_features(
    network: FeatureNetwork, folder: Path, options: ScoringOptions
) -> tuple[float, float]:
    """Seconds per image of the forward passes alone, and from the files to the features."""
    images = folder / "images"
    images.mkdir()
    random = np.random.default_rng(0)
    for number in range(options.num_images):
        coarse = Image.fromarray(random.integers(0, 256, (8, 8, 3), dtype=np.uint8))
        coarse.resize((32, 32), Image.Resampling.BICUBIC).save(images / f"{number:06d}.png")
    flags = ScoreOptions(candidates=[f"a={images}"], output_dir="", features="efficientnet_lite0")
    scored = open_candidate(Candidate("a", str(images), None), flags)
    accelerator = Accelerator()
    batches = share(len(scored), options.batch_size, accelerator)
    list(stream(network, scored, batches[:1], accelerator))
    forward = from_files = 0.0
    for first in range(0, len(batches), BATCHES_A_TURN):
        turn = batches[first : first + BATCHES_A_TURN]
        prepared = [network.prepare(scored.arrays(batch)) for batch in turn]
        # Before and after, so that a change of the machine's speed affects both.
        before = clock(partial(list, map(network.features, prepared)))
        from_files += clock(partial(list, stream(network, scored, turn, accelerator)))
        after = clock(partial(list, map(network.features, prepared)))
        forward += (before + after) / 2
    return forward / len(scored), from_files / len(scored)


def time_row(network: FeatureNetwork, count: int) -> float:
    """Seconds of a candidate's row, the reference's own share done: the median of three."""
    random = np.random.default_rng(0)
    expected, found = (
        random.standard_normal((count, network.dimension), dtype=np.float32) for _ in range(2)
    )
    reference = ReferenceStatistics(fid.statistics(expected), expected, count, "random", "")
    options = ScoreOptions(candidates=["a=x"], output_dir="", features="efficientnet_lite0")
    judge = Judge(network, reference, None, options)
    judge.row("first", judge.inputs(found[:1000]), contestant=True)
    return statistics.median(
        clock(lambda: judge.row("row", judge.inputs(found), contestant=True)) for _ in range(3)
    )


if __name__ == "__main__":
    run(main)
