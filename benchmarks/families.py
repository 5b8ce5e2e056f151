"""The family side by side: every member trained from its preset on the same images, scored by the same evaluator.

    python benchmarks/families.py --data mnist
    python benchmarks/families.py --data cifar10 --dataset FOLDER

Presets of one data set have the same steps and, within 10 %, the same number of parameters. Beside the members stand what
the project claims about them: the quantizers of a VQ-VAE, the two ways of upsampling, and a posterior that collapses and
is cured. Every run is made by the commands a user types, and a run that is there is not made again.
"""

from __future__ import annotations

import json
import math
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from latent_prior.cli import answer_early, parse_config, run


@dataclass(kw_only=True)
class FamiliesOptions:
    """Train the family on one data set and put its members side by side."""

    data: Literal["mnist", "cifar10"] = "mnist"
    """Whose presets are trained."""
    dataset: str | None = None
    """Images in place of the preset's `dataset`; cifar10 needs its folder here."""
    tables: list[Literal["family", "upsampling", "quantizers", "collapse"]] = field(
        default_factory=lambda: ["family", "upsampling", "quantizers", "collapse"]
    )
    """What is measured."""
    max_steps: int | None = None
    """Steps of every run; null takes the presets'."""
    features: str = "efficientnet_lite0"
    """Feature network of the scores, as in `evaluation/score.py`."""
    score_images: int = 1000
    """Images in every set that is scored: a seeded choice of the test split, and draws from N(0, I)."""
    threads: int | None = None
    """Threads of every run on a CPU; null shares the cores out."""
    jobs: int = 1
    """Runs at the same time; seconds are worth something with 1 only."""
    output_dir: str = "runs/families"
    """Folder of the runs, the tables and the pictures; each data set has its own in it."""


answer_early(__name__, FamiliesOptions)

import torch
from torch import Tensor

from latent_prior.data.images import crop_windows, grid, open_images, save_png, to_float, to_uint8
from latent_prior.options import ImageOptions
from latent_prior.pipelines import Pipeline
from latent_prior.stage1_autoencoders import load_autoencoder

ROOT = Path(__file__).parents[1]
PICTURED = 12

# A decoder that sees the pixels before each pixel; it takes its way within the first hundreds of steps.
STRONG = {"model.autoregressive_layers": "4", "max_steps": "300"}
# Table -> row -> member whose preset is trained, and the flags that differ.
MEMBERS = ("vae", "vqvae", "vqvae2", "vaegan", "vqgan")
TABLES: dict[str, dict[str, tuple[str, dict[str, str]]]] = {
    "family": {member: (member, {}) for member in MEMBERS},
    "upsampling": {
        "vqvae": ("vqvae", {}),
        "vqvae_transposed": ("vqvae", {"model.upsampling": "transposed"}),
    },
    "quantizers": {
        "vqvae": ("vqvae", {}),
        "gradient": ("vqvae", {"model.quantizer": "gradient"}),
        "rotation": ("vqvae", {"model.quantizer": "gradient", "model.estimator": "rotation"}),
        "cosine": ("vqvae", {"model.distance": "cosine", "model.code_dim": "8"}),
        "fsq": ("vqvae", {"model.quantizer": "fsq"}),
        "lfq": ("vqvae", {"model.quantizer": "lfq"}),
        "bsq": ("vqvae", {"model.quantizer": "bsq"}),
        "residual": ("vqvae", {"model.quantizer": "residual"}),
    },
    "collapse": {
        "vae": ("vae", {}),
        "strong": ("vae", STRONG),
        "strong_free_bits": ("vae", STRONG | {"model.free_bits": "0.5"}),
        "strong_warmup": (
            "vae",
            STRONG | {"model.kl_schedule": "linear", "model.kl_warmup_steps": "200"},
        ),
    },
}


def main() -> None:
    """Entry point."""
    options = parse_config(FamiliesOptions)
    if options.data == "cifar10" and options.dataset is None:
        raise ValueError("--data cifar10 needs its images: --dataset FOLDER")
    runs = {name: made for table in options.tables for name, made in TABLES[table].items()}
    folder = Path(options.output_dir, options.data)
    with ThreadPoolExecutor(options.jobs) as pool:
        jobs = {
            name: pool.submit(make_run, folder / name, member, flags, options)
            for name, (member, flags) in runs.items()
        }
        rows = {name: job.result() for name, job in jobs.items()}
    (folder / "families.json").write_text(json.dumps(rows, indent=2) + "\n")
    if "family" in options.tables:
        picture_members(folder, options)
    text = "\n\n".join(
        f"### {table}\n\n{markdown([rows[name] for name in TABLES[table]], collapse=table == 'collapse')}"
        for table in options.tables
    )
    (folder / "families.md").write_text(text + "\n")
    print(text)


def make_run(
    folder: Path, member: str, flags: dict[str, str], options: FamiliesOptions
) -> dict[str, Any]:
    """Train, assemble, score, and where a latent can be drawn sample; one row of a table."""
    preset = ROOT / f"stage1_autoencoders/configs/{options.data}_{member}.yaml"
    words = {"config": str(preset), "output_dir": str(folder), **flags}
    words |= {} if options.dataset is None else {"dataset": options.dataset}
    words |= {} if options.max_steps is None else {"max_steps": str(options.max_steps)}
    threads = {} if options.threads is None else {"cpu_threads": str(options.threads)}
    pipeline = str(folder / "pipeline")
    call("stage1_autoencoders/train.py", words | threads, folder)
    parts = {"autoencoder": str(folder / "model"), "output_dir": pipeline}
    call("pipelines/assemble.py", parts, folder)
    autoencoder = load_autoencoder(folder / "model")
    latents = autoencoder.levels[0].vocabulary is None
    scored = {
        "reference": options.dataset or "mnist5k",
        "features": options.features,
        "pipeline": pipeline,
        "num_images": str(options.score_images),
        "output_dir": str(folder / "scores"),
        **threads,
    }
    if latents and not flags:
        count = {"num_images": str(options.score_images), "output_dir": str(folder / "drawn")}
        call("pipelines/generate.py", {"pipeline": pipeline, **count, **threads}, folder)
        scored["candidates"] = f"samples={folder / 'drawn'}"
    if "model.autoregressive_layers" not in flags:  # decoding pixel by pixel: minutes
        call("evaluation/score.py", scored, folder)
    return read_row(folder, autoencoder.num_parameters(), latents)


def call(
    script: str,
    words: dict[str, str],
    folder: Path,
    lists: dict[str, list[str]] | None = None,
) -> None:
    """Run a script of the project as a user would; what it says goes to the run's log.

    Args:
        script: its path in the project.
        words: flags with one value.
        folder: of the run.
        lists: flags with several values.

    Raises:
        ValueError: it failed.
    """
    folder.parent.mkdir(parents=True, exist_ok=True)
    log = folder.with_suffix(".log")
    line = [word for name, value in words.items() for word in (f"--{name}", value)]
    line += [word for name, values in (lists or {}).items() for word in (f"--{name}", *values)]
    with log.open("a") as file:
        code = subprocess.run(
            [sys.executable, str(ROOT / script), *line], stdout=file, stderr=file, check=False
        ).returncode
    if code:
        raise ValueError(f"{script} for {folder.name} ended with code {code}; see {log}")


def read_row(folder: Path, parameters: int, latents: bool) -> dict[str, Any]:
    """What a run's files say about it."""
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    last = {name: value for line in lines for name, value in line.items()}
    row: dict[str, Any] = {
        "name": folder.name,
        "parameters": parameters,
        "steps": last["step"],
        "seconds": last["seconds"],
        "psnr": last["validation_psnr"],
        "warning": "validation_warning" in lines[-1],
    }
    if latents:
        row |= {name: last[f"validation_{name}"] for name in ("active_units", "bits_per_dim")}
        row |= {"bits": last["validation_kl"] / math.log(2)}
        row |= {"dims": len(last["validation_kl_per_dimension"])}
    else:
        spec = json.loads((folder / "model/code_spec.json").read_text())
        levels = spec["levels"]
        row["bits"] = sum(
            level["height"] * level["width"] * math.log2(level["vocabulary"]) for level in levels
        )
        row["usage"] = [v for n, v in last.items() if n.startswith("validation_usage")]
        row["perplexity"] = [v for n, v in last.items() if n.startswith("validation_perplexity")]
    scores = folder / "scores/scores.json"
    if scores.is_file():
        found = {scored["name"]: scored for scored in json.loads(scores.read_text())["rows"]}
        distance = next(n for n in found["reconstructions"] if n.startswith(("fid", "fd_")))
        row |= {name: found["reconstructions"][name] for name in ("psnr", "ssim")}
        row["rfd"] = found["reconstructions"][distance]
        if "samples" in found:
            row["sample_fd"] = found["samples"][distance]
    return row


def markdown(rows: list[dict[str, Any]], *, collapse: bool) -> str:
    """A table of runs."""
    columns = {
        "run": lambda row: row["name"],
        "parameters": lambda row: f"{row['parameters'] / 1e6:.2f} M",
        "PSNR (dB)": lambda row: f"{row['psnr']:.2f}",
        "SSIM": lambda row: f"{row['ssim']:.3f}" if "ssim" in row else "",
        "rFD": lambda row: f"{row['rfd']:.1f}" if "rfd" in row else "",
        "FD of N(0, I)": lambda row: f"{row['sample_fd']:.0f}" if "sample_fd" in row else "",
        "in use": _in_use,
        "bits per image": lambda row: f"{row['bits']:.0f}",
        "seconds": lambda row: f"{row['seconds']:.0f}",
    }
    if collapse:
        for name in ("SSIM", "rFD", "FD of N(0, I)"):
            del columns[name]
        columns["bits/dim"] = lambda row: f"{row['bits_per_dim']:.3f}"
        columns["warning"] = lambda row: "collapsed" if row["warning"] else ""
    lines = [list(columns), ["---", *["---:"] * (len(columns) - 1)]]
    lines += [[show(row) for show in columns.values()] for row in rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _in_use(row: dict[str, Any]) -> str:
    if "active_units" in row:
        return f"{row['active_units']:.0f} of {row['dims']} units"
    return " ".join(f"{100 * share:.0f} %" for share in row["usage"])


def picture_members(folder: Path, options: FamiliesOptions) -> None:
    """Originals above every member's reconstructions, in the order of `MEMBERS`."""
    pipelines = [Pipeline.from_pretrained(folder / name / "pipeline") for name in MEMBERS]
    spec = pipelines[0].code_spec
    source = ImageOptions(
        dataset=options.dataset or "mnist5k",
        image_size=spec.image_size,
        channels=1 if spec.image_channels == 1 else 3,
    )
    chosen = open_images(source, "test").read(range(PICTURED))
    originals = to_float(crop_windows(chosen, spec.image_size, 0, None))
    rows: list[Tensor] = [originals, *(pipe.reconstruct(originals) for pipe in pipelines)]
    save_png(grid(to_uint8(torch.cat(rows)), PICTURED), folder / "reconstructions.png")


if __name__ == "__main__":
    run(main)
