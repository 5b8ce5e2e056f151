"""What happens to files: truncation, wrong content, other kinds of file, single bits."""

from __future__ import annotations

import os
import random
from collections.abc import Callable
from pathlib import Path

TEXTS = {
    "empty": "",
    "a list": "[1, 2]\n",
    "null": "null\n",
    "a number": "12\n",
    "an empty object": "{}\n",
    "NaN": '{"a": NaN}\n',
    "deep": "[" * 100_000 + "]" * 100_000,
    "a deep object": '{"a":' * 100_000 + "1" + "}" * 100_000,
    "a long number": '{"a": ' + "9" * 5000 + "}\n",
}


def _remove(path: Path, chance: random.Random) -> None:
    path.unlink()


def _half(path: Path, chance: random.Random) -> None:
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 2])


def _last_byte(path: Path, chance: random.Random) -> None:
    path.write_bytes(path.read_bytes().rstrip(b"\n")[:-1])


def _garbage(path: Path, chance: random.Random) -> None:
    path.write_bytes(chance.randbytes(999))


def _zeros(path: Path, chance: random.Random) -> None:
    path.write_bytes(b"\0" * path.stat().st_size)


def _bit(path: Path, chance: random.Random) -> None:
    content = bytearray(path.read_bytes())
    if content:
        content[chance.randrange(len(content))] ^= 1 << chance.randrange(8)
    path.write_bytes(content)


def _folder(path: Path, chance: random.Random) -> None:
    path.unlink()
    path.mkdir()


def _dangling(path: Path, chance: random.Random) -> None:
    path.unlink()
    path.symlink_to("/nowhere/at/all")


def _circle(path: Path, chance: random.Random) -> None:
    path.unlink()
    path.symlink_to(path)


def _fifo(path: Path, chance: random.Random) -> None:
    path.unlink()
    os.mkfifo(path)


def _other(path: Path, chance: random.Random) -> None:
    """The file of the same name of another folder, such as another checkpoint or model."""
    root = next(parent for parent in path.parents if (parent / "base").is_dir())
    own = path.read_bytes()
    same = [p for p in sorted(root.rglob(path.name)) if p.is_file() and p.read_bytes() != own]
    if same:
        path.write_bytes(chance.choice(same).read_bytes())


def _text(content: str) -> Callable[[Path, random.Random], None]:
    return lambda path, chance: path.write_text(content) and None


DAMAGES: dict[str, Callable[[Path, random.Random], None]] = {
    "missing": _remove,
    "half": _half,
    "without its last byte": _last_byte,
    "garbage": _garbage,
    "zeros": _zeros,
    "one bit": _bit,
    "another bit": _bit,
    "another folder's": _other,
    "a folder": _folder,
    "a dangling link": _dangling,
    "a link to itself": _circle,
    "a FIFO": _fifo,
    **{name: _text(content) for name, content in TEXTS.items()},
}
