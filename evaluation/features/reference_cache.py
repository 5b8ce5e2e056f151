"""Features and statistics of the reference, computed once and kept in the user's cache folder.

The name of an entry is a hash of all that its numbers depend on: the content of the images, how
they are decoded and resized, the network's weights, the versions of the packages. An entry appears
whole or not at all, and is used only if its digests match. Features are written in parts of `PART`
images to one file: memory stays flat, processes share the work, and a killed run continues after
the last finished part.
"""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from itertools import chain
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
from accelerate import Accelerator
from filelock import FileLock, Timeout

from latent_prior.data.image_files import UNREADABLE
from latent_prior.evaluation.features.downloads import file_digest
from latent_prior.evaluation.features.extract import stream
from latent_prior.evaluation.features.networks import FeatureNetwork
from latent_prior.evaluation.features.published import published_statistics
from latent_prior.evaluation.measures import fid
from latent_prior.evaluation.measures.inputs import ReferenceStatistics
from latent_prior.evaluation.options import ReferenceOptions
from latent_prior.evaluation.sets import ScoredSet
from latent_prior.files import cache_folder, whole_file
from latent_prior.folders import remove
from latent_prior.machine import each_in_threads, versions
from latent_prior.processes import share
from latent_prior.records import read_record, write_record

_log = logging.getLogger("latent_prior")
LAYOUT = 1  # of an entry; entries of another layout are ignored
PART = 256  # images, at least
PACKAGES = (
    "latent-prior", "pillow", "clean-fid", "torch", "transformers", "efficientnet-lite-pytorch",
)  # fmt: skip
FEATURES, STATISTICS, RECORD, PARTS = "features.npy", "statistics.npz", "reference.json", "parts"


def load_reference(
    network: FeatureNetwork,
    images: ScoredSet | None,
    options: ReferenceOptions,
    accelerator: Accelerator,
) -> ReferenceStatistics:
    """Statistics of the reference's images, or the published ones that the options name.

    Raises:
        ValueError: see `reference_statistics` and `published_statistics`.
    """
    if images is not None:
        return reference_statistics(network, images, options.batch_size, accelerator)
    assert options.published is not None
    with accelerator.local_main_process_first():
        return published_statistics(options.published, network)


def reference_statistics(
    network: FeatureNetwork, scored: ScoredSet, batch_size: int, accelerator: Accelerator
) -> ReferenceStatistics:
    """Statistics and features of a set from the cache, computed first if they are missing.

    The processes must share the cache folder.

    Raises:
        ValueError: an image cannot be read, or the processes do not share the cache folder.
    """
    depends_on = describe(network, scored)
    key = hashlib.sha256(json.dumps(depends_on, sort_keys=True).encode()).hexdigest()
    final = cache_folder() / "references" / key
    partial = final.with_name(f".{key}.partial")
    with ExitStack() as alone:
        # An entry that is there needs no lock, so the cache may be read-only.
        if accelerator.is_main_process and not _is_sound(final, depends_on):
            alone.enter_context(_lock(final))
            if not _is_sound(final, depends_on):  # another run may have computed it meanwhile
                remove(final)
                _begin(partial, len(scored), network.dimension)
        accelerator.wait_for_everyone()
        if not final.exists():
            # Of whole batches, so that the features do not depend on the parts.
            size, everything = -(-PART // batch_size) * batch_size, range(len(scored))
            parts = [everything[start : start + size] for start in everything[::size]]
            _extract_parts(network, scored, batch_size, parts, partial, accelerator)
            accelerator.wait_for_everyone()
            if accelerator.is_main_process:
                _finish(partial, final, depends_on, parts)
        accelerator.wait_for_everyone()
    return _open(final, scored, key)


def describe(network: FeatureNetwork, scored: ScoredSet) -> dict[str, Any]:
    """Everything that the features of a set depend on, JSON-ready.

    Raises:
        ValueError: an image cannot be read.
    """
    options = scored.images.options
    return {
        "layout": LAYOUT,
        "images": content_digest(scored),
        "num_images": len(scored),
        "image_size": options.resize or options.image_size,
        "channels": scored.images.channels,
        "features": network.column,
        "feature_weights": network.digest,
        "feature_dimension": network.dimension,
        "resizer": network.resizer,
        "device": network.device.type,
        "versions": versions(PACKAGES),
    }


def content_digest(scored: ScoredSet) -> str:
    """sha256 of the encoded images that take part, in their order; nothing is decoded.

    Raises:
        ValueError: an image cannot be read.
    """
    table, rows = scored.images.table, scored.images.source_index[scored.chosen]

    def digest(position: int) -> bytes:
        row = int(rows[position])
        try:
            return hashlib.sha256(table.read(row)).digest()
        except UNREADABLE as error:
            raise ValueError(f"{table.name_of(row)} cannot be read ({error})") from error

    whole = hashlib.sha256()
    for each in each_in_threads(digest, range(len(rows))):
        whole.update(each)
    return whole.hexdigest()


@contextmanager
def _lock(final: Path) -> Iterator[None]:
    """Lock an entry: of two runs that need it, one computes it and the other waits."""
    lock = FileLock(f"{final}.lock")
    try:
        final.parent.mkdir(parents=True, exist_ok=True)
        try:
            lock.acquire(timeout=0)
        except Timeout:
            _log.info("another run is computing the statistics of this reference; waiting for it")
            lock.acquire()
    except OSError as error:
        raise ValueError(
            f"the cache folder {final.parent} cannot be written ({error.strerror}: "
            f"{error.filename or lock.lock_file}); set $LATENT_PRIOR_CACHE to another folder"
        ) from error
    try:
        yield
    finally:
        lock.release()


def _begin(partial: Path, count: int, dimension: int) -> None:
    """Create the file of features at its full size, unless an earlier run did."""
    begun = not partial.is_symlink() and (partial / FEATURES).is_file()
    try:
        features = np.load(partial / FEATURES, mmap_mode="r") if begun else np.zeros(0)
        begun = features.shape == (count, dimension) and features.dtype == np.float32
    except (OSError, ValueError, EOFError):
        begun = False
    if not begun or not (partial / PARTS).is_dir():
        remove(partial)
        (partial / PARTS).mkdir(parents=True)
        np.lib.format.open_memmap(
            partial / FEATURES, mode="w+", dtype=np.float32, shape=(count, dimension)
        )


def _mark(partial: Path, part: range) -> Path:
    """The file that holds the digest of a finished part."""
    return partial / PARTS / f"{part.start:09d}-{part.stop:09d}"


def _extract_parts(
    network: FeatureNetwork,
    scored: ScoredSet,
    batch_size: int,
    parts: list[range],
    partial: Path,
    accelerator: Accelerator,
) -> None:
    """Write this process's share of the parts, except those that an earlier run finished."""
    try:
        offset = np.load(partial / FEATURES, mmap_mode="r").offset
    except OSError as error:
        raise _not_shared() from error
    bytes_each = network.dimension * np.dtype(np.float32).itemsize
    mine = [parts[number] for (number,) in share(len(parts), 1, accelerator)]
    # Not mapped: on a network drive, machines that map one file overwrite each other's pages.
    with (partial / FEATURES).open("r+b") as file:

        def finished(part: range) -> bool:
            mark = _mark(partial, part)
            file.seek(offset + part.start * bytes_each)
            written = file.read(len(part) * bytes_each) if mark.is_file() else b""
            recorded = mark.read_text(errors="replace") if written else ""
            return bool(written) and hashlib.sha256(written).hexdigest() == recorded

        mine = [part for part in mine if not finished(part)]
        batches = [
            [part[i : i + batch_size] for i in range(0, len(part), batch_size)] for part in mine
        ]
        features = stream(network, scored, list(chain(*batches)), accelerator)
        for part, steps in zip(mine, batches, strict=True):
            values = np.concatenate([next(features) for _ in steps]).tobytes()
            file.seek(offset + part.start * bytes_each)
            file.write(values)
            file.flush()
            with whole_file(_mark(partial, part)) as temporary:
                temporary.write_text(hashlib.sha256(values).hexdigest())


def _finish(partial: Path, final: Path, depends_on: dict[str, Any], parts: list[range]) -> None:
    """Compute the statistics, record the digests and give the entry its name."""
    if not all(_mark(partial, part).exists() for part in parts):
        raise _not_shared()
    mean, covariance = fid.statistics(np.load(partial / FEATURES, mmap_mode="r"))
    np.savez(partial / STATISTICS, mean=mean, covariance=covariance)
    digests = {name: file_digest(partial / name) for name in (FEATURES, STATISTICS)}
    record = {"depends_on": depends_on, "sha256": digests}
    write_record(partial / RECORD, record)
    remove(partial / PARTS)
    partial.rename(final)


class _Record(msgspec.Struct):
    """`reference.json`."""

    depends_on: dict[str, Any]
    sha256: dict[str, str]


def _is_sound(entry: Path, depends_on: dict[str, Any]) -> bool:
    """Whether an entry is there, is this one, and its files match their digests."""
    try:
        record = read_record(entry / RECORD, _Record, "it is computed anew")
        return record.depends_on == json.loads(json.dumps(depends_on)) and all(
            record.sha256.get(name) == file_digest(entry / name) for name in (FEATURES, STATISTICS)
        )
    except (OSError, ValueError):
        return False


def _open(final: Path, scored: ScoredSet, key: str) -> ReferenceStatistics:
    try:
        features = np.load(final / FEATURES, mmap_mode="r")
        with np.load(final / STATISTICS) as saved:
            statistics = fid.Gaussian(saved["mean"], saved["covariance"])
    except OSError as error:
        raise _not_shared() from error
    source = scored.source if scored.split is None else f"{scored.source}[{scored.split}]"
    return ReferenceStatistics(statistics, features, len(scored), source, key)


def _not_shared() -> ValueError:
    return ValueError(
        f"the processes do not share the cache folder {cache_folder()}: "
        "set $LATENT_PRIOR_CACHE to a folder that all of them see"
    )
