"""Tar files as WebDataset lays them out: files of one name follow each other and are one sample.

`00001.jpg` is an image, `00001.cls` its class, `00001.txt` its captions, one in each line, and
fields of `00001.json` can be either. Nothing is unpacked: a member is a range of bytes, whatever
its name.
"""

from __future__ import annotations

import tarfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import IO, Any, NamedTuple

import msgspec

from latent_prior.data.captions import NO_CAPTIONS
from latent_prior.data.image_files import FILE_LIMIT
from latent_prior.data.labels import NO_LABELS
from latent_prior.data.listing import IMAGE_SUFFIXES
from latent_prior.options import ImageOptions

_TEXT_LIMIT = 2**20  # bytes of a member other than an image


class Columns(NamedTuple):
    """Which members of a sample are read; the names are those of the options."""

    image: str | None
    """Ending of the image without a dot; None takes the only one that is an image."""
    label: str
    """`cls`, the name of a field in the sample's JSON, or `none`."""
    captions: str
    """`txt`, the name of a field, or `none`."""

    @classmethod
    def of(cls, options: ImageOptions, tar: bool) -> Columns:
        """Those that options ask for; of tables, an index knows the images only."""
        if not tar:
            return cls(options.image_column, NO_LABELS, NO_CAPTIONS)
        label, captions = options.label_column, options.caption_column
        return cls(
            None if options.image_column == "image" else options.image_column.lower(),
            "cls" if label in (None, "label") else str(label),
            "txt" if captions in (None, "text") else str(captions),
        )


@dataclass
class Samples:
    """The samples of a tar file, column by column.

    Attributes:
        offsets: first byte of every image.
        sizes: bytes of every image.
        names: the images' members.
        labels: the class of each; "" if it says that it has none, None if there is no such member.
        captions: those of each, or None.
        problems: what is wrong with samples and with the file, as sentences.
    """

    offsets: list[int] = field(default_factory=list)
    sizes: list[int] = field(default_factory=list)
    names: list[str] = field(default_factory=list)
    labels: list[str | None] = field(default_factory=list)
    captions: list[list[str] | None] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)


class _Member(NamedTuple):
    name: str
    offset: int
    size: int


def read_samples(file: IO[bytes], size: int, columns: Columns) -> Samples:
    """List a tar file, which is read from its start to its end.

    Args:
        file: opened, at its start.
        size: its bytes.
        columns: what to read.
    """
    samples = Samples()
    key, sample = "", dict[str, _Member]()
    for member in _members(file, size, samples.problems):
        folder, _, name = member.name.rpartition("/")
        stem, _, ending = name.partition(".")
        if f"{folder}/{stem}" != key:
            _add(samples, file, sample, columns)
            key, sample = f"{folder}/{stem}", {}
        if ending.lower() in sample:
            samples.problems.append(f"its member {member.name} comes twice")
        sample[ending.lower()] = member
    _add(samples, file, sample, columns)
    return samples


def _members(file: IO[bytes], size: int, problems: list[str]) -> Iterator[_Member]:
    """The regular files of a tar file that lie in it as a whole."""
    last = "its start"
    try:
        with tarfile.open(fileobj=file, mode="r:") as tar:
            while (info := tar.next()) is not None:
                tar.members.clear()  # type: ignore[attr-defined]  # it would keep them all
                if info.isreg() and not info.issparse():
                    if info.offset_data + info.size > size:
                        break
                    name = info.name.encode("utf-8", "backslashreplace").decode()
                    yield _Member(name, info.offset_data, info.size)
                    last = name
            file.seek(tar.offset)
            if info is None and not any(file.read(tarfile.BLOCKSIZE)):  # the mark of its end
                return
    except (tarfile.TarError, OSError, ValueError, EOFError, OverflowError):
        pass
    problems.append(f"it is damaged or cut off after {last}")


def _add(samples: Samples, file: IO[bytes], sample: dict[str, _Member], columns: Columns) -> None:
    """Add a sample, if it has an image."""
    images = [
        ending
        for ending in sample
        if (f".{ending}" in IMAGE_SUFFIXES if columns.image is None else ending == columns.image)
    ]
    if len(images) != 1:
        if sample:
            first = next(iter(sample.values())).name
            samples.problems.append(
                f"the sample of its member {first} holds "
                + (
                    f"{len(images)} images: choose one with --image_column {images[0]}"
                    if images
                    else "no image"
                )
            )
        return
    image = sample[images[0]]
    try:
        label, captions = _texts(file, sample, columns)
    except ValueError as error:
        samples.problems.append(str(error))
        return
    if image.size > FILE_LIMIT:
        samples.problems.append(f"its member {image.name} has {image.size:,} bytes")
        return
    samples.offsets.append(image.offset)
    samples.sizes.append(image.size)
    samples.names.append(image.name)
    samples.labels.append(label)
    samples.captions.append(captions)


def _texts(
    file: IO[bytes], sample: dict[str, _Member], columns: Columns
) -> tuple[str | None, list[str] | None]:
    """Class and captions of a sample.

    Raises:
        ValueError: naming a member that cannot be read.
    """
    fields: dict[str, Any] = {}
    if "json" in sample and not (
        columns.label in ("cls", NO_LABELS) and columns.captions in ("txt", NO_CAPTIONS)
    ):
        fields = _fields(file, sample["json"])
    label: str | None = None
    if columns.label == "cls":
        label = _text(file, sample["cls"]).strip() if "cls" in sample else None
    elif (value := fields.get(columns.label)) is not None:
        if not isinstance(value, str | int) or isinstance(value, bool):
            raise ValueError(
                f"its member {sample['json'].name} has a {columns.label} that is no text or number"
            )
        label = str(value)
    label = "" if label == "-1" else label
    if columns.captions == "txt":
        if "txt" not in sample:
            return label, None
        lines = (line.strip() for line in _text(file, sample["txt"]).splitlines())
        return label, [line for line in lines if line]
    value = fields.get(columns.captions)
    listed = value if isinstance(value, list) else [value]
    texts = [each for each in listed if isinstance(each, str)]
    return label, texts if len(texts) == len(listed) else None


def _fields(file: IO[bytes], member: _Member) -> dict[str, Any]:
    try:
        found: dict[str, Any] = msgspec.json.decode(_text(file, member), type=dict[str, Any])
    except (msgspec.DecodeError, RecursionError) as error:
        raise ValueError(f"its member {member.name} is no JSON object ({error})") from error
    return found


def _text(file: IO[bytes], member: _Member) -> str:
    if member.size > _TEXT_LIMIT:
        raise ValueError(f"its member {member.name} has {member.size:,} bytes")
    file.seek(member.offset)
    try:
        return file.read(member.size).decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(f"its member {member.name} is not UTF-8 (byte {error.start})") from error
