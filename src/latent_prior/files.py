"""Files and folders that are either whole or absent.

They are written under a temporary name and renamed, so a process that dies leaves the previous state behind.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def whole_folder(final: Path) -> Iterator[Path]:
    """A folder to write into that takes the name `final` when the block ends well, and is removed otherwise.

    A folder already there is replaced only then.
    """
    temporary = final.with_name(f".{final.name}.partial")
    replaced = final.with_name(f".{final.name}.replaced")
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir(parents=True)
    try:
        yield temporary
        shutil.rmtree(replaced, ignore_errors=True)
        if final.exists():
            final.rename(replaced)
        temporary.rename(final)
        shutil.rmtree(replaced, ignore_errors=True)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise


@contextmanager
def whole_file(final: Path) -> Iterator[Path]:
    """A file name to write to that becomes `final` when the block ends well; the file is removed otherwise.

    What a killed process leaves behind has the same name, so the next one writes over it.
    """
    final.parent.mkdir(parents=True, exist_ok=True)
    temporary = final.with_name(f".{final.name}.partial{final.suffix}")
    try:
        yield temporary
        temporary.replace(final)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
