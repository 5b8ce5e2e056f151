"""Codes datasets: written by stage 1 in shards, read by stage 2 row by row from disk."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import msgspec
import numpy as np
import torch
import xxhash

from latent_prior.data.arrow_rows import MappedTable
from latent_prior.data.codes import CAPTIONS, SPEC_FILE, CodeSpec, write_spec
from latent_prior.data.fingerprints import fingerprint_of
from latent_prior.folders import fetch_folder
from latent_prior.manifests import DigestedFile, FileRecord, Manifest, read_manifest
from latent_prior.records import parse_record, read_record, write_record

if TYPE_CHECKING:
    from datasets import Features
    from numpy.typing import NDArray


AGAIN = "encode again"
DICT_FILE = "dataset_dict.json"
_ROWS, _LABELS = 1024, 65_536  # that are looked up at a time
_FILE = 2**29  # bytes of the shards that become one file
_FORMAT = ("_format_columns", "_format_type", "_split")
"""Of `state.json`, where the library datasets keeps settings that a dataset of ours has none of."""
_Name = Annotated[str, msgspec.Meta(pattern=r"^\w[\w.\-]*$")]
"""Name of a file or folder within another."""


class _Splits(msgspec.Struct):
    """`dataset_dict.json`, written by the library datasets."""

    splits: Annotated[list[_Name], msgspec.Meta(min_length=1)]


class _Info(msgspec.Struct):
    """The part of `dataset_info.json` that is read."""

    description: str


class _Description(msgspec.Struct):
    """The description of a codes dataset."""

    code_spec: dict[str, Any]


class _Part(msgspec.Struct):
    """An Arrow file."""

    filename: _Name


class _State(msgspec.Struct):
    """The part of `state.json` that is read."""

    parts: list[_Part] = msgspec.field(name="_data_files")


class CodesTable(MappedTable):
    """The files of one split, each compared with the manifest and the spec when it is first read.

    Args:
        paths: the Arrow files, in the order of their rows.
        spec: columns, vocabularies and classes.
        folder: of the codes dataset.
        manifest: digests of its files; None for codes from before manifests.
    """

    def __init__(
        self, paths: Sequence[Path], spec: CodeSpec, folder: Path, manifest: Manifest | None
    ) -> None:
        columns = {level.name: level.dtype for level in spec.levels}
        if spec.class_names:
            columns["label"] = np.dtype(np.int64)
        columns |= {"view": np.dtype(np.uint16), "source_index": np.dtype(np.int64)}
        super().__init__(paths, columns, CAPTIONS)
        self.paths, self.spec, self.folder, self.manifest = paths, spec, folder, manifest

    @property
    def fingerprint(self) -> str:
        """A sha256 over the spec and the files' recorded digests; before manifests, their sizes."""
        recorded = {} if self.manifest is None else self.manifest.files
        files = []
        for path in self.paths:
            record = recorded.get(path.relative_to(self.folder).as_posix())
            files.append(f"{path.name} {path.stat().st_size if record is None else record.xxh3}")
        return fingerprint_of(json.dumps(self.spec.to_dict(), sort_keys=True), *files)

    def check_rows(self, path: Path, rows: range) -> None:
        """Compare a file's digest, codes, labels and captions with what they must be.

        Raises:
            ValueError: naming the file.
        """
        if self.manifest is not None:
            self.manifest.check(self.folder, path.relative_to(self.folder).as_posix())
        for level in self.spec.levels:
            pieces = self.pieces(level.name, rows)
            if level.vocabulary is None:
                if not all(np.isfinite(piece).all() for _, piece in pieces):
                    raise ValueError(
                        f"{path}: column {level.name} holds numbers that are not finite; encode again"
                    )
            else:
                highest = max((int(piece.max()) for _, piece in pieces), default=0)
                if highest >= level.vocabulary:
                    raise ValueError(
                        f"{path}: column {level.name} holds code {highest}, "
                        f"outside its vocabulary of {level.vocabulary}; encode again"
                    )
        if self.has_texts:
            try:
                self.check_texts(rows)
            except ValueError as error:  # pyarrow's are, too
                raise ValueError(
                    f"{path}: column {CAPTIONS} is damaged ({error}); encode again"
                ) from error
        classes = len(self.spec.class_names)
        for _, labels in self.pieces("label", rows) if classes else ():
            if not -1 <= labels.min() <= labels.max() < classes:
                raise ValueError(f"{path} holds labels outside its {classes} classes; encode again")


@dataclass(frozen=True)
class CodesSplit:
    """Rows of one split of a codes dataset, read from disk on demand.

    Only unevenly spaced row numbers are kept in memory, those of a selection.
    """

    table: CodesTable
    chosen: range | NDArray[np.integer]

    def __len__(self) -> int:
        """Number of rows: images times views."""
        return len(self.chosen)

    @property
    def labels(self) -> NDArray[np.int64] | None:
        """int64 (N,), -1 for an unknown class; None without classes. Read into memory."""
        return self.column("label") if self.table.spec.class_names else None

    def distinct_labels(self) -> NDArray[np.int64] | None:
        """The labels that some row has, ascending; None without classes. Read part by part."""
        if not self.table.spec.class_names:
            return None
        found: set[int] = set()
        for begin in range(0, len(self), _LABELS):
            rows = self._stored_rows(torch.arange(begin, min(begin + _LABELS, len(self))))
            found.update(np.unique(self.table.rows(rows, ["label"])["label"]).tolist())
        return np.array(sorted(found), np.int64)

    @property
    def view(self) -> NDArray[np.integer]:
        """(N,), 0 for the image without augmentation."""
        return self.column("view")

    @property
    def source_index(self) -> NDArray[np.int64]:
        """(N,), row of the image in its own dataset."""
        return self.column("source_index")

    def column(self, name: str) -> NDArray[Any]:
        """A whole column in its stored type, read into memory."""
        return self._choose(self.table.column(name))

    def rows(self, chosen: NDArray[Any]) -> CodesSplit:
        """Select rows by index or mask."""
        return replace(self, chosen=_compact(self._choose(np.arange(len(self.table)))[chosen]))

    def batch(self, indices: torch.Tensor) -> dict[str, torch.Tensor]:
        """Read rows as tensors.

        Returns:
            int64 codes or float32 latents by level name, and int64 `labels`, -1 where unknown.

        Raises:
            IndexError: an index is out of range.
            ValueError: a file is damaged or was exchanged.
        """
        rows = self._stored_rows(indices)
        batch = {}
        names = [level.name for level in self.table.spec.levels]
        labelled = ["label"] if self.table.spec.class_names else []
        for name, values in self.table.rows(rows, names + labelled).items():
            kind = np.float32 if values.dtype.kind == "f" else np.int64
            batch[name] = torch.from_numpy(values.astype(kind))
        labels = batch.pop("label") if labelled else torch.full((len(rows),), -1)
        return {**batch, "labels": labels}

    @property
    def has_captions(self) -> bool:
        """Whether every row has captions, those of its image."""
        return self.table.has_texts

    def captions(self, indices: torch.Tensor | Sequence[int]) -> list[list[str]]:
        """Read the captions of rows, one or several for each; none is empty.

        Raises:
            IndexError: an index is out of range.
            ValueError: there are no captions, or a file is damaged or was exchanged.
        """
        self._check_captions()
        return list(
            self.table.texts(self._stored_rows(torch.as_tensor(indices, dtype=torch.int64)))
        )

    def distinct_captions(self) -> Iterator[str]:
        """Every caption of every image, in order; views of an image do not repeat its captions.

        Captions are read one after another, so that memory does not grow with the dataset.

        Raises:
            ValueError: there are no captions, or a file is damaged or was exchanged.
        """
        self._check_captions()
        before = -1
        for begin in range(0, len(self), _ROWS):
            rows = self._stored_rows(torch.arange(begin, min(begin + _ROWS, len(self))))
            images = self.table.rows(rows, ["source_index"])["source_index"].tolist()
            for image, captions in zip(images, self.table.texts(rows), strict=True):
                if image != before:
                    yield from captions
                before = image

    def _check_captions(self) -> None:
        if not self.has_captions:
            raise ValueError(
                f"--codes {self.table.folder}: the codes have no captions; encode images that have "
                "some (--caption_column)"
            )

    def _stored_rows(self, indices: torch.Tensor) -> NDArray[np.integer]:
        """The rows of the table at indices of the chosen ones.

        Raises:
            IndexError: an index is out of range.
        """
        rows = indices.numpy()
        if rows.size and not 0 <= rows.min() <= rows.max() < len(self):
            raise IndexError(f"rows {rows.min()} to {rows.max()} of {len(self)}")
        if isinstance(self.chosen, range):
            return self.chosen.start + self.chosen.step * rows
        return self.chosen[rows]

    def _choose(self, values: NDArray[Any]) -> NDArray[Any]:
        """Values of the chosen rows, from those of all rows."""
        if isinstance(self.chosen, range):
            return values[self.chosen.start : self.chosen.stop : self.chosen.step]
        return values[self.chosen]


def _compact(rows: NDArray[np.integer]) -> range | NDArray[np.integer]:
    """Evenly spaced row numbers as a range, others in the smallest integer type."""
    if rows.size < 2:
        return rows
    steps = np.diff(rows)
    if steps[0] > 0 and (steps == steps[0]).all():
        return range(int(rows[0]), int(rows[-1]) + 1, int(steps[0]))
    return rows.astype(np.min_scalar_type(rows.max()))


def open_codes(folder: str | Path) -> tuple[dict[str, CodesSplit], CodeSpec]:
    """Open every split of a codes dataset, and its spec; the codes stay on disk.

    Codes at an address that the library fsspec knows, such as `s3://bucket/codes`, are copied into
    the user's cache first: see `fetch_folder`.

    The small files are compared with the manifest here, an Arrow file when rows of it are first
    read: this raises a `ValueError` if it is damaged or if its values do not fit the spec.

    Raises:
        ValueError: there is no codes dataset, or it is damaged.
    """
    path = fetch_folder(folder, "codes")
    if not (path / SPEC_FILE).is_file():
        raise ValueError(
            f"--codes {path}: there is no codes dataset (no {SPEC_FILE}); write one with encode.py"
        )
    manifest = read_manifest(path, "codes")
    if manifest is not None:
        for name in manifest.files:
            if not name.endswith(".arrow"):
                manifest.check(path, name)
    try:
        # The files of `save_to_disk`; its own reader would map all of them a second time.
        names = split_names(path)
        spec = _read_spec(path, names[0])
        tables = {
            name: CodesTable(_arrow_files(path / name), spec, path, manifest) for name in names
        }
    except (OSError, ValueError, KeyError, IndexError, TypeError) as error:
        raise ValueError(
            f"--codes {path}: the dataset is damaged or was not written by encode.py ({error}); "
            "encode again"
        ) from error
    return {name: CodesSplit(table, range(len(table))) for name, table in tables.items()}, spec


def split_names(folder: Path) -> list[str]:
    """The splits of a codes dataset.

    Raises:
        ValueError: their list is missing or damaged.
    """
    return read_record(folder / DICT_FILE, _Splits, AGAIN).splits


def _arrow_files(folder: Path) -> list[Path]:
    state = read_record(folder / "state.json", _State, AGAIN)
    return [folder / part.filename for part in state.parts]


def _read_spec(folder: Path, split: str) -> CodeSpec:
    """The spec of a codes dataset, which its two files must agree on."""
    path = folder / split / "dataset_info.json"
    info = read_record(path, _Info, AGAIN)
    where = f"{path}: description"
    described = parse_record(info.description, _Description, where, AGAIN)
    spec = CodeSpec.from_dict(described.code_spec, f"{where}: code_spec", AGAIN)
    repeated = read_record(folder / SPEC_FILE, dict[str, Any], AGAIN)
    if CodeSpec.from_dict(repeated, str(folder / SPEC_FILE), AGAIN) != spec:
        raise ValueError(f"{folder / SPEC_FILE} and {path} describe other codes; {AGAIN}")
    return spec


def codes_features(spec: CodeSpec, *, captions: bool) -> Features:
    """Columns: one per level, `label` if classes have names, `captions`, `view`, `source_index`."""
    from datasets import Array2D, Array3D, ClassLabel, Features, List, Value

    columns: dict[str, Any] = {}
    for level in spec.levels:
        array = Array2D if len(level.shape) == 2 else Array3D
        columns[level.name] = array(level.shape, level.dtype.base.name)
    if spec.class_names:
        columns["label"] = ClassLabel(names=list(spec.class_names))
    if captions:
        columns[CAPTIONS] = List(Value("string"))
    return Features({**columns, "view": Value("uint16"), "source_index": Value("int64")})


def write_shard(path: Path, spec: CodeSpec, columns: Mapping[str, Any]) -> None:
    """Write rows as one Arrow file; codes must lie in their vocabulary.

    Args:
        path: the new file.
        spec: of the codes.
        columns: arrays by name; `captions`, if there are any, is a list of lists of text.
    """
    from datasets.arrow_writer import ArrowWriter

    for level in spec.levels:
        values = columns[level.name]
        assert (
            level.vocabulary is None
            or values.size == 0
            or (0 <= values.min() <= values.max() < level.vocabulary)
        ), f"{level.name} holds values outside [0, {level.vocabulary})"
    rows = dict(columns)
    if spec.class_names:  # this split may have no labels although another one has
        rows.setdefault("label", np.full(len(columns["view"]), -1))
    features = codes_features(spec, captions=CAPTIONS in rows)
    with ArrowWriter(path=str(path), features=features) as writer:
        writer.write_batch(rows)
        writer.finalize()


def join_shards(
    folder: Path, shards: Mapping[str, list[Path]], spec: CodeSpec, settings: Mapping[str, Any]
) -> dict[str, FileRecord]:
    """Join the shards of every split to one dataset on disk, one record batch after the other.

    Splits that the folder holds already stay.

    Args:
        folder: of the dataset; `datasets.load_from_disk(folder)[split]` reads it.
        shards: Arrow files of every split, in the order of their rows.
        spec: stored in the dataset's description and in `code_spec.json`.
        settings: how the images were encoded; stored in the description.

    Returns:
        Records of the new Arrow files by their name in the folder, for the manifest.
    """
    from datasets import DatasetInfo

    listed, records = folder / DICT_FILE, {}
    names = split_names(folder) if listed.exists() else []
    for split, paths in shards.items():
        (folder / split).mkdir(parents=True)
        parts = list(_files_of(paths))
        files = [f"data-{n:05d}-of-{len(parts):05d}.arrow" for n in range(len(parts))]
        for file, part in zip(files, parts, strict=True):
            features, records[f"{split}/{file}"] = _join(folder / split / file, part)
        description = json.dumps({"code_spec": spec.to_dict(), "encode": dict(settings)})
        DatasetInfo(description, features=features).write_to_directory(
            str(folder / split), pretty_print=True
        )
        state: dict[str, Any] = dict.fromkeys(_FORMAT)
        state |= {"_format_kwargs": {}, "_output_all_columns": False}
        state["_data_files"] = [{"filename": file} for file in files]
        # Otherwise `datasets` draws a name at random, and the same command writes other files.
        state["_fingerprint"] = xxhash.xxh3_64_hexdigest(f"{description} {split}".encode())
        write_record(folder / split / "state.json", state)
    write_record(listed, {"splits": [*names, *shards]})
    write_spec(spec, folder)
    return records


def _files_of(shards: Sequence[Path]) -> Iterator[list[Path]]:
    """The shards that become one file: as many as reach `_FILE` bytes together."""
    part: list[Path] = []
    size = 0
    for path in shards:
        part.append(path)
        size += path.stat().st_size
        if size >= _FILE:
            yield part
            part, size = [], 0
    if part:
        yield part


def _join(final: Path, shards: Sequence[Path]) -> tuple[Features, FileRecord]:
    """Write the record batches of shards into one file; returns its columns and its record."""
    import pyarrow
    from datasets import Features

    with contextlib.ExitStack() as opened:
        file = opened.enter_context(DigestedFile(final))
        writer = None
        for path in shards:
            # Not mapped: pages of a mapped file would count as this process's memory.
            with pyarrow.OSFile(str(path)) as source, pyarrow.ipc.open_stream(source) as reader:
                if writer is None:
                    schema = reader.schema
                    sink = pyarrow.PythonFile(file, "w")
                    writer = opened.enter_context(pyarrow.ipc.new_stream(sink, schema))
                for batch in reader:
                    writer.write_batch(batch)
    return Features.from_arrow_schema(schema), file.record


def measure_latents(paths: Sequence[Path], spec: CodeSpec) -> CodeSpec:
    """The spec with each latent channel's mean and standard deviation over files of `write_shard`.

    One file at a time is read into memory.
    """
    channels = sum(level.channels or 0 for level in spec.levels)
    count, total, squares = 0, np.zeros(channels), np.zeros(channels)
    for path in paths:
        table = MappedTable([path], {level.name: level.dtype for level in spec.levels})
        # Latents lie near 0, so plain sums of squares in float64 are accurate enough.
        latents = [table.column(level.name).astype(np.float64) for level in spec.levels]
        count += len(latents[0])
        total += np.concatenate([values.mean((2, 3)).sum(0) for values in latents])
        squares += np.concatenate([np.square(values).mean((2, 3)).sum(0) for values in latents])
    shift = total / count
    scale = np.sqrt(np.maximum(squares / count - np.square(shift), 0.0))
    return replace(spec, latent_shift=tuple(shift.tolist()), latent_scale=tuple(scale.tolist()))
