"""The states of every distinct caption, computed once and kept beside the codes."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import torch
import xxhash
from filelock import FileLock

from latent_prior.manifests import digest
from latent_prior.stage2_prior.text.encoder import TextEncoder, padded_states
from latent_prior.stage2_prior.text.reading import Text, TextSpec, in_parts

SCHEMA = pa.schema(
    [("caption", pa.uint64()), ("tokens", pa.int32()), ("states", pa.large_binary())]
)


class StateStore:
    """States of every distinct caption, in a file beside the codes.

    Args:
        path: of the Arrow file.
        spec: of the encoder.

    Raises:
        ValueError: the file is damaged.
    """

    def __init__(self, path: Path, spec: TextSpec) -> None:
        self.path, self.spec = path, spec
        try:
            self._table = pa.ipc.open_file(pa.memory_map(str(path))).read_all()
            if self._table.schema != SCHEMA:
                raise ValueError("its columns are others")
            captions = self._table.column("caption").to_numpy()
        except (OSError, pa.ArrowException, ValueError) as error:
            raise ValueError(
                f"{path} is damaged ({error}); delete it, and repeat the command"
            ) from error
        self._order = np.argsort(captions)
        self._captions = captions[self._order]

    @classmethod
    def find(cls, folder: Path, spec: TextSpec) -> StateStore | None:
        """The states of an encoder in `folder`; None if they were not computed.

        Raises:
            ValueError: the file is damaged.
        """
        for path in sorted(folder.glob(f"{spec['sha256'][:32]}.*.arrow")):
            if path.name != f"{spec['sha256'][:32]}.{digest(path)}.arrow":
                raise ValueError(f"{path} is damaged; delete it, and repeat the command")
            return cls(path, spec)
        return None

    @classmethod
    def make(cls, folder: Path, encoder: TextEncoder, captions: Iterable[str]) -> None:
        """Encode every distinct caption once, unless that was done; the file's name has its digest.

        Runs over the same codes that begin together wait for the first one.

        Raises:
            ValueError: a file that is there is damaged, or the encoder gives no numbers.
        """
        folder.mkdir(exist_ok=True)
        name = encoder.spec["sha256"][:32]
        temporary = folder / f".{name}.partial"
        with FileLock(folder / f".{name}.lock"):
            if cls.find(folder, encoder.spec) is not None:
                return
            try:
                with pa.ipc.new_file(str(temporary), SCHEMA) as file:
                    seen: set[int] = set()
                    for part in in_parts(captions):
                        new = {number_of(c): c for c in part if number_of(c) not in seen}
                        seen.update(new)
                        if new:
                            file.write_batch(_rows_of(encoder.read(list(new.values())), [*new]))
                temporary.rename(folder / f"{name}.{digest(temporary)}.arrow")
            finally:
                temporary.unlink(missing_ok=True)

    def read(self, captions: Sequence[str]) -> Text:
        """Captions of the codes as states (B, T, D), padded to the longest.

        Raises:
            ValueError: a caption is not among those that were encoded, or the file is damaged.
        """
        states = []
        for caption in captions:
            number = np.uint64(number_of(caption))
            place = int(np.searchsorted(self._captions, number))
            if place == len(self._captions) or self._captions[place] != number:
                raise ValueError(
                    f"{self.path} has no states of {caption[:60]!r}; delete it, and repeat the command"
                )
            row = int(self._order[place])
            content = self._table.column("states")[row].as_buffer()
            tokens = self._table.column("tokens")[row].as_py()
            values = np.frombuffer(content, np.float16)
            if values.size != tokens * self.spec["width"] or not np.isfinite(values).all():
                raise ValueError(
                    f"{self.path} is damaged in row {row}; delete it, and repeat the command"
                )
            states.append(torch.from_numpy(values.reshape(tokens, -1).astype(np.float32)))
        return padded_states(states)


def number_of(caption: str) -> int:
    """A caption's number in the file."""
    return xxhash.xxh3_64_intdigest(caption.encode())


def _rows_of(text: Text, numbers: Sequence[int]) -> pa.RecordBatch:
    """Rows of the file."""
    assert text.states is not None
    lengths = (text.tokens >= 0).sum(1).tolist()
    limit = torch.finfo(torch.float16).max
    content = [
        state[len(state) - length :].clamp(-limit, limit).half().numpy().tobytes()
        for state, length in zip(text.states, lengths, strict=True)
    ]
    columns = [
        pa.array(numbers, pa.uint64()),
        pa.array(lengths, pa.int32()),
        pa.array(content, pa.large_binary()),
    ]
    return pa.record_batch(columns, SCHEMA)
