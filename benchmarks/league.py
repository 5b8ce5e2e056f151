"""The league: two-stage models and GANs with equal training time and several seeds, in one table.

    python benchmarks/league.py --data mnist
    python benchmarks/league.py --data cifar10 --dataset FOLDER

Every contestant runs once with each seed, on `--threads` cores of its own. league.md shows median
and range over the seeds, league.json every run. A repeated command goes on where it stopped; one
with fewer `--seeds` makes the table from those.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import get_args

from contest import BASELINE, TITLES, Contest, Contestant, ContestOptions, Name, stages_of

from latent_prior.cli import answer_early, parse_config, run


@dataclass(kw_only=True)
class LeagueOptions(ContestOptions):
    """Train every contestant for the same time with every seed and put them into one table."""

    contestants: list[Name] = field(default_factory=lambda: list(get_args(Name)))
    """Contestants: a `vae` sampled from N(0, I), four autoencoders with a prior, and two GANs."""
    output_dir: str = "runs/league"
    """Folder of the runs and the table; each data set has its own in it."""


answer_early(__name__, LeagueOptions)

import numpy as np
import torch
from figures import DISTANCES, TIME, figures_of, range_table, write_figures
from PIL import Image

from latent_prior.data.images import grid, save_png
from latent_prior.evaluation.measures.table import MEASURES

COLUMNS = 20  # of the picture
NOT_SHOWN = ("authenticity", "diversity", "seconds_per_image", "training_seconds")
MEASURES_SHOWN = [
    *DISTANCES,
    *(measure for key, measure in MEASURES.items() if key not in NOT_SHOWN),
    replace(MEASURES["seconds_per_image"], title="ms per image", scale=1000),
    *TIME,
]


class League(Contest[LeagueOptions]):
    """The contestants of the league."""

    split = "test"
    reference_clock = False

    def __init__(self, options: LeagueOptions) -> None:
        names = options.contestants
        super().__init__(options, [Contestant(n, stages_of(n, options.data)) for n in names])
        self.scored_too = {"nearest": "true", "class_accuracy": self.class_accuracy}

    def picture(self) -> None:
        """The first images of every run, a row each, in the order of the table."""
        pictures = []
        for name in self.contestants:
            for seed in self.options.seeds:
                for number in range(min(COLUMNS, self.options.score_images)):
                    path = self.images_of(f"{name}-{seed}") / f"{number:06d}.png"
                    with Image.open(path) as image:
                        pixels = np.atleast_3d(np.array(image))
                        pictures.append(torch.from_numpy(pixels).permute(2, 0, 1))
        save_png(grid(torch.stack(pictures), COLUMNS), self.folder / "league.png")


def main() -> None:
    """Entry point.

    Raises:
        ValueError: options are at fault, or a command failed.
    """
    league = League(parse_config(LeagueOptions))
    league.prepare()
    league.in_parallel(league.make, league.runs)
    league.picture()
    rows, options = figures_of(league), league.options
    of_each = {BASELINE: [rows[BASELINE]]}
    for name in league.contestants:
        of_each[name] = [rows[f"{name}-{seed}"] for seed in options.seeds]
    titles = {BASELINE: "training images"} | {name: TITLES[name] for name in options.contestants}
    table = range_table(of_each, titles, MEASURES_SHOWN, baselines=[BASELINE])
    write_figures(league, "league", rows, table)


if __name__ == "__main__":
    run(main)
