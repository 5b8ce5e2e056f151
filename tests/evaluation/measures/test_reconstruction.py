import math

import numpy as np
import pytest
import torch
from torchmetrics.functional.image import (
    peak_signal_noise_ratio,
    structural_similarity_index_measure,
)

from latent_prior.evaluation.measures.reconstruction import (
    PSNR_CAP,
    mean_psnr,
    psnr,
    reconstruct,
    ssim,
)


def noise(count=3, channels=3, size=24, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(
        0, 256, (count, channels, size, size), generator=generator, dtype=torch.uint8
    )


def blurred(images, strength=3):
    return (
        torch.nn.functional.avg_pool2d(images.float(), strength, 1, strength // 2)
        .round()
        .to(torch.uint8)
    )


@pytest.mark.parametrize("channels", [1, 3])
def test_ssim_agrees_with_torchmetrics(channels):
    images = noise(channels=channels)
    other = blurred(images)
    _, positions = structural_similarity_index_measure(
        other.double(),
        images.double(),
        sigma=1.5,
        data_range=255.0,
        reduction="none",
        return_full_image=True,
    )
    # torchmetrics also counts windows that hang over the edge, padded by reflection; Wang et al. do
    # not.
    theirs = positions[..., 5:-5, 5:-5].mean((1, 2, 3))
    torch.testing.assert_close(ssim(images, other), theirs, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("channels", [1, 3])
def test_psnr_agrees_with_torchmetrics(channels):
    images = noise(channels=channels)
    other = blurred(images)
    theirs = peak_signal_noise_ratio(
        other.double(), images.double(), data_range=255.0, reduction="none", dim=(1, 2, 3)
    )
    torch.testing.assert_close(psnr(images, other), theirs)


def test_psnr_of_a_known_error():
    images = torch.full((2, 1, 12, 12), 100, dtype=torch.uint8)
    other = images + torch.tensor([1, 5], dtype=torch.uint8).view(2, 1, 1, 1)
    expected = [20 * math.log10(255), 20 * math.log10(255 / 5)]
    np.testing.assert_allclose(psnr(images, other), expected)


def test_equal_images_are_perfect_and_do_not_spoil_the_mean():
    images = noise()
    assert torch.isinf(psnr(images, images)).all()
    torch.testing.assert_close(ssim(images, images), torch.ones(3, dtype=torch.float64))
    assert mean_psnr(np.array([math.inf, 20.0])) == (PSNR_CAP + 20) / 2


def test_both_fall_as_images_get_worse_and_are_symmetric():
    images = noise(size=32)
    near, far = blurred(images, 3), blurred(images, 7)
    assert (psnr(images, near) > psnr(images, far)).all()
    assert (ssim(images, near) > ssim(images, far)).all()
    torch.testing.assert_close(ssim(images, near), ssim(near, images))


def test_uint8_is_not_subtracted_as_uint8():
    """255 - 0 and 0 - 255 are both 255 away; in uint8 one of them would be 1."""
    black, white = (
        torch.zeros(1, 1, 12, 12, dtype=torch.uint8),
        torch.full((1, 1, 12, 12), 255, dtype=torch.uint8),
    )
    assert psnr(black, white).item() == psnr(white, black).item() == pytest.approx(0.0)


def test_images_do_not_influence_each_other():
    images, other = noise(4), blurred(noise(4))
    torch.testing.assert_close(ssim(images, other)[2:], ssim(images[2:], other[2:]))


class Negative:
    def reconstruct(self, images):
        assert images.dtype == torch.float32
        assert images.min() >= -1
        assert images.max() <= 1
        return -3 * images  # beyond [-1, 1], as decoders go


def test_reconstruct_crosses_the_value_contract():
    images = torch.tensor([0, 255], dtype=torch.uint8).view(2, 1, 1, 1)
    given_back = reconstruct(Negative(), images, torch.device("cpu"))
    assert given_back.dtype == torch.uint8
    assert given_back.flatten().tolist() == [255, 0]
