"""The posterior against Monte Carlo and float64; the KL loss, its schedules, and two processes."""

import itertools
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.distributions import Normal, kl_divergence

from latent_prior.stage1_autoencoders.gaussian import (
    LOG_VARIANCE_RANGE,
    Gaussian,
    beta_at,
    capacity_at,
    kl_loss,
)

SETTINGS = [
    {"free_bits": 0.0, "capacity": None},
    {"free_bits": 0.4, "capacity": None},
    {"free_bits": 0.0, "capacity": 4.0},
    {"free_bits": 0.4, "capacity": 30.0},
]


def elements(batch=8, seed=0) -> Tensor:
    """KL of posteriors of which some dimensions tell much and others hardly anything."""
    random = torch.Generator().manual_seed(seed)
    use = torch.linspace(0.05, 1.5, 12).view(1, 3, 2, 2)
    mean = use * torch.randn(batch, 3, 2, 2, generator=random)
    log_variance = -use * torch.rand(batch, 3, 2, 2, generator=random)
    return Gaussian(mean, log_variance).kl().requires_grad_()


def slow_loss(kl: Tensor, *, beta: float, free_bits: float, capacity: float | None) -> float:
    per_dimension = kl.detach().double().flatten(1).mean(0).tolist()
    total = sum(max(free_bits, value) for value in per_dimension)
    return beta * abs(total - (capacity or 0))


# The posterior


def gaussian(batch=5, seed=0, grad=False) -> Gaussian:
    """Dimensions from hardly used to telling much."""
    random = torch.Generator().manual_seed(seed)
    use = torch.linspace(0.001, 1.5, 12).view(1, 3, 2, 2)
    mean = use * torch.randn(batch, 3, 2, 2, generator=random)
    log_variance = -3 * use * torch.rand(batch, 3, 2, 2, generator=random)
    return Gaussian(mean.requires_grad_(grad), log_variance.requires_grad_(grad))


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


def test_a_posterior_is_float32_under_autocast():
    low = [value.bfloat16() for value in (gaussian().mean, gaussian().log_variance)]
    exact = Gaussian(*(value.float() for value in low))
    with torch.autocast("cpu", torch.bfloat16):
        found = Gaussian(*low)
        kl, z = found.kl(), found.sample(torch.Generator().manual_seed(0))
    assert kl.dtype == z.dtype == found.mean.dtype == torch.float32
    assert torch.equal(kl, exact.kl())
    assert torch.equal(z, exact.sample(torch.Generator().manual_seed(0)))


def test_a_sample_from_given_noise_is_a_shifted_and_scaled_copy_of_it():
    q = gaussian()
    assert torch.equal(q.from_noise(torch.zeros_like(q.mean)), q.mean)
    noise = torch.randn(q.mean.shape, generator=torch.Generator().manual_seed(3))
    assert torch.equal(q.from_noise(noise), q.sample(torch.Generator().manual_seed(3)))


# Schedules


def beta(step: int, schedule: str, warmup_steps: int = 100, cycles: int = 4) -> float:
    return beta_at(step, beta=0.5, schedule=schedule, warmup_steps=warmup_steps, cycles=cycles)


def test_a_constant_beta():
    assert [beta(step, "constant") for step in (0, 1, 99, 10**6)] == [0.5] * 4


def test_a_linear_beta_rises_once():
    assert [beta(step, "linear") for step in (0, 50, 100, 10**6)] == [0, 0.25, 0.5, 0.5]


def test_a_cyclical_beta_rises_over_half_of_each_cycle_and_stays_after_the_last():
    """Fu et al., 2019, Eqs. 6-7, with R = 0.5: cycles of 25 steps."""
    steps = [0, 5, 12, 13, 24, 25, 30, 50, 75, 99, 100, 101, 10**6]
    found = [beta(step, "cyclical") for step in steps]
    expected = [0, 0.2, 0.48, 0.5, 0.5, 0, 0.2, 0, 0, 0.5, 0.5, 0.5, 0.5]
    assert found == pytest.approx(expected)
    assert [beta(step, "cyclical", cycles=1) for step in (0, 25, 50, 75)] == [0, 0.25, 0.5, 0.5]


@pytest.mark.parametrize("schedule", ["constant", "linear", "cyclical"])
def test_without_a_warm_up_every_schedule_is_constant(schedule):
    assert beta(0, schedule, warmup_steps=0) == 0.5


def test_cycles_that_do_not_divide_the_warm_up_stay_in_range():
    found = [beta(step, "cyclical", warmup_steps=10, cycles=3) for step in range(12)]
    assert all(0 <= value <= 0.5 for value in found)
    assert sum(later < earlier for earlier, later in itertools.pairwise(found)) == 2


def test_capacity_grows_to_its_target():
    found = [capacity_at(step, capacity=20.0, warmup_steps=10) for step in (0, 5, 10, 99)]
    assert found == [0, 10, 20, 20]
    assert capacity_at(0, capacity=20.0, warmup_steps=0) == 20


# The loss


@pytest.mark.parametrize("settings", SETTINGS)
def test_equals_the_definition_in_float64(settings):
    found = kl_loss(elements(), beta=0.7, **settings)
    expected = slow_loss(elements(), beta=0.7, **settings)
    assert float(found.detach()) == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("settings", SETTINGS)
def test_does_not_depend_on_the_batch_size(settings):
    """A sum over the batch, as in a peer, would double the KL against the reconstruction."""
    once, twice = elements(), torch.cat([elements(), elements()])
    assert float(twice.detach().sum()) > 1.9 * float(once.detach().sum())
    losses = [kl_loss(kl, beta=1.0, **settings).detach() for kl in (once, twice)]
    torch.testing.assert_close(*losses)


def gradient(**settings: float | None) -> Tensor:
    kl = elements()
    kl_loss(kl, beta=0.7, **settings).backward()
    return kl.grad


def test_no_free_bits_and_no_capacity_are_the_plain_kl():
    plain = torch.full((8, 3, 2, 2), 0.7 / 8)
    torch.testing.assert_close(gradient(), plain)
    torch.testing.assert_close(gradient(free_bits=0.0, capacity=0.0), plain)
    torch.testing.assert_close(gradient(free_bits=1e-9), plain)


def test_many_free_bits_are_a_constant_without_gradient():
    loss = kl_loss(elements(), beta=0.7, free_bits=100.0)
    assert float(loss.detach()) == pytest.approx(0.7 * 100 * 12)
    assert torch.equal(gradient(free_bits=100.0), torch.zeros(8, 3, 2, 2))


def test_free_bits_charge_dimensions_by_their_mean_over_the_batch():
    """Not each image by its own KL, and not the sum of dimensions (Kingma et al., 2016, Eq. 15)."""
    kl = torch.tensor([[0.0, 0.1], [1.0, 0.1]]).view(2, 2, 1, 1).requires_grad_()
    loss = kl_loss(kl, beta=1.0, free_bits=0.3)
    loss.backward()
    assert float(loss.detach()) == pytest.approx(0.5 + 0.3)
    assert kl.grad.flatten().tolist() == [0.5, 0, 0.5, 0]


def test_capacity_draws_from_both_sides():
    total = float(elements().detach().flatten(1).sum(1).mean())
    below, above = gradient(capacity=total + 1), gradient(capacity=total - 1)
    torch.testing.assert_close(below, torch.full_like(below, -0.7 / 8))
    torch.testing.assert_close(above, -below)


def test_a_nan_is_not_hidden_by_free_bits():
    kl = elements().detach()
    kl[0, 0, 0, 0] = torch.nan
    assert kl_loss(kl, beta=1.0, free_bits=0.5).isnan()


@pytest.mark.parametrize("settings", SETTINGS)
def test_autocast_gives_the_float32_value(settings):
    low = elements().detach().bfloat16()
    expected = kl_loss(low.float(), beta=0.7, **settings)
    with torch.autocast("cpu", torch.bfloat16):
        found = kl_loss(low, beta=0.7, **settings)
    assert found.dtype == torch.float32
    assert torch.equal(found, expected)


# Processes


def losses_and_gradients(kl: Tensor) -> dict[str, Tensor]:
    found = {}
    for number, settings in enumerate(SETTINGS):
        part = kl.detach().clone().requires_grad_()
        loss = kl_loss(part, beta=0.7, **settings)
        loss.backward()
        found[f"loss{number}"], found[f"gradient{number}"] = loss.detach(), part.grad
    return found


def compute_share(rank: int, folder: Path) -> None:
    """In one of two processes, with its half of the batch."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2)
    found = losses_and_gradients(skewed_batch().chunk(2)[rank])
    save_file(found, folder / f"{rank}.safetensors")
    dist.destroy_process_group()


def skewed_batch() -> Tensor:
    """Each half alone would charge other dimensions and be on the other side of a capacity."""
    kl = elements().detach()
    return torch.cat([kl[:4] * 0.05, kl[4:]])


def test_two_processes_equal_one_with_the_joint_batch(tmp_path: Path):
    processes = [
        subprocess.Popen(
            [sys.executable, __file__, str(rank), str(tmp_path)],
            env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])},
        )
        for rank in range(2)
    ]
    assert [process.wait(timeout=900) for process in processes] == [0, 0]
    ranks = [load_file(tmp_path / f"{rank}.safetensors") for rank in range(2)]
    joint = losses_and_gradients(skewed_batch())
    halves = [losses_and_gradients(half) for half in skewed_batch().chunk(2)]
    for number in range(len(SETTINGS)):
        loss, grad = f"loss{number}", f"gradient{number}"
        torch.testing.assert_close((ranks[0][loss] + ranks[1][loss]) / 2, joint[loss])
        # Data parallel training takes the mean of the gradients.
        together = torch.cat([rank[grad] for rank in ranks]) / 2
        torch.testing.assert_close(together, joint[grad])
    apart = torch.cat([half["gradient1"] for half in halves]) / 2
    assert not torch.allclose(apart, joint["gradient1"])  # so the test can fail
    apart = torch.cat([half["gradient2"] for half in halves]) / 2
    assert not torch.allclose(apart, joint["gradient2"])


if __name__ == "__main__":
    compute_share(int(sys.argv[1]), Path(sys.argv[2]))
