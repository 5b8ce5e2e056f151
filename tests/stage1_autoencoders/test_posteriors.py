"""The Gaussian posterior against Monte Carlo and float64, and the meter of how much it tells."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from accelerate import Accelerator
from torch import Tensor
from torch.distributions import Normal, kl_divergence

from latent_prior.stage1_autoencoders.posteriors import (
    LOG_VARIANCE_RANGE,
    Gaussian,
    PosteriorMeter,
    diagnose,
)

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


# The distribution


def test_kl_is_the_closed_form_in_float64():
    q = gaussian()
    mean, log_variance = q.mean.double(), q.log_variance.double()
    expected = kl_divergence(Normal(mean, (log_variance / 2).exp()), Normal(0.0, 1.0))
    assert q.kl().shape == q.mean.shape
    torch.testing.assert_close(q.kl().double(), expected, rtol=1e-6, atol=1e-7)
    assert torch.equal(Gaussian(torch.zeros(1, 2, 1, 1), torch.zeros(1, 2, 1, 1)).kl(), torch.zeros(1, 2, 1, 1))  # fmt: skip


def test_kl_is_what_monte_carlo_says():
    """The mean of log q(z) - log p(z) over draws from q, within four of its standard errors."""
    q = gaussian(2)
    count, random = 20_000, torch.Generator().manual_seed(1)
    many = Gaussian(q.mean.repeat(count, 1, 1, 1), q.log_variance.repeat(count, 1, 1, 1))
    z = many.sample(random).double().view(count, *q.mean.shape)
    posterior = Normal(q.mean.double(), (q.log_variance.double() / 2).exp())
    ratio = posterior.log_prob(z) - Normal(0.0, 1.0).log_prob(z)
    error = 4 * ratio.std(0) / count**0.5
    assert ((ratio.mean(0) - q.kl().double()).abs() < error + 1e-6).all()


def test_gradients_pass_through_a_sample_to_mean_and_variance():
    """z = mean + exp(log_variance / 2) noise: dz = 1 and (z - mean) / 2."""
    q = gaussian(grad=True)
    z = q.sample(torch.Generator().manual_seed(0))
    by_mean, by_log_variance = torch.autograd.grad(z.sum(), (q.mean, q.log_variance))
    torch.testing.assert_close(by_mean, torch.ones_like(z))
    torch.testing.assert_close(by_log_variance, (z - q.mean).detach() / 2)


def test_a_generator_decides_the_sample():
    q = gaussian()
    first, second = (q.sample(torch.Generator().manual_seed(3)) for _ in range(2))
    assert torch.equal(first, second)
    assert not torch.equal(first, q.sample(torch.Generator().manual_seed(4)))
    torch.manual_seed(0)
    free = q.sample()
    torch.manual_seed(0)
    assert torch.equal(free, q.sample())


def test_a_log_variance_out_of_range_is_held_and_finds_its_way_back():
    """A plain clamp has no gradient there, and the value would stay outside for ever."""
    low, high = LOG_VARIANCE_RANGE
    log_variance = torch.tensor([-1e4, low, -1.5, high, 1e4]).view(1, 5, 1, 1).requires_grad_()
    q = Gaussian(torch.zeros(1, 5, 1, 1), log_variance)
    torch.testing.assert_close(q.log_variance.flatten(), torch.tensor([low, low, -1.5, high, high]))
    assert torch.isfinite(q.kl()).all()
    assert torch.isfinite(q.sample()).all()
    (slope,) = torch.autograd.grad(q.kl().sum(), log_variance)
    expected = (torch.tensor([low, low, -1.5, high, high]).exp() - 1) / 2
    torch.testing.assert_close(slope.flatten(), expected, rtol=1e-4, atol=0)
    inside = torch.linspace(low, high, 1001).view(1, -1, 1, 1)
    assert torch.equal(Gaussian(inside, inside).log_variance, inside)


def test_autocast_gives_the_float32_value():
    low = [value.bfloat16() for value in (gaussian().mean, gaussian().log_variance)]
    exact = Gaussian(*(value.float() for value in low))
    with torch.autocast("cpu", torch.bfloat16):
        found = Gaussian(*low)
        kl, z = found.kl(), found.sample(torch.Generator().manual_seed(0))
    assert kl.dtype == z.dtype == found.mean.dtype == torch.float32
    assert torch.equal(kl, exact.kl())
    assert torch.equal(z, exact.sample(torch.Generator().manual_seed(0)))


# The meter


def epoch(count=6) -> list[Gaussian]:
    return [gaussian(batch=2 + 3 * number, seed=number) for number in range(count)]


def measured(posteriors: list[Gaussian], accelerator: Accelerator):
    meter = PosteriorMeter(DIMS)
    for posterior in posteriors:
        meter.update(posterior)
    return meter.compute(accelerator, "epoch_")


def test_figures_of_many_batches_are_those_of_one(accelerator):
    metrics, per_dimension = measured(epoch(), accelerator)
    means = torch.cat([q.mean for q in epoch()]).double().flatten(1)
    kl = torch.cat([q.kl() for q in epoch()]).double().flatten(1).mean(0)
    active = int((means.var(0, correction=0) > 0.01).sum())
    assert 0 < active < DIMS
    assert metrics == {
        "epoch_kl": pytest.approx(float(kl.sum()), rel=1e-6),
        "epoch_active_units": active,
    }
    assert per_dimension == pytest.approx(kl.tolist(), rel=1e-6, abs=1e-9)


def test_a_dimension_is_active_if_its_mean_moves_not_if_it_costs(accelerator):
    """Burda et al., 2016: a mean that is far from 0 but the same for every image tells nothing."""
    far = torch.full((4, DIMS, 1, 1), 3.0)
    far[:2, 0] = -3
    metrics, per_dimension = measured([Gaussian(far, torch.zeros_like(far))], accelerator)
    assert metrics["epoch_active_units"] == 1
    assert per_dimension == pytest.approx([4.5] * DIMS)


def test_computing_starts_a_new_epoch(accelerator):
    meter = PosteriorMeter(DIMS)
    meter.update(gaussian(seed=9))
    meter.compute(accelerator)
    for posterior in epoch():
        meter.update(posterior)
    assert meter.compute(accelerator, "epoch_") == measured(epoch(), accelerator)


def test_a_restored_meter_counts_on(accelerator):
    stopped, resumed = PosteriorMeter(DIMS), PosteriorMeter(DIMS)
    for posterior in epoch()[:3]:
        stopped.update(posterior)
    resumed.load_state_dict(stopped.state_dict())
    for posterior in epoch()[3:]:
        resumed.update(posterior)
    assert resumed.compute(accelerator, "epoch_") == measured(epoch(), accelerator)


def test_an_empty_epoch_is_no_error(accelerator):
    metrics, per_dimension = measured([], accelerator)
    assert metrics == {"epoch_kl": 0, "epoch_active_units": 0}
    assert per_dimension == [0] * DIMS


def test_two_processes_count_what_one_does(tmp_path, accelerator):
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    done = subprocess.run(
        [*launcher, "--nproc_per_node", "2", __file__, str(tmp_path)],
        env=os.environ
        | {"ACCELERATE_USE_CPU": "true", "PYTHONPATH": str(Path(__file__).parents[2])},
        capture_output=True,
        text=True,
        timeout=120,
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


# The diagnosis


@pytest.mark.parametrize(("kl", "active"), [(0.0, 0), (0.3, 40), (25.0, 3), (5.0, 0)])
def test_a_collapse_is_called_by_its_name(kl, active):
    said = diagnose(kl, active, 64)
    assert said is not None
    assert "posterior has collapsed" in said
    assert f"{active} of 64" in said
    for cure in ("free bits", "warm-up", "smaller beta"):
        assert cure in said


@pytest.mark.parametrize(("kl", "active", "dims"), [(3.0, 2, 2), (1.5, 1, 8), (20.0, 12, 64)])
def test_a_posterior_that_is_used_is_left_in_peace(kl, active, dims):
    assert diagnose(kl, active, dims) is None


if __name__ == "__main__":
    count_share(Path(sys.argv[1]))
