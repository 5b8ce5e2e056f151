import pytest
import torch
from torch import Tensor

from latent_prior.losses.critic_augmentation import augment, change_color, cut_out, translate

ALL = ("color", "translation", "cutout")


def images(batch: int = 64, channels: int = 3, height: int = 16, width: int = 16) -> Tensor:
    random = torch.Generator().manual_seed(0)
    # No value is 0, so that what was covered or came into view is known by it.
    return torch.rand(batch, channels, height, width, generator=random) * 0.9 + 0.05


def test_nothing_given_nothing_changed():
    assert torch.equal(augment(images(), ()), images())


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("size", [(16, 16), (28, 28), (32, 24), (5, 7)])
def test_shape_and_type_are_kept(channels, size):
    before = images(4, channels, *size)
    after = augment(before, ALL)
    assert after.shape == before.shape
    assert after.dtype == before.dtype
    assert torch.isfinite(after).all()


@pytest.mark.parametrize("change", [change_color, translate, cut_out])
def test_every_image_draws_its_own(change):
    changed = change(images(1).expand(32, -1, -1, -1))
    assert len({tuple(image.flatten().tolist()) for image in changed}) > 8


@pytest.mark.parametrize("name", ALL)
def test_the_draws_come_from_the_global_generator(name):
    torch.manual_seed(1)
    first = augment(images(), [name])
    torch.manual_seed(1)
    assert torch.equal(augment(images(), [name]), first)
    assert not torch.equal(augment(images(), [name]), first)


def test_an_image_does_not_depend_on_the_images_beside_it():
    """With the same draws, whatever the other images are."""
    alone, beside = images(), images()
    beside[1:] = beside[1:].flip(0)
    torch.manual_seed(1)
    first = augment(alone, ALL)[0]
    torch.manual_seed(1)
    assert torch.equal(augment(beside, ALL)[0], first)


@pytest.mark.parametrize("name", ALL)
def test_the_gradient_passes(name):
    inputs = images().requires_grad_()
    (gradient,) = torch.autograd.grad(augment(inputs, [name]).sum(), inputs)
    assert (gradient != 0).float().mean() > 0.7


def test_the_gradient_is_right():
    inputs = images(2, 3, 6, 6).double().requires_grad_()

    def repeatable(x: Tensor) -> Tensor:
        torch.manual_seed(3)
        return augment(x, ALL)

    assert torch.autograd.gradcheck(repeatable, inputs)
    assert torch.autograd.gradgradcheck(repeatable, inputs)  # the gradient penalty goes through it


# Color


def test_colors_change_as_the_paper_says():
    """Every image is an affine function of itself whose factors lie in the paper's ranges."""
    before = images(256)
    after = change_color(before)
    grey_before, grey_after = before.mean(1), after.mean(1)
    level_before, level_after = grey_before.mean((1, 2)), grey_after.mean((1, 2))
    brightness = level_after - level_before
    assert brightness.abs().max() <= 0.5
    assert brightness.max() > 0.4
    assert brightness.min() < -0.4
    contrast = (grey_after - level_after[:, None, None]) / (
        grey_before - level_before[:, None, None]
    )
    torch.testing.assert_close(
        contrast, contrast[:, :1, :1].expand_as(contrast), rtol=0.1, atol=0.01
    )
    factors = contrast.flatten(1).median(1).values
    assert 0.49 < factors.min() < 0.6
    assert 1.4 < factors.max() < 1.51
    colour = (after - grey_after[:, None]).flatten(1).norm(dim=1)
    saturation = colour / (before - grey_before[:, None]).flatten(1).norm(dim=1) / factors
    assert 0 <= saturation.min() < 0.1
    assert 1.9 < saturation.max() < 2.01


def test_grey_images_have_no_saturation():
    """One channel changes as the three equal channels of the same image do."""
    grey = images(channels=1)
    torch.manual_seed(1)
    one = change_color(grey)
    torch.manual_seed(1)
    three = change_color(grey.expand(-1, 3, -1, -1))
    torch.testing.assert_close(one.expand(-1, 3, -1, -1), three)


# Translation


def test_translation_moves_whole_pixels_and_fills_with_zero():
    """Every image is its original shifted by up to an eighth, and all shifts occur."""
    before, found = images(400, 1, 16, 8), []
    padded = torch.nn.functional.pad(before, (1, 1, 2, 2))
    for number, image in enumerate(translate(before)):
        found += [
            (down, right)
            for down in range(5)
            for right in range(3)
            if torch.equal(padded[number, :, down : down + 16, right : right + 8], image)
        ]
    assert len(found) == 400
    assert len(set(found)) == 15


# Cutout


def test_cutout_covers_one_square_and_leaves_the_rest():
    before = images(400, 3, 16, 16)
    after = cut_out(before)
    covered = after == 0
    assert torch.equal(after[~covered], before[~covered])
    assert torch.equal(covered, covered[:, :1].expand_as(covered))
    heights, widths = covered[:, 0].any(2).sum(1), covered[:, 0].any(1).sum(1)
    assert torch.equal(covered[:, 0].sum((1, 2)), heights * widths)  # a rectangle, without holes
    assert heights.min() >= 4  # half of it outside
    assert heights.max() == widths.max() == 8
    share = covered.float().mean((1, 2, 3))
    assert share.max() == 1 / 4
    # A side of 8 loses 20 of its 136 cells over the 17 places of its centre.
    assert share.mean().item() == pytest.approx((116 / 136 / 2) ** 2, abs=0.01)
    assert covered.any(0).all()  # no pixel is always safe


def test_cutout_has_no_favourite_side():
    for size in (16, 14):  # an even and an odd square
        covered = (cut_out(images(4000, 1, size, size)) == 0).float().mean((0, 1))
        torch.testing.assert_close(covered, covered.flip(0), rtol=0, atol=0.05)
        torch.testing.assert_close(covered, covered.flip(1), rtol=0, atol=0.05)
