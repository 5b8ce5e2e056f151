"""Quantizers: vectors to codes and back. A new one is its file and a line in `QUANTIZERS`."""

from __future__ import annotations

import dataclasses

from latent_prior.stage1_autoencoders.options import QuantizerOptions
from latent_prior.stage1_autoencoders.quantizers.base import Quantizer
from latent_prior.stage1_autoencoders.quantizers.codebooks import EMACodebook, GradientCodebook
from latent_prior.stage1_autoencoders.quantizers.residual import ResidualCodebooks
from latent_prior.stage1_autoencoders.quantizers.scalars import FiniteScalars, Signs, SphericalSigns

QUANTIZERS: dict[str, type[Quantizer]] = {
    "ema": EMACodebook,
    "gradient": GradientCodebook,
    "fsq": FiniteScalars,
    "lfq": Signs,
    "bsq": SphericalSigns,
    "residual": ResidualCodebooks,
}


def make_quantizer(options: QuantizerOptions) -> Quantizer:
    """Build the quantizer that the options name.

    Raises:
        ValueError: as `check_quantizer`.
    """
    check_quantizer(options)
    return QUANTIZERS[options.quantizer](options)


def check_quantizer(options: QuantizerOptions) -> None:
    """Check that the options fit the quantizer they name.

    Raises:
        ValueError: naming an option that this quantizer does not read, or a value it cannot take.
    """
    defaults = dataclasses.asdict(QuantizerOptions())
    for name, default in defaults.items():
        readers = [kind for kind, quantizer in QUANTIZERS.items() if name in quantizer.reads]
        value = getattr(options, name)
        if readers and options.quantizer not in readers and value != default:
            raise ValueError(
                f"--model.{name} {value} has no effect with --model.quantizer {options.quantizer}; "
                f"it is for {', '.join(readers)}"
            )
    QUANTIZERS[options.quantizer].check(options)
