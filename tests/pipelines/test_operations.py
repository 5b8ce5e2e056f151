import itertools
import math

import numpy as np
import pytest
import torch

from latent_prior.pipelines.operations import (
    arithmetic,
    interpolate,
    linear,
    move,
    spherical,
    traverse,
)


def unit(*shape, seed=0, dtype=torch.float64):
    vectors = torch.randn(*shape, dtype=dtype, generator=torch.Generator().manual_seed(seed))
    return torch.nn.functional.normalize(vectors.flatten(1), dim=1).view(shape)


def arc(start, end, share):
    """The textbook formula for one pair of unit vectors, in numpy."""
    angle = np.arccos(np.clip(start @ end, -1, 1))
    weights = np.sin((1 - share) * angle), np.sin(share * angle)
    return (weights[0] * start + weights[1] * end) / np.sin(angle)


@pytest.mark.parametrize("share", [0.0, 0.1, 0.5, 0.83, 1.0])
def test_the_arc_between_unit_vectors(share):
    starts, ends = unit(5, 3, 2, 2), unit(5, 3, 2, 2, seed=1)
    found = spherical(starts, ends, share)
    expected = [
        arc(start.flatten().numpy(), end.flatten().numpy(), share)
        for start, end in zip(starts, ends, strict=True)
    ]
    np.testing.assert_allclose(found.flatten(1), np.stack(expected), atol=1e-12)
    single = spherical(starts.float(), ends.float(), share)
    torch.testing.assert_close(single.double(), found, atol=1e-6, rtol=0)


def test_the_direction_turns_at_constant_speed_and_the_length_changes_evenly():
    starts, ends = 2 * unit(4, 7), 5 * unit(4, 7, seed=1)
    way = [spherical(starts, ends, step / 8) for step in range(9)]
    lengths = torch.stack([each.norm(dim=1) for each in way])
    torch.testing.assert_close(lengths, torch.linspace(2, 5, 9).double()[:, None].expand(9, 4))
    directions = [each / each.norm(dim=1, keepdim=True) for each in way]
    pairs = itertools.pairwise(directions)
    turns = torch.stack([torch.acos((before * after).sum(1)) for before, after in pairs])
    torch.testing.assert_close(turns, turns[:1].expand_as(turns))
    whole = torch.acos((directions[0] * directions[-1]).sum(1))
    torch.testing.assert_close(turns.sum(0), whole)


@pytest.mark.parametrize("factor", [1.0, 2.5, -1.0, -0.5, 0.0])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_where_there_is_no_arc_it_is_the_straight_line(factor, dtype):
    start = unit(3, 8, dtype=dtype)
    for one, other in ((start, factor * start), (factor * start, start)):
        for share in (0.0, 0.3, 1.0):
            found = spherical(one, other, share)
            torch.testing.assert_close(found, linear(one, other, share))


def test_every_image_has_its_own_arc():
    starts = torch.stack([unit(1, 4)[0], unit(1, 4)[0], torch.zeros(4).double()])
    ends = torch.stack([unit(1, 4)[0], unit(1, 4, seed=1)[0], unit(1, 4)[0]])
    whole = spherical(starts, ends, 0.3)
    for place in range(3):
        alone = spherical(starts[place : place + 1], ends[place : place + 1], 0.3)
        torch.testing.assert_close(alone[0], whole[place])


@pytest.mark.parametrize("method", ["linear", "spherical"])
def test_interpolation_begins_and_ends_at_the_reconstructions(member, pictures, method):
    starts, ends = pictures(3), pictures(3, seed=1)
    between = interpolate(member, starts, ends, steps=5, method=method)
    assert between.shape == (3, 5, 3, 16, 16)
    assert between.abs().max() <= 1
    torch.testing.assert_close(between[:, 0], member.reconstruct(starts), atol=1e-5, rtol=0)
    torch.testing.assert_close(between[:, 4], member.reconstruct(ends), atol=1e-5, rtol=0)
    mix = {"linear": linear, "spherical": spherical}[method]
    first, last = member.embed(starts), member.embed(ends)
    middle = member.decode_vectors({name: mix(first[name], last[name], 0.5) for name in first})
    torch.testing.assert_close(between[:, 2], middle, atol=1e-6, rtol=0)
    assert not torch.allclose(between[:, 2], between[:, 0], atol=1e-3)
    alone = interpolate(member, starts[1:2], ends[1:2], steps=5, method=method)
    torch.testing.assert_close(alone[0], between[1], atol=1e-5, rtol=0)
    backwards = interpolate(member, ends, starts, steps=5, method=method)
    torch.testing.assert_close(backwards.flip(1), between, atol=1e-5, rtol=0)


def test_a_direction_is_added_and_taken_away(member, pictures):
    images, others = pictures(2), pictures(2, seed=1)
    vectors, targets = member.embed(images[:1]), member.embed(others[:1])
    direction = {name: (targets[name] - vectors[name])[0] for name in vectors}
    moved = move(member, images, direction, [0, 1, -1, 1])
    torch.testing.assert_close(moved[:, 0], member.reconstruct(images), atol=1e-5, rtol=0)
    torch.testing.assert_close(moved[0, 1], member.reconstruct(others)[0], atol=1e-5, rtol=0)
    assert torch.equal(moved[:, 1], moved[:, 3])
    assert not torch.allclose(moved[:, 2], moved[:, 0], atol=1e-3)


def test_a_traversal_changes_one_channel_evenly(plain):
    images = torch.randn(2, 4, 3, 3, generator=torch.Generator().manual_seed(0))
    deviations = {
        "top": torch.tensor([1.0, 2.0])[:, None, None],
        "bottom": torch.tensor([0.5, 4.0])[:, None, None],
    }
    for dimension, deviation in enumerate((1.0, 2.0, 0.5, 4.0)):
        row = traverse(plain, images, deviations, dimension, steps=5, span=3.0)
        change = row - images[:, None]
        torch.testing.assert_close(change[:, 2], torch.zeros_like(images))
        for step in range(5):
            expected = torch.zeros_like(images)
            expected[:, dimension] = deviation * (-3, -1.5, 0, 1.5, 3)[step]
            torch.testing.assert_close(change[:, step], expected)


def test_traversals_of_every_member(member, pictures):
    images = pictures(2)
    vectors = member.embed(images)
    deviations = {name: torch.ones(v.shape[1], 1, 1) for name, v in vectors.items()}
    count = sum(len(each) for each in deviations.values())
    for dimension in (0, count - 1):
        row = traverse(member, images, deviations, dimension, steps=3)
        torch.testing.assert_close(row[:, 1], member.reconstruct(images), atol=1e-5, rtol=0)
        assert not torch.allclose(row[:, 0], row[:, 2], atol=1e-3)
    with pytest.raises(ValueError, match=f"dimension {count} is out of range: there are {count}"):
        traverse(member, images, deviations, count)
    with pytest.raises(ValueError, match="dimension -1"):
        traverse(member, images, deviations, -1)


def test_arithmetic(member, pictures):
    a, b, c = pictures(2), pictures(2, seed=1), pictures(2, seed=2)
    torch.testing.assert_close(
        arithmetic(member, a, a, c), member.reconstruct(c), atol=1e-5, rtol=0
    )
    torch.testing.assert_close(
        arithmetic(member, a, b, c), arithmetic(member, c, b, a), atol=1e-5, rtol=0
    )
    result = arithmetic(member, a, b, c)
    assert result.shape == a.shape
    assert not torch.allclose(result, member.reconstruct(a), atol=1e-3)
    # The way from b to c, added to a, is the same thing said otherwise.
    first, last = member.embed(b[:1]), member.embed(c[:1])
    way = {name: (last[name] - first[name])[0] for name in first}
    torch.testing.assert_close(move(member, a[:1], way, [1.0])[:, 0], result[:1], atol=1e-5, rtol=0)


def test_wrong_arguments_are_named(member, pictures):
    images = pictures(2)
    with pytest.raises(ValueError, match="steps must be at least 2, not 1"):
        interpolate(member, images, images, steps=1)
    with pytest.raises(ValueError, match="method must be one of linear, spherical, not 'cubic'"):
        interpolate(member, images, images, method="cubic")
    with pytest.raises(ValueError, match="steps must be at least 2, not 0"):
        traverse(member, images, {}, 0, steps=0)
    assert math.isfinite(float(interpolate(member, images, images, method="spherical").sum()))
