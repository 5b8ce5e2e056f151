"""The look-up against brute force, k-means on clusters that are known, and weighted draws."""

import pytest
import torch

from latent_prior.stage1_autoencoders.quantizers.clustering import (
    kmeans,
    nearest_codes,
    sample_rows,
)


@pytest.mark.parametrize("size", [1, 2, 63, 64, 65, 1000])
@pytest.mark.parametrize(("number", "dim"), [(1, 8), (700, 1), (700, 8), (9000, 3), (300, 64)])
@pytest.mark.parametrize("offset", [0.0, 1024.0])
def test_nearest_codes_equal_brute_force_in_float64(number, dim, size, offset):
    generator = torch.Generator().manual_seed(size + dim)
    vectors = torch.randn(number, dim, generator=generator) + offset
    codebook = torch.randn(size, dim, generator=generator) + offset
    codes = nearest_codes(vectors, codebook)
    distances = torch.cdist(
        vectors.double(), codebook.double(), compute_mode="donot_use_mm_for_euclid_dist"
    ).square()
    chosen = distances.gather(1, codes[:, None])[:, 0]
    assert codes.dtype == torch.int64
    # Two codes may be equally far within the rounding of float32.
    spread = (vectors.double() - offset).square().sum(1)
    assert (chosen <= distances.amin(1) + 1e-6 * (1 + spread)).all()
    assert (codes == distances.argmin(1)).double().mean() > 0.95


def test_of_equal_codes_the_lowest_wins():
    """With small integers, whose products and sums every kernel computes exactly."""
    half = torch.randint(-8, 9, (20, 4)).float()
    codebook = torch.cat([half, -half]).repeat(5, 1)  # of mean zero
    codes = nearest_codes(torch.randint(-8, 9, (500, 4)).float(), codebook)
    assert codes.max() < 40


def test_the_length_of_a_code_counts():
    """A look-up by inner product alone would prefer the long code."""
    codebook = torch.tensor([[10.0, 0.0], [1.0, 0.1]])
    assert nearest_codes(torch.tensor([[1.0, 0.0]]), codebook).item() == 1


def test_a_vector_does_not_depend_on_its_neighbours():
    vectors, codebook = torch.randn(3000, 8), torch.randn(1000, 8)
    together = nearest_codes(vectors, codebook)
    assert torch.equal(
        together, torch.cat([nearest_codes(part, codebook) for part in vectors.split(17)])
    )


def test_kmeans_finds_every_cluster_though_most_vectors_are_equal():
    generator = torch.Generator().manual_seed(0)
    centres = 100 * torch.randn(12, 4, generator=generator)
    share = torch.tensor([800] + 11 * [20])
    vectors = centres.repeat_interleave(share, 0)
    torch.manual_seed(0)
    found, counts = kmeans(vectors, 12, normalise=False)
    assert torch.equal(nearest_codes(centres, found).sort().values, torch.arange(12))
    torch.testing.assert_close(found[nearest_codes(centres, found)], centres, rtol=1e-4, atol=0)
    assert torch.equal(counts[nearest_codes(centres, found)], share.float())


def test_rows_are_drawn_by_weight_and_without_replacement():
    rows = torch.arange(6.0)[:, None]
    weights = torch.tensor([0.0, 1.0, 3.0, 0.0, 0.0, 0.0])
    torch.manual_seed(0)
    draws = torch.cat([sample_rows(rows, weights, 1) for _ in range(4000)]).flatten()
    assert set(draws.tolist()) == {1.0, 2.0}
    assert abs((draws == 2.0).double().mean() - 0.75) < 0.02
    assert sample_rows(rows, torch.ones(6), 6).flatten().sort().values.tolist() == list(range(6))
    assert set(sample_rows(rows, torch.ones(6), 20).flatten().tolist()) == set(range(6))


def test_kmeans_without_steps_draws_vectors():
    vectors = torch.randn(100, 3)
    centres, counts = kmeans(vectors, 10, normalise=False, steps=0)
    assert (centres[:, None] == vectors).all(2).any(1).all()
    assert torch.equal(
        counts, torch.bincount(nearest_codes(vectors, centres), minlength=10).float()
    )
