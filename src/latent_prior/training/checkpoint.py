"""The checkpoints of a run and the models it exports.

Shards (FSDP) are gathered first, so that a run can resume with any number of processes.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from contextlib import nullcontext
from pathlib import Path
from typing import Any, Protocol

import torch
from accelerate import Accelerator
from torch.distributed.tensor import DTensor, distribute_tensor

from latent_prior.folders import check_folder, remove_folder, whole_folder
from latent_prior.models import Budget, StrictModel
from latent_prior.training.ema import EMA


class Stateful(Protocol):
    """A model, an optimizer, an average or a meter."""

    def state_dict(self) -> Mapping[str, Any]:
        """Tensors, numbers and text only, so that it can be read with `weights_only=True`."""

    def load_state_dict(self, state: Any) -> Any:
        """The inverse of `state_dict`."""


def save_checkpoint(
    run: Path, step: int, parts: Mapping[str, Stateful], *, keep: int, writes: bool = True
) -> None:
    """Write `checkpoints/step-*/NAME.pt` for every part and delete all but the newest `keep`.

    With sharded parts all processes must call it, and one of them `writes`; otherwise one call in
    that process is enough.
    """
    final = run / "checkpoints" / f"step-{step:09d}"
    with whole_folder(final, "checkpoint") if writes else nullcontext() as folder:
        for name, part in parts.items():
            state = whole(part.state_dict(), keep=writes)
            if folder is not None:
                # With a path instead of a file, torch hides system errors such as a full disk.
                with (folder / f"{name}.pt").open("wb") as file:
                    torch.save(state, file)
    if writes:
        for old in checkpoints(run)[:-keep]:
            remove_folder(old)


def load_checkpoint(folder: Path, parts: Mapping[str, Stateful]) -> None:
    """Restore every part from a checkpoint.

    Raises:
        ValueError: a part is missing, damaged, or of another shape.
    """
    check_folder(folder, "checkpoint")
    for name, part in parts.items():
        path = folder / f"{name}.pt"
        try:
            state = torch.load(path, map_location="cpu", weights_only=True)
            _share_out(state, _layout(part))
            part.load_state_dict(state)
        except Exception as error:  # whatever a damaged file raises
            reason = str(error).splitlines()[0] if str(error) else type(error).__name__
            raise ValueError(
                f"{path} cannot be resumed from ({reason}); delete {folder} to resume earlier"
            ) from error


def export_model(
    folder: Path, model: StrictModel, ema: EMA, budget: Budget, accelerator: Accelerator
) -> None:
    """Write a model folder with the averaged weights and the cost of training them.

    All processes must call it.
    """
    model.config.training = budget
    weights = whole(ema.state_for(model), keep=accelerator.is_main_process)
    if accelerator.is_main_process:
        with whole_folder(folder, "model") as unfinished:
            model.save_pretrained(unfinished, state_dict=weights)


def whole(state: Any, *, keep: bool = True) -> Any:
    """Gather the shards of a state on the CPU; a state without shards is returned as it is.

    All processes must call it. Without `keep` a process gets None instead of each gathered tensor.
    """
    if isinstance(state, DTensor):
        tensor = state.full_tensor()
        return tensor.cpu() if keep else None
    if isinstance(state, Mapping):
        parts = {name: whole(value, keep=keep) for name, value in state.items()}
        return state if all(parts[name] is state[name] for name in parts) else parts
    return state


def _share_out(state: dict[Any, Any], layout: Mapping[Any, Any]) -> None:
    """Replace every tensor that is sharded in `layout` by this process's shard.

    `layout` has the names of `state`. One parameter can be the layout of a dictionary: an
    optimizer's state for that parameter.
    """
    for name, like in layout.items():
        value = state.get(name)
        if isinstance(value, dict):
            _share_out(value, like if isinstance(like, Mapping) else dict.fromkeys(value, like))
        elif isinstance(like, DTensor) and value is not None and value.shape == like.shape:
            # Every process has read the whole tensor, so there is nothing to send.
            state[name] = distribute_tensor(
                value.to(like.device), like.device_mesh, like.placements, src_data_rank=None
            )


def _layout(part: Stateful) -> Mapping[str, Any]:
    """Where a part's tensors lie; an optimizer's new state will lie where its parameters do."""
    if isinstance(part, torch.optim.Optimizer):
        parameters = itertools.chain.from_iterable(group["params"] for group in part.param_groups)
        return {"state": dict(enumerate(parameters))}
    return part.state_dict()


def checkpoints(run: Path) -> list[Path]:
    """The complete checkpoints of a run folder, oldest first."""
    return sorted((run / "checkpoints").glob("step-*"))
