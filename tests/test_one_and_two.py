"""One process and two, and a run that one of them begins and the other ends, train the same."""

import json

import pytest
import torch
from safetensors.torch import load_file

from latent_prior.data.batch_order import RATES
from tests.one_and_two import RESUMED, TRAINED

RUNS = [*(f"2/{name}" for name in TRAINED), *(f"{n}/resumed_{name}" for n, name in RESUMED.items())]


def figures(run):
    """Those of every line of the log, with tensors in place of lists.

    A relativistic critic compares originals and generated images alone: rounding decides what all
    of its logits have in common, and only their differences are figures.
    """
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    for line in lines:
        for clock in ("seconds", *RATES):
            line.pop(clock, None)
        if "real_logit" in line:
            line["logit"] = line.pop("real_logit") - line.pop("fake_logit")
    return lines


@pytest.mark.parametrize("run", RUNS)
def test_one_process_and_two_train_the_same(one_and_two, run):
    """Step by step; in both processes the same bits, or differences would grow."""
    name = run.partition("/")[2].removeprefix("resumed_")
    one, two = one_and_two["1"] / name, one_and_two["1"].parent / run
    lines = figures(one)
    assert {line["step"] for line in lines} == set(range(1, 13))
    for found, expected in zip(figures(two), lines, strict=True):
        assert found.keys() == expected.keys()
        for key, value in expected.items():
            near = value if isinstance(value, str) else pytest.approx(value, rel=1e-4, abs=1e-5)
            assert found[key] == near, (found["step"], key)
    weights = [load_file(each / "model/model.safetensors") for each in (one, two)]
    torch.testing.assert_close(weights[1], weights[0], rtol=1e-3, atol=1e-4)
    first, second = (json.loads((two / f"state-{n}.json").read_text()) for n in (0, 1))
    parts = {"model", "ema", "optimizer"} | (
        {"critic", "critic_optimizer"} if "gan" in name else set()
    )
    assert parts <= first.keys()
    assert first == second
