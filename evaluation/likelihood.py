"""Bits per dimension of held-out images under a pipeline, an upper bound.

    python evaluation/likelihood.py --pipeline DIR --output_dir DIR

The bound combines the prior over codes or latents with the distribution of the pixels given them,
and is compared with that of a fixed prior. Writes likelihood.json (protocol and rows) and
likelihood.md (the table). Several processes share the images; start them as for score.py.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from latent_prior.cli import answer_early, parse_config, run
from latent_prior.options import ComputeOptions, ImageOptions, option


@dataclass(kw_only=True)
class LikelihoodOptions(ComputeOptions, ImageOptions):
    """An upper bound of the bits per dimension of held-out images under a pipeline."""

    pipeline: str = option(path=True)
    """Folder or hub id of a pipeline."""
    output_dir: str = option(path=True)
    """Folder for likelihood.json and likelihood.md."""
    split: str = "validation"
    """Split of the images to measure; `test` is for final figures, which choose nothing."""
    num_images: int | None = option(None, at_least=2)
    """Images to measure, a seeded random choice; null takes all."""
    draws: int | None = option(None, at_least=1)
    """Samples per image of a VAE's posterior or a prior's masks; null: 4, or 1 without them."""
    conditional: bool = True
    """Give the prior the class or caption of each image; false: measure it for any class."""
    fit_split: str = "train"
    """Split to fit the scales of the pixels' distribution to, for autoencoders that define none."""
    fit_images: int = option(1000, at_least=1)
    """Most images to fit them to, a seeded random choice."""
    batch_size: int = option(64, at_least=1)
    """Images per forward pass."""
    seed: int = option(0, at_least=0)
    """Seed of the choice of images and of the samples, which do not depend on the batch."""


answer_early(__name__, LikelihoodOptions)

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from numpy.typing import NDArray
from torch import Tensor

from latent_prior.calls import takes_options
from latent_prior.data.codes import fit_images
from latent_prior.data.found import tell_found
from latent_prior.data.images import ImageSet, open_images, to_float
from latent_prior.evaluation.features.extract import gather_in_order
from latent_prior.evaluation.likelihood_bound import Bound, fit_logistic
from latent_prior.evaluation.report.terminal import fit_table, more_columns, paragraph
from latent_prior.evaluation.sets import choose
from latent_prior.files import check_folder_path, whole_file
from latent_prior.machine import is_main_process, versions
from latent_prior.markdown import code, markdown_table, plain
from latent_prior.pipelines import Pipeline
from latent_prior.processes import share, start_processes
from latent_prior.progress import Progress
from latent_prior.records import write_record
from latent_prior.seeds import derive_seed, generator

JSON_FILE, MARKDOWN_FILE = "likelihood.json", "likelihood.md"
DRAWS = 4


@dataclass(frozen=True)
class Likelihoods:
    """Measured bounds; printed, they are the table of the terminal.

    Attributes:
        folder: of likelihood.json and likelihood.md.
        protocol: what the numbers depend on.
        rows: one for each prior.
        table: the main columns.
    """

    folder: Path
    protocol: dict[str, Any]
    rows: list[dict[str, Any]]
    table: str = field(repr=False)

    def __str__(self) -> str:
        return self.table


@takes_options(LikelihoodOptions)
def likelihood(options: LikelihoodOptions) -> Likelihoods:
    """Measure bits per dimension of held-out images under a pipeline, and write the files.

    Raises:
        ValueError: the options, images, pipeline or output folder are wrong; nothing is written.
    """
    output_dir = Path(options.output_dir)
    check_folder_path(output_dir, "--output_dir ")
    accelerator = start_processes(cpu_threads=options.cpu_threads, seed=options.seed)
    pipe = Pipeline.from_pretrained(options.pipeline).to(accelerator.device)
    options = fit_images(options, pipe.code_spec)
    tell_found(options)
    images = open_images(options, options.split)
    where = f"split {options.split} of {options.dataset}"
    chosen = choose(len(images), options.num_images, options.seed, where)
    labels = prior_classes(pipe, images) if options.conditional else None
    given_captions(pipe, images, options)  # says at once that there are none
    bound, fitted_to = make_bound(pipe, options)
    draws = count_draws(bound, options)
    rows = measure(bound, images, chosen, labels, draws, options, accelerator)
    protocol = describe_protocol(bound, images, labels, draws, fitted_to, options)
    protocol |= {"num_images": len(chosen)}
    if accelerator.is_main_process:
        write_record(output_dir / JSON_FILE, {"protocol": protocol, "rows": rows}, sealed=True)
        with whole_file(output_dir / MARKDOWN_FILE) as path:
            path.write_text(markdown(protocol, rows), encoding="utf-8")
    accelerator.wait_for_everyone()
    table = terminal_table(protocol, rows, output_dir / MARKDOWN_FILE)
    return Likelihoods(output_dir, protocol, rows, table)


def prior_classes(pipe: Pipeline, images: ImageSet) -> Tensor | None:
    """The prior's class number of every image, int64 (N,), or -1; None if either has no classes.

    Raises:
        ValueError: the images have a class that the prior does not know.
    """
    labels = images.labels
    if labels is None or not pipe.class_names:
        return None
    number_of = {name: number for number, name in enumerate(pipe.class_names)}
    unknown = [name for name in images.class_names if name not in number_of]
    if unknown:
        raise ValueError(
            f"the images have the class {unknown[0]!r}, which the prior does not know; "
            "measure the prior of any class with --conditional false"
        )
    numbers = [number_of[name] for name in images.class_names]
    return torch.tensor([*numbers, -1])[labels]


def given_captions(pipe: Pipeline, images: ImageSet, options: LikelihoodOptions) -> bool:
    """Whether the prior is given the caption of each image, the first one of several.

    Raises:
        ValueError: it reads captions, and the images have none.
    """
    if pipe.prompt_reader is None or not options.conditional:
        return False
    if not images.has_captions:
        raise ValueError(
            f"--dataset {options.dataset} has no captions, which the prior reads; measure it for any "
            "image with --conditional false"
        )
    return True


def make_bound(pipe: Pipeline, options: LikelihoodOptions) -> tuple[Bound, int | None]:
    """The bound, and the number of images that the pixels' scales were fitted to, if any.

    Raises:
        ValueError: no images to fit to.
    """
    if pipe.autoencoder.likelihood is not None:
        return Bound(pipe), None
    images = open_images(options, options.fit_split)
    count = min(len(images), options.fit_images)
    seed = derive_seed(options.seed, "fit")
    chosen = np.random.default_rng(seed).choice(len(images), count, replace=False)
    parts = torch.from_numpy(chosen).split(options.batch_size)
    batches = (to_float(images.read(part)) for part in parts)
    return Bound(pipe, fit_logistic(pipe, batches, generator(options.seed, "pixels"))), count


def count_draws(bound: Bound, options: LikelihoodOptions) -> int:
    """Draws per image.

    Raises:
        ValueError: several draws of a deterministic bound.
    """
    if bound.is_random:
        return options.draws or DRAWS
    if options.draws not in (None, 1):
        raise ValueError(
            f"--draws {options.draws}: nothing is random in this bound; leave the flag out"
        )
    return 1


def measure(
    bound: Bound,
    images: ImageSet,
    chosen: NDArray[np.int64],
    labels: Tensor | None,
    draws: int,
    options: LikelihoodOptions,
    accelerator: Accelerator,
) -> list[dict[str, Any]]:
    """One row for each prior, the same in every process.

    Raises:
        ValueError: an image cannot be read.
    """
    levels = [level.name for level in bound.pipe.code_spec.levels]
    width = 2 + len(bound.priors) * len(levels)  # pixels, posterior, every level of every prior
    parts = []
    batches = share(len(chosen), options.batch_size, accelerator)
    line = Progress(
        "measuring likelihood",
        len(chosen),
        shown=accelerator.is_main_process,
        processes=accelerator.num_processes,
    )
    for batch in line.over(batches):
        indices = torch.from_numpy(chosen[batch.start : batch.stop])
        pixels = to_float(images.read(indices))
        classes = torch.full((len(indices),), -1) if labels is None else labels[indices]
        captions = None
        if given_captions(bound.pipe, images, options):
            captions = [several[0] for several in images.captions(indices)]
        rows = images.source_index[indices.numpy()].tolist()
        sums = np.zeros((len(rows), width))
        for draw in range(draws):
            masks = [generator(options.seed, "masks", row, draw) for row in rows]
            noise = draw_noise(bound, rows, draw, options.seed)
            nats = bound(pixels, classes, noise, masks, captions)
            columns = [nats.pixels, nats.posterior]
            columns += [nats.priors[prior][level] for prior in bound.priors for level in levels]
            sums += torch.stack(columns, dim=1).cpu().numpy()
        parts.append((sums / draws).astype(np.float32))
    values = torch.from_numpy(gather_in_order(parts, width, accelerator)).double()
    pixels, posterior, priors = values[:, 0], values[:, 1], values[:, 2:]
    return [
        describe_row(bound, name, pixels, posterior, levels_nats)
        for name, levels_nats in zip(bound.priors, priors.split(len(levels), dim=1), strict=True)
    ]


def draw_noise(bound: Bound, rows: Sequence[int], draw: int, seed: int) -> Tensor | None:
    """Noise for the posteriors of these rows, independent of the batch; None for codes."""
    if not bound.has_posterior:
        return None
    shape = bound.pipe.code_spec.levels[0].shape
    return torch.stack(
        [torch.randn(shape, generator=generator(seed, "posterior", row, draw)) for row in rows]
    )


def describe_row(
    bound: Bound, name: str, pixels: Tensor, posterior: Tensor, levels_nats: Tensor
) -> dict[str, Any]:
    """Results of one prior, JSON-ready, from the terms of `Nats`: (N,), (N,) and (N, levels)."""
    spec = bound.pipe.code_spec
    dims = spec.image_channels * spec.image_size**2
    codes = levels_nats.sum(1) + posterior
    bits = bound.likelihood.bits_per_dim(pixels + codes, dims)
    unit = "code" if spec.kind == "codes" else "latent"
    numbers = [math.prod(level.shape) for level in spec.levels]
    means = levels_nats.mean(0).tolist()
    return {
        "name": name,
        "num_images": len(bits),
        "bits_per_dim": float(bits.mean()),
        "bits_per_dim_stderr": float(bits.std() / math.sqrt(len(bits))),
        "pixels_bits_per_dim": float(bound.likelihood.bits_per_dim(pixels, dims).mean()),
        "codes_bits_per_image": float(codes.mean()) / math.log(2),
        f"nats_per_{unit}": sum(means) / sum(numbers),
        "levels": {
            level.name: {f"nats_per_{unit}": mean / number}
            for level, mean, number in zip(spec.levels, means, numbers, strict=True)
        },
    }


def describe_protocol(
    bound: Bound,
    images: ImageSet,
    labels: Tensor | None,
    draws: int,
    fitted_to: int | None,
    options: LikelihoodOptions,
) -> dict[str, Any]:
    """Everything needed to reproduce the numbers, JSON-ready."""
    fit = {"fit_split": options.fit_split, "fit_images": fitted_to} if fitted_to else {}
    autoencoder, prior = bound.pipe.autoencoder, bound.pipe.prior
    given = "own class" if labels is not None else "any class"
    if bound.pipe.prompt_reader is not None:
        given = "their captions" if given_captions(bound.pipe, images, options) else "no caption"
    return {
        "bound": "-log p(x) <= E_q[-log p(x|z) - log p(z) + log q(z|x)]"
        if bound.has_posterior
        else "-log p(x) <= -log p(x|c(x)) - log p(c(x)), c(x) the encoder's codes",
        "pipeline": options.pipeline,
        "autoencoder_type": autoencoder.config.model_type,
        "autoencoder_fingerprint": autoencoder.fingerprint,
        "prior_fingerprint": None if prior is None else prior.fingerprint,
        "prior_order": None if prior is None else prior.config.order,
        "dataset": options.dataset,
        "split": options.split,
        "num_images_skipped": images.skipped,
        "labels": given,
        "draws": draws,
        "seed": options.seed,
        "pixels": bound.distribution | fit,
        "image_size": bound.pipe.code_spec.image_size,
        "channels": bound.pipe.code_spec.image_channels,
        "image_column": options.image_column,
        "label_column": options.label_column,
        "on_corrupt": options.on_corrupt,
        "versions": versions(),
    }


def markdown(protocol: dict[str, Any], rows: Sequence[dict[str, Any]]) -> str:
    """A Markdown table and a description of the protocol."""
    headings, cells = table(rows)
    cells = [[plain(name), *others] for name, *others in cells]
    return "\n".join(markdown_table(headings, cells)) + f"\n\n{describe(protocol)}\n"


def terminal_table(protocol: dict[str, Any], rows: Sequence[dict[str, Any]], path: Path) -> str:
    """The same in the columns of the terminal; `path` has the Markdown."""
    headings, cells = table(rows)
    lines, shown = fit_table(headings, cells)
    more = more_columns(len(headings) - len(shown), path)
    return "\n".join([*lines, "", paragraph(describe(protocol)), more])


def table(rows: Sequence[dict[str, Any]]) -> tuple[list[str], list[list[str]]]:
    """Headings and cells of the table, the most important columns first."""
    unit = "code" if "nats_per_code" in rows[0] else "latent"
    levels = list(rows[0]["levels"]) if len(rows[0]["levels"]) > 1 else []
    headings = ["prior", "bits/dim", "of these pixels", f"bits per image in the {unit}s"]
    headings += [f"nats per {unit}", *(f"nats per {unit}, {level}" for level in levels)]
    cells = [
        [
            row["name"],
            f"{row['bits_per_dim']:.4f} ± {row['bits_per_dim_stderr']:.4f}",
            f"{row['pixels_bits_per_dim']:.4f}",
            f"{row['codes_bits_per_image']:,.1f}",
            f"{row[f'nats_per_{unit}']:.4f}",
            *(f"{row['levels'][level][f'nats_per_{unit}']:.4f}" for level in levels),
        ]
        for row in rows
    ]
    return headings, cells


def describe(protocol: dict[str, Any]) -> str:
    """The protocol in a few sentences."""
    pixels = protocol["pixels"]
    scales = ", ".join(f"{scale:.4f}" for scale in pixels.get("scale", ()))
    text = (
        f"Upper bounds: {protocol['bound']}. Means over {protocol['num_images']:,} images of {code(protocol['dataset'])}, "
        f"split {code(protocol['split'])}, given {protocol['labels']}, with {protocol['draws']} draw{'s' * (protocol['draws'] > 1)} each, "
        f"± one standard error over images. Pixels: {pixels['likelihood']}"
    )
    if scales:
        text += f" of scale {scales}"
    if "fit_split" in pixels:
        text += f", fitted to {pixels['fit_images']:,} images of split {code(pixels['fit_split'])}"
    if pixels["is_density"]:
        text += ", a density times the distance of two grey levels"
    if pixels["likelihood"] == "bernoulli":
        text += ", a probability of black-and-white images only"
    return f"{text}."


def main(argv: Sequence[str] | None = None) -> None:
    """Entry point."""
    measured = likelihood(options=parse_config(LikelihoodOptions, argv))
    if is_main_process():
        print(measured)


if __name__ == "__main__":
    run(main)
