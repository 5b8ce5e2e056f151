"""The figures of a contest: medians and ranges over the seeds, and what they depend on."""

from __future__ import annotations

import json
import math
import statistics
import textwrap
from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict, replace
from typing import Any, NamedTuple

from contest import BASELINE, Contest, cost_of
from measuring import processor_name
from plans import Plan

from latent_prior.evaluation.measures.table import MEASURES, Measure
from latent_prior.machine import available_cores
from latent_prior.markdown import markdown_table
from latent_prior.records import write_record

DISTANCES = [
    Measure("distance", "FD", "lower", "Frechet distance of the features."),
    Measure("excess", "excess FD", "lower", "FD minus that of training images."),
    Measure("infinity", "FD∞", "lower", "FD extrapolated to infinitely many images."),
]
TIME = [
    replace(MEASURES["training_seconds"], title="processor s"),
    Measure("reference_seconds", "reference s", None, "Training in reference seconds.", decimals=0),
]

Figures = Mapping[str, float]
"""The figures of one run, by the keys of their measures."""


class Range(NamedTuple):
    """Median, lowest and highest of one figure over the seeds."""

    median: float
    low: float
    high: float

    def overlaps(self, other: Range) -> bool:
        """Whether the two ranges have a value in common."""
        return self.low <= other.high and other.low <= self.high


def range_of(key: str, runs: Sequence[Figures]) -> Range | None:
    """Median and range of a figure; None if a run lacks it."""
    values = [run.get(key, math.nan) for run in runs]
    if not values or not all(map(math.isfinite, values)):
        return None
    return Range(statistics.median(values), min(values), max(values))


def winners(ranges: Mapping[str, Range], measure: Measure) -> set[str]:
    """The row with the best median, and all whose ranges overlap with its range."""
    if measure.better is None or not ranges:
        return set()
    choose = min if measure.better == "lower" else max
    best = choose(ranges.values(), key=lambda each: each.median)
    return {name for name, each in ranges.items() if each.overlaps(best)}


def range_text(each: Range | None, measure: Measure) -> str:
    """`117 (112 to 121)`, or one number if there is no range."""
    if each is None:
        return ""
    size = max(map(abs, each)) * measure.scale
    decimals = measure.decimals
    if decimals is None:
        decimals = 0 if size >= 100 else 1 if size >= 10 else 2
    median, low, high = (f"{value * measure.scale:z,.{decimals}f}" for value in each)
    return (median if low == high else f"{median} ({low} to {high})") + measure.unit


def range_table(
    rows: Mapping[str, Sequence[Figures]],
    titles: Mapping[str, str],
    measures: Sequence[Measure],
    baselines: Collection[str] = (),
) -> str:
    """A Markdown table: a row by its title, a cell for each measure that some row has.

    Baselines are never bold.
    """
    columns = []
    for measure in measures:
        ranges = {name: range_of(measure.key, runs) for name, runs in rows.items()}
        known = {name: each for name, each in ranges.items() if each is not None}
        bold = winners({k: each for k, each in known.items() if k not in baselines}, measure)
        cells = {name: range_text(each, measure) for name, each in ranges.items()}
        if known:
            marked = [f"**{cells[name]}**" if name in bold else cells[name] for name in rows]
            columns.append((measure.heading, marked))
    headings = ["", *(heading for heading, _ in columns)]
    cells_of = [[titles[n], *(col[i] for _, col in columns)] for i, n in enumerate(rows)]
    return "\n".join(markdown_table(headings, cells_of))


def figures_of(contest: Contest[Any]) -> dict[str, dict[str, Any]]:
    """The scores of every run and what its trainings have cost, by the runs' names."""
    rows = contest.score_all()
    for row in rows.values():
        row["infinity"] = next((v for k, v in row.items() if k.endswith("_infinity")), None)
    for run, (contestant, seed) in contest.runs.items():
        stages = []
        for stage in contestant.stages:
            folder = contest.stage_folder(run, stage)
            plan = Plan.read(folder.with_name(f"{stage.name}_plan.json"))
            seconds, reference = plan.last.seconds, plan.reference_seconds()
            spent = reference if contest.reference_clock else seconds
            stages.append(
                {
                    "stage": stage.name,
                    "preset": f"{contest.options.data}_{stage.preset}",
                    "flags": dict(stage.flags),
                    "images_seen": cost_of(folder)["images_seen"],
                    "reference_seconds": reference,
                    "used": spent / contest.budget,
                    **asdict(plan),
                }
            )
        sums = {key: sum(each[key] for each in stages) for key in ("reference_seconds", "used")}
        rows[run]["excess"] = rows[run]["distance"] - rows[BASELINE]["distance"]
        rows[run] |= {"contestant": contestant.name, "seed": seed, "stages": stages, **sums}
    return rows


def protocol_of(contest: Contest[Any], rows: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """What the figures depend on, JSON-ready."""
    scores = json.loads((contest.folder / "scores/scores.json").read_text())
    scored, options = scores["protocol"], contest.options
    runs = [rows[run] for run in contest.runs]
    return {
        "data": options.data,
        "seeds": options.seeds,
        "budget": contest.budget,
        "clock": "reference_seconds" if contest.reference_clock else contest.clock,
        "used": [min(run["used"] for run in runs), max(run["used"] for run in runs)],
        "reference_seconds": [
            min(run["reference_seconds"] for run in runs),
            max(run["reference_seconds"] for run in runs),
        ],
        "splits": {"training": "train", "sampler": "validation", "scores": contest.split},
        "sweep_images": options.sweep_images,
        "distance": scores["distance"]["title"],
        "processor": processor_name(),
        "cores": available_cores(),
        "threads": options.threads,
        "jobs": contest.jobs,
        **scored,
    }


def protocol_text(protocol: Mapping[str, Any]) -> str:
    """The protocol in words, below a table."""
    seeds, sampler = protocol["seeds"], protocol["sweep_images"]
    clock = {"cpu_seconds": "processor", "seconds": "wall-clock"}.get(
        protocol["clock"], "reference"
    )
    words = (
        f"Reference: {protocol['reference']}, split {protocol['reference_split']}; "
        f"{protocol['num_images']:,} images of each. FD is {protocol['distance']} "
        f"({protocol['features']}, {protocol['resizer']}). Trained on split train; "
        f"{f'samplers by {sampler} images for each setting on split validation' if sampler else 'default samplers'}. "
        f"Budget: {protocol['budget']:g} {clock} seconds of optimizer steps, all stages together, of which "
        "{:.0%} to {:.0%} were used; {:,.0f} to {:,.0f} reference seconds. ".format(
            *protocol["used"], *protocol["reference_seconds"]
        )
        + f"Hardware: {protocol['processor']}, {protocol['threads'] or 'all'} of {protocol['cores']} cores "
        f"for each training, {protocol['jobs']} at a time; torch {protocol['versions']['torch']}, float32. "
    )
    words += (
        f"Median and range over the seeds {', '.join(map(str, seeds))}; bold: the best median, and all whose "
        "ranges overlap with its."
        if len(seeds) > 1
        else f"One run with seed {seeds[0]}: no ranges."
    )
    return textwrap.fill(words, 100, break_on_hyphens=False, break_long_words=False)


def write_figures(
    contest: Contest[Any], name: str, rows: Mapping[str, Mapping[str, Any]], table: str
) -> None:
    """NAME.md, which is printed too, and NAME.json with every run."""
    protocol = protocol_of(contest, rows)
    text = f"{table}\n\n{protocol_text(protocol)}\n"
    write_record(contest.folder / f"{name}.json", {"protocol": protocol, "rows": [*rows.values()]})
    (contest.folder / f"{name}.md").write_text(text)
    print(text)
