r"""Add samples and scores, with the commands that made them, to a pipeline's model card.

python pipelines/describe.py --pipeline runs/mnist/pipeline --samples runs/mnist/samples \
    --scores runs/mnist/scores
"""

from __future__ import annotations

from latent_prior.cli import answer_early, parse_config, run
from latent_prior.pipelines.options import DescribeOptions

answer_early(__name__, DescribeOptions)

import logging
from collections.abc import Sequence
from pathlib import Path

from latent_prior.calls import takes_options
from latent_prior.folders import whole_folder
from latent_prior.pipelines.card import (
    CARD,
    GRID_FILE,
    README,
    SCORES_FILE,
    write_card,
)
from latent_prior.pipelines.index import read_index

_log = logging.getLogger("latent_prior")


@takes_options(DescribeOptions)
def describe(options: DescribeOptions) -> Path:
    """Add samples and scores to the model card of a pipeline folder.

    Returns:
        The card's README.md. A handwritten one is left unchanged.

    Raises:
        ValueError: there is no such pipeline, or samples or scores are from another one.
    """
    folder = Path(options.pipeline)
    read_index(folder)
    grid = None if options.samples is None else Path(options.samples) / GRID_FILE
    scores = None if options.scores is None else Path(options.scores) / SCORES_FILE
    with whole_folder(folder, "pipeline", keep=True) as changed:
        written = write_card(changed, grid=grid, scores=scores, license_name=options.license)
    unchanged = f"is handwritten and was left unchanged; samples and scores are in {folder / CARD}"
    _log.info("model card: %s%s", folder / README, "" if written else f" {unchanged}")
    return folder / README


def main(argv: Sequence[str] | None = None) -> None:
    """Entry point."""
    describe(options=parse_config(DescribeOptions, argv))


if __name__ == "__main__":
    run(main)
