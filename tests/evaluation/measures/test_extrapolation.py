import math

import numpy as np
import pytest

from latent_prior.evaluation.measures import fid
from latent_prior.evaluation.measures.extrapolation import POINTS, at_infinity, random_subsets


def sources(dimension):
    """Two Gaussians whose variances decay as those of features do; the second as its moments."""
    variances = 1 / np.arange(1.0, dimension + 1)
    others = 1.2 * variances * np.exp(0.3 * np.sin(np.arange(dimension)))
    mean = 0.3 * np.sqrt(variances) * np.cos(np.arange(dimension))
    reference = fid.Reference(fid.Gaussian(np.zeros(dimension), np.diag(variances)))
    return reference, mean, others


def distance_curve(reference, features, *, seed):
    subsets = random_subsets(features, reference.rank, seed=seed)
    return [(size, fid.frechet_distance(reference, subset)) for size, subset in subsets][::-1]


def draw(count, mean, variances, seed):
    noise = np.random.default_rng(seed).normal(size=(count, len(mean)))
    return noise * np.sqrt(variances) + mean


@pytest.mark.parametrize(("count", "dimension"), [(200, 16), (120, 80), (60, 80)])
def test_a_curve_goes_to_all_images_in_even_steps_of_1_over_n(count, dimension):
    reference, mean, variances = sources(dimension)
    found = draw(count, mean, variances, 0)
    curve = distance_curve(reference, found, seed=3)
    sizes = np.array([size for size, _ in curve])
    assert len(curve) == POINTS
    assert sizes[0] == count / 2
    assert sizes[-1] == count
    steps = np.diff(1 / sizes) * count
    np.testing.assert_allclose(steps, steps.mean(), atol=2 / sizes[0] + 0.02)
    assert curve[-1][1] == pytest.approx(fid.frechet_distance(reference, found), rel=1e-9)


@pytest.mark.parametrize(("count", "dimension"), [(50, 6), (50, 40), (30, 40)])
def test_the_points_are_distances_of_subsets_that_follow_each_other(count, dimension):
    reference, mean, variances = sources(dimension)
    found = draw(count, mean, variances, 1)
    order = np.random.default_rng(5).permutation(count)
    start = 0
    for size, distance in distance_curve(reference, found, seed=5):
        rows = order[(start + np.arange(size)) % count]
        expected = fid.frechet_distance(reference, fid.statistics(found[rows]))
        assert distance == pytest.approx(expected, rel=1e-6)
        start += size


def test_a_curve_is_seeded():
    reference, mean, variances = sources(8)
    found = draw(60, mean, variances, 0)
    curves = [distance_curve(reference, found, seed=seed) for seed in (0, 0, 1)]
    assert curves[0] == curves[1]
    assert curves[0][:-1] != curves[2][:-1]
    assert curves[0][-1][1] == pytest.approx(curves[2][-1][1], rel=1e-9)


def test_few_images_have_short_curves():
    reference, mean, variances = sources(8)
    for count, points in ((2, 1), (3, 2), (4, 3), (6, 4)):
        curve = distance_curve(reference, draw(count, mean, variances, 0), seed=0)
        assert len(curve) == points
        assert curve[-1][0] == count
        assert all(math.isfinite(distance) for _, distance in curve)
    still = distance_curve(reference, np.full((40, 8), 0.1), seed=0)
    assert at_infinity(still) == (pytest.approx(still[0][1]), pytest.approx(0, abs=1e-6))


def test_a_straight_line_is_followed_to_infinity():
    curve = [(size, 3.0 + 70 / size) for size in (50, 60, 80, 100)]
    assert at_infinity(curve) == (pytest.approx(3), pytest.approx(0, abs=1e-9))
    with pytest.raises(AssertionError, match="three sizes"):
        at_infinity(curve[:2])


def test_the_standard_error_is_that_of_least_squares():
    curve = [(50, 2.0), (60, 1.7), (75, 1.8), (90, 1.4), (100, 1.5)]
    sizes, distances = np.array(curve).T
    (_, intercept), covariance = np.polyfit(1 / sizes, distances, 1, cov=True)
    assert at_infinity(curve) == pytest.approx((intercept, math.sqrt(covariance[1, 1])))


def test_infinity_is_the_distance_of_the_sources_within_its_error():
    reference, mean, variances = sources(64)
    true = fid.frechet_distance(reference, fid.Gaussian(mean, np.diag(variances)))
    found = [draw(600, mean, variances, seed) for seed in range(40)]
    curves = [distance_curve(reference, one, seed=seed) for seed, one in enumerate(found)]
    ends = np.array([curve[-1][1] for curve in curves])
    intercepts, errors = np.array([at_infinity(curve) for curve in curves]).T
    assert ends.mean() - true > 10 * ends.std() / math.sqrt(40)  # too few images: too far
    assert abs(intercepts.mean() - true) < 0.25 * (ends.mean() - true)
    assert np.sqrt((errors**2).mean()) == pytest.approx(intercepts.std(), rel=0.4)


def test_fewer_images_than_features_still_come_closer():
    """A line down to a tenth of the images would end above the distance of all of them."""
    reference, mean, variances = sources(256)
    true = fid.frechet_distance(reference, fid.Gaussian(mean, np.diag(variances)))
    found = draw(200, mean, variances, 0)
    end = fid.frechet_distance(reference, found)
    intercept, _ = at_infinity(distance_curve(reference, found, seed=0))
    assert abs(intercept - true) < 0.25 * (end - true)
    wide = [
        (size, fid.frechet_distance(reference, found[:size]))
        for size in (20, 24, 29, 36, 50, 80, 200)
    ]
    assert at_infinity(wide)[0] > end
