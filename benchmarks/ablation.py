"""Change one thing at a time against a contestant's presets: excess distance and cost side by side.

    python benchmarks/ablation.py --data mnist --contestant vqvae \\
        --variants wide:stage1.model.width=24 calm:stage2.learning_rate=1e-3,stage2.weight_decay=0.1

Excess distance is FD minus that of training images, against the validation split: whatever is
chosen by this table has not seen the test images. All variants get the same reference seconds and
the same seeds. A variant that leaves the autoencoder as it is uses that of the preset. A repeated
command goes on where it stopped and may add variants.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from contest import TITLES, Contest, Contestant, ContestOptions, Name, Stage, stages_of

from latent_prior.cli import answer_early, parse_config, run
from latent_prior.options import option

PRESET = "preset"
"""The row of the unchanged presets."""


@dataclass(kw_only=True)
class AblationOptions(ContestOptions):
    """Train a contestant of the league with one thing changed at a time."""

    contestant: Name = "vqvae"
    """The contestant; its folder is in that of the data set."""
    variants: list[str] = option(factory=list)
    """What to change, each NAME:STAGE.FLAG=VALUE[,STAGE.FLAG=VALUE...]. STAGE is stage1, stage2 or
    gan, FLAG one of its train.py; a list's values stand with spaces between them. `share=0.4`
    gives stage 1 that share of the budget."""
    score_images: int = option(400, at_least=2)
    """Images in every set that is scored; the validation split of the digits has 400."""
    output_dir: str = "runs/ablation"
    """Folder of the runs and the tables; each data set and contestant has its own in it."""


answer_early(__name__, AblationOptions)

from figures import DISTANCES, TIME, figures_of, range_table, write_figures

from latent_prior.evaluation.measures.table import MEASURES, Measure

MEASURES_SHOWN = [
    *(measure for measure in DISTANCES if measure.key == "excess"),
    Measure("ratio", "ratio", "lower", "Excess FD divided by the preset's with the same seed."),
    *TIME,
    MEASURES["kid"],
    MEASURES["precision"],
    MEASURES["recall"],
    MEASURES["parameters"],
    MEASURES["training_images"],
]


class Ablation(Contest[AblationOptions]):
    """A contestant and its variants."""

    split = "validation"
    reference_clock = True
    scored_too: Mapping[str, object] = {}

    def __init__(self, options: AblationOptions) -> None:
        stages = stages_of(options.contestant, options.data)
        variants = [parse_variant(text, stages) for text in options.variants]
        names = [PRESET, *(variant.name for variant in variants)]
        for name in names:
            if names.count(name) > 1:
                raise ValueError(f"--variants names {name!r} twice: give each variant its own name")
        super().__init__(options, [Contestant(PRESET, stages), *variants])
        self.folder = self.folder / options.contestant

    def make_first(self, run: str) -> None:
        """Train the first stage of a run."""
        self.train_stage(run, self.runs[run][0].stages[0])


def parse_variant(text: str, stages: Sequence[Stage]) -> Contestant:
    """A contestant from `NAME:STAGE.FLAG=VALUE,...` and the stages of the preset.

    Raises:
        ValueError: the text does not read so, or there is no such stage.
    """
    name, _, changes = text.partition(":")
    parts = [change.partition("=") for change in changes.split(",")]
    if not re.fullmatch(r"[\w-]+", name) or not all(key and value for key, _, value in parts):
        raise ValueError(f"--variants: {text!r} is not NAME:STAGE.FLAG=VALUE[,STAGE.FLAG=VALUE...]")
    changed = {stage.name: stage for stage in stages}
    for key, _, value in parts:
        stage, _, flag = key.strip().partition(".")
        words = value.split()
        if stage == "share" and len(stages) == 2 and re.fullmatch(r"0?\.\d*[1-9]\d*", value):
            for each, share in (("stage1", float(value)), ("stage2", 1 - float(value))):
                changed[each] = changed[each]._replace(share=share)
            continue
        if stage not in changed or not flag or not words:
            known = ", ".join([f"{each}.FLAG=VALUE" for each in changed] + ["share=0.4"])
            raise ValueError(f"--variants {name}: {key}={value} is none of {known}")
        new = {flag: words if len(words) > 1 else words[0]}
        changed[stage] = changed[stage]._replace(flags={**changed[stage].flags, **new})
    shared = changed.get("stage1") == stages[0] and len(stages) > 1
    return Contestant(name, tuple(changed.values()), PRESET if shared else None)


def main() -> None:
    """Entry point.

    Raises:
        ValueError: options are at fault, or a command failed.
    """
    ablation = Ablation(parse_config(AblationOptions))
    ablation.prepare()
    # The autoencoders of several variants first, so that nobody waits for one in the making.
    own = [run for run, (contestant, _) in ablation.runs.items() if contestant.shares is None]
    ablation.in_parallel(ablation.make_first, own)
    ablation.in_parallel(ablation.make, ablation.runs)
    rows, options = figures_of(ablation), ablation.options
    for name, (_, seed) in ablation.runs.items():
        rows[name]["ratio"] = rows[name]["excess"] / rows[f"{PRESET}-{seed}"]["excess"]
    of_each = {
        name: [rows[f"{name}-{seed}"] for seed in options.seeds] for name in ablation.contestants
    }
    texts = [f"{TITLES[options.contestant]}: the presets", *(f"`{v}`" for v in options.variants)]
    titles = dict(zip(of_each, texts, strict=True))
    write_figures(ablation, "ablation", rows, range_table(of_each, titles, MEASURES_SHOWN))


if __name__ == "__main__":
    run(main)
