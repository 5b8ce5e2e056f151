from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from latent_prior.options import RunOptions
from latent_prior.training.muon import orthogonal
from latent_prior.training.optim import make_optimizer

OPTIONS = RunOptions(output_dir="x", learning_rate=0.01, weight_decay=0.1)


def matrix(rows, columns, *, lowest=0.05):
    """A matrix with singular values from 1 down to `lowest`."""
    random = torch.Generator().manual_seed(rows)
    u, _, v = torch.linalg.svd(torch.randn(rows, columns, generator=random), full_matrices=False)
    return u @ torch.diag(torch.linspace(1, lowest, len(v))) @ v


def make_model():
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 8, 3), nn.GroupNorm(1, 8), nn.Conv2d(8, 4, 1), nn.Flatten(), nn.Linear(64, 2)
    )


def backward(model):
    inputs = torch.randn(5, 3, 6, 6, generator=torch.Generator().manual_seed(1))
    model(inputs).square().sum().backward()


@pytest.mark.parametrize("shape", [(6, 40), (40, 6), (9, 9), (1, 20)])
def test_the_singular_values_become_equal_and_the_vectors_stay(shape):
    values = orthogonal(3 * matrix(*shape))
    u, _, v = torch.linalg.svd(matrix(*shape), full_matrices=False)
    within = u.T @ values @ v.T  # diagonal: the same singular vectors
    diagonal = within.diagonal()
    torch.testing.assert_close(within, torch.diag(diagonal), atol=1e-4, rtol=0)
    assert diagonal.min() > 0.65
    assert diagonal.max() < 1.25


def test_equals_the_iteration_in_its_published_form():
    x = matrix(12, 70, lowest=1e-3).double()
    found = orthogonal(x.float())
    x = x / x.norm()
    for _ in range(5):
        gram = x @ x.T
        x = 3.4445 * x + (-4.7750 * gram + 2.0315 * gram @ gram) @ x
    torch.testing.assert_close(found.double(), x, atol=1e-4, rtol=0)


def test_the_given_kernels_are_orthogonalised_and_all_else_is_adamw():
    models = [make_model() for _ in range(2)]
    optimizers = [
        make_optimizer(models[0], OPTIONS, orthogonal=[models[0][0].weight]),
        make_optimizer(models[1], OPTIONS),
    ]
    before = copy.deepcopy(models[0])
    for model, optimizer in zip(models, optimizers, strict=True):
        backward(model)
        optimizer.step()
    ours, plain = (dict(model.named_parameters()) for model in models)
    for name in ours.keys() - {"0.weight"}:
        assert torch.equal(ours[name], plain[name])
    change = ours["0.weight"] - before[0].weight * (1 - 0.01 * 0.1)
    singular = torch.linalg.svdvals(change.flatten(1))
    assert singular.max() < 2 * singular.min()
    rms = change.square().mean().sqrt()  # the learning rate, as far as the values are 1
    assert 0.6 * 0.01 < rms < 1.3 * 0.01


def test_a_step_that_is_not_finite_changes_nothing():
    model = make_model()
    optimizer = make_optimizer(model, OPTIONS, orthogonal=[model[0].weight])
    backward(model)
    optimizer.step()
    weights = copy.deepcopy(model.state_dict())
    momentum = optimizer.state[model[0].weight]["exp_avg"].clone()
    optimizer.zero_grad()
    backward(model)
    model[0].weight.grad[0, 0, 0, 0] = torch.nan
    optimizer.found_inf = torch.tensor(1.0)
    optimizer.step()
    for name, value in model.state_dict().items():
        assert torch.equal(value, weights[name])

    assert torch.equal(optimizer.state[model[0].weight]["exp_avg"], momentum)


def test_a_loaded_state_goes_on_to_the_same_weights():
    straight, resumed = make_model(), make_model()
    optimizer = make_optimizer(straight, OPTIONS, orthogonal=[straight[0].weight])
    for _ in range(2):
        backward(straight)
        optimizer.step()
        optimizer.zero_grad()
    resumed.load_state_dict(straight.state_dict())
    loaded = make_optimizer(resumed, OPTIONS, orthogonal=[resumed[0].weight])
    loaded.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    for model, its_optimizer in ((straight, optimizer), (resumed, loaded)):
        backward(model)
        its_optimizer.step()
    for one, other in zip(straight.parameters(), resumed.parameters(), strict=True):
        assert torch.equal(one, other)


def test_a_kernel_without_gradient_stays():
    model = make_model()
    optimizer = make_optimizer(model, OPTIONS, orthogonal=[model[0].weight])
    weight = model[0].weight.detach().clone()
    optimizer.step()
    assert torch.equal(model[0].weight, weight)
