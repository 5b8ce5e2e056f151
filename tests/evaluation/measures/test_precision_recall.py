import math

import numpy as np
import pytest

from latent_prior.evaluation.measures import precision_recall
from latent_prior.evaluation.measures.precision_recall import (
    authenticity,
    manifolds,
    nearest,
    radii,
)


def cloud(count, seed, shift=0.0, scale=1.0, dimension=6):
    values = np.random.default_rng(seed).normal(size=(count, dimension)) * scale + shift
    return values.astype(np.float32)


def distances(first, second):
    difference = first.astype(np.float64)[:, None] - second.astype(np.float64)[None]
    return np.sqrt((difference**2).sum(2))


def slow_radius(features, k):
    return np.array(
        [
            sorted(math.dist(x, y) for j, y in enumerate(features) if j != i)[k - 1]
            for i, x in enumerate(features)
        ]
    )


def slow_manifolds(reference, found):
    """The papers' sums, term by term."""
    between = distances(reference, found)
    near, wide, found_near = (
        slow_radius(reference, 3),
        slow_radius(reference, 5),
        slow_radius(found, 3),
    )
    precise = recalled = covered = 0
    held = 0
    for j in range(len(found)):
        precise += any(between[i, j] <= near[i] for i in range(len(reference)))
        held += sum(between[i, j] <= wide[i] for i in range(len(reference)))
    for i in range(len(reference)):
        recalled += any(between[i, j] <= found_near[j] for j in range(len(found)))
        covered += any(between[i, j] <= wide[i] for j in range(len(found)))
    return (
        precise / len(found),
        recalled / len(reference),
        held / (5 * len(found)),
        covered / len(reference),
    )


@pytest.fixture(
    params=[(1024, 4096), (7, 3)]
)  # in one block, and in many of which some have fewer than k columns
def _blocks(request, monkeypatch):
    monkeypatch.setattr(precision_recall, "QUERIES", request.param[0])
    monkeypatch.setattr(precision_recall, "BASE", request.param[1])


@pytest.mark.usefixtures("_blocks")
@pytest.mark.parametrize(("shift", "scale"), [(0, 1), (0.8, 0.5), (0.3, 1.6)])
def test_manifolds_are_the_papers_sums(shift, scale):
    reference, found = cloud(40, 0), cloud(31, 1, shift, scale)
    expected = slow_manifolds(reference, found)
    assert min(expected) > 0
    assert manifolds(reference, found) == pytest.approx(expected, abs=1e-12)
    known = radii(reference)
    assert manifolds(reference, found, reference_radii=known) == pytest.approx(expected, abs=1e-12)


@pytest.mark.usefixtures("_blocks")
def test_radii_are_the_distances_to_the_nearest_others():
    features = cloud(23, 0)
    expected = np.sort(distances(features, features), 1)[:, 1:6]
    np.testing.assert_allclose(radii(features), expected, rtol=1e-5)
    np.testing.assert_allclose(radii(features)[:, 2], slow_radius(features, 3), rtol=1e-5)


def test_a_set_covers_itself():
    features = cloud(60, 0)
    overlap = manifolds(features, features.copy())
    assert overlap.precision == overlap.recall == overlap.coverage == 1
    assert overlap.density > 1  # each image is in its own neighbourhood and in about five others


def test_sets_far_apart_do_not_touch():
    assert manifolds(cloud(30, 0), cloud(30, 1, shift=100.0)) == (0, 0, 0, 0)


def test_precision_falls_with_noise_and_recall_with_dropped_modes():
    modes = np.repeat(np.eye(6, dtype=np.float32) * 20, 50, axis=0)
    reference, fresh = modes + cloud(300, 0), modes + cloud(300, 1)
    whole = manifolds(reference, fresh)
    dropped = manifolds(reference, fresh[:100])
    noisy = manifolds(reference, fresh + cloud(300, 2, scale=4))
    assert dropped.recall < 0.5 < whole.recall
    assert dropped.coverage < 0.5 < whole.coverage
    assert dropped.precision == pytest.approx(whole.precision, abs=0.1)
    assert noisy.precision < whole.precision / 2
    assert noisy.density < whole.density / 2


def test_manifolds_do_not_depend_on_order_offset_or_rotation():
    """Squared norms of features far from 0 would swallow the distances in float32."""
    reference, found = cloud(80, 0), cloud(70, 1, 0.3)
    expected = manifolds(reference, found)
    assert manifolds(reference[::-1], found[::-1]) == pytest.approx(expected)
    far = 256.0  # exact in float32 after rounding to 1/1024
    rounded = [np.round(values * 1024) / 1024 for values in (reference, found)]
    assert manifolds(*(values + far for values in rounded)) == pytest.approx(manifolds(*rounded))
    rotation, _ = np.linalg.qr(np.random.default_rng(5).normal(size=(6, 6)))
    assert manifolds(reference @ rotation, found @ rotation) == pytest.approx(expected, abs=0.02)


def test_neighbourhoods_of_duplicates_are_points_that_hold_the_duplicates():
    originals = cloud(12, 0, dimension=500, shift=3.0)
    reference = np.repeat(originals, 6, axis=0)  # radii are 0, but for rounding
    assert manifolds(reference, originals[:4]).precision == 1
    assert manifolds(reference, originals).coverage == 1
    assert manifolds(reference, reference).density == pytest.approx(6 / 5)
    assert manifolds(reference, originals + 0.1).precision == 0
    still = np.full((8, 3), 0.25, np.float32)
    assert manifolds(still, still) == (1, 1, 8 / 5, 1)


def test_too_few_images_for_a_neighbourhood_give_no_number():
    few, many = cloud(3, 0), cloud(40, 1)
    overlap = manifolds(many, few)
    assert math.isnan(overlap.recall)
    assert not math.isnan(overlap.precision + overlap.density + overlap.coverage)
    overlap = manifolds(few, many)
    assert math.isnan(overlap.precision)
    assert math.isnan(overlap.density)
    assert math.isnan(overlap.coverage)
    assert not math.isnan(overlap.recall)
    overlap = manifolds(cloud(4, 0), many)
    assert not math.isnan(overlap.precision)
    assert math.isnan(overlap.density)
    assert all(map(math.isnan, manifolds(few[:1], few[:1])))
    with pytest.raises(AssertionError, match="no images"):
        manifolds(many, few[:0])


@pytest.mark.usefixtures("_blocks")
def test_nearest_is_the_least_distance():
    queries, base = cloud(20, 0), cloud(33, 1)
    places, found = nearest(queries, base)
    table = distances(queries, base)
    np.testing.assert_array_equal(places, table.argmin(1))
    np.testing.assert_allclose(found, table.min(1), rtol=1e-6)
    assert places.dtype == np.int64
    assert found.dtype == np.float32
    others, apart = nearest(base, base, excluded=np.arange(len(base)))
    table = distances(base, base) + np.diag(np.full(33, np.inf))
    np.testing.assert_array_equal(others, table.argmin(1))
    np.testing.assert_allclose(apart, table.min(1), rtol=1e-6)


def test_a_copy_is_at_distance_0():
    """The expanded square would leave a rounding error of a thousandth of the norm."""
    base = cloud(50, 0, dimension=1280, shift=5.0)
    places, found = nearest(base[10:20], base)
    np.testing.assert_array_equal(places, np.arange(10, 20))
    assert (found == 0).all()
    twice = np.repeat(base, 2, axis=0)
    assert nearest(twice, twice, excluded=np.arange(len(twice)))[1].max() == 0


def test_features_may_be_mapped(tmp_path):
    base, queries = cloud(50, 0), cloud(20, 1)
    np.save(tmp_path / "base.npy", base)
    mapped = np.load(tmp_path / "base.npy", mmap_mode="r")
    assert manifolds(mapped, queries) == manifolds(base, queries)
    np.testing.assert_array_equal(nearest(queries, mapped)[0], nearest(queries, base)[0])


def test_authenticity_is_the_papers_share():
    found, train = cloud(40, 0, scale=1.3), cloud(50, 1)
    across, within = distances(found, train), distances(train, train)
    np.fill_diagonal(within, np.inf)
    expected = np.mean([across[j].min() > within[across[j].argmin()].min() for j in range(40)])
    assert 0 < expected < 1
    assert authenticity(found, train) == pytest.approx(expected)


def test_authenticity_tells_copies_from_images_of_ones_own():
    train = cloud(60, 0)
    assert authenticity(train[:20], train) == 0
    assert authenticity(train[:20] + 1e-4, train) == 0
    assert authenticity(cloud(20, 1, shift=30), train) == 1
    half = np.concatenate((train[:20], cloud(20, 1, shift=30)))
    assert authenticity(half, train) == 0.5
    assert authenticity(train[:5], np.repeat(train, 2, axis=0)) == 0  # duplicates in training
