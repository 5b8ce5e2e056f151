"""Entry scripts one after the other in the processes of an FSDP config, for test_sharded.py."""

import importlib
import json
import os
import sys

import torch
from accelerate.state import AcceleratorState, PartialState
from accelerate.utils import DistributedType
from torch.distributed.tensor import DTensor

from latent_prior.training import checkpoint, loop
from latent_prior.training.optim import update

_initialise, _train = AcceleratorState.__init__, loop.train


def initialise_sharded(state, *arguments, fsdp_plugin=None, **others):
    """Let an FSDP config count on a CPU too; accelerate reads it on GPUs only."""
    _initialise(state, *arguments, fsdp_plugin=fsdp_plugin, **others)
    if fsdp_plugin is not None:
        state.distributed_type, state.fsdp_plugin = DistributedType.FSDP, fsdp_plugin
        PartialState._shared_state["distributed_type"] = DistributedType.FSDP


def train_and_look(accelerator, step, batches, state, options, **others):
    """Train; then see that everything is sharded, and that a bad gradient changes nothing."""
    _train(accelerator, step, batches, state, options, **others)
    for name in ("model", "optimizer", "ema"):
        found = [each for each in tensors(state.parts[name].state_dict()) if each.ndim > 0]
        assert found, name
        for each in found:
            assert isinstance(each, DTensor), name
            assert len(each.to_local()) in (len(each) // 2, (len(each) + 1) // 2), name
    model, optimizer = state.parts["model"], state.parts["optimizer"]
    before = checkpoint.whole(model.state_dict())
    for parameter in model.parameters():
        parameter.grad = torch.ones_like(parameter)
    if accelerator.process_index == 1:
        next(model.parameters()).grad.to_local().view(-1)[0] = torch.nan
    loss = torch.tensor(1.0)
    figures = update(accelerator, optimizer, model, loss=loss, step=state.step, options=options)
    assert torch.isnan(figures["gradient_norm"])
    after = checkpoint.whole(model.state_dict())
    assert all(torch.equal(before[name], after[name]) for name in before)


def tensors(state):
    """All tensors of a nested dictionary."""
    for value in state.values() if isinstance(state, dict) else ():
        yield from [value] if torch.is_tensor(value) else tensors(value)


if __name__ == "__main__":
    os.environ["ACCELERATE_USE_CPU"] = "true"
    AcceleratorState.__init__ = initialise_sharded
    loop.train = train_and_look
    for module, words in json.loads(sys.argv[1]):
        importlib.import_module(module).main(words)
