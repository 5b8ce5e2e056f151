"""The checkpoints of a run and the models it exports.

Shards (FSDP) are gathered first, so that a run can resume with any number of processes.
"""

from __future__ import annotations

import functools
import itertools
import logging
import os
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any, Protocol

import torch
from accelerate import Accelerator
from accelerate.utils import gather_object
from torch.distributed.tensor import DTensor, distribute_tensor

from latent_prior.files import check_folder_path
from latent_prior.folders import clear_leftover, remove_folder, whole_folder
from latent_prior.manifests import DamagedError, DigestedFile, checked_meanwhile, write_manifest
from latent_prior.models import Budget, StrictModel
from latent_prior.processes import from_main
from latent_prior.training.ema import EMA

_NAME = re.compile(r"step-\d{9}")
_LEFTOVER = re.compile(r"\.(step-\d{9})\.(?:partial|replaced)")
_log = logging.getLogger("latent_prior")


class Stateful(Protocol):
    """A model, an optimizer, an average or a meter."""

    def state_dict(self) -> Mapping[str, Any]:
        """Tensors, numbers and text only, so that it can be read with `weights_only=True`."""

    def load_state_dict(self, state: Any) -> Any:
        """The inverse of `state_dict`."""


def save_checkpoint(
    run: Path, step: int, parts: Mapping[str, Stateful], *, writes: bool = True
) -> None:
    """Write `checkpoints/step-*/NAME.pt` for every part.

    With sharded parts all processes must call it, and one of them `writes`; otherwise one call in
    that process is enough.
    """
    final = run / "checkpoints" / f"step-{step:09d}"
    with (
        without_crc32(),
        whole_folder(final, "checkpoint") if writes else nullcontext() as folder,
    ):
        records = {}
        for name, part in parts.items():
            state = whole(part.state_dict(), keep=writes)
            if folder is not None:
                with DigestedFile(folder / f"{name}.pt") as file:
                    torch.save(state, file)  # type: ignore[arg-type]  # it only writes
                records[f"{name}.pt"] = file.record
        if folder is not None:
            write_manifest(folder, "checkpoint", known=records)


@contextmanager
def without_crc32() -> Iterator[None]:
    """Save without torch's checksums: they take half of the time, and the manifest has digests."""
    before = torch.serialization.get_crc32_options()
    torch.serialization.set_crc32_options(False)
    try:
        yield
    finally:
        torch.serialization.set_crc32_options(before)


def prune_checkpoints(run: Path, *, keep: int, every: int) -> None:
    """Delete all checkpoints but the newest and, up to `keep`, those of every `every` steps.

    So a run that was stopped between two of them ends with the files of one that was not.
    """
    *older, newest = checkpoints(run)
    on_time = [folder for folder in older if step_of(folder) % every == 0]
    kept = [*on_time[max(0, len(on_time) - keep + 1) :], newest]
    for folder in older:
        if folder not in kept:
            remove_folder(folder)


def restore_newest(
    accelerator: Accelerator, run: Path, parts: Mapping[str, Stateful]
) -> Path | None:
    """Restore the newest intact checkpoint; newer ones are damaged, and are set aside.

    All processes must call it. None of a damaged checkpoint's state is left in the parts.

    Returns:
        The checkpoint; None if the run has none.

    Raises:
        ValueError: no checkpoint is intact, or the newest intact one does not fit the parts.
    """
    found = from_main(accelerator, lambda: checkpoints(run))
    damages: dict[Path, str] = {}
    for folder in reversed(found):
        verdict: tuple[bool, str] | None = None  # whether it is damaged, and the message
        try:
            load_checkpoint(folder, parts, check=accelerator.is_main_process)
        except ValueError as error:
            verdict = isinstance(error, DamagedError), str(error)
        verdicts = [each for each in gather_object([verdict]) if each is not None]
        for damaged, message in verdicts:
            if not damaged:
                raise ValueError(message)
            damages[folder] = message.partition(";")[0]
        if not verdicts:
            from_main(accelerator, functools.partial(_set_aside, damages, folder))
            return folder
    if found:
        raise ValueError(
            f"no checkpoint in {run / 'checkpoints'} is intact ({damages[found[-1]]}); restore "
            "one of them, or choose another folder to start anew"
        )
    return None


def _set_aside(damages: Mapping[Path, str], intact: Path) -> None:
    """Rename damaged checkpoints, so that they no longer count, and say so."""
    for folder, damage in damages.items():
        names = (f"{folder.name}.damaged{suffix}" for suffix in ("", *range(2, 1000)))
        aside = next(path for path in map(folder.with_name, names) if not os.path.lexists(path))
        try:
            folder.rename(aside)
        except OSError as error:
            raise ValueError(
                f"{damage}, and {folder} cannot be set aside ({error.strerror}); delete it"
            ) from error
        _log.warning("%s; set aside as %s, going on from %s", damage, aside.name, intact.name)


def load_checkpoint(folder: Path, parts: Mapping[str, Stateful], *, check: bool = True) -> None:
    """Restore every part from a checkpoint and, at the same time, check it against its manifest.

    Raises:
        DamagedError: a file is missing, damaged or of another step; parts may have been restored.
        ValueError: the checkpoint does not fit the parts.
    """
    with checked_meanwhile(folder, "checkpoint") if check else nullcontext() as manifest:
        expected = {f"{name}.pt" for name in parts}
        if manifest is not None and (others := expected.symmetric_difference(manifest.files)):
            raise ValueError(
                f"{folder} belongs to a run with other parts ({', '.join(sorted(others))}); "
                "choose another folder"
            )
        for name, part in parts.items():
            state = _read(folder / f"{name}.pt", part)
            if name == "state" and state["step"] != step_of(folder):
                raise DamagedError(f"{folder} holds the state of step {state['step']}")
            try:
                _share_out(state, _layout(part))
                part.load_state_dict(state)
            except Exception as error:  # whatever a part makes of another's state
                raise ValueError(
                    f"{folder / name}.pt does not fit this run ({_first_line(error)}); choose "
                    f"another folder, or delete {folder} to resume earlier"
                ) from error


def _read(path: Path, part: Stateful) -> Any:
    """The state of a part, mapped from the file if the part copies it, as all but optimizers do."""
    if not path.is_file():
        raise DamagedError(f"{path} is missing")
    mapped = not isinstance(part, torch.optim.Optimizer)
    try:
        return torch.load(path, map_location="cpu", weights_only=True, mmap=mapped)
    except PermissionError as error:
        raise ValueError(f"{path} cannot be read ({error.strerror})") from error
    except Exception as error:  # whatever a damaged file raises
        raise DamagedError(f"{path} cannot be resumed from ({_first_line(error)})") from error


def _first_line(error: Exception) -> str:
    return str(error).splitlines()[0] if str(error) else type(error).__name__


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
    """The checkpoints of a run folder, oldest first; entries with other names are not ours.

    Raises:
        ValueError: they cannot be listed.
    """
    return [folder for folder in _entries(run) if _NAME.fullmatch(folder.name)]


def step_of(checkpoint: Path) -> int:
    """The number of steps after which a checkpoint was written."""
    return int(checkpoint.name.removeprefix("step-"))


def clear_leftovers(run: Path) -> None:
    """Delete what killed processes left of checkpoints that they wrote or deleted.

    Raises:
        ValueError: it cannot be deleted.
    """
    for leftover in _entries(run):
        if found := _LEFTOVER.fullmatch(leftover.name):
            clear_leftover(leftover.with_name(found[1]))


def _entries(run: Path) -> list[Path]:
    folder = run / "checkpoints"
    if not os.path.lexists(folder):
        return []
    try:
        entries = sorted(folder.iterdir())
    except OSError as error:
        raise ValueError(
            f"{folder} cannot be read as the folder of the checkpoints ({error.strerror}); make it "
            "readable, or choose another folder"
        ) from error
    check_folder_path(folder)
    return entries
