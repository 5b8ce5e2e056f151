"""Every likelihood against a slow float64 reference, and that its probabilities sum to one."""

import math
from statistics import NormalDist

import pytest
import torch
from torch import Tensor

from latent_prior.losses.likelihoods import BIN_WIDTH, Likelihood, make_likelihood

KINDS = ["gaussian", "laplace", "logistic", "bernoulli"]
SCALED = KINDS[:3]
LEVELS = -1 + 2 * torch.arange(256) / 255


def make(kind="gaussian", *, channels=3, scale=None) -> Likelihood:
    return make_likelihood(kind, channels=channels, scale=scale)


def images(batch=4, channels=3, seed=0) -> Tensor:
    """Every level occurs, the outermost ones often."""
    random = torch.Generator().manual_seed(seed)
    drawn = torch.randint(-40, 296, (batch, channels, 9, 11), generator=random).clamp(0, 255)
    return LEVELS[drawn]


def predictions(batch=4, channels=3, seed=1) -> Tensor:
    return torch.randn(batch, channels, 9, 11, generator=torch.Generator().manual_seed(seed))


def set_scale(likelihood: Likelihood, *scales: float) -> None:
    excess = torch.tensor(scales) - likelihood.floor
    with torch.no_grad():
        likelihood.log_excess.copy_(excess.log() / 10)
    torch.testing.assert_close(likelihood.scale().flatten(), torch.tensor(scales))


def slow_nll(kind: str, x: float, prediction: float, scale: float) -> float:
    """Straight from the definitions, for one value."""
    if kind in ("gaussian", "laplace"):
        prediction = min(1.0, max(-1.0, prediction))
    if kind == "gaussian":
        return -math.log(NormalDist(prediction, scale).pdf(x))
    if kind == "laplace":
        return -math.log(math.exp(-abs(x - prediction) / scale) / (2 * scale))
    if kind == "bernoulli":
        white = 1 / (1 + math.exp(-prediction))
        share = (x + 1) / 2
        return -share * math.log(white) - (1 - share) * math.log(1 - white)

    def below(y: float) -> float:
        return 1 / (1 + math.exp((prediction - y) / scale))

    level = round((x + 1) * 255 / 2)
    upper = 1.0 if level == 255 else below(-1 + (2 * level + 1) / 255)
    return -math.log(upper - (0.0 if level == 0 else below(-1 + (2 * level - 1) / 255)))


@pytest.mark.parametrize(
    ("kind", "scale"), [(kind, None) for kind in KINDS] + [(kind, 0.25) for kind in SCALED]
)
def test_equals_the_definition_in_float64(kind, scale):
    likelihood = make(kind, scale=scale)
    if kind != "bernoulli" and scale is None:
        set_scale(likelihood, 0.2, 0.35, 0.6)
    scales = [0.0] * 3 if kind == "bernoulli" else likelihood.scale().double().flatten().tolist()
    x, prediction = images(), predictions()
    expected = [
        math.fsum(
            slow_nll(kind, float(x[b, c, i, j]), float(prediction[b, c, i, j]), scales[c])
            for c in range(3) for i in range(9) for j in range(11)
        )
        for b in range(4)
    ]  # fmt: skip
    found = likelihood.nll(x, prediction)
    assert found.shape == (4,)
    assert found.detach().tolist() == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("kind", ["gaussian", "laplace"])
@pytest.mark.parametrize("scale", [0.01, 0.2, 1.5])
def test_a_density_with_a_learned_scale_integrates_to_one(kind, scale):
    likelihood = make(kind, channels=1)
    set_scale(likelihood, scale)
    x = torch.linspace(0.3 - 20 * scale, 0.3 + 20 * scale, 20_001).view(-1, 1, 1, 1)
    density = (-likelihood.nll(x, torch.full_like(x, 0.3))).exp().detach().double()
    assert float(torch.trapezoid(density, x.flatten().double())) == pytest.approx(1, abs=1e-5)


@pytest.mark.parametrize("scale", [None, 0.001, 0.02, 0.5, 30.0])
@pytest.mark.parametrize("location", [-4.0, -1.0, 0.1234, 1.0, 2.5])
def test_the_discretised_logistic_sums_to_one(scale, location):
    likelihood = make("logistic", channels=1, scale=scale)
    x = LEVELS.view(-1, 1, 1, 1)
    probabilities = (-likelihood.nll(x, torch.full_like(x, location))).exp()
    assert float(probabilities.detach().double().sum()) == pytest.approx(1, abs=2e-6)


@pytest.mark.parametrize("logit", [-30.0, -1.0, 0.0, 12.0])
def test_bernoulli_sums_to_one_over_black_and_white(logit):
    x = torch.tensor([-1.0, 1.0]).view(-1, 1, 1, 1)
    nll = make("bernoulli").nll(x, torch.full_like(x, logit))
    assert float((-nll).exp().double().sum()) == pytest.approx(1, abs=1e-6)


def test_the_discretised_logistic_is_exact_far_from_its_location():
    """A difference of two sigmoids, as in peers, is 0 there: no finite logarithm, no gradient."""
    x = LEVELS[[1, 128, 254]].view(-1, 1, 1, 1)
    prediction = torch.full_like(x, 5.0, requires_grad=True)
    upper, lower = (
        ((x + shift - 5.0) / 0.01).sigmoid() for shift in (BIN_WIDTH / 2, -BIN_WIDTH / 2)
    )
    assert float((upper - lower).min()) == 0
    nll = make("logistic", channels=1, scale=0.01).nll(x, prediction)
    # In the tail the density is exp((x - location) / scale) / scale, here integrated over a level.
    width = 2 * math.sinh(BIN_WIDTH / 2 / 0.01)
    expected = [(5 - value) / 0.01 - math.log(width) for value in x.flatten().tolist()]
    assert nll.tolist() == pytest.approx(expected, rel=1e-6)
    nll.sum().backward()
    torch.testing.assert_close(prediction.grad, torch.full_like(x, 100.0))


def test_images_between_levels_count_as_the_nearer_one():
    likelihood = make("logistic", scale=0.03)
    off = images() + 0.4 * BIN_WIDTH * (torch.rand(images().shape) * 2 - 1)
    torch.testing.assert_close(
        likelihood.nll(off, predictions()), likelihood.nll(images(), predictions())
    )


@pytest.mark.parametrize("kind", KINDS)
def test_an_image_does_not_depend_on_its_batch(kind):
    likelihood = make(kind)
    whole = likelihood.nll(images(8), predictions(8))
    alone = torch.cat(
        [likelihood.nll(x[None], p[None]) for x, p in zip(images(8), predictions(8), strict=True)]
    )
    torch.testing.assert_close(whole, alone, rtol=1e-6, atol=0)


# The learned scale


@pytest.mark.parametrize("kind", ["gaussian", "laplace"])
def test_gradient_of_the_scale_is_the_closed_form(kind):
    """Per channel n / s - sum e^2 / s^3 and n / s - sum |e| / s^2."""
    likelihood = make(kind)
    set_scale(likelihood, 0.1, 0.4, 2.0)
    likelihood.nll(images(), predictions()).sum().backward()
    error = (images() - predictions().clamp(-1, 1)).double().transpose(0, 1).flatten(1)
    scale = torch.tensor([[0.1], [0.4], [2.0]], dtype=torch.float64)
    pull = error.square() / scale**3 if kind == "gaussian" else error.abs() / scale**2
    by_scale = (1 / scale - pull).sum(1)
    # d scale / d parameter = 10 (scale - floor)
    expected = by_scale * 10 * (scale[:, 0] - likelihood.floor)
    torch.testing.assert_close(likelihood.log_excess.grad.double(), expected, rtol=1e-5, atol=0)


@pytest.mark.parametrize("kind", ["gaussian", "laplace"])
def test_the_best_scale_is_the_error_itself(kind):
    """Per channel: sigma^2 the mean squared error (Rybkin et al., 2021, Eq. 6), b the absolute."""
    error = images() - predictions().clamp(-1, 1)
    best = error.square().mean((0, 2, 3)).sqrt()
    if kind == "laplace":
        best = error.abs().mean((0, 2, 3))
    likelihood = make(kind)
    set_scale(likelihood, *best.tolist())
    likelihood.nll(images(), predictions()).mean().backward()
    # A hundredth off, the gradient of one channel would be about 10 * 99 * 0.02 = 20.
    assert likelihood.log_excess.grad.abs().max() < 1e-2


def test_the_scale_follows_the_error_within_hundreds_of_steps():
    """At a usual learning rate: a logarithm that moves by 0.001 a step would still be far off."""
    likelihood = make("gaussian")
    x, optimizer = images(), torch.optim.AdamW(likelihood.parameters(), lr=1e-3, weight_decay=0)
    off = torch.tensor([0.02, 0.1, 0.6]).view(3, 1, 1)
    near = torch.where(x < 0, x + off, x - off)
    for _ in range(500):
        optimizer.zero_grad()
        likelihood.nll(x, near).mean().backward()
        optimizer.step()
    found = likelihood.scale().flatten()
    torch.testing.assert_close(found, torch.tensor([0.02, 0.1, 0.6]), rtol=0.05, atol=0)


@pytest.mark.parametrize("kind", SCALED)
def test_a_scale_cannot_run_to_zero_and_bits_not_below_it(kind):
    """Where an image is reproduced exactly, an unbounded scale falls for ever."""
    likelihood = make(kind)
    with torch.no_grad():
        likelihood.log_excess.fill_(-10)
    nll = likelihood.nll(images(), images())
    nll.sum().backward()
    assert float(likelihood.scale().detach().min()) == pytest.approx(likelihood.floor)
    assert torch.isfinite(likelihood.log_excess.grad).all()
    assert float(likelihood.bits_per_dim(nll.detach(), 3 * 9 * 11).min()) > -1e-6


# Bits per dimension


@pytest.mark.parametrize("kind", ["gaussian", "laplace"])
def test_bits_of_a_density_are_those_of_the_levels(kind):
    """Close to the exact probability of a level, in bits, because the bin is narrow."""
    likelihood, scale = make(kind, channels=1, scale=0.1), 0.1

    def below(y: float) -> float:
        if kind == "gaussian":
            return NormalDist(0, scale).cdf(y)
        return math.exp(y / scale) / 2 if y < 0 else 1 - math.exp(-y / scale) / 2

    for level in (120, 140, 150):
        x = float(LEVELS[level])
        exact = -math.log2(below(x + BIN_WIDTH / 2) - below(x - BIN_WIDTH / 2))
        nll = likelihood.nll(torch.full((1, 1, 1, 1), x), torch.zeros(1, 1, 1, 1))
        assert float(likelihood.bits_per_dim(nll, 1)) == pytest.approx(exact, abs=2e-3)


def test_uniform_images_have_eight_bits():
    nats = 12 * math.log(256 * BIN_WIDTH)  # of the uniform density over the 256 bins, for 12 values
    assert make("gaussian").bits_per_dim(nats, 12) == pytest.approx(8)
    assert make("logistic").bits_per_dim(12 * math.log(256), 12) == pytest.approx(8)
    assert make("bernoulli").bits_per_dim(12 * math.log(2), 12) == pytest.approx(1)
    several = make("laplace").bits_per_dim(torch.tensor([nats, nats]), 12)
    torch.testing.assert_close(several, torch.tensor([8.0, 8.0]))


# Showing and drawing


@pytest.mark.parametrize("kind", KINDS)
def test_samples_have_the_probabilities_of_the_likelihood(kind):
    """The mean NLL of samples is the entropy, the integral of p log p."""
    likelihood = make(kind, channels=1, scale=None if kind == "bernoulli" else 0.3)
    prediction = torch.full((40_000, 1, 1, 1), 0.2)
    drawn = likelihood.sample(prediction, torch.Generator().manual_seed(0))
    found = float(likelihood.nll(drawn, prediction).detach().mean())
    normal = math.log(0.3 * math.sqrt(2 * math.pi * math.e))
    entropy = {"gaussian": normal, "laplace": math.log(0.6 * math.e)}
    if kind in entropy:
        expected = entropy[kind]
    else:
        x = (LEVELS if kind == "logistic" else torch.tensor([-1.0, 1.0])).view(-1, 1, 1, 1)
        nll = likelihood.nll(x, torch.full_like(x, 0.2))
        expected = float((nll * (-nll).exp()).sum())
        assert not set(drawn.flatten().tolist()) - set(x.flatten().tolist())
    assert found == pytest.approx(expected, abs=0.02)
    assert torch.equal(drawn, likelihood.sample(prediction, torch.Generator().manual_seed(0)))
    if kind != "logistic":  # its tails are cut off
        assert float(drawn.mean()) == pytest.approx(
            float(likelihood.mean(prediction)[0]), abs=0.015
        )


def test_what_is_shown():
    prediction = torch.tensor([-50.0, 0.0, 1.5, 50.0]).view(1, 1, 2, 2)
    for kind in SCALED:
        assert torch.equal(make(kind).mean(prediction), prediction.clamp(-1, 1))
    white = make("bernoulli").mean(prediction).flatten()
    torch.testing.assert_close(white, 2 * prediction.flatten().sigmoid() - 1)


# Precision, state, mistakes


@pytest.mark.parametrize("kind", KINDS)
def test_autocast_gives_the_float32_value(kind):
    likelihood = make(kind)
    low = predictions().bfloat16()
    expected = likelihood.nll(images(), low.float())
    with torch.autocast("cpu", torch.bfloat16):
        found, shown = likelihood.nll(images(), low), likelihood.mean(low)
    assert found.dtype == shown.dtype == torch.float32
    assert torch.equal(found, expected)


@pytest.mark.parametrize("kind", SCALED)
def test_scales_are_saved(kind):
    for scale in (None, 0.3):
        likelihood, other = make(kind, scale=scale), make(kind, scale=scale)
        with torch.no_grad():
            for value in likelihood.state_dict().values():
                value.mul_(1.5)
        assert not torch.equal(other.scale(), likelihood.scale())
        other.load_state_dict(likelihood.state_dict())
        assert torch.equal(other.scale(), likelihood.scale())
        assert len(list(likelihood.parameters())) == (scale is None)


@pytest.mark.parametrize(("kind", "scale"), [("gaussian", 0.0), ("logistic", -1.0)])
def test_a_scale_must_be_positive(kind, scale):
    with pytest.raises(ValueError, match=f"must be positive, not {scale}"):
        make(kind, scale=scale)


def test_bernoulli_has_no_scale():
    with pytest.raises(ValueError, match="no scale"):
        make("bernoulli", scale=0.1)
