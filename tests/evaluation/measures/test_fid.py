import math
import tracemalloc
import warnings

import numpy as np
import pytest
import torch

from latent_prior.evaluation.measures import fid
from latent_prior.evaluation.measures.kid import kernel_distance


def gaussian_features(count, dimension, seed, shift=0.0, scale=1.0):
    generator = np.random.default_rng(seed)
    mixing = np.random.default_rng(99).normal(size=(dimension, dimension)) / math.sqrt(dimension)
    return generator.normal(size=(count, dimension)) @ mixing * scale + shift


def frechet(features1, features2):
    return fid.frechet_distance(fid.Reference(fid.statistics(features1)), fid.statistics(features2))


@pytest.fixture(scope="module")
def cleanfid_fid():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # clean-fid 0.1.35 imports deprecated names
        return pytest.importorskip("cleanfid.fid")


@pytest.mark.parametrize("count", [300, 20])  # more and fewer images than features
def test_frechet_distance_agrees_with_clean_fid(cleanfid_fid, count):
    first, second = gaussian_features(count, 48, 0), gaussian_features(count + 7, 48, 1, 0.3, 1.4)
    arguments = (*fid.statistics(first), *fid.statistics(second))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # clean-fid's sqrtm(disp=...) is deprecated in SciPy 1.17
        try:
            theirs = cleanfid_fid.frechet_distance(*arguments)
        except TypeError:
            pytest.skip("clean-fid's distance does not run with SciPy 1.18 or newer")
    assert frechet(first, second) == pytest.approx(float(theirs), rel=1e-6)


def test_statistics_are_numpys():
    features = gaussian_features(50, 8, 0).astype(np.float32)
    found = fid.statistics(features)
    np.testing.assert_allclose(found.mean, features.astype(np.float64).mean(0))
    np.testing.assert_allclose(found.covariance, np.cov(features.astype(np.float64), rowvar=False))
    assert found.covariance.dtype == np.float64


def test_statistics_of_mapped_features_take_the_memory_of_a_block(tmp_path):
    features = gaussian_features(40_000, 32, 0).astype(np.float32)
    np.save(tmp_path / "features.npy", features)
    mapped = np.load(tmp_path / "features.npy", mmap_mode="r")
    tracemalloc.start()
    found = fid.statistics(mapped)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 4 * fid.BLOCK * 32 * 8 < features.nbytes / 2
    expected = np.cov(features.astype(np.float64), rowvar=False)
    np.testing.assert_allclose(found.covariance, expected, rtol=1e-9, atol=1e-12)


def test_moments_of_parts_are_those_of_the_whole():
    features = gaussian_features(100, 8, 0, shift=1e4)
    parts = [fid.moments(part) for part in (features[:1], features[1:30], features[30:])]
    joined = parts[0].joined(parts[1]).joined(parts[2])
    assert joined.num_images == 100
    np.testing.assert_allclose(joined.mean, features.mean(0), rtol=1e-12)
    np.testing.assert_allclose(
        joined.gaussian().covariance, np.cov(features, rowvar=False), rtol=1e-8, atol=1e-10
    )


def test_statistics_leave_the_features_alone():
    features = gaussian_features(10, 3, 0)
    before = features.copy()
    fid.statistics(features)
    np.testing.assert_array_equal(features, before)


def test_frechet_distance_of_commuting_gaussians_has_a_closed_form():
    rotation, _ = np.linalg.qr(np.random.default_rng(0).normal(size=(6, 6)))
    variances1, variances2 = np.arange(1.0, 7.0), np.arange(7.0, 1.0, -1.0) ** 2
    mean1, mean2 = np.zeros(6), np.arange(6.0)
    expected = (mean2**2).sum() + ((np.sqrt(variances1) - np.sqrt(variances2)) ** 2).sum()
    first, second = (
        fid.Gaussian(mean, rotation * variances @ rotation.T)
        for mean, variances in ((mean1, variances1), (mean2, variances2))
    )
    assert fid.frechet_distance(fid.Reference(first), second) == pytest.approx(expected, rel=1e-12)


def exactly(mean, covariance, count, seed):
    """Features whose sample mean and covariance are these."""
    values = np.random.default_rng(seed).normal(size=(count, len(mean)))
    values -= values.mean(0)
    whitened = np.linalg.solve(np.linalg.cholesky(np.cov(values, rowvar=False)), values.T)
    return (np.linalg.cholesky(covariance) @ whitened).T + mean


def test_features_of_known_gaussians_give_the_closed_form():
    """For covariances that do not commute: tr (S1 S2)^1/2 sums the roots of the eigenvalues."""
    generator = np.random.default_rng(3)
    mean1, mean2 = generator.normal(size=(2, 12))
    covariance1, covariance2 = (np.cov(generator.normal(size=(12, 40))) for _ in range(2))
    roots = np.sqrt(np.linalg.eigvals(covariance1 @ covariance2).real)
    expected = ((mean1 - mean2) ** 2).sum() + np.trace(covariance1 + covariance2) - 2 * roots.sum()
    first, second = exactly(mean1, covariance1, 90, 0), exactly(mean2, covariance2, 70, 1)
    reference = fid.Reference(fid.statistics(first))
    assert fid.frechet_distance(reference, second) == pytest.approx(expected, rel=1e-6)
    assert frechet(first, second) == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("counts", [(300, 300), (300, 20), (20, 300), (20, 30), (40, 2), (48, 49)])
def test_a_prepared_reference_agrees_with_clean_fid_and_torchmetrics(cleanfid_fid, counts):
    first, second = (
        gaussian_features(counts[0], 48, 0),
        gaussian_features(counts[1], 48, 1, 0.3, 1.4),
    )
    arguments = (*fid.statistics(first), *fid.statistics(second))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # clean-fid's sqrtm(disp=...) is deprecated in SciPy 1.17
        image_fid = pytest.importorskip("torchmetrics.image.fid")
        theirs = float(cleanfid_fid.frechet_distance(*arguments))
    metrics = image_fid._compute_fid(*map(torch.from_numpy, arguments)).item()
    reference = fid.Reference(fid.statistics(first))
    assert fid.frechet_distance(reference, second) == pytest.approx(theirs, rel=2e-6)
    assert fid.frechet_distance(reference, second) == pytest.approx(metrics, rel=2e-6)
    assert fid.frechet_distance(reference, fid.statistics(second)) == pytest.approx(
        theirs, rel=2e-6
    )


@pytest.mark.parametrize("counts", [(200, 30), (20, 200), (20, 30), (200, 65)])
def test_a_prepared_reference_measures_features_as_their_gaussian(counts):
    first, second = gaussian_features(counts[0], 64, 0), gaussian_features(counts[1], 64, 1, 0.1)
    reference = fid.Reference(fid.statistics(first))
    assert reference.rank == min(64, counts[0] - 1)
    expected = fid.frechet_distance(reference, fid.statistics(second))
    assert fid.frechet_distance(reference, second) == pytest.approx(expected, rel=1e-6)
    mixed = np.random.default_rng(0).permutation(len(second))
    assert fid.frechet_distance(reference, second[mixed]) == pytest.approx(expected, rel=1e-6)


def test_identical_sets_are_at_no_distance():
    """At about the scale of Inception's features; KID of a set with itself is a little below 0."""
    features = (0.3 * np.abs(gaussian_features(300, 512, 0))).astype(np.float32)
    reference = fid.Reference(fid.statistics(features))
    assert 0 <= fid.frechet_distance(reference, features.copy()) < 1e-3
    assert -2e-3 < kernel_distance(features, features.copy())[0] < 0
    assert 0 <= frechet(features[:200], features[:200].copy()) < 1e-3


def test_images_that_are_all_the_same_have_a_distance():
    """Constant features, duplicates, and features that never change have defined distances."""
    still, moving = np.full((7, 6), 0.3), gaussian_features(50, 6, 0)
    trace = np.trace(fid.statistics(moving).covariance)
    shift = ((moving.mean(0) - 0.3) ** 2).sum()
    for first, second in ((still, moving), (moving, still)):
        found = fid.frechet_distance(fid.Reference(fid.statistics(first)), second)
        assert found == pytest.approx(shift + trace, rel=1e-6)
    assert fid.frechet_distance(fid.Reference(fid.statistics(still)), still) == pytest.approx(
        0, abs=1e-12
    )
    wide = np.pad(moving, ((0, 0), (0, 3)), constant_values=0.7)  # three dead features
    assert fid.Reference(fid.statistics(wide)).rank == 6
    other = gaussian_features(60, 6, 1, 0.4)
    expected = frechet(moving, other)
    padded = np.pad(other, ((0, 0), (0, 3)), constant_values=0.7)
    assert frechet(wide, padded) == pytest.approx(expected, rel=1e-6)
    twice = np.concatenate((other, other))[:-1]  # duplicates change no more than the weights
    assert frechet(moving, twice) == pytest.approx(expected, rel=0.1)
    with pytest.raises(AssertionError, match="two images"):
        fid.statistics(still[:1])
    with pytest.raises(AssertionError, match="two images"):
        fid.frechet_distance(fid.Reference(fid.statistics(moving)), still[:1])


def test_rank_deficiency_is_a_matter_of_counting():
    assert fid.rank_deficient(48, 48)
    assert not fid.rank_deficient(49, 48)
    for count in (47, 48, 49):
        covariance = fid.statistics(gaussian_features(count, 48, 0)).covariance
        assert (np.linalg.matrix_rank(covariance) < 48) == fid.rank_deficient(count, 48)


def test_frechet_distance_without_variance_is_the_squared_shift():
    def distance(first, second):
        return fid.frechet_distance(fid.Reference(first), second)

    point, shifted = (fid.Gaussian(np.full(4, mean), np.zeros((4, 4))) for mean in (0.0, 3.0))
    standard = fid.Gaussian(np.zeros(4), np.eye(4))
    assert distance(point, shifted) == pytest.approx(36.0)
    assert distance(point, standard) == pytest.approx(4.0)
    assert distance(standard, point) == pytest.approx(4.0)


@pytest.mark.parametrize("count", [200, 12])
def test_frechet_distance_is_a_distance(count):
    first, second = gaussian_features(count, 32, 0), gaussian_features(count, 32, 1, 0.2)
    scale = np.trace(fid.statistics(first).covariance)
    assert 0 <= frechet(first, first.copy()) < 1e-7 * scale
    assert frechet(first, second) > 1e-3 * scale
    assert frechet(first, second) == pytest.approx(frechet(second, first), rel=1e-6)


def test_frechet_distance_ignores_rotation_and_order_of_the_images():
    first, second = gaussian_features(80, 16, 0), gaussian_features(90, 16, 1, 0.5)
    rotation, _ = np.linalg.qr(np.random.default_rng(5).normal(size=(16, 16)))
    expected = frechet(first, second)
    assert frechet(first @ rotation, second @ rotation) == pytest.approx(expected, rel=1e-9)
    assert frechet(first[::-1], second) == pytest.approx(expected, rel=1e-9)


def test_frechet_distance_is_finite_where_the_unsymmetric_root_breaks():
    """The root of the unsymmetric product may turn complex for few images; ours cannot."""
    first, second = gaussian_features(3, 64, 0), gaussian_features(2, 64, 1)
    assert math.isfinite(frechet(first, second))
    assert frechet(first, second) > 0


def test_more_images_of_one_source_come_closer():
    reference = gaussian_features(4000, 16, 0)
    distances = [frechet(reference, gaussian_features(count, 16, 1)) for count in (50, 500, 4000)]
    assert distances[0] > distances[1] > distances[2]


def test_float32_features_give_the_same_distances():
    first, second = gaussian_features(300, 64, 0), gaussian_features(300, 64, 1, 0.1)
    narrow = first.astype(np.float32), second.astype(np.float32)
    assert frechet(*narrow) == pytest.approx(frechet(first, second), rel=1e-5)
