"""Which shards there are: in a local folder, at a URL that fsspec reads, or on the hub."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path, PurePath, PurePosixPath
from typing import Any, NamedTuple, TypeVar

from latent_prior.data.image_folders import ignored
from latent_prior.data.listing import files_below, images_among
from latent_prior.data.shards.tables import TABLES, image_tables, place_of
from latent_prior.data.splits import SPLITS, split_places

TAR = ".tar"
Name = TypeVar("Name", bound=PurePath)
_BRACES = re.compile(r"\{(\d+)\.\.(\d+)\}")
# What changes when a file does, by the name that a file system gives it.
_STAMPS = ("ETag", "etag", "blob_id", "md5Hash", "content_md5", "mtime", "LastModified",
           "last_modified", "created")  # fmt: skip


class Shard(NamedTuple):
    """A file with many images."""

    path: str
    """As its file system names it."""
    name: str
    """Below the data set; in messages."""
    size: int
    """Bytes."""
    stamp: str
    """Changes when the file does; a digest or a time."""


@dataclass
class Place:
    """The shards of a data set, all of one kind.

    Attributes:
        dataset: as it was named.
        files: the file system, of fsspec.
        kind: `.tar`, `.parquet` or `.arrow`.
        splits: the shards of each split, in order.
        folder: the data set's own folder, if it is a local one.
        remarks: of files that are not used.
    """

    dataset: str
    files: Any
    kind: str
    splits: dict[str, list[Shard]]
    folder: Path | None = None
    remarks: list[str] = field(default_factory=list)

    def shards(self) -> list[Shard]:
        """All shards, split by split."""
        return [shard for shards in self.splits.values() for shard in shards]


def is_url(dataset: str) -> bool:
    """Whether a data set is named by a URL: `s3://bucket/folder`."""
    return "://" in dataset


def local_place(folder: Path, image_column: str, tables: bool) -> Place | None:
    """The shards in a folder; None if it holds something else.

    Tar files count if there are neither tables nor image files; with `tables`, parquet and Arrow
    files count too.

    Raises:
        ValueError: it is unclear which split a shard belongs to, or a table cannot be read.
    """
    import fsspec

    if (folder / "dataset_dict.json").is_file() or (folder / "state.json").is_file():
        return None  # written by `save_to_disk`
    listed = files_below(folder)
    images = images_among(listed)
    others = [path for path in listed if path.suffix.lower() in TABLES]
    tars = [path for path in listed if path.suffix.lower() == TAR]
    chosen: dict[str, list[Path]] | None = None
    if tars and not others and not images:
        chosen, kind = _by_split(folder, [path.relative_to(folder) for path in tars]), TAR
        chosen = {split: [folder / path for path in paths] for split, paths in chosen.items()}
    elif tables and (found := image_tables(folder, listed, image_column, bool(images))):
        chosen, kind = found, f".{found.kind}"
    if chosen is None:
        return None
    splits = {
        split: [_local_shard(path.absolute(), path.relative_to(folder)) for path in paths]
        for split, paths in chosen.items()
    }
    used = [path for paths in chosen.values() for path in paths]
    return Place(
        str(folder), fsspec.filesystem("file"), kind, splits, folder, ignored(listed, used)
    )


def remote_place(url: str) -> Place:
    """The shards at a URL: a folder, a file, a pattern `*`, or a range `{0000..0123}`.

    Raises:
        ValueError: there is nothing, shards of several kinds, or no access.
    """
    import fsspec

    try:
        files, root = fsspec.core.url_to_fs(url)
        infos = _listed(files, root)
    except Exception as error:  # of whatever library serves the protocol
        raise ValueError(f"--dataset {url} cannot be listed ({_reason(error)})") from error
    by_kind: dict[str, list[str]] = {}
    for path in sorted(infos):
        suffix = PurePosixPath(path).suffix.lower()
        if suffix in (TAR, *TABLES) and not PurePosixPath(path).name.startswith((".", "_")):
            by_kind.setdefault(suffix, []).append(path)
    if not by_kind:
        raise ValueError(f"--dataset {url}: there are no tar, parquet or arrow files")
    if len(by_kind) > 1:
        raise ValueError(
            f"--dataset {url} has {' and '.join(by_kind)} files: name those of one kind, such as "
            f"{url.rstrip('/')}/*{min(by_kind)}"
        )
    ((kind, paths),) = by_kind.items()
    above = str(PurePosixPath(re.split(r"[*{]", root)[0] + "x").parent)
    if paths == [root]:
        above = str(PurePosixPath(root).parent)
    elif "*" not in root and "{" not in root:
        above = root
    names = {PurePosixPath(path).relative_to(above): path for path in paths}
    try:
        _check_ranges(files, url, paths[0])
        # A list in HTML has no sizes.
        sized = {
            path: infos[path] if infos[path].get("size") else files.info(path) for path in paths
        }
    except OSError as error:
        raise ValueError(f"--dataset {url} cannot be read ({_reason(error)})") from error
    splits = {
        split: [_shard(names[name], str(name), sized[names[name]]) for name in own]
        for split, own in _by_split(url, list(names)).items()
    }
    return Place(url, files, kind, splits)


def _check_ranges(files: Any, url: str, path: str) -> None:
    """Refuse a web server that sends whole files only.

    Raises:
        ValueError: it does; fsspec would take the start of a file for a part of it.
    """
    if "http" not in files.protocol:
        return
    try:
        with files.open(path, "rb", cache_type="none") as file:
            file.seek(1)
            serves = len(file.read(1)) == 1
    except ValueError:
        serves = False
    if not serves:
        raise ValueError(
            f"--dataset {url}: its server sends whole files only, but shards are read by ranges of "
            "bytes; download them, or use a server that supports HTTP range requests"
        )


def hub_place(name: str) -> Place | None:
    """The shards of a data set on the hub, as `datasets` assigns them to splits.

    None if its files are of another kind, or a copy in the cache is all there is.
    """
    import datasets
    import fsspec

    found = datasets.load_dataset_builder(name).config.data_files or {}
    paths = [str(url) for urls in found.values() for url in urls]
    kinds = {PurePosixPath(path).suffix.lower() for path in paths}
    if len(kinds) != 1 or not kinds <= {TAR, *TABLES} or not all(map(is_url, paths)):
        return None
    files = fsspec.core.url_to_fs(paths[0])[0]

    def shard(url: str) -> Shard:
        path = fsspec.core.url_to_fs(url)[1]
        return _shard(path, path.partition("@")[2].partition("/")[2] or path, files.info(path))

    splits = {str(split): [shard(str(url)) for url in urls] for split, urls in found.items()}
    return Place(name, files, kinds.pop(), splits)


def _listed(files: Any, root: str) -> dict[str, dict[str, Any]]:
    """Path -> what the file system knows of each file."""
    if _BRACES.search(root):
        return {path: files.info(path) for path in _expanded(root)}
    if "*" in root:
        return dict(files.glob(root, detail=True))
    if PurePosixPath(root).suffix.lower() in (TAR, *TABLES) and files.isfile(root):
        return {root: files.info(root)}  # on the web, a folder is a file as well
    return dict(files.find(root, detail=True))


def _expanded(path: str) -> Iterable[str]:
    """`{08..11}` as 08, 09, 10, 11."""
    found = _BRACES.search(path)
    if found is None:
        yield path
        return
    first, last = found.groups()
    for number in range(int(first), int(last) + 1):
        digits = str(number).zfill(len(first))
        yield from _expanded(path[: found.start()] + digits + path[found.end() :])


def _by_split(dataset: Path | str, names: list[Name]) -> dict[str, list[Name]]:
    """The shards of each split, by their names or those of the folders above."""
    found, _ = split_places(dataset, [place_of(name) for name in names])
    return {
        split: own
        for split in SPLITS
        if (own := [name for name, each in zip(names, found, strict=True) if each == split])
    }


def _shard(path: str, name: str, info: dict[str, Any]) -> Shard:
    stamp = next((str(info[key]) for key in _STAMPS if info.get(key)), "")
    return Shard(path, name, int(info["size"] or 0), stamp)


def _local_shard(path: Path, name: Path) -> Shard:
    state = path.stat()
    return Shard(str(path), str(name), state.st_size, str(state.st_mtime_ns))


def _reason(error: BaseException) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0][:200]
