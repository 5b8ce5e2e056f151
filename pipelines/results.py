"""The labels of a folder of images."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from pathlib import Path

from latent_prior.files import whole_file


def write_labels(
    path: Path, files: Sequence[str], labels: Sequence[int], names: Sequence[str]
) -> None:
    """A table of file, class number and class name; without classes the last two are empty."""
    with whole_file(path) as temporary, temporary.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["file", "label", "class"])
        for name, label in zip(files, labels, strict=True):
            writer.writerow([name, *((label, names[label]) if label >= 0 else ("", ""))])
