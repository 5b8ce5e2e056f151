"""What was found in a dataset, in one line: `train: 492 images, 16 x 16, RGB, 10 classes; ...`."""

from __future__ import annotations

import io
import logging
from collections.abc import Sequence

import numpy as np

from latent_prior.data.image_files import FILE_LIMIT, UNREADABLE, Header, read_header
from latent_prior.data.image_source import ImageTable
from latent_prior.data.sources import open_source
from latent_prior.data.splits import SPLITS, split_named
from latent_prior.files import open_regular
from latent_prior.machine import in_threads, is_main_process
from latent_prior.options import ImageOptions, ReadOptions

_log = logging.getLogger("latent_prior")
MOST_HEADERS = 2048
"""Headers that are read of one split, evenly spaced."""
_LABELS = 8192  # that are counted at a time


def headers(table: ImageTable, options: ReadOptions) -> list[Header | None]:
    """Headers of at most `MOST_HEADERS` images, None for one that cannot be read."""

    def header(row: int) -> Header | None:
        try:
            path = table.path_of(row)
            if path is None:
                return read_header(io.BytesIO(table.read(row)), options.max_pixels)
            with open_regular(path, FILE_LIMIT) as file:
                return read_header(file, options.max_pixels)
        except UNREADABLE:
            return None

    count = min(len(table), MOST_HEADERS)
    rows = np.linspace(0, len(table) - 1, count).round().astype(int).tolist()
    return in_threads(header, rows)


def tell_found(options: ImageOptions, prefix: str = "") -> None:
    """Log what a dataset holds, on the main process; every script that reads images begins so.

    Raises:
        ValueError: there is no such dataset, or its layout is not clear.
    """
    if is_main_process():
        _log.info("%s%s", prefix, found(options))


def found(options: ImageOptions) -> str:
    """What a dataset holds, split by split, and what of it is not used.

    Test images are counted, not opened: only the final scores read them.
    """
    source = open_source(options)
    names = source.split_names()
    if getattr(options, "streaming", False):
        sizes = (f"{name}: {_counted(source.size(name))}" for name in names)
        return "; ".join([*sizes, *source.remarks(), "read as a stream"])
    tables = {name: source.table(name) for name in names if split_named(name) != "test"}
    parts = [
        f"{name}: {_described(tables[name], options) if name in tables else _counted(source.size(name))}"
        for name in names
    ]
    parts += [f"{name}: none" for name in SPLITS if name not in map(split_named, names)]
    remarks = [table.remark for table in tables.values() if table.remark]
    return "; ".join([*parts, *source.remarks(), *dict.fromkeys(remarks)])


def _counted(images: int) -> str:
    return f"{images:,} image{'s' * (images > 1)}"


def _described(table: ImageTable, options: ImageOptions) -> str:
    """`492 images, 16 x 16, RGB, 10 classes`."""
    if len(table) == 0:
        return "no images"
    seen = headers(table, options)
    readable = [header for header in seen if header is not None]
    words = [_counted(len(table))]
    if readable:
        words += [_sizes(readable), _colours(readable, options.channels)]
    if len(readable) < len(seen):
        words.append(f"{len(seen) - len(readable)} unreadable")
    if len(seen) < len(table):
        words.append(f"by {len(seen):,} headers")
    return ", ".join([*words, *_classes(table), *_captions(table)])


def _sizes(seen: Sequence[Header]) -> str:
    sizes = sorted({(header.width, header.height) for header in seen}, key=lambda s: s[0] * s[1])
    first, last = (f"{width} x {height}" for width, height in (sizes[0], sizes[-1]))
    return first if len(sizes) == 1 else f"{first} to {last}"


def _colours(seen: Sequence[Header], channels: int | None) -> str:
    grey = sum(header.grey for header in seen)
    name = {None: "grey" if grey == len(seen) else "RGB", 1: "grey", 3: "RGB"}[channels]
    others = len(seen) - grey if name == "grey" else grey
    return name + (f" ({others:,} of them {'RGB' if name == 'grey' else 'grey'})" if others else "")


def _classes(table: ImageTable) -> list[str]:
    if table.labels is None:
        return ["no classes"]
    count, images = len(table.class_names), np.zeros(len(table.class_names) + 1, np.int64)
    for first in range(0, len(table), _LABELS):
        part = table.labels[first : first + _LABELS].astype(np.int64)
        images += np.bincount(part + 1, minlength=len(images))
    unlabelled, present = int(images[0]), int(np.count_nonzero(images[1:]))
    words = [
        f"{count:,} classes" + (f" ({present:,} of them with images)" if present < count else "")
    ]
    return [*words, *([f"{unlabelled:,} without a class"] if unlabelled else [])]


def _captions(table: ImageTable) -> list[str]:
    if table.captions is None:
        return []
    without = sum(1 for _ in table.captions.problems())
    return [f"captions of {len(table) - without:,}"]
