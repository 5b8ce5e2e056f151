import json
import os
import re

import pytest

from latent_prior.folders import whole_folder
from latent_prior.manifests import (
    MANIFEST,
    DamagedError,
    DigestedFile,
    check_folder,
    checked_meanwhile,
    record_of,
    write_manifest,
)


def write(folder, content="1", name="config.json", **options):
    with whole_folder(folder, "model", **options) as temporary:
        (temporary / name).write_text(content)


def test_every_recorded_file_is_checked(tmp_path):
    folder = tmp_path / "model"
    with whole_folder(folder, "model") as temporary:
        (temporary / "inner").mkdir()
        (temporary / "own").mkdir()
        for name in ("config.json", "inner/weights", "own/part", "README.md"):
            (temporary / name).write_bytes(bytes(range(64)))
        write_manifest(temporary / "own", "model")
    check_folder(folder, "model")
    (folder / "README.md").write_text("mine")
    (folder / "notes.txt").write_text("mine")
    check_folder(folder, "model")
    for name in ("config.json", "inner/weights", f"own/{MANIFEST}", MANIFEST):
        content = (folder / name).read_bytes()
        if name == MANIFEST:  # white space in it has no effect
            content = json.dumps(json.loads(content), separators=(",", ":")).encode()
        for bit in range(0, 8 * len(content), 7):
            flipped = bytearray(content)
            flipped[bit // 8] ^= 1 << bit % 8
            (folder / name).write_bytes(flipped)
            with pytest.raises(ValueError, match=re.escape(str(folder))):
                check_folder(folder, "model")
        (folder / name).write_bytes(content)
    (folder / "own" / "part").unlink()
    check_folder(folder, "model")  # the part's own manifest tells
    with pytest.raises(ValueError, match="part is missing"):
        check_folder(folder / "own", "model")
    with pytest.raises(ValueError, match="not 'codes'"):
        check_folder(folder, "codes")


def test_a_folder_from_before_manifests_is_taken_with_a_warning(tmp_path, caplog):
    write(tmp_path / "model")
    (tmp_path / "model" / MANIFEST).unlink()
    assert check_folder(tmp_path / "model", "model") is None
    assert "has no manifest.json" in caplog.text
    write(tmp_path / "model", "2")
    assert check_folder(tmp_path / "model", "model") is not None


def test_checking_meanwhile_names_the_damage_before_what_the_block_makes_of_it(tmp_path):
    def read(harm):
        write(tmp_path / "model")
        with whole_folder(tmp_path / "model", "model") as folder:
            (folder / "config.json").write_text("{}")
            (folder / "weights").write_bytes(b"x" * 2**19)
        harm(tmp_path / "model" / "weights")
        with checked_meanwhile(tmp_path / "model", "model"):
            raise RuntimeError("whatever a damaged file leads to")

    with pytest.raises(RuntimeError):
        read(lambda path: None)
    with pytest.raises(DamagedError, match="weights is damaged"):
        read(lambda path: path.write_bytes(b"y" * 2**19))
    with pytest.raises(DamagedError, match="weights is missing"):  # and nobody waits for it
        read(lambda path: (path.unlink(), os.mkfifo(path)))


@pytest.mark.parametrize(
    "pieces", [[b""], [b"x"] * 3, [b"x" * 2**17, b"y", memoryview(b"z" * 2**20)]]
)
def test_a_file_is_digested_while_it_is_written(tmp_path, pieces):
    with DigestedFile(tmp_path / "a") as file:
        for piece in pieces:
            file.write(piece)
    assert (tmp_path / "a").read_bytes() == b"".join(pieces)
    assert file.record == record_of(tmp_path / "a")
