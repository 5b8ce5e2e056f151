import itertools
import math
import typing

import pytest
import torch

from latent_prior.stage2_prior.logits import (
    apply_guidance,
    apply_temperature,
    choose,
    draw_uniforms,
    filter_logits,
    guidance_scales,
    keep_top_k,
    keep_top_p,
)
from latent_prior.stage2_prior.sampler import GuidanceSchedule, Sampler

K = 13


@pytest.fixture
def logits():
    return torch.randn(40, K, generator=torch.Generator().manual_seed(1)) * 3


def kinds_of_logits(dtype):
    """Rows of every kind: spread, many ties, a sure code, excluded codes, all the same."""
    random = torch.Generator().manual_seed(6)
    spread = torch.randn(30, K, generator=random, dtype=dtype) * 3
    tied = torch.randint(-2, 3, (30, K), generator=random).to(dtype)
    sure = torch.full((2, K), -80.0, dtype=dtype)
    sure[:, 4] = 5.0
    excluded = torch.cat((spread[:8], tied[:8]))
    excluded[:, ::3] = -math.inf
    return torch.cat((spread, tied, sure, excluded, torch.zeros(2, K, dtype=dtype)))


def slow_top_k(row, k):
    kept = sorted(row, reverse=True)[:k] if k else row
    return [value if value in kept else -math.inf for value in row]


def slow_top_p(row, p):
    """The definition, one code at a time, in float64."""
    if p == 1:
        return row
    weights = [math.exp(value - max(row)) for value in row]
    mass, kept = 0.0, []
    for code in sorted(range(len(row)), key=lambda code: -row[code]):
        if mass < p:
            kept.append(code)
        mass += weights[code] / sum(weights)
    return [value if code in kept else -math.inf for code, value in enumerate(row)]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("k", [0, 1, 2, 5, K - 1, K, K + 5])
def test_top_k_is_the_slow_reference(dtype, k):
    logits = kinds_of_logits(dtype)
    expected = [slow_top_k(row, k) for row in logits.tolist()]
    assert keep_top_k(logits, k).tolist() == expected
    assert filter_logits(logits, Sampler(top_k=k)).tolist() == expected


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("p", [1e-6, 0.11, 0.52, 0.9, 0.9991, 1.0])
def test_top_p_is_the_slow_reference(dtype, p):
    logits = kinds_of_logits(dtype)
    expected = [slow_top_p(row, p) for row in logits.tolist()]
    assert keep_top_p(logits, p).tolist() == expected
    assert keep_top_p(logits.view(2, -1, K), p).flatten(0, 1).tolist() == expected


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("temperature", [0.5, 1.0, 1.7])
@pytest.mark.parametrize("k", [1, 4, K - 2, K])
@pytest.mark.parametrize("p", [0.21, 0.83, 1.0])
def test_a_filter_is_temperature_then_top_k_then_top_p(dtype, temperature, k, p):
    logits = kinds_of_logits(dtype)
    warmed = (logits / temperature).tolist()
    expected = [slow_top_p(slow_top_k(row, k), p) for row in warmed]
    assert (
        filter_logits(logits, Sampler(temperature=temperature, top_k=k, top_p=p)).tolist()
        == expected
    )


def test_a_filter_takes_the_likeliest_code_at_temperature_zero(logits):
    for temperature in (0.0, 1e-300, 1e-30):
        sampler = Sampler(temperature=temperature, top_k=5, top_p=0.5)
        kept = filter_logits(logits, sampler).isfinite()
        assert torch.equal(kept.nonzero()[:, 1], logits.argmax(-1))


@pytest.mark.parametrize("num_codes", [1, 2, 300, 5000])
def test_filters_of_any_size_leave_the_nucleus_and_the_input(num_codes):
    logits = torch.randn(7, num_codes, generator=torch.Generator().manual_seed(7))
    before = logits.clone()
    with torch.inference_mode():
        kept = filter_logits(logits, Sampler(top_k=200, top_p=0.9)).isfinite()
    assert torch.equal(logits, before)
    among = keep_top_k(logits, 200).double().softmax(-1)
    mass = (among * kept).sum(-1)
    smallest = torch.where(kept, among, 2.0).amin(-1)
    assert (mass >= 0.9 - 1e-6).all()
    assert (mass - smallest < 0.9 + 1e-6).all()
    assert (torch.where(kept, -1.0, among).amax(-1) <= smallest).all()


def test_top_p_keeps_the_code_that_reaches_p_and_breaks_ties_by_number():
    # Softmax gives exact quarters; the second row has no tie that rounding could decide.
    logits = torch.tensor([[0.25, 0.25, 0.25, 0.25], [0.55, 0.25, 0.2, 0.0]]).log()
    kept = keep_top_p(logits, 0.5).isfinite()
    assert kept.tolist() == [[True, True, False, False], [True, False, False, False]]
    assert keep_top_p(logits[:1], 0.75).isfinite().tolist() == [[True, True, True, False]]
    # The peers' `mass > p` without the shift by one loses the only code of a sure distribution.
    sure = torch.tensor([[0.0, -50.0, -50.0]])
    assert keep_top_p(sure, 0.3).isfinite().tolist() == [[True, False, False]]


def test_what_is_off_does_no_work(logits):
    assert keep_top_p(logits, 1.0) is logits
    assert keep_top_k(logits, 0) is logits
    assert apply_temperature(logits, 1.0) is logits
    assert apply_guidance(logits, logits + 1, 1.0) is logits


def test_temperature(logits):
    assert torch.equal(apply_temperature(logits, 0.5), logits * 2)
    greedy = apply_temperature(logits, 0.0)
    assert torch.equal(greedy.isfinite().sum(-1), torch.ones(40, dtype=torch.long))
    assert torch.equal(greedy.argmax(-1), logits.argmax(-1))
    nearly = apply_temperature(logits, 1e-4)
    for uniform in (0.0, 0.5, 1 - 1e-9):
        uniforms = torch.full((40,), uniform, dtype=torch.float64)
        assert torch.equal(choose(greedy, uniforms), logits.argmax(-1))
        assert torch.equal(choose(nearly, uniforms), logits.argmax(-1))


@pytest.mark.parametrize("scale", [0.0, 0.3, 1.0, 1.5, 7.0])
def test_guidance_moves_along_the_difference_whatever_the_constants(logits, scale):
    unconditional = logits.flip(0)
    expected = unconditional.double() + scale * (logits.double() - unconditional.double())
    guided = apply_guidance(logits, unconditional, scale)
    torch.testing.assert_close(guided.double(), expected, rtol=0, atol=2e-5)
    normalised = apply_guidance(logits.log_softmax(-1), unconditional.log_softmax(-1), scale)
    torch.testing.assert_close(normalised.softmax(-1), guided.softmax(-1))


def test_guidance_towards_itself_changes_no_bit(logits):
    assert torch.equal(apply_guidance(logits, logits.clone(), 3.7), logits)


@pytest.mark.parametrize("schedule", typing.get_args(GuidanceSchedule))
@pytest.mark.parametrize("scale", [0.0, 0.1, 1.0, 3.3])
def test_guidance_rises_from_none_to_the_full_scale(schedule, scale):
    scales = guidance_scales(Sampler(scale, schedule), 9)
    assert len(scales) == 9
    assert scales[0] == (scale if schedule == "constant" else 1.0)
    assert scales[-1] == scale  # no rounding: a scale of 1 must be seen as none
    gains = [abs(after - 1) - abs(before - 1) for before, after in itertools.pairwise(scales)]
    assert min(gains) >= (0 if schedule == "constant" or scale == 1 else 1e-3)
    assert guidance_scales(Sampler(scale, schedule), 1) == [scale]


def test_guidance_schedules_are_their_papers_formulas():
    # VAR and MAR: 1 + (w - 1) i / (n - 1).
    # RAR: power cosine of power 1, half way at the middle, slower at both ends.
    linear = guidance_scales(Sampler(5.0, "linear"), 5)
    assert linear == pytest.approx([1, 2, 3, 4, 5])
    cosine = guidance_scales(Sampler(5.0, "cosine"), 5)
    root = math.sqrt(0.5)
    assert cosine == pytest.approx([1, 3 - 2 * root, 3, 3 + 2 * root, 5])


@pytest.mark.parametrize("schedule", typing.get_args(GuidanceSchedule))
def test_guidance_is_none_outside_its_interval_and_the_same_inside(schedule):
    whole = guidance_scales(Sampler(4.0, schedule), 11)
    part = guidance_scales(Sampler(4.0, schedule, (0.3, 0.8)), 11)
    assert part[3:9] == whole[3:9]
    assert part[:3] + part[9:] == [1.0] * 5


def test_choice_is_the_slow_inverse_of_the_distribution(logits):
    uniforms = torch.rand(40, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    probabilities = logits.double().softmax(-1)
    expected = [
        next(code for code in range(K) if sum(row[: code + 1]) > uniform)
        for row, uniform in zip(probabilities.tolist(), uniforms.tolist(), strict=True)
    ]
    assert choose(logits, uniforms).tolist() == expected


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_choice_at_the_ends_never_takes_an_excluded_code(dtype):
    logits = torch.randn(500, 1000, generator=torch.Generator().manual_seed(3))
    logits[:, :3] = -math.inf
    logits[:, -5:] = -math.inf
    logits[:, 10:20] = -200.0  # a probability that is 0 in float32
    below_one = torch.nextafter(torch.ones(500, dtype=dtype), torch.zeros(500, dtype=dtype))
    for uniforms in (torch.zeros(500, dtype=dtype), below_one, torch.ones(500, dtype=dtype)):
        chosen = choose(logits, uniforms)
        assert (logits.gather(1, chosen.unsqueeze(1)) > -100).all()
    assert (choose(logits, torch.zeros(500, dtype=dtype)) == 3).all()
    assert (choose(logits, below_one) > 900).all()


@pytest.mark.parametrize(
    ("temperature", "top_k", "top_p", "possible"),
    [(1.0, 0, 1.0, 5), (0.7, 4, 1.0, 4), (1.5, 0, 0.95, 4), (1.3, 4, 0.9, 3), (1.0, 1, 0.5, 1)],
)
def test_choice_has_the_right_frequencies(temperature, top_k, top_p, possible):
    logits = torch.tensor([1.0, -1.0, 0.0, -math.inf, 2.0, -3.0])
    count = 100_000
    uniforms = torch.rand(count, dtype=torch.float64, generator=torch.Generator().manual_seed(4))
    filtered = filter_logits(
        logits.expand(count, -1), Sampler(temperature=temperature, top_k=top_k, top_p=top_p)
    )
    observed = choose(filtered, uniforms).bincount(minlength=6)
    row = [value / temperature for value in logits.tolist()]
    expected = torch.tensor(slow_top_p(slow_top_k(row, top_k), top_p)).softmax(-1) * count
    seen = expected > 0
    assert seen.sum() == possible
    assert not observed[~seen].any()
    chi_squared = ((observed - expected)[seen] ** 2 / expected[seen]).sum()
    assert chi_squared < 18.5  # 0.1 % of the distribution with 4 degrees of freedom


def test_uniforms_are_drawn_image_after_image():
    whole = draw_uniforms(5, 7, torch.Generator().manual_seed(0))
    assert whole.shape == (5, 7)
    parted = torch.Generator().manual_seed(0)
    parts = [draw_uniforms(count, 7, parted) for count in (2, 1, 2)]
    assert torch.equal(torch.cat(parts), whole)


def test_uniforms_of_one_generator_each_depend_on_nothing_else():
    def generators(seeds):
        return [torch.Generator().manual_seed(seed) for seed in seeds]

    together = draw_uniforms(3, 7, generators((4, 5, 6)))
    assert torch.equal(draw_uniforms(2, 7, generators((6, 4))), together[[2, 0]])
    with pytest.raises(ValueError, match="3 images need one generator, or one each, not 2"):
        draw_uniforms(3, 7, generators((1, 2)))


def test_uniforms_without_a_generator_follow_the_global_seed():
    torch.manual_seed(3)
    first = draw_uniforms(2, 4, None)
    torch.manual_seed(3)
    assert torch.equal(draw_uniforms(2, 4, None), first)
