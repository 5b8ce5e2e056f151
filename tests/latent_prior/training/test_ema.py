import pytest
import torch
from torch import nn

from latent_prior.training.ema import EMA


@pytest.fixture
def model():
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.Conv2d(4, 2, 1))


def move(model: nn.Module) -> None:
    with torch.no_grad():
        for tensor in model.state_dict().values():
            if tensor.is_floating_point():
                tensor.add_(torch.randn_like(tensor))


def test_the_average_equals_a_slow_float64_reference(model):
    ema = EMA(model, 0.9)
    slow = {name: p.detach().double() for name, p in model.named_parameters()}
    for count in range(1, 200):
        move(model)
        ema.update(model)
        decay = min(0.9, (1 + count) / (10 + count))
        for name, p in model.named_parameters():
            slow[name] = decay * slow[name] + (1 - decay) * p.detach().double()
    for name, value in ema.weights.items():
        torch.testing.assert_close(value.double(), slow[name], rtol=1e-5, atol=1e-5)


def test_without_warm_up_a_short_run_would_average_in_its_start(model):
    ema = EMA(model, 0.999)
    start = {name: p.detach().clone() for name, p in model.named_parameters()}
    with torch.no_grad():
        for p in model.parameters():
            p.add_(1)
    for _ in range(20):
        ema.update(model)
    for name, value in ema.weights.items():
        assert (
            value - start[name] > 0.99
        ).all()  # a constant decay of 0.999 would have reached 0.02


def test_rows_that_were_moved_start_anew(model):
    """A restarted code would otherwise be averaged with a place that nothing uses any more."""
    ema, plain = EMA(model, 0.9), EMA(model, 0.9)
    move(model)
    rows = torch.tensor([True, False, False, True])
    ema.update(model, {"0.weight": rows})
    plain.update(model)
    weight = model.get_parameter("0.weight")
    assert torch.equal(ema.weights["0.weight"][rows], weight[rows])
    assert torch.equal(ema.weights["0.weight"][~rows], plain.weights["0.weight"][~rows])
    assert not torch.equal(ema.weights["0.weight"][~rows], weight[~rows])
    assert torch.equal(ema.weights["2.weight"], plain.weights["2.weight"])


def test_the_decay_of_zero_follows_the_model(model):
    ema = EMA(model, 0.0)
    move(model)
    ema.update(model)
    assert all(torch.equal(ema.weights[name], p) for name, p in model.named_parameters())


def test_applying_is_undone_exactly_also_after_an_error(model):
    ema = EMA(model, 0.5)
    move(model)
    own = {name: value.clone() for name, value in model.state_dict().items()}

    def look():
        with ema.applied_to(model):
            for name, p in model.named_parameters():
                assert torch.equal(p, ema.weights[name])
            raise RuntimeError

    with pytest.raises(RuntimeError):
        look()
    assert all(torch.equal(own[name], value) for name, value in model.state_dict().items())


def test_buffers_are_the_models_present_ones(model):
    """A codebook's statistics are averages already; averaging them again would lag behind."""
    ema = EMA(model, 0.99)
    move(model)
    state = ema.state_for(model)
    assert state.keys() == model.state_dict().keys()
    parameters = dict(model.named_parameters())
    for name, value in model.state_dict().items():
        assert torch.equal(state[name], ema.weights[name] if name in parameters else value)
    model.load_state_dict(state)


def test_the_average_owns_its_memory(model):
    ema = EMA(model, 0.9)
    before = {name: value.clone() for name, value in ema.weights.items()}
    move(model)
    assert all(torch.equal(before[name], value) for name, value in ema.weights.items())


def test_saving_and_loading_goes_on_exactly(model):
    ema, other = EMA(model, 0.9), EMA(model, 0.9)
    move(model)
    ema.update(model)
    other.load_state_dict(ema.state_dict())
    move(model)
    for each in (ema, other):
        each.update(model)
    assert ema.updates == other.updates == 2
    assert all(torch.equal(ema.weights[name], other.weights[name]) for name in ema.weights)


def test_another_models_average_is_refused(model):
    with pytest.raises(ValueError, match="belong to another model"):
        EMA(model, 0.9).load_state_dict(EMA(nn.Linear(2, 2), 0.9).state_dict())
