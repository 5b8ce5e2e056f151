"""The league's and the ablation's arithmetic: medians, ranges and draws, plans, variants."""

import dataclasses
import json
import math
import os
import time

import ablation
import contest
import experiments
import figures
import league
import plans
import pytest
import reference_load
import torch

from latent_prior.evaluation.measures.table import Measure

LOWER = Measure("fd", "FD", "lower", "")
HIGHER = Measure("recall", "Recall", "higher", "", decimals=3)


def runs(*values: float, key: str = "fd") -> list[dict[str, float]]:
    return [{key: value} for value in values]


def test_a_figure_over_the_seeds_is_its_median_between_the_extremes():
    assert figures.range_of("fd", runs(130, 117, 112)) == (117, 112, 130)
    assert figures.range_of("fd", runs(3, 1)) == (2, 1, 3)
    assert figures.range_of("fd", [*runs(1, 2), {}]) is None
    assert figures.range_of("fd", runs(1, math.nan)) is None


def test_rows_whose_ranges_overlap_with_the_best_rows_share_the_bold():
    rows = {
        "best": figures.Range(100, 90, 120),
        "touches": figures.Range(130, 120, 140),
        "overlaps the second only": figures.Range(150, 130, 160),
        "apart": figures.Range(300, 290, 310),
    }
    assert figures.winners(rows, LOWER) == {"best", "touches"}
    assert figures.winners(rows, HIGHER) == {"apart"}
    assert figures.winners(rows, dataclasses.replace(LOWER, better=None)) == set()
    assert figures.winners({}, LOWER) == set()


def test_the_table_has_what_was_measured_and_baselines_are_never_bold():
    rows = {
        "real": runs(40),
        "a": [{"fd": fd, "recall": r} for fd, r in ((112, 0.5), (117, 0.625), (130, 0.75))],
        "b": runs(200, 1210, 300),
    }
    text = figures.range_table(
        rows, {"real": "training images", "a": "A", "b": "B"},
        [LOWER, HIGHER, Measure("none", "None", "lower", "")], baselines=["real"],
    )  # fmt: skip
    assert text.splitlines() == [
        "|  | FD ↓ | Recall ↑ |",
        "| --- | ---: | ---: |",
        "| training images | 40.0 |  |",
        "| A | **117 (112 to 130)** | **0.625 (0.500 to 0.750)** |",
        "| B | 300 (200 to 1,210) |  |",
    ]


@pytest.mark.parametrize("times", [[0.5], [0.2, 0.6]], ids=["one kind of step", "a late critic"])
def test_planned_steps_fill_the_budget(times):
    costs = plans.step_costs(times, 100)
    steps = plans.planned_steps(costs, 100)
    assert 100 * plans.PLANNED - max(times) <= costs.of(steps) <= 100 * plans.PLANNED + 1e-9
    if len(times) > 1:
        assert abs(costs.change - steps / 2) <= 1
    for budget in (3, 20, 80):
        assert costs.of(costs.steps(budget)) == pytest.approx(budget)


@pytest.mark.parametrize("times", [[0.5], [0.2, 0.6]], ids=["one kind of step", "a late critic"])
@pytest.mark.parametrize("pace", [0.6, 1.0, 1.7])
def test_a_wrong_probe_is_mended_while_the_budget_is_spent(times, pace):
    """A training whose steps all take `pace` times as long as they did in the probe."""
    costs = plans.step_costs(times, 100)
    done, spent = 0, 0.0
    for mark in plans.MARKS:
        steps = plans.planned_steps(costs, 100, done, spent)
        assert steps >= done
        while done < steps and spent < 100 * mark:
            spent += pace * (costs.of(done + 1) - costs.of(done))
            done += 1
    assert done == steps, "the learning rate schedule came to its end"
    assert 98 <= spent <= 100


def test_a_plan_is_what_its_file_says(tmp_path):
    """Reference seconds count each segment by the loads before and after it."""
    path = tmp_path / "plan.json"
    assert plans.Plan.read(path) == plans.Plan()
    load = 1 / plans.LOADS_PER_SECOND
    plan = plans.Plan([0.5], [load, load, 3 * load], [plans.Segment(99, 20, 10.0)])
    assert plan.reference_seconds() == pytest.approx(10)
    plan.segments.append(plans.Segment(90, 60, 30.0))
    assert plan.reference_seconds() == pytest.approx(10 + 20 / 2)
    assert plan.pace == pytest.approx(3)
    plan.write(path)
    assert plans.Plan.read(path) == plan


def test_the_reference_load_takes_time():
    assert reference_load.seconds_per_load(1, torch.device("cpu")) > 0


def test_a_variant_changes_its_stages_and_nothing_else():
    stages = contest.stages_of("vqvae", "mnist")
    wide = ablation.parse_variant(
        "wide:stage1.model.width=24,stage2.model.dropout=0.1,stage1.model.blocks=0 1 2", stages
    )
    assert wide.name == "wide"
    assert wide.stages[0].flags == {"model.width": "24", "model.blocks": ["0", "1", "2"]}
    assert wide.stages[1].flags == {"model.dropout": "0.1"}
    assert wide.shares is None
    prior_only = ablation.parse_variant("calm:stage2.learning_rate=1e-3", stages)
    assert prior_only.stages[0] == stages[0]
    assert prior_only.shares == ablation.PRESET
    longer = ablation.parse_variant("longer:share=0.6", stages)
    assert [stage.share for stage in longer.stages] == [0.6, 0.4]
    assert longer.shares is None
    slow = ablation.parse_variant(
        "slow:gan.learning_rate=1e-4", contest.stages_of("r3gan", "mnist")
    )
    assert slow.stages[0].flags == {"learning_rate": "1e-4"}
    assert slow.shares is None


@pytest.mark.parametrize(
    "text", ["wide", "wide:", "wide:stage1.width", "a b:stage1.width=2", "../x:stage1.width=2",
             "x:stage3.width=2", "x:gan.width=2", "x:stage1=2", "x:share=2", "x:stage1.width= "],
)  # fmt: skip
def test_a_variant_that_does_not_read_so_is_refused(text):
    with pytest.raises(ValueError, match="--variants"):
        ablation.parse_variant(text, contest.stages_of("vqvae", "mnist"))


@pytest.mark.parametrize("data", experiments.DATA)
@pytest.mark.parametrize("name", contest.TITLES)
def test_the_stages_of_a_contestant_share_its_budget(data, name):
    stages = contest.stages_of(name, data)
    assert sum(stage.share for stage in stages) == pytest.approx(1)
    assert {stage.name for stage in stages} <= {*contest.ROOMS}


def make_league(folder, **options) -> league.League:
    return league.League(league.LeagueOptions(output_dir=str(folder), **options))


def test_an_interrupted_league_has_whole_seeds(tmp_path):
    runs_of = make_league(tmp_path, contestants=["vqvae", "r3gan"], seeds=[0, 2]).runs
    assert [*runs_of] == ["vqvae-0", "r3gan-0", "vqvae-2", "r3gan-2"]


def test_another_budget_is_refused_in_the_same_folder(tmp_path):
    make_league(tmp_path, seeds=[0], budget=5).prepare()
    make_league(tmp_path, seeds=[0, 1], budget=5).prepare()  # more seeds go on
    with pytest.raises(ValueError, match="budget"):
        make_league(tmp_path, seeds=[0], budget=6).prepare()


def test_an_ablation_trains_an_autoencoder_once(tmp_path):
    options = ablation.AblationOptions(
        output_dir=str(tmp_path),
        seeds=[0],
        variants=["calm:stage2.beta2=0.9", "wide:stage1.seed=9"],
    )
    study = ablation.Ablation(options)
    folders = [study.stage_folder(run, c.stages[0]) for run, (c, _) in study.runs.items()]
    assert folders[0] == folders[1] != folders[2]
    with pytest.raises(ValueError, match="twice"):
        ablation.Ablation(dataclasses.replace(options, variants=["a:share=0.4", "a:share=0.5"]))


def test_seeds_are_checked():
    for seeds in ([], [-1], [1, 1]):
        with pytest.raises(ValueError, match="--seeds"):
            league.LeagueOptions(seeds=seeds)


def test_an_error_ends_what_runs_beside_it_and_starts_nothing_more(tmp_path):
    script, mark = tmp_path / "script.py", tmp_path / "started"
    script.write_text(
        f"import pathlib, time\npathlib.Path({str(mark)!r}).touch()\ntime.sleep(600)\n"
    )
    arena = make_league(tmp_path / "league", seeds=[0], jobs=2)
    called = []

    def make(name: str) -> None:
        called.append(name)
        if name == "fails":
            while not mark.exists():
                time.sleep(0.01)
            raise ValueError("at fault")
        arena.command(str(script), tmp_path / name, {})

    with pytest.raises(ValueError, match="at fault"):
        arena.in_parallel(make, ["waits", "fails", *"abcdef"])
    assert len(called) <= 3
    assert not arena._running


def test_a_run_that_is_made_again_is_scored_again(tmp_path, monkeypatch):
    options = league.LeagueOptions(contestants=["sngan"], seeds=[0], output_dir=str(tmp_path))
    contest, scored = league.League(options), []

    def score(run, folder, flags):
        scored.append(flags["candidates"])
        folder.mkdir(exist_ok=True)
        rows = [{"name": name.partition("=")[0], "fd": 1.0} for name in flags["candidates"]]
        content = {"distance": {"key": "fd"}, "rows": rows}
        (folder / "scores.json").write_text(json.dumps(content))

    monkeypatch.setattr(contest, "score", score)
    done = tmp_path / "mnist" / "sngan-0" / ".done"
    done.parent.mkdir(parents=True)
    done.touch()
    first = contest.score_all()
    assert contest.score_all() == first
    assert len(scored) == 1
    later = (tmp_path / "mnist/scores/scores.json").stat().st_mtime + 10
    os.utime(done, (later, later))
    contest.score_all()
    assert len(scored) == 2
