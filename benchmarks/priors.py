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
from typing import Any, Literal, get_args

from experiments import (  # fmt: skip
    LATENT_MEMBERS,
    STAGE1,
    STAGE2,
    Experiment,
    ExperimentOptions,
    Flags,
    last_metrics,
    read_scores,
    table,
)

from latent_prior.cli import answer_early, parse_config, run
from latent_prior.options import option

Name = Literal["vae_grid", "vaegan", "vqvae", "vqgan", "vqvae2", "masked"]


@dataclass(kw_only=True)
class PriorsOptions(ExperimentOptions):
    """Train every pair of autoencoder and prior on one data set and compare them."""

    pairs: list[Name] = field(default_factory=lambda: list(get_args(Name)))
    """Pairs to train, by the preset of the prior."""
    likelihood_images: int = option(400, at_least=1)
    """Validation images for the bits per dimension."""
    output_dir: str = "runs/priors"
    """Folder of the runs and the table; each data set has its own in it."""


answer_early(__name__, PriorsOptions)

import torch

from latent_prior.machine import available_cores
from latent_prior.pipelines import Pipeline

TIMED_IMAGES, TIMED_CALLS = 16, 3


# Data -> pair -> settings of its sampler; on MNIST about the lowest distance at which 97 % show the
# class asked for.
SAMPLERS: dict[str, dict[Name, Flags]] = {
    "mnist": {
        "vae_grid": {"guidance_scale": 1.5},
        "vaegan": {"guidance_scale": 1.5},
        "vqvae": {"guidance_scale": 3, "temperature": 0.8},
        "vqgan": {"guidance_scale": 2.5, "temperature": 0.8},
        "vqvae2": {"guidance_scale": 3, "temperature": 0.8},
        "masked": {"guidance_scale": 3, "steps": 16},
    },
    "cifar10": {
        "vae_grid": {},
        "vaegan": {},
        "vqvae": {"guidance_scale": 1.5},
        "vqgan": {"guidance_scale": 1.5},
        "vqvae2": {"guidance_scale": 1.5},
        "masked": {"guidance_scale": 1.5},
    },
    "shapes": {},
}


def member_of(pair: Name) -> str:
    """The preset of a pair's autoencoder, which pairs may share."""
    return "vqvae" if pair == "masked" else pair


class Priors(Experiment[PriorsOptions]):
    """Autoencoders, and then their pairs with priors."""

    def make_codes(self, member: str) -> None:
        """Train an autoencoder and encode the images with it."""
        self.train(STAGE1, member, self.folder / member, {})
        self.encode(member, self.folder / member, self.folder / f"{member}_codes")

    def make_pair(self, name: Name) -> None:
        """Train a prior, sample it, score the samples and measure the likelihood of both stages."""
        prior_run, member = self.folder / f"{name}_prior", self.folder / member_of(name)
        inputs = {"codes": f"{member}_codes", "autoencoder": member / "model"}
        self.train(STAGE2, name, prior_run, inputs)
        sampler = SAMPLERS[self.options.data].get(name, {})
        sources: dict[str, Flags] = {"prior": {"prior": prior_run / "model", **sampler}}
        if name in LATENT_MEMBERS:
            sources["normal"] = {}
        for kind, parts in sources.items():
            pipeline = prior_run / f"{kind}_pipeline"
            self.assemble(member, pipeline, prior_run, parts)
            self.generate("pipeline", pipeline, prior_run / f"{kind}_samples", prior_run)
        flags: dict[str, object] = {"pipeline": prior_run / "prior_pipeline"}
        candidates = [f"{kind}={prior_run / f'{kind}_samples'}" for kind in sources]
        scored = {**flags, "candidates": candidates, "class_accuracy": self.class_accuracy}
        self.score(prior_run, prior_run / "scores", scored)
        flags |= {"dataset": self.images, "num_images": self.options.likelihood_images}
        flags |= {"output_dir": prior_run / "likelihood"}
        self.command("evaluation/likelihood.py", prior_run, flags)

    def read_row(self, name: Name) -> dict[str, Any]:
        """What a pair's files say about it, and how long an image takes."""
        prior_run = self.folder / f"{name}_prior"
        last, scores = last_metrics(prior_run), read_scores(prior_run / "scores")
        assert math.isfinite(scores["prior"]["distance"])
        pipe = Pipeline.from_pretrained(prior_run / "prior_pipeline")
        assert pipe.prior is not None
        likelihood = json.loads((prior_run / "likelihood/likelihood.json").read_text())
        return {
            "name": name,
            "member": member_of(name),
            "prior": f"{self.options.data}_{name}",
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
    pairs = [name for name in get_args(Name) if name in priors.options.pairs]
    priors.in_parallel(priors.make_codes, dict.fromkeys(map(member_of, pairs)))
    priors.in_parallel(priors.make_pair, pairs)
    torch.set_num_threads(priors.options.threads or available_cores())
    rows = [priors.read_row(name) for name in pairs]
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
