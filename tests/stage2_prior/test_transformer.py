import math

import pytest
import torch
import torch.nn.functional as F

from stage2_prior.transformer import Block, normalise, rotate, rotations, swiglu, swiglu_width


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


def test_swiglu_width_keeps_the_weights_of_a_plain_mlp():
    assert swiglu_width(256, 4.0) == 688  # Llama's rounding of 682.7
    for width in (32, 96, 384, 1024):
        assert abs(3 * swiglu_width(width, 4.0) / (2 * 4 * width) - 1) <= 0.25
        assert swiglu_width(width, 4.0) % 16 == 0


def test_scores_depend_on_the_distance_of_positions_only():
    length, width = 12, 8
    turn = rotations(length, width, torch.device("cpu"))
    x = torch.randn(3, 1, width).expand(1, length, 3, 1, width)
    q, k, v = rotate(x, turn)[0, :, :, 0].unbind(1)
    scores = q @ k.T
    for distance in range(-length + 1, length):
        diagonal = scores.diagonal(distance)
        torch.testing.assert_close(diagonal, diagonal[:1].expand_as(diagonal), rtol=0, atol=1e-5)
    assert torch.equal(v, x[0, :, 2, 0])  # values pass unchanged, bit for bit
    torch.testing.assert_close(q.norm(dim=-1), x[0, :, 0, 0].norm(dim=-1))


def test_rotation_against_sines_and_cosines():
    turn = rotations(50, 6, torch.device("cpu"))
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


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_a_block_runs_in_other_types(dtype):
    torch.manual_seed(0)
    block = Block(width=16, heads=2, hidden=32, dropout=0.0)
    x = torch.randn(2, 5, 16)
    turn = rotations(5, 8, x.device)
    expected = block(x, turn)
    found = block.to(dtype)(x.to(dtype), turn)
    assert found.dtype == dtype
    torch.testing.assert_close(found.float(), expected, rtol=0, atol=0.1)
