"""Every member of the family, trained from its preset on the same images, scored alike.

    python benchmarks/families.py --data mnist
    python benchmarks/families.py --data cifar10 --dataset FOLDER

Presets of one data set have equal steps. Further tables compare the quantizers of a VQ-VAE, two
ways of upsampling, and a posterior that collapses with two cures.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, get_args

from experiments import (  # fmt: skip
    LATENT_MEMBERS,
    STAGE1,
    Experiment,
    ExperimentOptions,
    Flags,
    last_metrics,
    read_scores,
    table,
)

from latent_prior.cli import answer_early, parse_config, run
from latent_prior.options import option

TableName = Literal["family", "upsampling", "quantizers", "collapse"]


@dataclass(kw_only=True)
class FamiliesOptions(ExperimentOptions):
    """Train the family on one data set and compare its members."""

    tables: list[TableName] = field(default_factory=lambda: list(get_args(TableName)))
    """Tables to make."""
    max_steps: int | None = option(None, at_least=1)
    """Steps of every run; null takes the presets'."""
    output_dir: str = "runs/families"
    """Folder of the runs, the tables and the pictures; each data set has its own in it."""


answer_early(__name__, FamiliesOptions)

import torch

from latent_prior.data.images import grid, open_images, save_png, to_float, to_uint8
from latent_prior.options import ImageOptions
from latent_prior.pipelines import Pipeline
from latent_prior.stage1_autoencoders import load_autoencoder

PICTURED = 12
# An autoregressive decoder learns to ignore the code within some hundred steps.
STRONG = {"model.autoregressive_layers": 4, "max_steps": 300}
# Table -> row -> member whose preset is trained, and flags that differ from it.
MEMBERS = ("vae", "vqvae", "vqvae2", "vaegan", "vqgan")
TABLES: dict[TableName, dict[str, tuple[str, Flags]]] = {
    "family": {member: (member, {}) for member in MEMBERS},
    "upsampling": {
        "vqvae": ("vqvae", {}),
        "vqvae_transposed": ("vqvae", {"model.upsampling": "transposed"}),
    },
    "quantizers": {
        "vqvae": ("vqvae", {}),
        "gradient": ("vqvae", {"model.quantizer": "gradient"}),
        "rotation": ("vqvae", {"model.quantizer": "gradient", "model.estimator": "rotation"}),
        "cosine": ("vqvae", {"model.distance": "cosine", "model.code_dim": 8}),
        **{name: ("vqvae", {"model.quantizer": name}) for name in ("fsq", "lfq", "bsq", "residual")},
    },
    "collapse": {
        "vae": ("vae", {}),
        "strong": ("vae", STRONG),
        "strong_free_bits": ("vae", STRONG | {"model.free_bits": 0.5}),
        "strong_warmup": (
            "vae",
            STRONG | {"model.kl_schedule": "linear", "model.kl_warmup_steps": 200},
        ),
    },
}  # fmt: skip


class Families(Experiment[FamiliesOptions]):
    """One run per row."""

    @property
    def runs(self) -> dict[str, tuple[str, Flags]]:
        """Every row of the tables."""
        return {name: row for key in self.options.tables for name, row in TABLES[key].items()}

    def make(self, name: str) -> dict[str, Any]:
        """Train, assemble, score, and sample a member with latents as it is; one row of a table."""
        member, flags = self.runs[name]
        run_folder, pipeline = self.folder / name, self.folder / name / "pipeline"
        steps = {"max_steps": self.options.max_steps} if self.options.max_steps else {}
        self.train(STAGE1, member, run_folder, {**flags, **steps})
        self.assemble(run_folder, pipeline, run_folder, {})
        scored: dict[str, object] = {"pipeline": pipeline}
        if member in LATENT_MEMBERS and not flags:
            self.generate("pipeline", pipeline, run_folder / "drawn", run_folder)
            scored["candidates"] = f"samples={run_folder / 'drawn'}"
        if "model.autoregressive_layers" not in flags:  # decodes pixel by pixel: minutes
            self.score(run_folder, run_folder / "scores", scored)
        return read_row(run_folder)

    def picture_members(self) -> None:
        """Originals above every member's reconstructions, in the order of `MEMBERS`."""
        pipelines = [Pipeline.from_pretrained(self.folder / name / "pipeline") for name in MEMBERS]
        spec = pipelines[0].code_spec
        channels: Literal[1, 3] = 1 if spec.image_channels == 1 else 3
        source = ImageOptions(dataset=self.images, image_size=spec.image_size, channels=channels)
        originals = to_float(open_images(source, "validation").crops(range(PICTURED)))
        rows = [originals, *(pipe.reconstruct(originals) for pipe in pipelines)]
        save_png(grid(to_uint8(torch.cat(rows)), PICTURED), self.folder / "reconstructions.png")


def main() -> None:
    """Entry point."""
    families = Families(parse_config(FamiliesOptions))
    rows = families.in_parallel(families.make, families.runs)
    tables = families.options.tables
    if "family" in tables:
        families.picture_members()
    text = "\n\n".join(
        f"### {key}\n\n{markdown([rows[name] for name in TABLES[key]], collapse=key == 'collapse')}"
        for key in tables
    )
    families.write_rows("families", rows, text)


def read_row(folder: Path) -> dict[str, Any]:
    """What a run's files say about it."""
    last = last_metrics(folder)
    final = json.loads((folder / "metrics.jsonl").read_text().splitlines()[-1])
    row: dict[str, Any] = {
        "name": folder.name,
        "parameters": load_autoencoder(folder / "model").num_parameters(),
        "steps": last["step"],
        "seconds": last["seconds"],
        "psnr": last["validation_psnr"],
        "warning": "validation_warning" in final,
    }
    spec = json.loads((folder / "model/code_spec.json").read_text())
    if spec["kind"] == "latents":
        row |= {name: last[f"validation_{name}"] for name in ("active_units", "bits_per_dim")}
        row |= {"bits": last["validation_kl"] / math.log(2)}
        row |= {"dims": len(last["validation_kl_per_dimension"])}
    else:
        row["bits"] = sum(
            level["height"] * level["width"] * math.log2(level["vocabulary"])
            for level in spec["levels"]
        )
        for kind in ("usage", "perplexity"):
            row[kind] = [v for name, v in last.items() if name.startswith(f"validation_{kind}")]
    if (folder / "scores/scores.json").is_file():
        scores = read_scores(folder / "scores")
        reconstructions = scores["reconstructions"]
        row |= {name: reconstructions[name] for name in ("psnr", "ssim")}
        row["rfd"] = reconstructions["distance"]
        if "samples" in scores:
            row["sample_fd"] = scores["samples"]["distance"]
    return row


def markdown(rows: list[dict[str, Any]], *, collapse: bool) -> str:
    """A table of runs."""
    columns: dict[str, Callable[[dict[str, Any]], str]] = {
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
    return table(rows, columns)


def _in_use(row: dict[str, Any]) -> str:
    if "active_units" in row:
        return f"{row['active_units']:.0f} of {row['dims']} units"
    return " ".join(f"{100 * share:.0f} %" for share in row["usage"])


if __name__ == "__main__":
    run(main)
