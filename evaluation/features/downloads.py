"""Downloads, whole or absent, and digests of files."""

from __future__ import annotations

import hashlib
import http.client
import shutil
import sys
import urllib.error
import urllib.request
import zipfile
from pathlib import Path

from latent_prior.files import open_regular, whole_file

# Not OSError, which would also take those of the disk.
NETWORK_ERRORS = urllib.error.URLError, http.client.HTTPException, TimeoutError, ConnectionError


def file_digest(path: Path) -> str:
    """sha256 of a regular file.

    Raises:
        ValueError: there is no such file, or it cannot be read.
    """
    with open_regular(path, sys.maxsize) as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def download(url: str, target: Path, otherwise: str) -> None:
    """Download a zip archive such as a TorchScript or .npz file to `target`, whole or not at all.

    Messages to users without a network offer the alternative `otherwise`.

    Raises:
        FileNotFoundError: the server has no such file.
        ValueError: no network, a broken transfer, or a response that is not a zip archive.
    """
    way_out = f"connect to the network, put the file at {target}, or {otherwise}"
    with whole_file(target) as temporary:
        try:
            with urllib.request.urlopen(url, timeout=60) as response, temporary.open("wb") as file:
                expected = response.headers.get("Content-Length")
                shutil.copyfileobj(response, file)
        except NETWORK_ERRORS as error:
            if getattr(error, "code", None) == http.HTTPStatus.NOT_FOUND:
                raise FileNotFoundError(url) from error
            reason = getattr(error, "reason", error)
            raise ValueError(f"{url} could not be downloaded ({reason}): {way_out}") from error
        received = temporary.stat().st_size
        if expected is not None and received != int(expected):
            raise ValueError(
                f"the download of {url} broke off after {received} of {expected} bytes: {way_out}"
            )
        if not zipfile.is_zipfile(temporary):
            raise ValueError(f"what {url} sent is not the file that belongs there: {way_out}")
