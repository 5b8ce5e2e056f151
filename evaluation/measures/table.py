"""The measures of the tables, each with its direction and its paper, and the row of values that a set of images gets.

Everything that shows a score (scores.json, scores.md, report.html) takes the order and the form of its columns from
here. The feature distance has a column of its own name for every feature network, made by `distance_measures`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple

from latent_prior.evaluation.measures.diversity import measure_diversity
from latent_prior.evaluation.measures.inception_score import measure_inception_score
from latent_prior.evaluation.measures.inputs import MeasureInputs, Values
from latent_prior.evaluation.measures.kid import measure_kid
from latent_prior.evaluation.measures.precision_recall import measure_authenticity, measure_overlap
from latent_prior.evaluation.measures.reconstruction import measure_fidelity

NOTHING = "n/a"  # in place of a number that is not finite


@dataclass(frozen=True)
class Measure:
    """One column.

    Attributes:
        key: of the value in scores.json; its standard error is `KEY_stderr`.
        title: heading, with the unit of what is shown.
        better: which end is good; None where neither is, as for a budget that was given.
        meaning: one line for the reader of the page.
        paper: where it comes from; empty for what needs no paper.
        scale: what is shown is `scale` times the value.
        decimals: digits after the point; None shows two, or below 1 three digits.
        unit: behind the number.
        brief: whether the narrow table in the terminal shows it too.
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
        """A value as a cell shows it, with its standard error; empty for None, and never a NaN or an infinity."""
        if value is None:
            return ""
        if not math.isfinite(value):
            return NOTHING
        known = error if error is not None and math.isfinite(error) else 0.0
        decimals = self._decimals(max(abs(value), known) * self.scale)
        shown = f"{value * self.scale:z,.{decimals}f}"
        if error is not None:
            shown += (
                f" ± {error * self.scale:,.{decimals}f}"
                if math.isfinite(error)
                else f" ± {NOTHING}"
            )
        return shown + self.unit

    def _decimals(self, size: float) -> int:
        if self.decimals is not None:
            return self.decimals
        return 2 if size >= 1 or size == 0 else min(2 - math.floor(math.log10(size)), 6)


@dataclass(frozen=True)
class Row:
    """What was measured on one set of images.

    Attributes:
        name: of the set.
        num_images: images that took part.
        values: by the measures' keys; a measure that was not taken is absent.
        errors: standard errors, by the same keys.
        notes: sentences a reader has to know, as that a covariance is rank-deficient.
        curve: (number of images, distance), ascending; the last point has all images.
        contestant: false for a baseline (real images, reconstructions, random codes): never marked best.
        series: joins rows of one method at several training budgets; empty for a row by itself.
    """

    name: str
    num_images: int
    values: dict[str, float]
    errors: dict[str, float] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    curve: tuple[tuple[int, float], ...] = ()
    contestant: bool = True
    series: str = ""

    def to_json(self) -> dict[str, Any]:
        """The row as it stands in scores.json; what is not finite is null there."""
        flat: dict[str, Any] = {"name": self.name, "num_images": self.num_images}
        for key, value in self.values.items():
            flat[key] = _finite(value)
            if key in self.errors:
                flat[f"{key}_stderr"] = _finite(self.errors[key])
        curve = [[size, _finite(distance)] for size, distance in self.curve]
        flat |= {"notes": list(self.notes), "curve": curve, "contestant": self.contestant}
        return flat | ({"series": self.series} if self.series else {})


class Table(NamedTuple):
    """The rows as text, without the form of any file."""

    headings: list[str]
    cells: list[list[str]]
    best: list[list[bool]]  # as cells
    marks: list[list[int]]  # for each row, the numbers of its notes, counted from 1
    notes: list[str]


def distance_measures(column: str, title: str) -> list[Measure]:
    """The feature distance under a network's own name, and what it would be for endlessly many images.

    Args:
        column: key of the distance, as `fid`.
        title: its heading, as `FID`.
    """
    distance = Measure(
        column,
        title,
        "lower",
        "Frechet distance of the two sets' features, each seen as a Gaussian; falls as sets grow.",
        "Heusel et al., 2017, arXiv:1706.08500",
        brief=True,
    )
    infinity = Measure(
        f"{column}_infinity",
        f"{title}∞",
        "lower",
        f"{title} at several N, extrapolated over 1/N to endlessly many images: free of the bias that N brings.",
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
            "Squared maximum mean discrepancy of the features; unbiased, so that 0 means equal.",
            "Binkowski et al., 2018, arXiv:1801.01401", scale=1000, brief=True, compute=measure_kid,
        ),
        Measure(
            "precision", "Precision", "higher",
            "Share of these images that lie among the reference: are they good?",
            _MANIFOLDS, decimals=3, brief=True, compute=measure_overlap,
        ),
        Measure(
            "recall", "Recall", "higher",
            "Share of the reference that lies among these images: is everything there?",
            _MANIFOLDS, decimals=3, brief=True, compute=measure_overlap,
        ),
        Measure(
            "density", "Density", "higher",
            "Precision that counts neighbours and so cannot be bought by one outlier; may exceed 1.",
            _DENSITIES, decimals=3, compute=measure_overlap,
        ),
        Measure(
            "coverage", "Coverage", "higher",
            "Share of the reference images that have one of these images in their neighbourhood.",
            _DENSITIES, decimals=3, compute=measure_overlap,
        ),
        Measure(
            "inception_score", "Inception Score", "higher",
            "How sure Inception is of each image's class, and how many classes there are; knows no reference.",
            "Salimans et al., 2016, arXiv:1606.03498", decimals=2, compute=measure_inception_score,
        ),
        Measure(
            "class_accuracy", "Class accuracy", "higher",
            "Share of the images that a classifier of real images takes for the class they were asked to show.",
            "Shmelkov et al., 2018, arXiv:1807.09499", scale=100, decimals=1, unit=" %", brief=True,
        ),
        Measure(
            "authenticity", "Authenticity", "higher",
            "Share of the images farther from their nearest training image than that one is from its own neighbour.",
            "Alaa et al., 2022, arXiv:2102.08921", decimals=3, compute=measure_authenticity,
        ),
        Measure(
            "diversity", "Diversity in class", None,
            "Mean distance of two images of one class; as large as that of real images is right.", compute=measure_diversity,
        ),
        Measure(
            "psnr", "PSNR (dB)", "higher",
            "Mean squared error of the reconstruction, in decibels below the largest value.",
            decimals=2, brief=True, compute=measure_fidelity,
        ),
        Measure(
            "ssim", "SSIM", "higher",
            "Agreement of the reconstruction in local brightness, contrast and structure.",
            "Wang et al., 2004, doi:10.1109/TIP.2003.819861", decimals=4, compute=measure_fidelity,
        ),
        Measure(
            "lpips", "LPIPS", "lower",
            "Distance of the reconstruction in features weighted to agree with human judgement.",
            "Zhang et al., 2018, arXiv:1801.03924", decimals=4, compute=measure_fidelity,
        ),
        Measure(
            "seconds_per_image", "Seconds per image", "lower",
            "Sampling and decoding, where the images were made.",
        ),
        Measure(
            "parameters", "Parameters (M)", "lower",
            "Millions of numbers in all networks that sampling needs.",
            scale=1e-6,
        ),
        Measure(
            "training_images", "Images seen (k)", None,
            "Thousands of images shown in training, all stages together.",
            scale=1e-3, decimals=1,
        ),
        Measure(
            "training_seconds", "Training (s)", None,
            "Seconds of training, all stages together: of the processor on a CPU, by the clock on an accelerator.",
            decimals=0,
        ),
    )
}  # fmt: skip


def measures_of(rows: Sequence[Row], column: str, title: str) -> list[Measure]:
    """The measures that some row has a value of, in the fixed order of all tables."""
    known = [*distance_measures(column, title), *MEASURES.values()]
    keys = {key for row in rows for key in row.values}
    assert keys <= {measure.key for measure in known}, "a value without a measure"
    return [measure for measure in known if measure.key in keys]


def best(rows: Sequence[Row], measure: Measure) -> set[str]:
    """Names of the contestants with the best value of a measure, as it is shown; none where all are equal."""
    values = {
        row.name: row.values[measure.key]
        for row in rows
        if row.contestant and math.isfinite(row.values.get(measure.key, math.nan))
    }
    if measure.better is None or not values:
        return set()
    top = min(values.values()) if measure.better == "lower" else max(values.values())
    winners = {name for name, value in values.items() if measure.text(value) == measure.text(top)}
    return winners if len(winners) < len(values) else set()


def table(rows: Sequence[Row], column: str, title: str, *, brief: bool = False) -> Table:
    """Name, number of images, and one column for each measure that some row has.

    Args:
        rows: in the order of the table.
        column: key of the feature distance.
        title: heading of the feature distance.
        brief: leave out standard errors and the measures that are not `brief`.
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
