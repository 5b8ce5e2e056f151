"""Statistics of data sets published by clean-fid (`--reference fid:cifar10/32/train`)."""

from __future__ import annotations

import re
import shutil
import zipfile
import zlib
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from latent_prior.evaluation.features.downloads import cache_folder, download
from latent_prior.evaluation.features.networks import FeatureNetwork
from latent_prior.evaluation.measures.fid import Gaussian
from latent_prior.evaluation.measures.inputs import ReferenceStatistics
from latent_prior.files import whole_file

# A literal inside a function of clean-fid; a test compares them.
ADDRESS = "https://www.cs.cmu.edu/~clean-fid/stats/"
SUFFIX = {"inception": "", "clip": "_clip_vit_b_32"}
OTHERWISE = "give --reference a data set of your own"


def published_statistics(name: str, network: FeatureNetwork) -> ReferenceStatistics:
    """Download clean-fid's statistics of a data set, or read them from the cache.

    Processes that share a cache folder call this one after the other.

    Args:
        name: data set, resolution and split: `cifar10/32/train`.
        network: `inception` or `clip`.

    Raises:
        ValueError: no such name, no statistics for this network, a failed download or a damaged
            file.
    """
    flag = f"--reference fid:{name}"
    if not re.fullmatch(r"[\w-]+/\w+/\w+", name):
        raise ValueError(
            f"{flag} is not of the form fid:NAME/RESOLUTION/SPLIT, e.g. fid:cifar10/32/train"
        )
    if network.name not in SUFFIX:
        raise ValueError(
            f"{flag}: clean-fid publishes statistics of --features {' and '.join(SUFFIX)} only, not of {network.name}"
        )
    data_set, resolution, split = name.split("/")
    stem = f"{data_set}_clean{SUFFIX[network.name]}_{split}_{resolution}".lower()
    path = _fetched(f"{stem}.npz")
    if path is None:
        raise ValueError(f"{flag}: clean-fid publishes no {stem}.npz; {OTHERWISE}")
    statistics = _read_statistics(path, network.dimension)
    kid = _fetched_features(f"{stem}_kid.npz")
    features = None if kid is None else _read_features(kid, network.dimension)
    count = None if features is None else len(features)
    return ReferenceStatistics(statistics, features, count, f"fid:{name}", f"clean-fid:{stem}")


def _fetched(file: str) -> Path | None:
    """The cached file of clean-fid's server; None if the server has none."""
    path = cache_folder() / "published" / file
    if not path.exists():
        try:
            download(ADDRESS + file, path, OTHERWISE)
        except FileNotFoundError:
            return None
    return path


def _fetched_features(file: str) -> Path | None:
    """As `_fetched`; a missing file is remembered, so that the cache works without a network."""
    missing = cache_folder() / "published" / f"{file}.missing"
    if missing.exists():
        return None
    path = _fetched(file)
    if path is None:
        missing.touch()
    return path


def _read_statistics(path: Path, dimension: int) -> Gaussian:
    try:
        with np.load(path) as saved:  # checks the archive's checksums
            mean, covariance = (saved[name].astype(np.float64) for name in ("mu", "sigma"))
        if mean.shape != (dimension,) or covariance.shape != (dimension, dimension):
            raise ValueError(f"shapes {mean.shape} and {covariance.shape}")
        if not (np.isfinite(mean).all() and np.isfinite(covariance).all()):
            raise ValueError("numbers that are not finite")
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile, zlib.error) as error:
        raise _damaged(path, error) from error
    return Gaussian(mean, covariance)


def _read_features(path: Path, dimension: int) -> NDArray[np.float32]:
    """Memory-mapped, from a copy extracted from the archive."""
    unpacked = path.with_suffix(".npy")
    try:
        with zipfile.ZipFile(path) as archive:
            if _checksum(unpacked) != archive.getinfo("feats.npy").CRC:
                with (
                    whole_file(unpacked) as temporary,
                    archive.open("feats.npy") as packed,
                    temporary.open("wb") as file,
                ):
                    shutil.copyfileobj(packed, file, 1 << 20)
        features: NDArray[np.float32] = np.load(unpacked, mmap_mode="r")
        if features.ndim != 2 or features.shape[1] != dimension:
            raise ValueError(f"shape {features.shape}")
    except (ValueError, KeyError, EOFError, zipfile.BadZipFile, zlib.error) as error:
        raise _damaged(path, error) from error
    return features


def _checksum(path: Path) -> int | None:
    if not path.exists():
        return None
    checksum = 0
    with path.open("rb") as file:
        while chunk := file.read(1 << 20):
            checksum = zlib.crc32(chunk, checksum)
    return checksum


def _damaged(path: Path, error: BaseException) -> ValueError:
    return ValueError(
        f"{path} is not a valid statistics file ({error}): delete it, and it will be downloaded again"
    )
