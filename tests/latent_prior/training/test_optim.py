import dataclasses
import math

import pytest
import torch
from accelerate.scheduler import AcceleratedScheduler
from accelerate.state import PartialState
from torch import nn
from torch.nn.utils import parametrizations

from latent_prior.options import RunOptions
from latent_prior.processes import start_processes
from latent_prior.training.optim import learning_rate_at, make_optimizer, update

OPTIONS = RunOptions(
    output_dir="x", learning_rate=0.1, warmup_steps=10, max_steps=110, final_learning_rate=0.01
)


@pytest.mark.parametrize("schedule", ["constant", "cosine", "linear"])
def test_the_limits_of_the_learning_rate(schedule):
    options = dataclasses.replace(OPTIONS, schedule=schedule)
    rates = [learning_rate_at(step, options) for step in range(130)]
    assert rates[0] == pytest.approx(0.01)
    assert rates[:10] == sorted(rates[:10])
    assert rates[9] == rates[10] == pytest.approx(0.1)
    final = 0.1 if schedule == "constant" else 0.01
    assert rates[110:] == pytest.approx([final] * 20)
    assert rates[10:] == sorted(rates[10:], reverse=True)
    halfway = {"constant": 0.1, "linear": 0.055, "cosine": 0.055}
    assert rates[60] == pytest.approx(halfway[schedule])


def test_cosine_and_linear_equal_their_formulas():
    for step in range(10, 110):
        progress = (step - 10) / 100
        linear = learning_rate_at(step, dataclasses.replace(OPTIONS, schedule="linear"))
        assert linear == pytest.approx(0.1 + (0.01 - 0.1) * progress)
        cosine = learning_rate_at(step, dataclasses.replace(OPTIONS, schedule="cosine"))
        assert cosine == pytest.approx(0.01 + 0.09 * (1 + math.cos(math.pi * progress)) / 2)


def test_no_warm_up_and_no_steps_divide_by_nothing():
    for schedule in ("constant", "cosine", "linear"):
        options = dataclasses.replace(OPTIONS, warmup_steps=0, max_steps=0, schedule=schedule)
        assert 0.01 <= learning_rate_at(0, options) <= 0.1


def test_only_weights_of_layers_decay():
    """Decay would pull a table of vectors (codebook, embedding) away from what they represent."""
    model = nn.Sequential(
        nn.Conv2d(1, 2, 3), nn.GroupNorm(1, 2), nn.Linear(2, 2), nn.Embedding(3, 2)
    )
    model[2].bias.requires_grad_(False)
    optimizer = make_optimizer(model, dataclasses.replace(OPTIONS, weight_decay=0.1))
    decayed, plain = (group["params"] for group in optimizer.param_groups)
    assert [group["weight_decay"] for group in optimizer.param_groups] == [0.1, 0.0]
    assert {id(p) for p in decayed} == {id(model[0].weight), id(model[2].weight)}
    assert any(p is model[3].weight for p in plain)
    assert len(decayed) + len(plain) == len(list(model.parameters())) - 1


def test_spectral_norm_is_neither_decayed_nor_advanced():
    """Reading such a layer's weight takes a step of its power iteration."""
    layer = parametrizations.spectral_norm(nn.Linear(4, 3))
    before = {name: buffer.clone() for name, buffer in layer.named_buffers()}
    decayed, plain = (group["params"] for group in make_optimizer(layer, OPTIONS).param_groups)
    assert not decayed
    assert len(plain) == 2
    assert before
    assert all(torch.equal(buffer, before[name]) for name, buffer in layer.named_buffers())


@pytest.fixture
def training(fresh_processes):
    """A linear model with its optimizer, on one process, in two micro-batches."""

    def start(accumulation_steps: int = 1, **changes: object):
        fresh_processes()
        torch.manual_seed(0)
        options = dataclasses.replace(OPTIONS, **changes)
        accelerator = start_processes(accumulation_steps=accumulation_steps, cpu_threads=1)
        model = nn.Linear(3, 1)
        model, optimizer = accelerator.prepare(model, make_optimizer(model, options))
        return accelerator, model, optimizer, options

    return start


def weights(model: nn.Module) -> list[torch.Tensor]:
    return [p.detach().clone() for p in model.parameters()]


def test_an_update_equals_plain_adamw(training):
    accelerator, model, optimizer, options = training(weight_decay=0.2, gradient_clip=0.5)
    reference = nn.Linear(3, 1)
    reference.load_state_dict(model.state_dict())
    plain = torch.optim.AdamW(
        [{"params": [reference.weight], "weight_decay": 0.2}, {"params": [reference.bias], "weight_decay": 0.0}],
        betas=(0.9, 0.95),
    )  # fmt: skip
    for step in range(15):
        data = torch.randn(8, 3)
        accelerator.backward(model(data).square().mean())
        metrics = update(
            accelerator, optimizer, model, loss=torch.zeros(()), step=step, options=options
        )
        reference(data).square().mean().backward()
        norm = nn.utils.clip_grad_norm_(reference.parameters(), 0.5)
        for group in plain.param_groups:
            group["lr"] = learning_rate_at(step, options)
        plain.step()
        plain.zero_grad()
        torch.testing.assert_close(metrics["gradient_norm"], norm)
        assert metrics["learning_rate"].item() == pytest.approx(learning_rate_at(step, options))
    torch.testing.assert_close(weights(model), weights(reference))
    assert all(p.grad is None for p in model.parameters())


def test_no_clipping_leaves_gradients_alone(training):
    results = []
    for clip in (None, 1e9):
        accelerator, model, optimizer, options = training(gradient_clip=clip)
        accelerator.backward(model(torch.full((2, 3), 100.0)).square().mean())
        update(accelerator, optimizer, model, loss=torch.zeros(()), step=50, options=options)
        results.append(weights(model))
    assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))


@pytest.mark.parametrize("bad", [math.nan, math.inf])
@pytest.mark.parametrize("clip", [None, 1.0])
def test_a_gradient_that_is_not_finite_changes_nothing(training, bad, clip):
    accelerator, model, optimizer, options = training(gradient_clip=clip, weight_decay=0.1)
    for step in range(2):
        accelerator.backward(model(torch.randn(4, 3)).square().mean())
        update(accelerator, optimizer, model, loss=torch.zeros(()), step=step, options=options)
    before = weights(model)
    moments = [v.clone() for s in optimizer.state_dict()["state"].values() for v in s.values()]
    accelerator.backward(model(torch.full((4, 3), bad)).sum())
    metrics = update(accelerator, optimizer, model, loss=torch.zeros(()), step=2, options=options)
    assert not math.isfinite(metrics["gradient_norm"])
    assert all(torch.equal(a, b) for a, b in zip(before, weights(model), strict=True))
    after = [v for s in optimizer.state_dict()["state"].values() for v in s.values()]
    assert all(torch.equal(a, b) for a, b in zip(moments, after, strict=True))
    accelerator.backward(model(torch.randn(4, 3)).square().mean())
    update(accelerator, optimizer, model, loss=torch.zeros(()), step=2, options=options)
    assert not torch.equal(before[0], weights(model)[0])


def test_nothing_happens_while_gradients_accumulate(training):
    accelerator, model, optimizer, options = training(accumulation_steps=2)
    before, data = weights(model), torch.randn(8, 3)
    rates = []
    for half in data.split(4):
        with accelerator.accumulate(model):
            accelerator.backward(model(half).square().mean())
            metrics = update(
                accelerator, optimizer, model, loss=torch.zeros(()), step=0, options=options
            )
        rates.append("learning_rate" in metrics)
        assert torch.equal(before[0], weights(model)[0]) is not rates[-1]
    assert rates == [False, True]
    accumulated = weights(model)
    accelerator, model, optimizer, options = training()
    accelerator.backward(model(data).square().mean())
    update(accelerator, optimizer, model, loss=torch.zeros(()), step=0, options=options)
    torch.testing.assert_close(accumulated, weights(model))


def test_the_rate_does_not_depend_on_the_number_of_processes(training, monkeypatch):
    """accelerate's scheduler steps in every process: four would end warm-up four times early."""
    accelerator, model, optimizer, options = training()
    monkeypatch.setitem(PartialState._shared_state, "num_processes", 4)
    warmup = torch.optim.lr_scheduler.LambdaLR(
        optimizer.optimizer, lambda step: learning_rate_at(step, options) / options.learning_rate
    )
    prepared = AcceleratedScheduler(warmup, [optimizer], step_with_optimizer=True)
    for step in range(5):
        accelerator.backward(model(torch.randn(4, 3)).square().mean())
        update(accelerator, optimizer, model, loss=torch.zeros(()), step=step, options=options)
        assert optimizer.param_groups[0]["lr"] == pytest.approx(learning_rate_at(step, options))
        prepared.step()
    assert prepared.get_last_lr()[0] == pytest.approx(options.learning_rate)  # already at its peak


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_a_loss_that_is_not_finite_changes_nothing(training, bad):
    """Its gradient may well be finite: a constant has none."""
    accelerator, model, optimizer, options = training()
    before = weights(model)
    loss = model(torch.randn(4, 3)).square().mean() + torch.tensor(bad)
    accelerator.backward(loss)
    update(accelerator, optimizer, model, loss=loss, step=5, options=options)
    assert all(torch.equal(a, b) for a, b in zip(before, weights(model), strict=True))


def test_fp16_unscales_the_gradients_of_its_own_model_only():
    """Accelerate's clipping would also unscale a critic's half-accumulated gradients."""
    accelerator = start_processes()
    ours, other = torch.nn.Linear(2, 1), torch.nn.Linear(2, 1)
    optimizers = [torch.optim.AdamW(each.parameters(), lr=0.1) for each in (ours, other)]
    accelerator.scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
    ours, other, first, second = accelerator.prepare(ours, other, *optimizers)
    accelerator.native_amp, accelerator.state._mixed_precision = True, "fp16"
    try:
        inputs = torch.ones(3, 2)
        loss, critic_loss = ours(inputs).mean(), other(inputs).mean()
        accelerator.backward(critic_loss)  # a first micro-batch of the other model
        accelerator.backward(loss)
        options = RunOptions(output_dir="unused", warmup_steps=0)
        metrics = update(accelerator, first, ours, loss=loss, step=0, options=options)
        assert float(metrics["gradient_norm"]) == pytest.approx(3**0.5)  # two weights and a bias
        torch.testing.assert_close(other.weight.grad, torch.full((1, 2), 1024.0))
        accelerator.backward(other(inputs).mean())  # its second micro-batch
        metrics = update(accelerator, second, other, loss=critic_loss, step=0, options=options)
        assert float(metrics["gradient_norm"]) == pytest.approx(2 * 3**0.5)
    finally:
        accelerator.state._mixed_precision = "no"
