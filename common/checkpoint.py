"""Files that are either whole or absent, and the checkpoints of a run.

Everything is written under a temporary name and renamed: a process that dies leaves the previous state behind.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol

import torch


class Stateful(Protocol):
    """A model, an optimizer, an average or a meter."""

    def state_dict(self) -> Mapping[str, Any]:
        """Tensors, numbers and text only, so that it can be read with `weights_only=True`."""

    def load_state_dict(self, state: Any) -> Any:
        """The inverse of `state_dict`."""


@contextmanager
def whole_folder(final: Path) -> Iterator[Path]:
    """A folder to write into that takes the name `final` when the block ends well, and is removed otherwise.

    A folder already there is replaced only then.
    """
    temporary = final.with_name(f".{final.name}.partial")
    replaced = final.with_name(f".{final.name}.replaced")
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir(parents=True)
    try:
        yield temporary
        shutil.rmtree(replaced, ignore_errors=True)
        if final.exists():
            final.rename(replaced)
        temporary.rename(final)
        shutil.rmtree(replaced, ignore_errors=True)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise


@contextmanager
def whole_file(final: Path) -> Iterator[Path]:
    """A file name to write to that becomes `final` when the block ends well; the file is removed otherwise.

    What a killed process leaves behind has the same name, so the next one writes over it.
    """
    final.parent.mkdir(parents=True, exist_ok=True)
    temporary = final.with_name(f".{final.name}.partial{final.suffix}")
    try:
        yield temporary
        temporary.replace(final)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def save_checkpoint(run: Path, step: int, parts: Mapping[str, Stateful], *, keep: int) -> None:
    """Write `checkpoints/step-*/NAME.pt` for every part, then delete all but the newest `keep` checkpoints."""
    with whole_folder(run / "checkpoints" / f"step-{step:09d}") as folder:
        for name, part in parts.items():
            # Given a file, torch passes on what the system said (a full disk, say); given a path it does not.
            with (folder / f"{name}.pt").open("wb") as file:
                torch.save(part.state_dict(), file)
    for old in checkpoints(run)[:-keep]:
        shutil.rmtree(old)


def load_checkpoint(folder: Path, parts: Mapping[str, Stateful]) -> None:
    """Restore every part from a checkpoint.

    Raises:
        ValueError: a part is missing, damaged, or of another shape.
    """
    for name, part in parts.items():
        path = folder / f"{name}.pt"
        try:
            part.load_state_dict(torch.load(path, map_location="cpu", weights_only=True))
        except Exception as error:  # whatever a damaged file provokes
            reason = str(error).splitlines()[0] if str(error) else type(error).__name__
            raise ValueError(
                f"{path} cannot be resumed from ({reason}); delete {folder} to resume earlier"
            ) from error


def checkpoints(run: Path) -> list[Path]:
    """The complete checkpoints of a run folder, oldest first."""
    return sorted((run / "checkpoints").glob("step-*"))
