"""The objective and the measures of codebook use, against float64 formulas and limits."""

import math

import pytest
import torch

from latent_prior.stage1_autoencoders.autoencoder import DiscreteOutput
from latent_prior.stage1_autoencoders.objectives import perplexity, quantized_objective, usage


def pair(count=6):
    generator = torch.Generator().manual_seed(0)
    images, found = torch.rand(2, count, 3, 8, 8, generator=generator) * 2 - 1
    return images, DiscreteOutput(images=found, codes={}, quantizer_loss=torch.tensor(0.5))


@pytest.mark.parametrize(("kind", "power"), [("l1", 1), ("l2", 2)])
def test_the_objective_equals_a_float64_reference(kind, power):
    images, output = pair()
    losses = quantized_objective(images, output, kind)
    pixels = zip(images.flatten().tolist(), output.images.flatten().tolist(), strict=True)
    expected = math.fsum(abs(a - b) ** power for a, b in pixels) / images.numel()
    assert losses["reconstruction"].item() == pytest.approx(expected, abs=1e-6)
    assert losses["quantizer"].item() == 0.5
    assert losses["total"].item() == pytest.approx(expected + 0.5, abs=1e-6)


@pytest.mark.parametrize("kind", ["l1", "l2"])
def test_the_objective_does_not_depend_on_the_batch_size(kind):
    images, output = pair()
    twice = DiscreteOutput(
        images=output.images.repeat(2, 1, 1, 1), codes={}, quantizer_loss=output.quantizer_loss
    )
    one = quantized_objective(images, output, kind)
    two = quantized_objective(images.repeat(2, 1, 1, 1), twice, kind)
    for name, value in one.items():
        torch.testing.assert_close(two[name], value)


def test_the_objective_is_float32_inside_autocast():
    images, output = pair()
    low = DiscreteOutput(
        images=output.images.bfloat16(), codes={}, quantizer_loss=output.quantizer_loss
    )
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = quantized_objective(images, low, "l2")
    expected = (images - low.images.float()).square().mean()
    assert found["total"].dtype == torch.float32
    torch.testing.assert_close(found["reconstruction"], expected)


def test_perplexity_counts_the_codes_in_even_use():
    for used in (1, 7, 512):
        counts = torch.zeros(512)
        counts[:used] = 9
        assert perplexity(counts).item() == pytest.approx(used, rel=1e-5)
        assert usage(counts).item() == pytest.approx(used / 512)


def test_perplexity_depends_on_the_shares_alone():
    counts = torch.randint(0, 50, (64,), generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(perplexity(counts), perplexity(1000 * counts))
    assert 1 < perplexity(counts) < 64


def test_perplexity_over_an_epoch_is_not_the_mean_over_its_batches():
    """Batches that use one code each look collapsed one by one; the epoch is not."""
    batches = 10 * torch.eye(8)
    assert perplexity(batches.sum(0)).item() == pytest.approx(8)
    assert torch.stack([perplexity(batch) for batch in batches]).mean().item() == pytest.approx(1)
