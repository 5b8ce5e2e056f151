import math

import pytest
import torch
from accelerate import Accelerator

from latent_prior.data.codes import CodeSpec, Level
from latent_prior.stage1_autoencoders.autoencoder import DiscreteOutput
from latent_prior.stage1_autoencoders.gaussian import Gaussian
from latent_prior.stage1_autoencoders.meters import Meter, perplexity, usage
from latent_prior.stage1_autoencoders.vae import VAEOutput


@pytest.fixture(scope="module")
def accelerator():
    return Accelerator()


def spec(*vocabularies):
    levels = [Level(f"level{i}", 2, 2, vocabulary=v) for i, v in enumerate(vocabularies)]
    if len(levels) == 1:
        levels = [Level("codes", 2, 2, vocabulary=vocabularies[0])]
    return CodeSpec("codes", tuple(levels), 8, 3, "test", "0" * 64)


def output(images, codes):
    return DiscreteOutput(images, codes, quantizer_loss=torch.zeros(()))


def batches(count=5, seed=0):
    random = torch.Generator().manual_seed(seed)
    for _ in range(count):
        size = int(torch.randint(1, 6, (), generator=random))
        images = torch.rand(size, 3, 8, 8, generator=random) * 2 - 1
        noisy = images + 0.3 * torch.randn(images.shape, generator=random)
        # Squared, so that low codes are more frequent and the highest ones may never occur.
        codes = (torch.rand(size, 2, 2, generator=random).square() * 40).long()
        yield images, output(noisy, {"codes": codes})


def test_figures_of_many_batches_are_those_of_one(accelerator):
    """Slow reference in float64 over everything at once, however it came in batches."""
    meter = Meter(spec(50))
    seen = list(batches())
    for batch in seen:
        meter.update(*batch)
    found = meter.compute(accelerator, "epoch_")

    images = torch.cat([batch[0] for batch in seen]).double()
    noisy = torch.cat([batch[1].images for batch in seen]).double()
    error = (noisy.clamp(-1, 1) - images).square().mean()
    codes = torch.cat([batch[1].codes["codes"].flatten() for batch in seen])
    share = torch.bincount(codes, minlength=50).double() / len(codes)
    entropy = -(share * share.clamp(min=1e-300).log()).sum()
    assert found.keys() == {"epoch_mse", "epoch_psnr", "epoch_usage", "epoch_perplexity"}
    assert found["epoch_mse"] == pytest.approx(float(error), rel=1e-6)
    assert found["epoch_psnr"] == pytest.approx(-10 * math.log10(float(error) / 4), rel=1e-6)
    assert found["epoch_usage"] == pytest.approx(len(codes.unique()) / 50)
    assert found["epoch_perplexity"] == pytest.approx(math.exp(entropy), rel=1e-5)


def test_usage_counts_the_whole_epoch_and_not_the_mean_of_batches(accelerator):
    """Each batch uses four other codes of a vocabulary of 16: all are used, though 4 at a time."""
    meter = Meter(spec(16))
    for first in range(0, 16, 4):
        codes = torch.arange(first, first + 4).view(1, 2, 2)
        meter.update(torch.zeros(1, 3, 8, 8), output(torch.zeros(1, 3, 8, 8), {"codes": codes}))
    found = meter.compute(accelerator)
    assert found["usage"] == 1
    assert found["perplexity"] == pytest.approx(16)
    assert math.isfinite(found["psnr"])  # also where nothing is lost


def test_a_collapsed_codebook_is_told(accelerator):
    meter = Meter(spec(16))
    codes = torch.full((3, 2, 2), 7)
    meter.update(torch.zeros(3, 3, 8, 8), output(torch.zeros(3, 3, 8, 8), {"codes": codes}))
    found = meter.compute(accelerator)
    assert found["usage"] == pytest.approx(1 / 16)
    assert found["perplexity"] == pytest.approx(1)


def test_computing_starts_a_new_epoch(accelerator):
    meter, fresh = Meter(spec(50)), Meter(spec(50))
    first, second = list(batches(2)), list(batches(2, seed=1))
    for batch in first:
        meter.update(*batch)
    meter.compute(accelerator)
    for batch in second:
        meter.update(*batch)
        fresh.update(*batch)
    assert meter.compute(accelerator) == fresh.compute(accelerator)


def test_a_restored_meter_counts_on(accelerator):
    whole, stopped, resumed = Meter(spec(50)), Meter(spec(50)), Meter(spec(50))
    seen = list(batches(6))
    for number, batch in enumerate(seen):
        whole.update(*batch)
        if number < 3:
            stopped.update(*batch)
    resumed.load_state_dict(stopped.state_dict())
    for batch in seen[3:]:
        resumed.update(*batch)
    assert resumed.compute(accelerator) == whole.compute(accelerator)


def test_levels_are_counted_apart(accelerator):
    meter = Meter(spec(4, 8))
    codes = {"level0": torch.zeros(2, 2, 2).long(), "level1": torch.arange(8).view(2, 2, 2)}
    meter.update(torch.zeros(2, 3, 8, 8), output(torch.ones(2, 3, 8, 8), codes))
    found = meter.compute(accelerator)
    assert found["mse"] == 1
    assert (found["usage_level0"], found["usage_level1"]) == (0.25, 1)


def test_a_mean_of_means_would_weigh_small_batches_too_much(accelerator):
    meter = Meter(spec(4))
    codes = {"codes": torch.zeros(1, 2, 2).long()}
    meter.update(torch.zeros(1, 3, 8, 8), output(torch.ones(1, 3, 8, 8), codes))
    meter.update(torch.zeros(9, 3, 8, 8), output(torch.zeros(9, 3, 8, 8), codes))
    assert meter.compute(accelerator)["mse"] == pytest.approx(0.1)


LATENTS = CodeSpec("latents", (Level("latents", 2, 2, channels=3),), 8, 3, "test", "0" * 64)


def posteriors(count=4, scale=1.0, seed=0):
    """Batches of images and outputs of a VAE with a 3 x 2 x 2 grid."""
    random = torch.Generator().manual_seed(seed)
    for size in range(1, count + 1):
        images = torch.rand(size, 3, 8, 8, generator=random) * 2 - 1
        mean, log_variance = scale * torch.randn(2, size, 3, 2, 2, generator=random)
        yield images, VAEOutput(0.5 * images, 0.5 * images, Gaussian(mean, log_variance))


def test_a_posterior_is_counted_over_the_epoch(accelerator):
    """Means over all images, against the closed form in float64, and the reconstruction error."""
    meter, seen = Meter(LATENTS), list(posteriors())
    for batch in seen:
        meter.update(*batch)
    found = meter.compute(accelerator, "epoch_")
    mean = torch.cat([out.posterior.mean for _, out in seen]).double().flatten(1)
    log_variance = torch.cat([out.posterior.log_variance for _, out in seen]).double().flatten(1)
    kl = ((mean.square() + log_variance.exp() - 1 - log_variance) / 2).mean(0)
    images = torch.cat([images for images, _ in seen]).double()
    assert found.keys() == {
        "epoch_kl", "epoch_active_units", "epoch_kl_per_dimension", "epoch_mse", "epoch_psnr",
    }  # fmt: skip
    assert found["epoch_kl"] == pytest.approx(float(kl.sum()), rel=1e-6)
    assert found["epoch_kl_per_dimension"] == pytest.approx(kl.tolist(), abs=5e-5)  # rounded
    assert found["epoch_active_units"] == 12
    assert found["epoch_mse"] == pytest.approx(float((0.5 * images).square().mean()), rel=1e-6)


def test_a_collapsed_posterior_is_told_once(accelerator):
    meter = Meter(LATENTS)
    for batch in posteriors(scale=1e-3):
        meter.update(*batch)
    found = meter.compute(accelerator, "validation_")
    assert found["validation_warning"].startswith("the posterior has collapsed: 0 of 12 latent")
    assert found["validation_active_units"] == 0
    for batch in posteriors():
        meter.update(*batch)
    assert "validation_warning" not in meter.compute(accelerator, "validation_")


def test_a_restored_meter_of_posteriors_counts_on(accelerator):
    whole, stopped, resumed = Meter(LATENTS), Meter(LATENTS), Meter(LATENTS)
    seen = list(posteriors(6))
    for number, batch in enumerate(seen):
        whole.update(*batch)
        if number < 3:
            stopped.update(*batch)
    resumed.load_state_dict(stopped.state_dict())
    for batch in seen[3:]:
        resumed.update(*batch)
    assert resumed.compute(accelerator) == whole.compute(accelerator)


# Codebook usage


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
