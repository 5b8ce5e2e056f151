"""Downloads, and the user's cache folder."""

from __future__ import annotations

import hashlib
import http.client
import os
import urllib.error
import urllib.request
import zipfile
from collections.abc import Iterator
from pathlib import Path

from latent_prior.files import whole_file


def cache_folder() -> Path:
    """Folder of downloads and statistics; $LATENT_PRIOR_CACHE and $XDG_CACHE_HOME move it."""
    if folder := os.environ.get("LATENT_PRIOR_CACHE"):
        return Path(folder).expanduser()
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "latent-prior"


def file_digest(path: Path) -> str:
    """sha256 of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def download(url: str, target: Path, otherwise: str) -> None:
    """Download a zip archive such as a TorchScript or .npz file to `target`, whole or not at all.

    Args:
        url: of the file.
        target: path of the file.
        otherwise: alternative to the file, for users without a network.

    Raises:
        FileNotFoundError: the server has no such file.
        ValueError: no network, a broken transfer, or a response that is not a zip archive.
    """
    way_out = f"connect to the network, put the file at {target}, or {otherwise}"
    with whole_file(target) as temporary:
        with temporary.open("wb") as file:
            for chunk in _chunks(url, way_out):
                file.write(chunk)
        if not zipfile.is_zipfile(temporary):
            raise ValueError(f"what {url} sent is not the file that belongs there: {way_out}")


def _chunks(url: str, way_out: str) -> Iterator[bytes]:
    """The body of `url`; reports errors of the network, not those of the disk."""
    received = 0
    try:
        with urllib.request.urlopen(url, timeout=60) as response:
            expected = response.headers.get("Content-Length")
            while chunk := response.read(1 << 20):
                received += len(chunk)
                yield chunk
    except (
        urllib.error.URLError,
        http.client.HTTPException,
        TimeoutError,
        ConnectionError,
    ) as error:
        if isinstance(error, urllib.error.HTTPError) and error.code == http.HTTPStatus.NOT_FOUND:
            raise FileNotFoundError(url) from error
        reason = getattr(error, "reason", error)
        raise ValueError(f"{url} could not be downloaded ({reason}): {way_out}") from error
    if expected is not None and received != int(expected):
        raise ValueError(
            f"the download of {url} broke off after {received} of {expected} bytes: {way_out}"
        )
