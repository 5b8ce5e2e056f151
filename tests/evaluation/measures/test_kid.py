import math
import warnings

import numpy as np
import pytest
import torch

from latent_prior.evaluation.measures import kid
from latent_prior.evaluation.measures.kid import kernel_distance


def gaussian_features(count, dimension, seed, shift=0.0, scale=1.0):
    generator = np.random.default_rng(seed)
    mixing = np.random.default_rng(99).normal(size=(dimension, dimension)) / math.sqrt(dimension)
    return generator.normal(size=(count, dimension)) @ mixing * scale + shift


@pytest.fixture(scope="module")
def cleanfid_fid():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # clean-fid 0.1.35 imports deprecated names
        return pytest.importorskip("cleanfid.fid")


@pytest.mark.parametrize("subset_size", [40, 60, 1000])
def test_kernel_distance_agrees_with_clean_fid(cleanfid_fid, subset_size):
    first, second = gaussian_features(60, 24, 0), gaussian_features(60, 24, 1, 0.3)
    np.random.seed(0)  # noqa: NPY002 - clean-fid draws its subsets from the global generator
    theirs = cleanfid_fid.kernel_distance(
        first, second, num_subsets=400, max_subset_size=subset_size
    )
    ours, _ = kernel_distance(first, second, 400, subset_size)
    tolerance = 1e-10 if subset_size >= 60 else 0.03  # whole sets leave nothing to chance
    assert ours == pytest.approx(theirs, rel=tolerance)


def test_kernel_distance_is_the_double_sum_written_out():
    first, second = gaussian_features(7, 5, 0), gaussian_features(7, 5, 1, 0.4)

    def kernel(a, b):
        return (float(a @ b) / 5 + 1) ** 3

    pairs = [(i, j) for i in range(7) for j in range(7) if i != j]
    expected = sum(kernel(first[i], first[j]) + kernel(second[i], second[j]) for i, j in pairs) / 42
    expected -= 2 * sum(kernel(a, b) for a in first for b in second) / 49
    assert kernel_distance(first, second)[0] == pytest.approx(expected, rel=1e-10)


@pytest.mark.parametrize("subsets", [2, 60])  # each subset by itself, and all pairs once
def test_kernel_distance_is_the_mean_over_the_drawn_subsets(subsets):
    poly_mmd = pytest.importorskip("torchmetrics.image.kid").poly_mmd
    first, second = gaussian_features(30, 5, 0), gaussian_features(40, 5, 1, 0.4)
    generator = np.random.default_rng(7)
    expected = []
    for _ in range(subsets):
        x = first[generator.choice(30, 10, replace=False)]
        y = second[generator.choice(40, 10, replace=False)]
        expected.append(poly_mmd(torch.from_numpy(x), torch.from_numpy(y)).item())
    found, _ = kernel_distance(first, second, subsets, 10, seed=7)
    assert found == pytest.approx(np.mean(expected), rel=1e-9)


def test_kernel_distance_does_not_depend_on_the_size_of_blocks(monkeypatch):
    first, second = gaussian_features(30, 5, 0), gaussian_features(45, 5, 1, 0.4)
    expected = kernel_distance(first, second, 20, 12)
    monkeypatch.setattr(kid, "BLOCK", 7)
    assert kernel_distance(first, second, 20, 12) == pytest.approx(expected, rel=1e-10)


def test_kernel_distance_of_two_images_is_defined():
    first, second = gaussian_features(2, 5, 0), gaussian_features(9, 5, 1)
    mean, error = kernel_distance(first, second)
    assert math.isfinite(mean)
    assert math.isnan(error)
    with pytest.raises(AssertionError):
        kernel_distance(first[:1], second)


def test_kernel_distance_is_seeded_and_leaves_the_global_generator_alone():
    first, second = gaussian_features(100, 8, 0), gaussian_features(120, 8, 1, 0.5)
    state = np.random.get_state()[1].copy()  # noqa: NPY002
    runs = [kernel_distance(first, second, 5, 30, seed) for seed in (1, 1, 2)]
    assert runs[0] == runs[1] != runs[2]
    np.testing.assert_array_equal(np.random.get_state()[1], state)  # noqa: NPY002


@pytest.mark.parametrize("subset_size", [50, 200])
def test_kernel_distance_is_unbiased(subset_size):
    """Of two sets of one source it averages to 0; the biased estimate would not."""
    values = [
        kernel_distance(gaussian_features(200, 8, 2 * s), gaussian_features(200, 8, 2 * s + 1), 10, subset_size)[0]
        for s in range(60)
    ]  # fmt: skip
    assert abs(np.mean(values)) < 3 * np.std(values) / math.sqrt(60)


@pytest.mark.parametrize(
    ("counts", "subset_size"), [((150, 150), 1000), ((150, 600), 100), ((300, 300), 100)]
)
def test_standard_error_is_the_scatter_over_fresh_images(counts, subset_size):
    runs = np.array(
        [
            kernel_distance(
                gaussian_features(counts[0], 8, 2 * s), gaussian_features(counts[1], 8, 2 * s + 1, 0.6), 20, subset_size
            )
            for s in range(120)
        ]
    )  # fmt: skip
    scatter, reported = runs[:, 0].std(ddof=1), runs[:, 1].mean()
    assert reported == pytest.approx(scatter, rel=0.3)


def test_the_usual_standard_error_over_subsets_would_vanish():
    first, second = gaussian_features(100, 8, 0), gaussian_features(100, 8, 1, 0.5)
    mean, error = kernel_distance(first, second, subsets=100, subset_size=1000)
    assert 0 < error < mean


@pytest.mark.parametrize("subsets", [3, 100])
def test_kernels_of_float32_features_lose_nothing(subsets):
    """A distance as good generators have it, a hundredth of the kernels' size or less."""
    first = np.abs(gaussian_features(500, 256, 0)).astype(np.float32)
    second = np.abs(gaussian_features(500, 256, 1, 0.02)).astype(np.float32)
    narrow = kernel_distance(first, second, subsets, 300)
    wide = kernel_distance(first.astype(np.float64), second.astype(np.float64), subsets, 300)
    assert narrow == pytest.approx(wide, rel=1e-5)
