"""Tiny data, and the commands of every entry script over it."""

from __future__ import annotations

import json
import shutil
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from faults.trials import call, fresh
from PIL import Image

Words = tuple[object, ...]

_OFTEN: Words = ("--batch_size", 8, "--max_steps", 6, "--log_every", 2, "--evaluate_every", 2,
                 "--checkpoint_every", 2, "--cpu_threads", 1)  # fmt: skip
_BACKBONE: Words = ("--model.width", 4, "--model.multipliers", 1, 2, "--model.blocks", 0)
_BOOK: Words = ("--model.codebook_size", 16, "--model.code_dim", 4)
_LATENTS: Words = ("--model.latent_channels", 4, "--model.latent_dim", 6)
_CRITIC: Words = ("--critic.width", 4, "--critic.layers", 2)
_PRIOR: Words = (*_OFTEN, "--model.width", 16, "--model.depth", 1, "--model.heads", 2, "--validation_images", 16)  # fmt: skip
_FAMILY: dict[str, Words] = {
    "vae": (*_BACKBONE, *_LATENTS),
    "vqvae": (*_BACKBONE, *_BOOK),
    "vqvae2": (*_BACKBONE, *_BOOK),
    "vaegan": (*_BACKBONE, *_LATENTS, *_CRITIC),
    "vqgan": (*_BACKBONE, *_BOOK, *_CRITIC),
}


# The parts of `Place.base`: the command that makes them, and flags that it gets beside its own.
_MADE_BY: dict[str, tuple[str, Words]] = {
    **{name: (f"train {name}", ()) for name in ("vqvae", "vae")},
    **{
        f"{name}_codes": (f"encode {kind}", ())
        for name, kind in (("vqvae", "codes"), ("vae", "latents"))
    },
    "prior": ("prior raster", ()),
    "other_pipeline": ("assemble", ("--guidance_scale", 2)),
    "pipeline": ("assemble", ()),
    "samples": ("generate many", ()),
    "gan": ("gan sngan", ()),
    "scores": ("score", ()),
}


@dataclass(frozen=True)
class Command:
    """A command whose inputs and outputs lie in one folder, `Place.work`.

    Attributes:
        script: module within the package.
        words: its command line.
        inputs: folders of `Place.base` that are copied to `Place.work` before, by their new name.
        output: what it writes, in `Place.work`.
        whole: folders in `Place.work` that at any moment are those of before or those of after.
    """

    script: str
    words: Words
    inputs: dict[str, str]
    output: str
    whole: tuple[str, ...] = ()


class Place:
    """A folder with images and trained parts (`base`), and one to work in (`work`)."""

    def __init__(self, root: Path) -> None:
        self.data, self.base, self.work = root / "data", root / "base", root / "work"
        self.commands = self._commands()
        if not self.data.exists():
            _make_images(self.data)

    def prepare(self, command: Command, *, without: str = "") -> None:
        """Lay out the inputs of a command, `without` one of them, in an empty `work`."""
        inputs = {name: source for name, source in command.inputs.items() if source != without}
        for source in inputs.values():
            self._make(source.partition("/")[0])
        fresh(self.work)
        for name, source in inputs.items():
            shutil.copytree(self.base / source, self.work / name, symlinks=True)

    def _images(self, **more: object) -> Words:
        flags = (word for name, value in more.items() for word in (f"--{name}", value))
        return ("--dataset", self.data, *flags)

    def _commands(self) -> dict[str, Command]:
        work, out = self.work, self.work / "out"
        sized = self._images(image_size=16, channels=1, validation_split="validation")
        scoring: Words = (
            "--reference", self.data, "--features", "efficientnet_lite0", "--kid_subset_size", 8,
            "--kid_subsets", 3, "--cpu_threads", 1,
        )  # fmt: skip
        train = {
            f"train {name}": Command(
                "stage1_autoencoders.train",
                (*sized, *_OFTEN, "--model.type", name, *flags, "--output_dir", out),
                {}, "out", ("out/model",),
            )
            for name, flags in _FAMILY.items()
        }  # fmt: skip
        priors = {
            f"prior {name}": Command(
                "stage2_prior.train",
                (*_PRIOR, "--codes", work / "codes", *flags, "--output_dir", out),
                {"codes": codes}, "out", ("out/model", "out/best"),
            )
            for name, codes, flags in (
                ("raster", "vqvae_codes", ()),
                ("masked", "vqvae_codes", ("--model.order", "masked")),
                ("latents", "vae_codes", ()),
            )
        }  # fmt: skip
        gans = {
            f"gan {name}": Command(
                "evaluation.gan_baseline.train",
                (*sized[:-2], *_OFTEN, "--model.type", name, "--model.width", 4, "--model.multipliers",
                 1, 2, "--model.latent_dim", 8, "--output_dir", out),
                {}, "out", ("out/model",),
            )
            for name in ("sngan", "r3gan")
        }  # fmt: skip
        encode = ("--autoencoder", work / "model", *self._images(cpu_threads=1), "--shard_images", 20, "--output_dir", out)  # fmt: skip
        latents = ("--pipeline", work / "pipeline", *self._images(cpu_threads=1), "--output_dir", out)  # fmt: skip
        pipeline = {"pipeline": "pipeline"}
        return {
            **train,
            "encode codes": Command("stage1_autoencoders.encode", (*encode, "--flip"), {"model": "vqvae/model"}, "out", ("out",)),
            "encode latents": Command("stage1_autoencoders.encode", (*encode, "--posterior", "sample"), {"model": "vae/model"}, "out", ("out",)),
            **priors,
            "export": Command("stage2_prior.export", ("--prior", work / "prior", "--output_dir", out), {"prior": "prior/model"}, "out", ("out",)),
            "assemble": Command(
                "pipelines.assemble",
                ("--autoencoder", work / "model", "--prior", work / "prior", "--output_dir", work / "pipeline"),
                {"model": "vqvae/model", "prior": "prior/model", "pipeline": "other_pipeline"}, "pipeline", ("pipeline",),
            ),
            **{
                name: Command("pipelines.generate", ("--pipeline", work / "pipeline", "--num_images", count, "--batch_size", 4, "--cpu_threads", 1, "--output_dir", out), pipeline, "out")
                for name, count in (("generate", 6), ("generate many", 12))
            },
            "reconstruct": Command("pipelines.latents", (*latents, "--operation", "reconstruct", "--num_images", 4, "--batch_size", 2), pipeline, "out"),
            "interpolate": Command("pipelines.latents", (*latents, "--operation", "interpolate", "--steps", 3), pipeline, "out", ("out",)),
            "describe": Command(
                "pipelines.describe",
                ("--pipeline", work / "pipeline", "--samples", work / "samples", "--scores", work / "scores", "--license", "mit"),
                {**pipeline, "samples": "samples", "scores": "scores"}, "pipeline", ("pipeline",),
            ),
            **gans,
            "gan generate": Command(
                "evaluation.gan_baseline.generate", ("--gan", work / "gan", "--num_images", 6, "--batch_size", 4, "--cpu_threads", 1, "--output_dir", out), {"gan": "gan/model"}, "out",
            ),
            "score": Command(
                "evaluation.score", (*scoring, "--reference_split", "test", "--candidates", f"ours={work / 'samples'}", "--num_images", 12, "--output_dir", out), {"samples": "samples"}, "out",
            ),
            "compare": Command("evaluation.score", ("--compare", work / "scores/scores.json", work / "others/scores.json", "--output_dir", out), {"scores": "scores", "others": "scores"}, "out"),
            "sweep": Command(
                "evaluation.sweep",
                ("--pipeline", work / "pipeline", *scoring[:4], "--cpu_threads", 1, "--temperature", 0.8, 1.0,
                 "--num_images", 6, "--full_images", 6, "--batch_size", 4, "--output_dir", out),
                pipeline, "out", ("pipeline",),
            ),
            "likelihood": Command("evaluation.likelihood", ("--pipeline", work / "pipeline", *self._images(cpu_threads=1), "--num_images", 4, "--output_dir", out), pipeline, "out"),
        }  # fmt: skip

    def _make(self, part: str) -> None:
        """Make a part of `base` by its command, unless it is there."""
        if (self.base / part).exists():
            return
        name, more = _MADE_BY[part]
        command = self.commands[name]
        self.prepare(command, without=part)
        outcome = call(command.script, (*command.words, *more))
        assert outcome.code == 0, f"{name}: {outcome.said}"
        shutil.copytree(self.work / command.output, self.base / part)


def _make_images(folder: Path) -> None:
    """Bars and boxes in three classes, 20 of each to train and 8 to test, grey, 16 x 16.

    Those to train with have captions.
    """
    generator = np.random.default_rng(0)
    for split, count in (("train", 20), ("test", 8)):
        for number, name in enumerate(("across", "down", "box")):
            for index in range(count):
                image = generator.integers(0, 60, (16, 16)).astype(np.uint8)
                low, high = sorted(generator.choice(14, 2, replace=False) + 1)
                span = slice(low, high + 1)
                image[(span, slice(None), span)[number], (slice(None), span, span)[number]] = 220
                path = folder / split / name / f"{index:03d}.png"
                path.parent.mkdir(parents=True, exist_ok=True)
                Image.fromarray(image).save(path)
    train = folder / "train"
    rows = [
        {
            "file_name": str(path.relative_to(train)),
            "text": [f"{path.parent.name} {path.stem}", "é"],
        }
        for path in sorted(train.rglob("*.png"))
    ]
    (train / "metadata.jsonl").write_text("\n".join(map(json.dumps, rows)))
