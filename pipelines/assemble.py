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

from latent_prior.calls import takes_options
from latent_prior.closing import beside, say_next
from latent_prior.folders import check_replaceable
from latent_prior.pipelines.folder import write_folder
from latent_prior.pipelines.pipeline import Pipeline
from latent_prior.stage1_autoencoders import load_autoencoder
from latent_prior.stage2_prior.prior import TransformerPrior
from latent_prior.stage2_prior.text.encoder import TextEncoder


@takes_options(AssembleOptions)
def assemble(options: AssembleOptions) -> Pipeline:
    """Put an autoencoder and a prior into one pipeline folder.

    Returns:
        The pipeline, which `generate`, `score` and the others take by its folder.

    Raises:
        ValueError: a component is wrong, or they do not belong together.
    """
    output = Path(options.output_dir)
    check_replaceable(output, "pipeline", "--output_dir ")
    autoencoder = load_autoencoder(options.autoencoder)
    prior = None if options.prior is None else TransformerPrior.from_pretrained(options.prior)
    spec = None if prior is None else prior.config.text
    encoder = None
    if spec is not None and spec["encoder"] is not None:
        try:
            encoder = TextEncoder(options.text_encoder or spec["encoder"], spec["length"])
        except ValueError as error:
            raise ValueError(
                f"the text encoder of --prior {options.prior} cannot be opened: {error}; name its "
                "folder by --text_encoder"
            ) from error
    elif options.text_encoder is not None:
        raise ValueError("--text_encoder is for a prior that was trained with one; leave it out")
    pipe = Pipeline(autoencoder, prior, text_encoder=encoder)
    pipe.sampler = pipe.resolve(options.settings(), "--")
    write_folder(
        output,
        pipe.components,
        pipe.sampler,
        pipe.code_spec,
        text_encoder=encoder,
        command=command_line(),
    )
    return pipe


def main(argv: Sequence[str] | None = None) -> None:
    """Entry point."""
    options = parse_config(AssembleOptions, argv)
    pipe, folder = assemble(options=options), Path(options.output_dir)
    print(f"pipeline: {folder}")
    flags: dict[str, object] = {"pipeline": folder, "num_images": 1000}
    if pipe.prior is None and pipe.code_spec.kind == "codes":
        flags["random_codes"] = True
    say_next("pipelines/app.py", {"pipeline": folder}, "page")
    say_next("pipelines/generate.py", flags | {"output_dir": beside(folder, "samples")})


if __name__ == "__main__":
    run(main)
