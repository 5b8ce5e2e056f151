"""Every pair of autoencoder and prior: trained from the presets, sampled, scored alike.

python benchmarks/priors.py --data mnist
python benchmarks/priors.py --data cifar10 --dataset FOLDER
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple

from experiments import (  # fmt: skip
    LATENT_MEMBERS,
    STAGE1,
    STAGE2,
    Experiment,
    ExperimentOptions,
    last_metrics,
    read_scores,
    table,
)

from latent_prior.cli import answer_early, parse_config, run
from latent_prior.options import option


@dataclass(kw_only=True)
class PriorsOptions(ExperimentOptions):
    """Train every pair of autoencoder and prior on one data set and compare them."""

    pairs: list[Literal["vae", "vaegan", "vqvae", "vqgan", "vqvae2", "masked"]] = field(
        default_factory=lambda: ["vae", "vaegan", "vqvae", "vqgan", "vqvae2", "masked"]
    )
    """Pairs to train."""
    likelihood_images: int = option(500, at_least=1)
    """Test images for the bits per dimension."""
    output_dir: str = "runs/priors"
    """Folder of the runs and the table; each data set has its own in it."""


answer_early(__name__, PriorsOptions)

import torch

from latent_prior.machine import available_cores
from latent_prior.pipelines import Pipeline

TIMED_IMAGES, TIMED_CALLS = 16, 3


class Pair(NamedTuple):
    """The autoencoder, flags that differ from its preset, the prior's preset, and its sampler."""

    member: str
    member_flags: dict[str, object]
    prior: str
    sampler: dict[str, object]


def pairs(data: str) -> dict[str, Pair]:
    """Every pair by name."""
    # A VAE to be sampled from N(0, I) pays with its reconstructions; with a prior it need not.
    sharper: dict[str, object] = {"model.scale": 0.2} if data == "mnist" else {}
    latents: dict[str, object] = {}
    raster = critic = masked = {"guidance_scale": 1.5}
    if data == "mnist":  # about the lowest distance at which 97 % show the class asked for
        latents, masked = {"guidance_scale": 1.5}, {"guidance_scale": 3, "steps": 16}
        raster = {"guidance_scale": 3, "temperature": 0.8}
        critic = {"guidance_scale": 2.5, "temperature": 0.8}
    return {
        "vae": Pair("vae", sharper, "vae", latents),
        "vaegan": Pair("vaegan", {}, "vaegan", latents),
        "vqvae": Pair("vqvae", {}, "vqvae", {**raster}),
        "vqgan": Pair("vqgan", {}, "vqgan", {**critic}),
        "vqvae2": Pair("vqvae2", {}, "vqvae2", {**raster}),
        "masked": Pair("vqvae", {}, "masked", {**masked}),
    }


class Priors(Experiment):
    """Autoencoders, which pairs may share, and then the pairs."""

    def __init__(self, options: PriorsOptions) -> None:
        super().__init__(options, options.output_dir)
        self.options = options
        self.pairs: dict[str, Pair] = {
            n: pair for n, pair in pairs(options.data).items() if n in options.pairs
        }
        self.members = {pair.member: pair.member_flags for pair in self.pairs.values()}

    def make_codes(self, member: str) -> None:
        """Train an autoencoder and encode the images with it."""
        self.train(STAGE1, member, self.folder / member, self.members[member])
        self.encode(member, self.folder / member, self.folder / f"{member}_codes")

    def make_pair(self, name: str) -> None:
        """Train a prior, sample it, score the samples and measure the likelihood of both stages."""
        pair, prior_run = self.pairs[name], self.folder / f"{name}_prior"
        member = self.folder / pair.member
        inputs = {"codes": self.folder / f"{pair.member}_codes", "autoencoder": member / "model"}
        self.train(STAGE2, pair.prior, prior_run, inputs)
        sources: dict[str, dict[str, object]] = {
            "prior": {"prior": prior_run / "model", **pair.sampler}
        }
        if pair.member in LATENT_MEMBERS:
            sources["normal"] = {}
        for kind, parts in sources.items():
            pipeline = prior_run / f"{kind}_pipeline"
            self.assemble(member, pipeline, prior_run, parts)
            self.generate("pipeline", pipeline, prior_run / f"{kind}_samples", prior_run)
        flags: dict[str, object] = {"pipeline": prior_run / "prior_pipeline"}
        candidates = [f"{kind}={prior_run / f'{kind}_samples'}" for kind in sources]
        more = {"candidates": candidates, "class_accuracy": self.class_accuracy}
        self.score(prior_run, prior_run / "scores", flags | more)
        count = {"dataset": self.images, "num_images": self.options.likelihood_images}
        output = {"output_dir": prior_run / "likelihood"}
        self.command("evaluation/likelihood.py", prior_run, flags | count | output)

    def read_row(self, name: str) -> dict[str, Any]:
        """What a pair's files say about it, and how long an image takes."""
        pair, prior_run = self.pairs[name], self.folder / f"{name}_prior"
        last, scores = last_metrics(prior_run), read_scores(prior_run / "scores")
        assert math.isfinite(scores["prior"]["distance"])
        pipe = Pipeline.from_pretrained(prior_run / "prior_pipeline")
        assert pipe.prior is not None
        likelihood = json.loads((prior_run / "likelihood/likelihood.json").read_text())
        return {
            "name": name,
            "member": pair.member,
            "prior": f"{self.options.data}_{pair.prior}",
            "parameters": pipe.prior.num_parameters(),
            "nats": last.get("validation_nats_per_code", last.get("validation_nats_per_latent")),
            "bits_per_image": last.get("validation_bits_per_image"),
            "likelihood": likelihood["rows"],
            "fd": scores["prior"]["distance"],
            "fd_reconstructions": scores["reconstructions"]["distance"],
            "fd_normal": scores["normal"]["distance"] if "normal" in scores else None,
            "class_accuracy": scores["prior"].get("class_accuracy"),
            "seconds_per_image": seconds_per_image(pipe),
            "seconds": last["seconds"],
        }


def main() -> None:
    """Entry point."""
    priors = Priors(parse_config(PriorsOptions))
    priors.in_parallel(priors.make_codes, priors.members)
    priors.in_parallel(priors.make_pair, priors.pairs)
    torch.set_num_threads(priors.options.threads or available_cores())
    rows = [priors.read_row(name) for name in priors.pairs]
    priors.write_rows("priors", rows, markdown(rows))


def seconds_per_image(pipe: Pipeline) -> float:
    """Seconds per image of the fastest of some calls, decoding included."""
    times = []
    for _ in range(TIMED_CALLS):
        started = time.perf_counter()
        pipe(TIMED_IMAGES, output_type="pt")
        times.append(time.perf_counter() - started)
    return min(times) / TIMED_IMAGES


def markdown(rows: list[dict[str, Any]]) -> str:
    """A table of pairs."""
    columns: dict[str, Callable[[dict[str, Any]], str]] = {
        "autoencoder": lambda row: f"`{row['member']}`",
        "prior": lambda row: f"`{row['prior']}`",
        "parameters": lambda row: f"{row['parameters'] / 1e6:.2f} M",
        "nats per code": lambda row: f"{row['nats']:.3f}",
        "bits/dim": lambda row: f"{row['likelihood'][0]['bits_per_dim']:.3f}",
        "FD": lambda row: f"{row['fd']:.0f}",
        "FD of N(0, I)": lambda row: "" if row["fd_normal"] is None else f"{row['fd_normal']:.0f}",
        "rFD": lambda row: f"{row['fd_reconstructions']:.0f}",
        "class as asked": lambda row: (
            "" if row["class_accuracy"] is None else f"{100 * row['class_accuracy']:.1f} %"
        ),
        "ms per image": lambda row: f"{1000 * row['seconds_per_image']:.0f}",
        "seconds": lambda row: f"{row['seconds']:.0f}",
    }
    return table(rows, columns, left=2)


if __name__ == "__main__":
    run(main)
