import numpy as np
import pytest

from latent_prior.evaluation.measures import fid
from latent_prior.evaluation.measures.sliced_wasserstein import SlicedReference


def normal(*shape, seed=0):
    return np.random.default_rng(seed).standard_normal(shape)


def slow(first, second, directions):
    """Every value repeated until both sets are equally large, then sorted and paired."""
    total = 0.0
    for direction in directions.astype(np.float64):
        one = np.sort(np.repeat(first @ direction, len(second)))
        two = np.sort(np.repeat(second @ direction, len(first)))
        total += ((one - two) ** 2).mean()
    return total / len(directions) * first.shape[1]


@pytest.mark.parametrize("count", [7, 12, 30])
def test_it_equals_a_slow_reference(count):
    reference = SlicedReference(normal(12, 5))
    other = 0.5 + normal(count, 5, seed=1)
    expected = slow(normal(12, 5), other, reference.directions)
    assert reference.distance(other) == pytest.approx(expected, rel=1e-5)


def test_a_set_is_at_no_distance_from_itself_in_any_order():
    features = normal(40, 6)
    assert SlicedReference(features).distance(features[::-1]) == pytest.approx(0, abs=1e-10)


def test_a_shift_counts_as_in_the_frechet_distance():
    features, shift = normal(300, 8), np.linspace(-1, 1, 8)
    found = SlicedReference(features).distance(features + shift)
    assert found == pytest.approx((shift**2).sum(), rel=0.2)  # 512 random directions
    gaussian = fid.Reference(fid.statistics(features))
    assert fid.frechet_distance(gaussian, features + shift) == pytest.approx((shift**2).sum())


def test_the_directions_depend_on_the_seed_alone():
    features, other = normal(20, 4), normal(9, 4, seed=1)
    assert SlicedReference(features, 1).distance(other) == SlicedReference(features, 1).distance(
        other
    )
    assert SlicedReference(features, 1).distance(other) != SlicedReference(features, 2).distance(
        other
    )
