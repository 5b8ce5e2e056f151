"""What distances need to know of the reference, computed once and kept in the user's cache folder.

An entry is named after all that its numbers depend on: the content of the images, how they are decoded and resized,
the network's weights, the packages that do it. It appears whole or not at all, and is read only where its digests
are right. The features of `PART` images after another are written to their place in one file, so memory stays flat,
processes share the work, and a run that was killed goes on behind the last finished part.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from accelerate import Accelerator
from filelock import FileLock, Timeout
from numpy.typing import NDArray

from latent_prior.data.image_files import UNREADABLE
from latent_prior.evaluation.features.downloads import cache_folder
from latent_prior.evaluation.features.extract import stream
from latent_prior.evaluation.features.networks import FeatureNetwork
from latent_prior.evaluation.features.published import fetch_published
from latent_prior.evaluation.measures import fid
from latent_prior.evaluation.sets import ScoredSet
from latent_prior.files import whole_file, write_json
from latent_prior.machine import thread_pool, versions
from latent_prior.processes import share

LAYOUT = 1  # of an entry; a higher number leaves the entries of older versions aside
PART = 256  # images, at least
HASHED_TOGETHER = 64
PACKAGES = (
    "latent-prior", "pillow", "clean-fid", "torch", "transformers", "efficientnet-lite-pytorch",
)  # fmt: skip
FEATURES, STATISTICS, RECORD, PARTS = "features.npy", "statistics.npz", "reference.json", "parts"


@dataclass(frozen=True, eq=False)
class ReferenceStatistics:
    """The reference as distances see it.

    Attributes:
        statistics: mean and covariance of its features.
        features: float32 (N, D), read-only and memory-mapped; None where only statistics were published.
        num_images: N; None where it was not published.
        source: data set and split, or the name of the published statistics.
        key: names the entry of the cache, and with it everything that the numbers depend on.
    """

    statistics: fid.Gaussian
    features: NDArray[np.float32] | None
    num_images: int | None
    source: str
    key: str


def reference_statistics(
    network: FeatureNetwork, scored: ScoredSet, batch_size: int, accelerator: Accelerator
) -> ReferenceStatistics:
    """Statistics and features of a set, from the cache or computed and put there, the same in every process.

    Args:
        network: the feature network.
        scored: the reference.
        batch_size: images per forward pass.
        accelerator: the processes; they share the cache folder.

    Raises:
        ValueError: naming an image that cannot be read; or the processes do not share the cache folder.
    """
    depends_on = describe(network, scored)
    key = hashlib.sha256(json.dumps(depends_on, sort_keys=True).encode()).hexdigest()
    final = cache_folder() / "references" / key
    partial = final.with_name(f".{key}.partial")
    with _alone(final, accelerator):
        if accelerator.is_main_process and not _is_sound(final):
            shutil.rmtree(final, ignore_errors=True)
            _begin(partial, len(scored), network.dimension)
        accelerator.wait_for_everyone()
        if not final.exists():
            parts = _parts(len(scored), batch_size)
            _extract_parts(network, scored, batch_size, parts, partial, accelerator)
            accelerator.wait_for_everyone()
            if accelerator.is_main_process:
                _finish(partial, final, depends_on, parts)
        accelerator.wait_for_everyone()
    return _open(final, scored, key)


def published_statistics(name: str, network: FeatureNetwork) -> ReferenceStatistics:
    """clean-fid's own statistics of a data set, as `cifar10/32/train`; see `fetch_published` for its errors.

    Processes that share a cache folder call this one after the other.
    """
    found = fetch_published(name, network)
    count = None if found.features is None else len(found.features)
    key = f"clean-fid:{found.name}"
    return ReferenceStatistics(found.statistics, found.features, count, f"fid:{name}", key)


def describe(network: FeatureNetwork, scored: ScoredSet) -> dict[str, Any]:
    """Everything that the features of a set depend on, JSON-ready.

    Raises:
        ValueError: naming an image that cannot be read.
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
    """sha256 over the encoded images that take part, in their order; nothing is decoded.

    Raises:
        ValueError: naming an image that cannot be read.
    """
    table, rows = scored.images.table, scored.images.source_index[scored.chosen]

    def digest(row: int) -> bytes:
        try:
            return hashlib.sha256(table.read(row)).digest()
        except UNREADABLE as error:
            raise ValueError(f"{table.name_of(row)} cannot be read ({error})") from error

    pieces = np.array_split(rows, -(-len(rows) // HASHED_TOGETHER))
    digests = thread_pool().map(lambda piece: b"".join(map(digest, piece.tolist())), pieces)
    whole = hashlib.sha256()
    for each in digests:
        whole.update(each)
    return whole.hexdigest()


@contextmanager
def _alone(final: Path, accelerator: Accelerator) -> Iterator[None]:
    """Two runs that need the same entry compute it once, one waiting for the other."""
    if not accelerator.is_main_process:
        yield
        return
    final.parent.mkdir(parents=True, exist_ok=True)
    lock = FileLock(f"{final}.lock")
    try:
        lock.acquire(timeout=0)
    except Timeout:
        print("another run computes the statistics of this reference; waiting for it")
        lock.acquire()
    try:
        yield
    finally:
        lock.release()


def _begin(partial: Path, count: int, dimension: int) -> None:
    """The file of features at its full size, unless an earlier run left it."""
    try:
        found = np.load(partial / FEATURES, mmap_mode="r")
        begun = found.shape == (count, dimension) and found.dtype == np.float32
    except (OSError, ValueError, EOFError):
        begun = False
    if not begun:
        shutil.rmtree(partial, ignore_errors=True)
        (partial / PARTS).mkdir(parents=True)
        np.lib.format.open_memmap(
            partial / FEATURES, mode="w+", dtype=np.float32, shape=(count, dimension)
        )


def _parts(count: int, batch_size: int) -> list[range]:
    """Whole batches, so that the features are those of a pass without parts."""
    step = -(-PART // batch_size) * batch_size
    return [range(start, min(start + step, count)) for start in range(0, count, step)]


def _mark(partial: Path, part: range) -> Path:
    """Stands beside the features once the part is there, and holds its digest."""
    return partial / PARTS / f"{part.start:09d}-{part.stop:09d}"


def _extract_parts(
    network: FeatureNetwork,
    scored: ScoredSet,
    batch_size: int,
    parts: list[range],
    partial: Path,
    accelerator: Accelerator,
) -> None:
    """Write this process's share of the parts, but for those that an earlier run finished."""
    try:
        offset = np.load(partial / FEATURES, mmap_mode="r").offset
    except OSError as error:
        raise _not_shared() from error
    bytes_each = network.dimension * np.dtype(np.float32).itemsize
    own = [parts[number] for (number,) in share(len(parts), 1, accelerator)]
    with (partial / FEATURES).open("r+b") as file:

        def finished(part: range) -> bool:
            mark = _mark(partial, part)
            file.seek(offset + part.start * bytes_each)
            written = file.read(len(part) * bytes_each) if mark.exists() else b""
            return bool(written) and hashlib.sha256(written).hexdigest() == mark.read_text()

        own = [part for part in own if not finished(part)]
        batches = [
            range(start, min(start + batch_size, part.stop))
            for part in own
            for start in range(part.start, part.stop, batch_size)
        ]
        features = stream(network, scored, batches, accelerator)
        for part in own:
            steps = -(-len(part) // batch_size)
            values = np.concatenate([next(features) for _ in range(steps)]).tobytes()
            file.seek(offset + part.start * bytes_each)
            file.write(values)
            file.flush()
            with whole_file(_mark(partial, part)) as temporary:
                temporary.write_text(hashlib.sha256(values).hexdigest())


def _finish(partial: Path, final: Path, depends_on: dict[str, Any], parts: list[range]) -> None:
    """Compute the statistics, write down the digests and give the entry its name."""
    if not all(_mark(partial, part).exists() for part in parts):
        raise _not_shared()
    mean, covariance = fid.statistics(np.load(partial / FEATURES, mmap_mode="r"))
    np.savez(partial / STATISTICS, mean=mean, covariance=covariance)
    digests = {name: _file_digest(partial / name) for name in (FEATURES, STATISTICS)}
    record = {"depends_on": depends_on, "sha256": digests}
    write_json(partial / RECORD, record)
    partial.rename(final)
    shutil.rmtree(final / PARTS, ignore_errors=True)


def _is_sound(final: Path) -> bool:
    """Whether the entry is there and its files are as they were written."""
    try:
        digests = json.loads((final / RECORD).read_text())["sha256"]
        return all(digests[name] == _file_digest(final / name) for name in (FEATURES, STATISTICS))
    except (OSError, ValueError, KeyError, TypeError):
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


def _file_digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
