import pytest
import torch
from torch.distributions import Categorical, Independent, MixtureSameFamily, Normal

from latent_prior.stage2_prior.mixtures import (
    CANDIDATES,
    SMALLEST_DEVIATION,
    Mixture,
    mixture_of,
    num_outputs,
    sample,
    sample_guided,
    uniforms_per_vector,
)
from tests.stage2_prior.samples import chance_of


def random_mixture(*shape: int, mixtures: int, numbers: int, seed: int = 0) -> Mixture:
    generator = torch.Generator().manual_seed(seed)
    outputs = torch.randn(*shape, num_outputs(mixtures, numbers), generator=generator)
    return mixture_of(2 * outputs, mixtures)


def uniforms(*shape: int, seed: int = 1) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.rand(*shape, dtype=torch.float64, generator=generator)


def reference(mixture: Mixture) -> MixtureSameFamily:
    weights, means, deviations = (x.double() for x in mixture)
    return MixtureSameFamily(Categorical(logits=weights), Independent(Normal(means, deviations), 1))


@pytest.mark.parametrize(("mixtures", "numbers"), [(1, 1), (5, 1), (4, 3)])
def test_the_density_is_that_of_torch(mixtures, numbers):
    mixture = random_mixture(6, 7, mixtures=mixtures, numbers=numbers)
    values = 3 * torch.randn(6, 7, numbers, generator=torch.Generator().manual_seed(2))
    expected = reference(mixture).log_prob(values.double())
    weights, means, deviations = (x.double() for x in mixture)
    exact = Mixture(weights.log_softmax(-1), means, deviations).log_density(values.double())
    torch.testing.assert_close(exact, expected, rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(mixture.log_density(values).double(), expected, rtol=1e-4, atol=1e-4)


def test_far_from_all_gaussians_the_density_is_finite_and_so_is_its_gradient():
    outputs = torch.zeros(1, num_outputs(3, 2), requires_grad=True)
    log_density = mixture_of(outputs, 3).log_density(torch.full((1, 2), 1e4))
    log_density.sum().backward()
    assert log_density.isfinite().all()
    assert outputs.grad.isfinite().all()


def test_a_heads_numbers_are_weights_means_and_deviations():
    outputs = torch.arange(2 * (1 + 2 * 3)).float()
    mixture = mixture_of(outputs, 2)
    torch.testing.assert_close(mixture.log_weights, torch.tensor([0.0, 1.0]).log_softmax(-1))
    assert mixture.means.tolist() == [[2, 3, 4], [5, 6, 7]]
    raw = torch.tensor([[8.0, 9, 10], [11, 12, 13]])
    torch.testing.assert_close(mixture.deviations, raw.exp().log1p() + SMALLEST_DEVIATION)
    narrow = mixture_of(torch.full((7,), -100.0), 1)
    assert (narrow.deviations == SMALLEST_DEVIATION).all()


def test_draws_have_the_density_of_the_mixture():
    """Each number through its distribution function, given those before it, is uniform."""
    mixture, count = random_mixture(1, mixtures=3, numbers=2, seed=3), 100_000
    drawn = sample(mixture, uniforms(1, count, 3), 1.0)[0].double()
    weights, means, deviations = (x[0].double() for x in mixture)
    functions = Normal(means, deviations)
    below = functions.cdf(drawn.unsqueeze(1))  # (count, 3, 2)
    first = (weights.exp() * below[:, :, 0]).sum(1)
    given = (weights + functions.log_prob(drawn.unsqueeze(1))[:, :, 0]).softmax(1)
    second = (given * below[:, :, 1]).sum(1)
    cells = (first * 10).long().clamp(0, 9) * 10 + (second * 10).long().clamp(0, 9)
    assert chance_of(cells.bincount(minlength=100), torch.full((100,), 0.01)) > 1e-3

    mean = weights.exp() @ means
    spread = deviations**2 + means**2
    variance = weights.exp() @ spread - mean**2
    assert ((drawn.mean(0) - mean).abs() < 4 * (variance / count).sqrt()).all()
    torch.testing.assert_close(drawn.var(0), variance, rtol=0.03, atol=0)


def test_the_largest_and_smallest_random_numbers_give_finite_draws():
    mixture = random_mixture(1, mixtures=3, numbers=2)
    for edge in (0.0, 1 - 2**-53):
        assert (
            sample(mixture, torch.full((1, 1, 3), edge, dtype=torch.float64), 1.0).isfinite().all()
        )


@pytest.mark.parametrize("temperature", [0.0, 0.5, 1.0])
def test_temperature_scales_the_deviations_and_leaves_weights_and_means(temperature):
    mixture = random_mixture(4, mixtures=3, numbers=2)
    numbers = uniforms(4, 50, 3)
    drawn = sample(mixture, numbers, temperature)
    at_zero = sample(mixture, numbers, 0.0)
    torch.testing.assert_close(drawn - at_zero, temperature * (sample(mixture, numbers, 1.0) - at_zero))  # fmt: skip
    distances = (at_zero.unsqueeze(2) - mixture.means.unsqueeze(1)).abs().amax(-1)
    assert (distances.amin(-1) == 0).all()  # each is the mean of one of the Gaussians


def one_number(means, deviations, weights) -> Mixture:
    columns = (torch.tensor(x).view(1, -1, 1) for x in (means, deviations))
    return Mixture(torch.tensor(weights).log().view(1, -1), *columns)


CONDITIONAL = one_number([-1.0, 1.0, 2.5], [0.5, 0.7, 0.4], [0.3, 0.5, 0.2])
UNCONDITIONAL = one_number([-0.5, 1.5], [1.2, 1.5], [0.6, 0.4])


def guided_draws(scale, count=50_000, temperature=1.0):
    conditional, unconditional = (
        Mixture(*(x.expand(count, *x.shape[1:]) for x in each))
        for each in (CONDITIONAL, UNCONDITIONAL)
    )
    numbers = uniforms(count, uniforms_per_vector(1, guided=True))
    return sample_guided(conditional, unconditional, numbers, temperature, scale)[:, 0].double()


@pytest.mark.parametrize("scale", [0.0, 0.5, 1.0, 1.5, 3.0])
def test_guided_draws_have_the_density_that_guidance_means(scale):
    """p(z | class)^s p(z)^(1 - s), normalised on a fine grid, up to the bias of 32 candidates.

    With weights w of mean 1 under the proposal q, N candidates give q(z) w(z) times
    1 + (var w + 1 - w(z)) / N up to O(1 / N^2). The draws' shares of 40 bins differ from the
    density's by that and by chance; for the scales 0 and 1, without weights, by chance alone.
    """
    grid = torch.linspace(-8, 10, 180_001, dtype=torch.float64).unsqueeze(1)
    given_class, without_class = (
        Mixture(*(x.double() for x in each)).log_density(grid)
        for each in (CONDITIONAL, UNCONDITIONAL)
    )
    proposal = (given_class if scale > 0.5 else without_class).exp()
    proposal = proposal / proposal.sum()
    weight = (scale * given_class + (1 - scale) * without_class).exp() / proposal
    weight = weight / (weight * proposal).sum()
    variance = float((proposal * weight**2).sum()) - 1
    drawn = guided_draws(scale)
    bins = ((grid[:, 0] + 3) / 7 * 40).long().clamp(0, 39)
    target = torch.zeros(40, dtype=torch.float64).index_add(0, bins, proposal * weight)
    left = torch.zeros(40, dtype=torch.float64).index_add(
        0, bins, proposal * weight * (variance + 1 - weight) / CANDIDATES
    )
    shares = ((drawn + 3) / 7 * 40).long().clamp(0, 39).bincount(minlength=40) / len(drawn)
    chance = 4.5 * (target / len(drawn)).sqrt() + 1e-4
    second_order = target * ((variance + weight.max()) / CANDIDATES) ** 2
    assert ((shares - target - left).abs() < chance + second_order).all()
    assert (shares - target).abs().sum() / 2 < 0.05  # total variation, in all
    if scale != 1:  # the guidance is seen
        plain = torch.zeros(40, dtype=torch.float64).index_add(
            0, bins, given_class.exp() / given_class.exp().sum()
        )
        assert (shares - plain).abs().sum() > 2 * (shares - target).abs().sum()


def test_guidance_towards_itself_is_no_guidance():
    count = 50_000
    mixture = Mixture(*(x.expand(count, *x.shape[1:]) for x in CONDITIONAL))
    numbers = uniforms(count, uniforms_per_vector(1, guided=True))
    drawn = sample_guided(mixture, mixture, numbers, 1.0, 5.0)[:, 0].double()
    weights, means, deviations = (x[0].double() for x in CONDITIONAL)
    below = Normal(means[:, 0], deviations[:, 0]).cdf(drawn.unsqueeze(1))
    cells = ((weights.exp() * below).sum(1) * 20).long().clamp(0, 19)
    assert chance_of(cells.bincount(minlength=20), torch.full((20,), 0.05)) > 1e-3
    assert torch.equal(sample_guided(mixture, mixture, numbers, 1.0, 1.0)[:, 0].double(), drawn)


def test_guided_draws_at_temperature_zero_are_means():
    drawn = guided_draws(2.0, count=200, temperature=0.0)
    assert set(drawn.tolist()) <= {float(mean) for mean in CONDITIONAL.means.flatten()}


def test_a_guided_draw_takes_as_many_numbers_as_it_says():
    assert uniforms_per_vector(4, guided=False) == 5
    assert uniforms_per_vector(4, guided=True) == CANDIDATES * 5 + 1
