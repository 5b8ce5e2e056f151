"""Statistics of data sets published by clean-fid (`--reference fid:cifar10/32/train`)."""

from __future__ import annotations

import re
import shutil
import sys
import zipfile
import zlib
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from latent_prior.evaluation.features.downloads import download
from latent_prior.evaluation.features.networks import FeatureNetwork
from latent_prior.evaluation.measures.fid import Gaussian
from latent_prior.evaluation.measures.inputs import ReferenceStatistics
from latent_prior.files import cache_folder, open_regular, whole_file

# A literal inside a function of clean-fid; a test compares them.
ADDRESS = "https://www.cs.cmu.edu/~clean-fid/stats/"
SUFFIX = {"inception": "", "clip": "_clip_vit_b_32"}
OTHERWISE = "give --reference a data set of your own"


def published_statistics(name: str, network: FeatureNetwork) -> ReferenceStatistics:
    """Download clean-fid's statistics of a data set, or read them from the cache.

    The name is NAME/RESOLUTION/SPLIT; there are statistics for `inception` and `clip`. Processes
    that share a cache folder call this one after the other.

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
    try:
        path = _fetched(f"{stem}.npz")
    except FileNotFoundError as error:
        raise ValueError(f"{flag}: clean-fid publishes no {stem}.npz; {OTHERWISE}") from error
    statistics = _read_statistics(path, network.dimension)
    features = _open_features(f"{stem}_kid.npz", network.dimension)
    count = None if features is None else len(features)
    return ReferenceStatistics(statistics, features, count, f"fid:{name}", f"clean-fid:{stem}")


def _fetched(file: str) -> Path:
    """The cached file of clean-fid's server; FileNotFoundError if the server has none."""
    path = cache_folder() / "published" / file
    if not path.exists():
        download(ADDRESS + file, path, OTHERWISE)
    with open_regular(path, sys.maxsize):  # a FIFO would be waited for
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


def _open_features(file: str, dimension: int) -> NDArray[np.float32] | None:
    """Memory-mapped, from a copy extracted from the archive; None if the server has none."""
    missing = cache_folder() / "published" / f"{file}.missing"  # needs no network the next time
    if missing.exists():
        return None
    try:
        path = _fetched(file)
    except FileNotFoundError:
        missing.touch()
        return None
    unpacked = path.with_suffix(".npy")
    try:
        with zipfile.ZipFile(path) as archive:
            member = archive.getinfo("feats.npy")
            same_size = unpacked.exists() and unpacked.stat().st_size == member.file_size
            if not same_size or zlib.crc32(np.memmap(unpacked, mode="r").data) != member.CRC:
                with whole_file(unpacked) as temporary, temporary.open("wb") as copy:
                    shutil.copyfileobj(archive.open(member), copy)
        features: NDArray[np.float32] = np.load(unpacked, mmap_mode="r")
        if features.ndim != 2 or features.shape[1] != dimension:
            raise ValueError(f"shape {features.shape}")
    except (ValueError, KeyError, EOFError, zipfile.BadZipFile, zlib.error) as error:
        raise _damaged(path, error) from error
    return features


def _damaged(path: Path, error: BaseException) -> ValueError:
    return ValueError(
        f"{path} is not a valid statistics file ({error}): delete it, and it will be downloaded again"
    )
