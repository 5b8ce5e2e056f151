import pytest
import torch

from latent_prior.losses.likelihoods import make_likelihood
from latent_prior.stage1_autoencoders.pixelcnn import AutoregressiveHead, MaskedConv2d

SIDE = 6


def head(layers=2, channels=3) -> AutoregressiveHead:
    torch.manual_seed(0)
    return AutoregressiveHead(channels, width=8, layers=layers)


def noise(*shape: int, seed=0) -> torch.Tensor:
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed)) * 2 - 1


def dependence(output: torch.Tensor, inputs: torch.Tensor) -> torch.Tensor:
    """How each output pixel depends on each input pixel, over all channels: (pixels, pixels)."""
    places = output.sum((0, 1)).flatten()
    rows = [torch.autograd.grad(place, inputs, retain_graph=True)[0] for place in places]
    return torch.stack([row.abs().sum((0, 1)).flatten() for row in rows])


def test_a_prediction_sees_only_the_pixels_before_it():
    images = noise(1, 3, SIDE, SIDE).requires_grad_()
    features = noise(1, 3, SIDE, SIDE, seed=1).requires_grad_()
    prediction = head()(features, images)
    seen = dependence(prediction, images)
    assert torch.equal(seen.triu(), torch.zeros_like(seen))  # neither itself nor any later one
    for distance in (1, SIDE):  # the pixel to the left, and the one above
        places = [i for i in range(distance, SIDE**2) if distance > 1 or i % SIDE]
        assert all(seen[i, i - distance] > 0 for i in places)
    assert (dependence(prediction, features).diagonal() > 0).all()


@pytest.mark.parametrize(("mask", "own"), [("A", False), ("B", True)])
def test_masks(mask, own):
    """Given the pixels before and, for B, the pixel itself, with all its channels at once."""
    torch.manual_seed(0)
    layer = MaskedConv2d(2, 4, 5, mask=mask)
    x = noise(1, 2, SIDE, SIDE).requires_grad_()
    seen = dependence(layer(x), x)
    assert torch.equal(seen.triu(1), torch.zeros_like(seen))
    assert (seen.diagonal() > 0).all() == own
    assert bool(seen.diagonal().any()) == own

    expected = layer.weight.detach().clone()
    expected[:, :, 2, 3 if own else 2 :] = 0
    expected[:, :, 3:] = 0
    plain = torch.nn.functional.conv2d(x, expected, layer.bias, padding=2)
    torch.testing.assert_close(layer(x), plain)


def test_generated_images_are_what_teacher_forcing_predicts_of_them():
    """Every pixel is the prediction from those before it, though computed a few rows at a time."""
    model, features = head(), noise(2, 3, 14, 9)
    with torch.no_grad():
        model.out.bias.copy_(torch.tensor([-1.1, 0.0, 1.1]))  # some are clipped
    made = model.generate(features, lambda prediction: prediction)
    torch.testing.assert_close(made, model(features, made).detach().clamp(-1, 1))
    assert made.unique().numel() > 300
    assert float(made.max()) == 1


def test_generating_draws_from_the_likelihood():
    model, likelihood = head(), make_likelihood("logistic", channels=3, scale=0.05)
    features = noise(2, 3, 5, 5)
    torch.manual_seed(0)
    first, second = (model.generate(features, likelihood.sample) for _ in range(2))
    assert not torch.equal(first, second)
    levels = (first + 1) * 255 / 2
    torch.testing.assert_close(levels, levels.round(), rtol=0, atol=1e-3)
    assert not first.requires_grad


def test_images_do_not_depend_on_their_batch():
    model, features, images = head(), noise(4, 3, SIDE, SIDE), noise(4, 3, SIDE, SIDE, seed=1)
    alone = torch.cat([model(features[i : i + 1], images[i : i + 1]) for i in range(4)])
    torch.testing.assert_close(model(features, images), alone)


def test_a_strong_decoder_learns_what_the_features_do_not_tell():
    """Rows that repeat their first pixel: known from the left neighbour, not from the features."""
    model = head(channels=1)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    silent = torch.zeros(32, 1, SIDE, SIDE)
    for step in range(80):
        images = noise(32, 1, SIDE, 1, seed=step).expand(-1, -1, -1, SIDE)
        error = (model(silent, images) - images).square()
        optimizer.zero_grad()
        error.mean().backward()
        optimizer.step()
    error = error.detach().mean((0, 1, 2))
    assert float(error[0]) > 0.2  # nobody can know the first pixel
    assert float(error[1:].max()) < 0.05
