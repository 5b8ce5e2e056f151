r"""Put an autoencoder and the prior over its codes into one pipeline folder.

python pipelines/assemble.py --autoencoder runs/mnist/vqvae/model --prior runs/mnist/prior/model \
    --output_dir runs/mnist/pipeline
"""

from __future__ import annotations

from latent_prior.cli import answer_early, command_line, parse_config, run
from latent_prior.pipelines.options import AssembleOptions

answer_early(__name__, AssembleOptions)

from collections.abc import Sequence
from pathlib import Path

from latent_prior.folders import check_replaceable
from latent_prior.pipelines.folder import write_folder
from latent_prior.pipelines.pipeline import Pipeline
from latent_prior.stage1_autoencoders import load_autoencoder
from latent_prior.stage2_prior.prior import TransformerPrior


def main(argv: Sequence[str] | None = None) -> None:
    """Entry point.

    Raises:
        ValueError: a component is wrong, or they do not belong together.
    """
    options = parse_config(AssembleOptions, argv)
    output = Path(options.output_dir)
    check_replaceable(output, "pipeline", "--output_dir ")
    autoencoder = load_autoencoder(options.autoencoder)
    prior = None if options.prior is None else TransformerPrior.from_pretrained(options.prior)
    pipe = Pipeline(autoencoder, prior)
    write_folder(
        output,
        pipe.components,
        pipe.resolve(options.settings(), "--"),
        pipe.code_spec,
        command=command_line(),
    )
    print(f"pipeline: {output}")


if __name__ == "__main__":
    run(main)
