"""Put an autoencoder and the prior over its codes into one pipeline folder.

python pipelines/assemble.py --autoencoder runs/mnist/vqvae/model --prior runs/mnist/prior/model --output_dir runs/mnist/pipeline
"""

from __future__ import annotations

from common.cli import parse_config, run
from pipelines.options import AssembleOptions

if __name__ == "__main__":
    parse_config(AssembleOptions)  # --help and mistakes are answered before torch is imported

import dataclasses
from collections.abc import Sequence

from pipelines.outputs import Sampler, check_no_prior_settings
from pipelines.pipeline import Pipeline
from stage1_autoencoders import load_autoencoder
from stage2_prior.prior import TransformerPrior
from stage2_prior.sampling import check_settings


def main(argv: Sequence[str] | None = None) -> None:
    """Entry point.

    Raises:
        ValueError: a part is at fault, or the parts do not belong together.
    """
    options = parse_config(AssembleOptions, argv)
    sampler = Sampler(options.guidance_scale, options.temperature, options.top_k, options.top_p)
    check_settings(
        guidance_scale=sampler.guidance_scale,
        temperature=sampler.temperature,
        top_k=sampler.top_k,
        top_p=sampler.top_p,
    )
    if options.prior is None:
        changed = {
            field.name: value
            for field in dataclasses.fields(Sampler)
            if (value := getattr(sampler, field.name)) != field.default
        }
        check_no_prior_settings(changed, "--")
    autoencoder = load_autoencoder(options.autoencoder)
    prior = None if options.prior is None else TransformerPrior.from_pretrained(options.prior)
    Pipeline(autoencoder, prior, sampler).save_pretrained(options.output_dir)
    print(f"pipeline: {options.output_dir}")


if __name__ == "__main__":
    run(main)
