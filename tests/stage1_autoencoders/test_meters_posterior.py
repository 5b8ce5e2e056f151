"""The meter of the posteriors over an epoch, and its warning."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from accelerate import Accelerator
from torch import Tensor

from latent_prior.stage1_autoencoders.gaussian import Gaussian
from latent_prior.stage1_autoencoders.meters import PosteriorMeter, posterior_warning

DIMS = 12


@pytest.fixture(scope="module")
def accelerator():
    return Accelerator()


def gaussian(batch=5, seed=0, grad=False) -> Gaussian:
    """Dimensions from hardly used to telling much."""
    random = torch.Generator().manual_seed(seed)
    use = torch.linspace(0.001, 1.5, DIMS).view(1, 3, 2, 2)
    mean = use * torch.randn(batch, 3, 2, 2, generator=random)
    log_variance = -3 * use * torch.rand(batch, 3, 2, 2, generator=random)
    return Gaussian(mean.requires_grad_(grad), log_variance.requires_grad_(grad))


# The meter


def epoch(count=6) -> list[Gaussian]:
    return [gaussian(batch=2 + 3 * number, seed=number) for number in range(count)]


def measured(posteriors: list[Gaussian], accelerator: Accelerator):
    meter = PosteriorMeter(DIMS)
    for posterior in posteriors:
        meter.update(posterior)
    return meter.compute(accelerator)


def test_figures_of_many_batches_are_those_of_one(accelerator):
    metrics, per_dimension = measured(epoch(), accelerator)
    means = torch.cat([q.mean for q in epoch()]).double().flatten(1)
    kl = torch.cat([q.kl() for q in epoch()]).double().flatten(1).mean(0)
    active = int((means.var(0, correction=0) > 0.01).sum())
    assert 0 < active < DIMS
    assert metrics == {
        "kl": pytest.approx(float(kl.sum()), rel=1e-6),
        "active_units": active,
    }
    assert per_dimension == pytest.approx(kl.tolist(), rel=1e-6, abs=1e-9)


def test_a_dimension_is_active_if_its_mean_moves_not_if_it_costs(accelerator):
    """Burda et al., 2016: a mean that is far from 0 but the same for every image tells nothing."""
    far = torch.full((4, DIMS, 1, 1), 3.0)
    far[:2, 0] = -3
    metrics, per_dimension = measured([Gaussian(far, torch.zeros_like(far))], accelerator)
    assert metrics["active_units"] == 1
    assert per_dimension == pytest.approx([4.5] * DIMS)


def test_computing_starts_a_new_epoch(accelerator):
    meter = PosteriorMeter(DIMS)
    meter.update(gaussian(seed=9))
    meter.compute(accelerator)
    for posterior in epoch():
        meter.update(posterior)
    assert meter.compute(accelerator) == measured(epoch(), accelerator)


def test_a_restored_meter_counts_on(accelerator):
    stopped, resumed = PosteriorMeter(DIMS), PosteriorMeter(DIMS)
    for posterior in epoch()[:3]:
        stopped.update(posterior)
    resumed.load_state_dict(stopped.state_dict())
    for posterior in epoch()[3:]:
        resumed.update(posterior)
    assert resumed.compute(accelerator) == measured(epoch(), accelerator)


def test_an_empty_epoch_is_no_error(accelerator):
    metrics, per_dimension = measured([], accelerator)
    assert metrics == {"kl": 0, "active_units": 0}
    assert per_dimension == [0] * DIMS


def test_two_processes_count_what_one_does(tmp_path, accelerator):
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    done = subprocess.run(
        [*launcher, "--nproc_per_node", "2", __file__, str(tmp_path)],
        env=os.environ
        | {"ACCELERATE_USE_CPU": "true", "PYTHONPATH": str(Path(__file__).parents[2])},
        capture_output=True,
        text=True,
        timeout=900,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    metrics, per_dimension = measured(epoch(), accelerator)
    for rank in range(2):
        found = json.loads((tmp_path / f"{rank}.json").read_text())
        assert found[0] == pytest.approx(metrics)
        assert found[1] == pytest.approx(per_dimension)


def share_of(posterior: Gaussian, rank: int) -> Gaussian:
    def half(values: Tensor) -> Tensor:
        return values[rank::2]

    return Gaussian(half(posterior.mean), half(posterior.log_variance))


def count_share(folder: Path) -> None:
    """In one of two processes, with its part of every batch."""
    accelerator = Accelerator()
    rank = accelerator.process_index
    found = measured([share_of(posterior, rank) for posterior in epoch()], accelerator)
    (folder / f"{rank}.json").write_text(json.dumps(found))
    accelerator.end_training()


# The warning


@pytest.mark.parametrize(("kl", "active"), [(0.0, 0), (0.3, 40), (25.0, 3), (5.0, 0)])
def test_a_collapse_is_called_by_its_name(kl, active):
    said = posterior_warning(kl, active, 64)
    assert said is not None
    assert "posterior has collapsed" in said
    assert f"{active} of 64" in said
    for cure in ("free bits", "warm-up", "smaller beta"):
        assert cure in said


@pytest.mark.parametrize(("kl", "active", "dims"), [(3.0, 2, 2), (1.5, 1, 8), (20.0, 12, 64)])
def test_a_posterior_that_is_used_is_left_in_peace(kl, active, dims):
    assert posterior_warning(kl, active, dims) is None


if __name__ == "__main__":
    count_share(Path(sys.argv[1]))
