"""TensorBoard, W&B or trackio beside a run: its numbers, and its pictures at their step.

A run does not depend on its tracker: one that fails is given up with a warning.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from latent_prior.cli import dotted, dump_config
from latent_prior.data.image_files import FILE_LIMIT, read_image
from latent_prior.files import read_regular
from latent_prior.options import RunOptions

if TYPE_CHECKING:
    from accelerate import Accelerator

_log = logging.getLogger("latent_prior")


class Tracker:
    """The tracker of `--report_to`, if there is one; only the main process speaks to it."""

    def __init__(self, accelerator: Accelerator, run: Path, options: RunOptions) -> None:
        self._accelerator, self._name, self._run = accelerator, options.report_to, run
        if options.report_to is not None:
            accelerator.log_with = [options.report_to]
            accelerator.project_configuration.set_directories(str(run))
            values = dotted(dump_config(options))
            # Every tracker accepts numbers and text.
            config = {k: v if isinstance(v, int | float | str) else str(v) for k, v in values}
            self._attempt(lambda: accelerator.init_trackers("latent-prior", config=config))

    def log(self, step: int, numbers: Mapping[str, float]) -> None:
        """Report numbers."""
        self._attempt(lambda: self._accelerator.log(dict(numbers), step=step))

    def show(self, step: int, pictures: Mapping[str, Path]) -> None:
        """Report PNG files under names such as `samples`."""
        for name, path in pictures.items():
            self._attempt(lambda name=name, path=path: self._show(step, name, path))  # type: ignore[misc]

    def close(self) -> None:
        """Write what is still in memory."""
        self._attempt(lambda: [tracker.finish() for tracker in self._accelerator.trackers])
        self._accelerator.trackers = []

    def _show(self, step: int, name: str, path: Path) -> None:
        for tracker in self._accelerator.trackers:
            pixels = read_image(read_regular(path, FILE_LIMIT), 3, None)  # (H, W, 3)
            if tracker.name == "tensorboard":
                tracker.log_images({name: pixels.transpose(2, 0, 1)[None]}, step=step)
            elif tracker.name == "wandb":
                tracker.log_images({name: [pixels]}, step=step)
            else:  # Accelerate knows no images of trackio
                import trackio

                tracker.log({name: trackio.Image(pixels)}, step=step)

    def _attempt(self, report: Callable[[], object]) -> None:
        """Do without the tracker from the first failure on."""
        try:
            report()
        except Exception as error:
            reason = str(error).partition("\n")[0] or type(error).__name__
            _log.warning(
                "--report_to %s failed (%s); the run goes on without it, its figures are in %s",
                self._name,
                reason,
                self._run / "metrics.jsonl",
            )
            self._accelerator.trackers = []
