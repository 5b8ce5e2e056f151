"""The measures, each with its direction and paper, and the rows of values they are shown in.

scores.json, scores.md and report.html take the order and format of their columns from here. The
feature distance is named after the feature network, see `distance_measures`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple

from latent_prior.evaluation.measures.attributes import AS_ASKED
from latent_prior.evaluation.measures.diversity import measure_diversity
from latent_prior.evaluation.measures.inception_score import measure_inception_score
from latent_prior.evaluation.measures.inputs import MeasureInputs, Values
from latent_prior.evaluation.measures.kid import measure_kid
from latent_prior.evaluation.measures.precision_recall import measure_authenticity, measure_overlap
from latent_prior.evaluation.measures.reconstruction import measure_fidelity

NOTHING = "n/a"  # for a number that is not finite


@dataclass(frozen=True)
class Measure:
    """One column.

    Attributes:
        key: of the value in scores.json; its standard error is `KEY_stderr`.
        title: heading, with the unit of what is shown.
        better: which direction is good; None for neither, such as a given budget.
        meaning: one line for the report.
        paper: its source; empty if none is needed.
        scale: factor of the displayed value.
        decimals: digits after the point; None: two, or three significant digits below 1.
        unit: appended to the number.
        brief: whether the table in the terminal shows it.
        compute: the function that returns this value, perhaps among others; None if it is measured
            elsewhere.
    """

    key: str
    title: str
    better: Literal["lower", "higher"] | None
    meaning: str
    paper: str = ""
    scale: float = 1.0
    decimals: int | None = None
    unit: str = ""
    brief: bool = False
    compute: Callable[[MeasureInputs], Values] | None = None

    @property
    def heading(self) -> str:
        """The title with an arrow towards the good end."""
        return self.title + {"lower": " ↓", "higher": " ↑", None: ""}[self.better]

    def text(self, value: float | None, error: float | None = None) -> str:
        """A value and its standard error as in a cell; empty for None, "n/a" if not finite."""
        if value is None:
            return ""
        if not math.isfinite(value):
            return NOTHING
        known_error = error is not None and math.isfinite(error)
        size = max(abs(value), error if error is not None and known_error else 0.0) * self.scale
        decimals = self.decimals
        if decimals is None:
            decimals = 2 if size >= 1 or size == 0 else min(2 - math.floor(math.log10(size)), 6)
        texts = [f"{value * self.scale:z,.{decimals}f}"]
        if error is not None:
            texts.append(f"{error * self.scale:,.{decimals}f}" if known_error else NOTHING)
        return " ± ".join(texts) + self.unit


@dataclass(frozen=True)
class Row:
    """The measures of one set of images.

    Attributes:
        name: of the set.
        num_images: images measured.
        values: by the measures' keys; only what was measured.
        errors: standard errors, by the same keys.
        notes: caveats, such as a rank-deficient covariance.
        curve: (number of images, distance), ascending, up to all images.
        contestant: false for a baseline (real, reconstructed or random): never marked best.
        series: name shared by rows of one method at several budgets, if any.
    """

    name: str
    num_images: int
    values: dict[str, float]
    errors: dict[str, float] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    curve: tuple[tuple[int, float], ...] = ()
    contestant: bool = True
    series: str = ""

    def value(self, key: str) -> float:
        """A value by its measure's key; NaN if it was not measured."""
        return self.values.get(key, math.nan)

    def error(self, key: str) -> float:
        """A standard error that can be drawn; 0 if it is unknown."""
        error = self.errors.get(key, 0.0)
        return error if math.isfinite(error) else 0.0

    def to_json(self) -> dict[str, Any]:
        """The row as in scores.json, where values that are not finite are null."""
        flat: dict[str, Any] = {"name": self.name, "num_images": self.num_images}
        for key, value in self.values.items():
            flat[key] = _finite(value)
            if key in self.errors:
                flat[f"{key}_stderr"] = _finite(self.errors[key])
        curve = [[size, _finite(distance)] for size, distance in self.curve]
        flat |= {"notes": list(self.notes), "curve": curve, "contestant": self.contestant}
        return flat | ({"series": self.series} if self.series else {})


class Table(NamedTuple):
    """The rows as text, independent of the file format."""

    headings: list[str]
    cells: list[list[str]]
    best: list[list[bool]]  # shape of cells
    marks: list[list[int]]  # for each row, the numbers of its notes, counted from 1
    notes: list[str]


def distance_measures(column: str, title: str) -> list[Measure]:
    """The distance with a network's key and heading (`fid`, `FID`), and its value at infinite N."""
    distance = Measure(
        column,
        title,
        "lower",
        "Frechet distance between Gaussians fitted to both sets' features; decreases as N grows.",
        "Heusel et al., 2017, arXiv:1706.08500",
        brief=True,
    )
    infinity = Measure(
        f"{column}_infinity",
        f"{title}∞",
        "lower",
        f"{title} at several N, extrapolated to infinite N: free of the bias of finite samples.",
        "Chong & Forsyth, 2020, arXiv:1911.07023",
    )
    return [distance, infinity]


_MANIFOLDS = "Kynkäänniemi et al., 2019, arXiv:1904.06991"
_DENSITIES = "Naeem et al., 2020, arXiv:2002.09797"

MEASURES: dict[str, Measure] = {
    measure.key: measure
    for measure in (
        Measure(
            "kid", "KID x 1000", "lower",
            "Squared maximum mean discrepancy of the features; unbiased, 0 for equal distributions.",
            "Binkowski et al., 2018, arXiv:1801.01401", scale=1000, brief=True, compute=measure_kid,
        ),
        Measure(
            "precision", "Precision", "higher",
            "Share of these images within the reference's manifold: fidelity.",
            _MANIFOLDS, decimals=3, brief=True, compute=measure_overlap,
        ),
        Measure(
            "recall", "Recall", "higher",
            "Share of the reference within these images' manifold: diversity.",
            _MANIFOLDS, decimals=3, brief=True, compute=measure_overlap,
        ),
        Measure(
            "density", "Density", "higher",
            "Precision that counts neighbours, so that one outlier cannot raise it; may exceed 1.",
            _DENSITIES, decimals=3, compute=measure_overlap,
        ),
        Measure(
            "coverage", "Coverage", "higher",
            "Share of reference images with one of these images in their neighbourhood.",
            _DENSITIES, decimals=3, compute=measure_overlap,
        ),
        Measure(
            "inception_score", "Inception Score", "higher",
            "Confidence and diversity of Inception's class predictions; needs no reference.",
            "Salimans et al., 2016, arXiv:1606.03498", decimals=2, compute=measure_inception_score,
        ),
        Measure(
            "class_accuracy", "Class accuracy", "higher",
            "Share of images that a classifier trained on real images assigns to their requested class.",
            "Shmelkov et al., 2018, arXiv:1807.09499", scale=100, decimals=1, unit=" %", brief=True,
        ),
        *(
            Measure(
                key, f"{key.partition('_')[0].capitalize()} as asked", "higher",
                f"Share of images that show {what} of their class; read from the pixels.",
                scale=100, decimals=1, unit=" %", brief=True, compute=measure_fidelity,
            )
            for key, what in zip(AS_ASKED, ("the shape", "the colour", "the place", "shape, colour and place"), strict=True)
        ),
        Measure(
            "authenticity", "Authenticity", "higher",
            "Share of images farther from their nearest training image than that one from its neighbour.",
            "Alaa et al., 2022, arXiv:2102.08921", decimals=3, compute=measure_authenticity,
        ),
        Measure(
            "diversity", "Diversity in class", None,
            "Mean distance between two images of one class; should match that of real images.", compute=measure_diversity,
        ),
        Measure(
            "psnr", "PSNR (dB)", "higher",
            "Mean squared error of the reconstruction, in decibels below the squared value range.",
            decimals=2, brief=True, compute=measure_fidelity,
        ),
        Measure(
            "ssim", "SSIM", "higher",
            "Agreement of the reconstruction in local brightness, contrast and structure.",
            "Wang et al., 2004, doi:10.1109/TIP.2003.819861", decimals=4, compute=measure_fidelity,
        ),
        Measure(
            "lpips", "LPIPS", "lower",
            "Feature distance of the reconstruction, weighted to match human judgement.",
            "Zhang et al., 2018, arXiv:1801.03924", decimals=4, compute=measure_fidelity,
        ),
        Measure(
            "seconds_per_image", "Seconds per image", "lower",
            "Time of sampling and decoding on the machine that generated the images.",
        ),
        Measure(
            "parameters", "Parameters (M)", "lower",
            "Millions of parameters of all networks that sampling needs.",
            scale=1e-6,
        ),
        Measure(
            "training_images", "Images seen (k)", None,
            "Thousands of images seen in training, all stages together.",
            scale=1e-3, decimals=1,
        ),
        Measure(
            "training_seconds", "Training (s)", None,
            "Training time, all stages together: processor seconds on a CPU, wall-clock on an accelerator.",
            decimals=0,
        ),
    )
}  # fmt: skip


def measures_of(rows: Sequence[Row], column: str, title: str) -> list[Measure]:
    """The measures that at least one row has, in the order of all tables."""
    known = [*distance_measures(column, title), *MEASURES.values()]
    keys = {key for row in rows for key in row.values}
    assert keys <= {measure.key for measure in known}, "a value without a measure"
    return [measure for measure in known if measure.key in keys]


def best(rows: Sequence[Row], measure: Measure) -> set[str]:
    """Names of the contestants whose value is best as displayed; none if all are equal."""
    contestants = {row.name: row.value(measure.key) for row in rows if row.contestant}
    values = {name: value for name, value in contestants.items() if math.isfinite(value)}
    if measure.better is None or not values:
        return set()
    top = min(values.values()) if measure.better == "lower" else max(values.values())
    winners = {name for name, value in values.items() if measure.text(value) == measure.text(top)}
    return winners if len(winners) < len(values) else set()


def table(rows: Sequence[Row], column: str, title: str, *, brief: bool = False) -> Table:
    """Name, number of images, and one column for each measure that some row has.

    A brief table leaves out standard errors and the measures that are not `brief`.
    """
    measures = measures_of(rows, column, title)
    if brief:
        measures = [measure for measure in measures if measure.brief]
    winners = [best(rows, measure) for measure in measures]
    notes = list(dict.fromkeys(note for row in rows for note in row.notes))
    cells = [
        [row.name, f"{row.num_images:,}"]
        + [
            m.text(row.values.get(m.key), None if brief else row.errors.get(m.key))
            for m in measures
        ]
        for row in rows
    ]
    return Table(
        ["Images", "N", *(measure.heading for measure in measures)],
        cells,
        [[False, False, *(row.name in names for names in winners)] for row in rows],
        [[notes.index(note) + 1 for note in row.notes] for row in rows],
        notes,
    )


def shorten(text: str, length: int) -> str:
    """Text cut to a length, with an ellipsis as its last character."""
    return text if len(text) <= length else f"{text[: length - 1]}…"


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None
