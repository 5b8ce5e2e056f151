import math

import pytest
import torch
import torch.nn.functional as F

from latent_prior.stage2_prior.transformer import (
    Block,
    Dropout,
    normalise,
    rotate,
    rotations,
    swiglu,
    swiglu_width,
)


def test_normalise_is_rms_norm_with_its_gradient():
    x = torch.randn(3, 5, 8, dtype=torch.float64, requires_grad=True)
    torch.testing.assert_close(normalise(x), F.rms_norm(x, (8,), eps=1e-6))
    assert torch.autograd.gradcheck(normalise, (x,))
    tiny = (x.detach() * 1e-4).requires_grad_()  # where epsilon matters
    torch.testing.assert_close(normalise(tiny), F.rms_norm(tiny, (8,), eps=1e-6))
    assert torch.autograd.gradcheck(normalise, (tiny,), eps=1e-9)


def test_normalise_of_zeros_is_zero():
    x = torch.zeros(2, 4, requires_grad=True)
    y = normalise(x)
    y.sum().backward()
    assert torch.equal(y, torch.zeros(2, 4))
    assert x.grad.isfinite().all()


def test_swiglu_is_its_definition_with_its_gradient():
    x = torch.randn(3, 10, dtype=torch.float64, requires_grad=True)
    torch.testing.assert_close(swiglu(x), x[:, :5] * torch.sigmoid(x[:, :5]) * x[:, 5:])
    assert torch.autograd.gradcheck(swiglu, (x,))


@pytest.mark.parametrize("p", [0.25, 1.0])
def test_dropout_scales_what_it_keeps(p):
    """The mean stays; the same choice in the backward pass; nothing happens in evaluation mode."""
    dropout, x = Dropout(p), torch.full((50, 20, 10), 2.0, requires_grad=True)
    y = dropout(x)
    (gradient,) = torch.autograd.grad(y.sum(), x)
    torch.testing.assert_close(y, 2 * gradient)
    kept = gradient != 0
    assert float(kept.double().mean()) == pytest.approx(1 - p, abs=0.02)
    assert ((gradient[kept] - 1 / (1 - p or 1)).abs() < 1e-4).all()
    assert dropout.eval()(x) is x


def test_swiglu_width_keeps_the_weights_of_a_plain_mlp():
    assert swiglu_width(256, 4.0) == 688  # Llama's rounding of 682.7
    for width in (32, 96, 384, 1024):
        assert abs(3 * swiglu_width(width, 4.0) / (2 * 4 * width) - 1) <= 0.25
        assert swiglu_width(width, 4.0) % 16 == 0


def along_a_line(length, head_width):
    line = torch.arange(length).unsqueeze(1)
    return rotations(line, line, head_width)


def test_scores_depend_on_the_distance_of_positions_only():
    length, width = 12, 8
    turn = along_a_line(length, width)
    x = torch.randn(3, 1, width).expand(1, length, 3, 1, width)
    q, k, v = rotate(x, turn)[0, :, :, 0].unbind(1)
    scores = q @ k.T
    for distance in range(-length + 1, length):
        diagonal = scores.diagonal(distance)
        torch.testing.assert_close(diagonal, diagonal[:1].expand_as(diagonal), rtol=0, atol=1e-5)
    assert torch.equal(v, x[0, :, 2, 0])  # values pass unchanged, bit for bit
    torch.testing.assert_close(q.norm(dim=-1), x[0, :, 0, 0].norm(dim=-1))


def test_rotation_against_sines_and_cosines():
    turn = along_a_line(50, 6)
    x = torch.randn(1, 50, 3, 2, 6)
    rotated = rotate(x, turn)
    for position in (0, 1, 49):
        for pair in range(3):
            angle = position / 10_000 ** (2 * pair / 6)
            matrix = torch.tensor(
                [[math.cos(angle), -math.sin(angle)], [math.sin(angle), math.cos(angle)]]
            )
            channels = slice(2 * pair, 2 * pair + 2)
            expected = x[0, position, :2, :, channels] @ matrix.T
            torch.testing.assert_close(rotated[0, position, :2, :, channels], expected)


def test_scores_depend_on_the_distance_of_rows_and_of_columns_only():
    height, width, head_width = 4, 5, 8
    rows, columns = torch.arange(height), torch.arange(width)
    grid = torch.cartesian_prod(rows, columns).float()
    turn = rotations(grid, grid, head_width)
    x = torch.randn(3, 1, head_width).expand(1, len(grid), 3, 1, head_width)
    q, k, _ = rotate(x, turn)[0, :, :, 0].unbind(1)
    scores, seen = q @ k.T, {}
    for i, one in enumerate(grid.tolist()):
        for j, other in enumerate(grid.tolist()):
            distance = (one[0] - other[0], one[1] - other[1])
            seen.setdefault(distance, []).append(scores[i, j])
    assert len(seen) == (2 * height - 1) * (2 * width - 1)
    for alike in seen.values():
        torch.testing.assert_close(torch.stack(alike), alike[0].expand(len(alike)))
    means = torch.stack([torch.stack(alike).mean() for alike in seen.values()])
    assert len(means.mul(1e3).round().unique()) > 0.9 * len(means)  # no two distances are the same


def test_rows_turn_one_half_of_the_channels_and_columns_the_other():
    rows = torch.tensor([[3.0, 0.0], [0.5, 0.0]])
    x = torch.randn(1, 2, 3, 1, 8)
    by_row = rotate(x, rotations(rows, rows, 8))
    by_column = rotate(x, rotations(rows.flip(1), rows.flip(1), 8))
    assert torch.equal(by_row[..., 4:], x[..., 4:])
    assert torch.equal(by_column[..., :4], x[..., :4])
    flipped = rotate(x.roll(4, -1), rotations(rows.flip(1), rows.flip(1), 8)).roll(4, -1)
    torch.testing.assert_close(flipped, by_row)
    pair = by_row[0, 0, 0, 0, 2:4]  # the second of the two frequencies: 100^(-1/2)
    angle = torch.tensor(3.0 / 10)
    turned = torch.stack((angle.cos(), -angle.sin(), angle.sin(), angle.cos())).view(2, 2)
    torch.testing.assert_close(pair, turned @ x[0, 0, 0, 0, 2:4])


def test_queries_and_keys_have_places_of_their_own():
    """With 2-D positions in raster order a query has the position of the code to predict."""
    queries, keys = torch.tensor([[5.0], [1.0]]), torch.tensor([[2.0], [3.0]])
    x = torch.randn(1, 2, 3, 1, 4)
    q, k, v = rotate(x, rotations(queries, keys, 4)).unbind(2)
    as_both = [rotate(x, rotations(places, places, 4)) for places in (queries, keys)]
    assert torch.equal(q, as_both[0][:, :, 0])
    assert torch.equal(k, as_both[1][:, :, 1])
    assert torch.equal(v, x[:, :, 2])


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_a_block_runs_in_other_types(dtype):
    torch.manual_seed(0)
    block = Block(width=16, heads=2, hidden=32, dropout=0.0)
    x = torch.randn(2, 5, 16)
    turn = along_a_line(5, 8)
    expected = block(x, turn)
    found = block.to(dtype)(x.to(dtype), turn)
    assert found.dtype == dtype
    torch.testing.assert_close(found.float(), expected, rtol=0, atol=0.1)


def test_a_block_without_a_mask_sees_all_positions():
    torch.manual_seed(0)
    for causal in (True, False):
        block = Block(width=16, heads=2, hidden=32, dropout=0.0, causal=causal)
        x = torch.randn(1, 5, 16)
        changed = x.clone()
        changed[0, 3] += 1
        turn = along_a_line(5, 8)
        differs = (block(x, turn) != block(changed, turn)).any(-1)[0]
        assert differs.tolist() == [not causal] * 3 + [True, True]
