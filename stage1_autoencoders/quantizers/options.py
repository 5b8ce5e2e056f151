"""What a user can set about a quantizer, and what suits each; plain Python that needs no torch."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import ClassVar, Literal, NamedTuple

from latent_prior.options import Options, option

FEWEST_LEVELS, MOST_LEVELS = 3, 8


class LossWeights(NamedTuple):
    """Weights of a quantizer's loss, and the temperature of its entropy term."""

    commitment: float
    entropy_weight: float
    entropy_temperature: float


# Signs collapse to one code without the entropy term, which a strong commitment drowns; `fsq` has no loss.
SUITED = {
    "ema": LossWeights(0.25, 0.0, 0.01),
    "gradient": LossWeights(0.25, 0.0, 0.01),
    "residual": LossWeights(0.25, 0.0, 0.01),
    "lfq": LossWeights(0.05, 0.02, 0.5),
    "bsq": LossWeights(0.25, 0.01, 0.1),
}
CODEBOOKS = ("ema", "gradient", "residual")
# The quantizers that look at an option; with the others it must be left alone. `residual` has a say of its own on distance.
READERS = {
    **dict.fromkeys(LossWeights._fields, tuple(SUITED)),
    **dict.fromkeys(("distance", "estimator", "initialisation"), CODEBOOKS),
    "fsq_levels": ("fsq",),
}


@dataclass(kw_only=True)
class QuantizerOptions(Options):
    """How vectors become codes, and how the codebook learns."""

    flag_prefix: ClassVar[str] = "model."

    quantizer: Literal["ema", "gradient", "fsq", "lfq", "bsq", "residual"] = "ema"
    """Codebook of moving averages or of gradients; scalars, signs or signs on the sphere without one; or several in a row."""
    codebook_size: int = option(512, at_least=2)
    """Codes to choose from; with `residual`, in each of its stages."""
    code_dim: int = option(16, at_least=1)
    """Length of a code vector; `fsq`, `lfq` and `bsq` have the length that codebook_size gives them."""
    distance: Literal["euclidean", "cosine"] = "euclidean"
    """What nearest means in a codebook; cosine scales vectors and codes to length 1, which suits a code_dim of about 8."""
    estimator: Literal["straight_through", "rotation"] = "straight_through"
    """How the gradient passes a codebook: unchanged, or turned and scaled as the vector was on its way to its code."""
    initialisation: Literal["kmeans", "data"] = "kmeans"
    """What a codebook starts from: k-means over the first batch, or vectors drawn from it."""
    commitment: float | None = option(None, at_least=0)
    """Weight beta of the loss that pulls the encoder's vectors to their codes; null takes what suits the quantizer."""
    codebook_decay: float = option(0.99, at_least=0, below=1)
    """Decay per step of the codebook's moving averages (with `gradient`: of the usage counts)."""
    restart_below: float = option(0.1, at_least=0, below=1)
    """A code used less than this share of an even use is replaced by a badly coded vector; 0 replaces none."""
    entropy_weight: float | None = option(None, at_least=0)
    """Weight of the entropy term: sure of each vector's code, even in the use of all codes; null takes what suits the quantizer."""
    entropy_temperature: float | None = option(None, above=0)
    """Temperature of the soft assignment that the entropy is computed from; null takes what suits the quantizer."""
    fsq_levels: list[int] = field(default_factory=list)
    """Values along each dimension of `fsq`, with codebook_size as their product; empty chooses them."""
    residual_stages: int = option(4, at_least=1)
    """Codebooks in a row of `residual`, each for what the ones before have left over."""

    def __post_init__(self) -> None:
        """Check every number against its range, and that quantizer and options fit.

        Raises:
            ValueError: naming the flag.
        """
        super().__post_init__()
        self._check_readers()
        self._check_fit()

    @property
    def loss_weights(self) -> LossWeights:
        """Of `ema`, `gradient`, `residual`, `lfq` and `bsq`: the weights given, and what suits the quantizer for the others."""
        given = {name: getattr(self, name) for name in LossWeights._fields}
        return SUITED[self.quantizer]._replace(
            **{name: value for name, value in given.items() if value is not None}
        )

    @property
    def levels_per_dimension(self) -> list[int]:
        """Of `fsq`: the levels given, or chosen from codebook_size."""
        return self.fsq_levels or choose_levels(self.codebook_size)

    def _check_readers(self) -> None:
        for name, readers in READERS.items():
            value = getattr(self, name)
            # fsq_levels has no default on the class, but an empty one.
            if self.quantizer not in readers and value != getattr(QuantizerOptions, name, []):
                raise ValueError(
                    f"--model.{name} {value} does nothing with --model.quantizer {self.quantizer}; it is for {', '.join(readers)}"
                )

    def _check_fit(self) -> None:
        if self.quantizer == "residual" and self.distance == "cosine":
            raise ValueError(
                "--model.distance cosine leaves no residual to quantize; use euclidean with --model.quantizer residual"
            )
        if self.quantizer in ("lfq", "bsq"):
            bits = self.codebook_size.bit_length() - 1
            if self.codebook_size != 2**bits:
                raise ValueError(
                    f"--model.codebook_size {self.codebook_size} is not a power of two, which "
                    f"--model.quantizer {self.quantizer} needs; use {2**bits} or {2 ** (bits + 1)}"
                )
        if self.quantizer == "fsq":
            levels = self.levels_per_dimension
            if min(levels) < FEWEST_LEVELS:
                raise ValueError(
                    f"--model.fsq_levels must be at least {FEWEST_LEVELS} each, not {levels}"
                )
            if math.prod(levels) != self.codebook_size:
                raise ValueError(
                    f"--model.codebook_size {self.codebook_size} is not {math.prod(levels)}, the product of "
                    f"--model.fsq_levels {levels}"
                )


def choose_levels(codebook_size: int) -> list[int]:
    """Levels from 3 to 8 with the given product: as few as possible, and of those the most even.

    They are those of the paper at its numbers of codes (240: 8 6 5; 1000: 8 5 5 5; 4375: 7 5 5 5 5; ...).

    Raises:
        ValueError: naming the flag, where there are none.
    """
    found = _factorisations(codebook_size, MOST_LEVELS)
    if not found:
        raise ValueError(
            f"--model.codebook_size {codebook_size} is no product of numbers from {FEWEST_LEVELS} to {MOST_LEVELS}, which "
            "--model.quantizer fsq needs; take a power of two, or set --model.fsq_levels"
        )
    return min(found, key=lambda levels: (len(levels), -min(levels)))


def _factorisations(product: int, largest: int) -> list[list[int]]:
    """All ways to write a product of falling numbers of the range."""
    if product == 1:
        return [[]]
    return [
        [level, *rest]
        for level in range(largest, FEWEST_LEVELS - 1, -1)
        if product % level == 0
        for rest in _factorisations(product // level, level)
    ]
