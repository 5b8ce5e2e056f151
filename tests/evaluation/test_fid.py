import math
import warnings

import numpy as np
import pytest
import torch

from evaluation import fid


def gaussian_features(count, dimension, seed, shift=0.0, scale=1.0):
    generator = np.random.default_rng(seed)
    mixing = np.random.default_rng(99).normal(size=(dimension, dimension)) / math.sqrt(dimension)
    return generator.normal(size=(count, dimension)) @ mixing * scale + shift


def frechet(features1, features2):
    return fid.frechet_distance(*fid.statistics(features1), *fid.statistics(features2))


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
    assert fid.frechet_distance(*arguments) == pytest.approx(float(theirs), rel=1e-6)


def test_statistics_are_numpys():
    features = gaussian_features(50, 8, 0).astype(np.float32)
    found = fid.statistics(features)
    np.testing.assert_allclose(found.mean, features.astype(np.float64).mean(0))
    np.testing.assert_allclose(found.covariance, np.cov(features.astype(np.float64), rowvar=False))
    assert found.covariance.dtype == np.float64


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
    found = fid.frechet_distance(
        mean1, rotation * variances1 @ rotation.T, mean2, rotation * variances2 @ rotation.T
    )
    assert found == pytest.approx(expected, rel=1e-12)


def test_frechet_distance_without_variance_is_the_squared_shift():
    zero = np.zeros((4, 4))
    assert fid.frechet_distance(np.zeros(4), zero, np.full(4, 3.0), zero) == pytest.approx(36.0)
    assert fid.frechet_distance(np.zeros(4), zero, np.zeros(4), np.eye(4)) == pytest.approx(4.0)
    assert fid.frechet_distance(np.zeros(4), np.eye(4), np.zeros(4), zero) == pytest.approx(4.0)


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


@pytest.mark.parametrize("subset_size", [40, 60, 1000])
def test_kernel_distance_agrees_with_clean_fid(cleanfid_fid, subset_size):
    first, second = gaussian_features(60, 24, 0), gaussian_features(60, 24, 1, 0.3)
    np.random.seed(0)  # noqa: NPY002 - clean-fid draws its subsets from the global generator
    theirs = cleanfid_fid.kernel_distance(
        first, second, num_subsets=400, max_subset_size=subset_size
    )
    ours, _ = fid.kernel_distance(first, second, 400, subset_size)
    tolerance = 1e-10 if subset_size >= 60 else 0.03  # whole sets leave nothing to chance
    assert ours == pytest.approx(theirs, rel=tolerance)


def test_kernel_distance_is_the_double_sum_written_out():
    first, second = gaussian_features(7, 5, 0), gaussian_features(7, 5, 1, 0.4)

    def kernel(a, b):
        return (float(a @ b) / 5 + 1) ** 3

    pairs = [(i, j) for i in range(7) for j in range(7) if i != j]
    expected = sum(kernel(first[i], first[j]) + kernel(second[i], second[j]) for i, j in pairs) / 42
    expected -= 2 * sum(kernel(a, b) for a in first for b in second) / 49
    assert fid.kernel_distance(first, second)[0] == pytest.approx(expected, rel=1e-10)


def test_kernel_distance_is_seeded_and_leaves_the_global_generator_alone():
    first, second = gaussian_features(100, 8, 0), gaussian_features(120, 8, 1, 0.5)
    state = np.random.get_state()[1].copy()  # noqa: NPY002
    runs = [fid.kernel_distance(first, second, 5, 30, seed) for seed in (1, 1, 2)]
    assert runs[0] == runs[1] != runs[2]
    np.testing.assert_array_equal(np.random.get_state()[1], state)  # noqa: NPY002


@pytest.mark.parametrize("subset_size", [50, 200])
def test_kernel_distance_is_unbiased(subset_size):
    """Of two sets of one source it averages to 0; the biased estimate would not."""
    values = [
        fid.kernel_distance(gaussian_features(200, 8, 2 * s), gaussian_features(200, 8, 2 * s + 1), 10, subset_size)[0]
        for s in range(60)
    ]  # fmt: skip
    assert abs(np.mean(values)) < 3 * np.std(values) / math.sqrt(60)


@pytest.mark.parametrize(
    ("counts", "subset_size"), [((150, 150), 1000), ((150, 600), 100), ((300, 300), 100)]
)
def test_standard_error_is_the_scatter_over_fresh_images(counts, subset_size):
    runs = np.array(
        [
            fid.kernel_distance(
                gaussian_features(counts[0], 8, 2 * s), gaussian_features(counts[1], 8, 2 * s + 1, 0.6), 20, subset_size
            )
            for s in range(120)
        ]
    )  # fmt: skip
    scatter, reported = runs[:, 0].std(ddof=1), runs[:, 1].mean()
    assert reported == pytest.approx(scatter, rel=0.3)


def test_the_usual_standard_error_over_subsets_would_vanish():
    first, second = gaussian_features(100, 8, 0), gaussian_features(100, 8, 1, 0.5)
    mean, error = fid.kernel_distance(first, second, subsets=100, subset_size=1000)
    assert 0 < error < mean


def test_float32_features_give_the_same_distances():
    first, second = gaussian_features(300, 64, 0), gaussian_features(300, 64, 1, 0.1)
    narrow = first.astype(np.float32), second.astype(np.float32)
    assert frechet(*narrow) == pytest.approx(frechet(first, second), rel=1e-5)
    assert fid.kernel_distance(*narrow)[0] == pytest.approx(
        fid.kernel_distance(first, second)[0], rel=1e-3
    )


def test_clean_resizer_is_antialiased_and_keeps_fractions():
    resize = fid.clean_resizer(16)
    stripes = np.zeros((64, 64, 3), np.uint8)
    stripes[:, ::2] = 255  # finer than 16 pixels can show
    small = resize(stripes)
    assert small.shape == (16, 16, 3)
    assert small.dtype == np.float32
    assert np.abs(small - 127.5).max() < 20  # torch's bilinear without antialiasing would alias
    assert (small != np.rint(small)).any()
    aliased = torch.nn.functional.interpolate(
        torch.from_numpy(stripes).permute(2, 0, 1)[None].float(), size=16, mode="nearest"
    )
    assert (aliased - 127.5).abs().max() > 100
