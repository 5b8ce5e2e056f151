from __future__ import annotations

import torch

from latent_prior.losses.bounded import bounded


def test_a_value_out_of_bounds_learns_only_the_way_back():
    """Where a clamp has no gradient an image once wholly black stays so, and with a tanh nearly."""
    values = torch.tensor([-3.0, -3.0, 0.5, 0.5, 3.0, 3.0], requires_grad=True)
    wish = torch.tensor([0.0, -2.0, 0.0, 2.0, 0.0, 2.0])  # where a step against the gradient leads
    (bounded(values) - wish).square().sum().backward()
    assert values.grad.tolist() == [-2.0, 0.0, 1.0, -3.0, 2.0, 0.0]
