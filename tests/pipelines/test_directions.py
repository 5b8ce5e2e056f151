import pytest
import torch

from latent_prior.pipelines import directions
from latent_prior.pipelines.directions import attribute_direction, channel_deviations, class_means


def normal(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def cut(images, numbers, size):
    return zip(images.split(size), numbers.split(size), strict=True)


def flat(maps):
    return torch.cat([values.flatten() for values in maps.values()]).double()


@pytest.fixture
def correlated():
    """500 correlated "images" of 4 x 2 x 1 numbers, and their attribute (1 or 0; -1: unknown)."""
    rows = normal(500, 8).double() @ normal(8, 8, seed=1).double()
    rows = rows * torch.tensor([1, 3, 0.1, 1, 1, 10, 1, 1]) + 0.5
    has = torch.where(rows[:, 0] + rows[:, 3] + normal(500, seed=2) > 0.8, 1, 0)
    has[::7] = -1
    return rows.view(500, 4, 2, 1), has


@pytest.mark.parametrize("method", ["mean", "probe"])
def test_the_direction_does_not_depend_on_the_batches(plain, correlated, method):
    images, has = correlated
    whole = attribute_direction(plain, [(images, has)], method=method)
    assert {name: tuple(v.shape) for name, v in whole.items()} == {"top": (2, 2, 1), "bottom": (2, 2, 1)}  # fmt: skip
    known = has >= 0
    for other in (
        attribute_direction(plain, cut(images, has, 7), method=method),
        attribute_direction(plain, cut(images[known], has[known], 64), method=method),
        attribute_direction(plain, [(images.flip(0), has.flip(0))], method=method),
    ):
        torch.testing.assert_close(flat(other), flat(whole), rtol=1e-6, atol=1e-6)


def test_the_mean_direction_is_the_difference_of_means(plain, correlated):
    images, has = correlated
    found = flat(attribute_direction(plain, cut(images, has, 50)))
    expected = images[has == 1].mean(0) - images[has == 0].mean(0)
    torch.testing.assert_close(found, expected.flatten(), rtol=1e-6, atol=1e-6)


def test_the_probe_is_ridge_regression_on_standardised_latents(plain, correlated):
    """Against least squares of all rows, with intercept, and the penalty as further rows."""
    images, has = correlated
    rows, target = images.flatten(1)[has >= 0], has[has >= 0].double()
    mean, deviation = rows.mean(0), rows.std(0, correction=0)
    standard = (rows - mean) / deviation
    penalty = (directions.RIDGE * len(rows)) ** 0.5 * torch.eye(8, dtype=torch.float64)
    penalty = torch.cat([penalty, torch.zeros(8, 1, dtype=torch.float64)], dim=1)
    design = torch.cat([standard, torch.ones(len(rows), 1, dtype=torch.float64)], dim=1)
    design = torch.cat([design, penalty])
    answer = torch.cat([target, torch.zeros(8, dtype=torch.float64)])
    weights = torch.linalg.lstsq(design, answer[:, None]).solution[:8, 0]
    found = flat(attribute_direction(plain, cut(images, has, 50), method="probe")) / deviation
    cosine = found @ weights / found.norm() / weights.norm()
    assert float(cosine) == pytest.approx(1, abs=1e-6)
    # Strength 1 leads from one mean to the other, as far as that lies along the weights.
    apart = standard[target == 1].mean(0) - standard[target == 0].mean(0)
    assert float(found @ weights) == pytest.approx(float(apart @ weights), rel=1e-6)


def test_the_probe_agrees_with_logistic_regression(plain, monkeypatch):
    """Two normal classes with one covariance, a fifth with the attribute; Newton's method."""
    shared = torch.eye(6).double() + 0.3 * normal(6, 6).double()
    has = (torch.arange(4000) % 5 == 0).long()
    shift = torch.tensor([1.5, 0, -1, 0, 0, 0.5]).double() @ shared
    rows = normal(4000, 6, seed=1).double() @ shared + has[:, None] * shift
    standard = (rows - rows.mean(0)) / rows.std(0, correction=0)
    design = torch.cat([standard, torch.ones(4000, 1).double()], dim=1)
    weights = torch.zeros(7).double()
    for _ in range(20):
        chance = torch.sigmoid(design @ weights)
        hessian = (design * (chance * (1 - chance))[:, None]).T @ design
        weights = weights + torch.linalg.solve(hessian, design.T @ (has - chance))
    images = rows.view(4000, 6, 1, 1)
    for ridge, agreement in ((1e-9, 0.999), (directions.RIDGE, 0.95)):
        monkeypatch.setattr(directions, "RIDGE", ridge)
        found = flat(attribute_direction(plain, cut(images, has, 500), method="probe"))
        found = found / rows.std(0, correction=0)
        assert float(torch.cosine_similarity(found, weights[:6], dim=0)) > agreement


def test_the_probe_leaves_out_what_merely_comes_along(plain):
    cause = normal(4000)
    along = cause + 0.5 * normal(4000, seed=1)
    images = torch.stack([cause, along, normal(4000, seed=2), torch.full((4000,), 3.0)], dim=1)
    has = (cause > 0).long()
    mean = flat(attribute_direction(plain, [(images[..., None, None], has)]))
    probe = flat(attribute_direction(plain, [(images[..., None, None], has)], method="probe"))
    assert mean[1] > 0.9 * mean[0]
    assert abs(probe[1]) < 0.4 * probe[0]
    assert probe[3] == 0  # a constant says nothing


def test_directions_without_one_side_are_refused(plain, correlated):
    images, has = correlated
    for value, missing in ((1, "without"), (0, "with"), (-1, "with")):
        for batches in ([(images, torch.full_like(has, value))], []):
            with pytest.raises(ValueError, match=f"no image {missing if batches else 'with'} the"):
                attribute_direction(plain, batches)


def test_the_probe_says_what_it_cannot_take(plain, monkeypatch, correlated):
    monkeypatch.setattr(directions, "LARGEST_PROBE", 7)
    with pytest.raises(ValueError, match="8 latents, the probe takes up to 7"):
        attribute_direction(plain, [correlated], method="probe")
    attribute_direction(plain, [correlated], method="mean")


def test_class_means(plain):
    images, labels = normal(40, 4, 2, 2), torch.arange(40) % 4 - 1
    means = class_means(plain, cut(images, labels, 7), [2, 0, 2])
    for place, number in enumerate((2, 0, 2)):
        own = images[labels == number].mean(0)
        torch.testing.assert_close(means["top"][place], own[:2])
        torch.testing.assert_close(means["bottom"][place], own[2:])
    with pytest.raises(ValueError, match="no image of class 5"):
        class_means(plain, cut(images, labels, 7), [5])


def test_a_channels_deviation_is_over_images_and_places(plain):
    images = normal(40, 4, 3, 2) * torch.tensor([1.0, 2.0, 0.0, 5.0])[:, None, None] + 1
    found = channel_deviations(plain, cut(images, torch.zeros(40), 7))
    expected = images.double().std((0, 2, 3), correction=0).float()
    torch.testing.assert_close(found["top"], expected[:2, None, None])
    torch.testing.assert_close(found["bottom"], expected[2:, None, None], atol=1e-6, rtol=1e-6)


@pytest.mark.parametrize("method", ["mean", "probe"])
def test_directions_of_every_member(member, pictures, method):
    """One step along the direction of a group leads every image nearer to that group's mean."""
    images = pictures(40)
    images[::2] = (images[::2] + 0.6).clamp(-1, 1)
    has = (torch.arange(40) % 2 == 0).long()
    direction = attribute_direction(member, cut(images, has, 16), method=method)
    vectors = member.embed(images)
    assert {n: v.shape for n, v in direction.items()} == {
        n: v.shape[1:] for n, v in vectors.items()
    }
    along = sum((vectors[name] * direction[name]).flatten(1).sum(1) for name in vectors)
    assert along[has == 1].mean() > along[has == 0].mean()
