import os

import pytest

from latent_prior.files import cache_folder, clear_temporary, read_regular, whole_file
from latent_prior.records import check_output_dir


def names(folder) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


def test_a_file_is_whole_or_absent(tmp_path):
    final = tmp_path / "sub" / "a.txt"
    with whole_file(final) as path:
        assert path.suffix == ".txt"
        path.write_text("1")
        assert not final.exists()

    def fail():
        with whole_file(final) as path:
            path.write_text("half")
            raise RuntimeError

    with pytest.raises(RuntimeError):
        fail()
    assert names(tmp_path) == ["sub/a.txt"]
    assert final.read_text() == "1"


def test_a_file_in_place_of_an_output_folder_is_refused(tmp_path):
    (tmp_path / "file").touch()
    os.mkfifo(tmp_path / "fifo")
    (tmp_path / "dangling").symlink_to(tmp_path / "gone")
    for name, said in (
        ("file", "file is a file; name a folder"),
        ("fifo", "fifo is a file; name a folder"),
        ("dangling", "dangling is a link to nothing"),
        ("file/new/deep", f"lies in {tmp_path / 'file'}, which is a file"),
    ):
        with pytest.raises(ValueError, match="--output_dir") as stopped:
            check_output_dir(tmp_path / name, "made.json", {}, "images")
        assert said in str(stopped.value)
    assert {path.name for path in tmp_path.iterdir()} == {"file", "fifo", "dangling"}


def test_a_process_killed_at_its_first_file_leaves_a_folder_to_go_on_with(tmp_path):
    (tmp_path / ".made.json.partial.json").write_text("{")
    assert check_output_dir(tmp_path, "made.json", {}, "images") is None
    (tmp_path / "thesis.txt").write_text("mine")
    with pytest.raises(ValueError, match="holds no images"):
        check_output_dir(tmp_path, "made.json", {}, "images")


def test_temporary_files_of_exactly_our_form_are_cleared_away(tmp_path):
    ours = (".a.png.partial.png", ".labels.partial", ".a.b.json.partial.json")
    others = (".a.png.partial.jpg", "a.png.partial.png", ".partial", ".x.partial.y.z", "a.png")
    for name in (*ours, *others):
        (tmp_path / name).write_text("x")
    (tmp_path / ".b.png.partial.png").mkdir()
    (tmp_path / ".c.png.partial.png").symlink_to(tmp_path / "a.png")
    clear_temporary(tmp_path)
    left = {path.name for path in tmp_path.iterdir()}
    assert left == {*others, ".b.png.partial.png"}


def test_only_regular_files_of_a_limited_size_are_read(tmp_path):
    path = tmp_path / "a"
    path.write_bytes(b"123")
    (tmp_path / "link").symlink_to(path)
    assert read_regular(path, 3) == read_regular(tmp_path / "link", 3) == b"123"
    with pytest.raises(ValueError, match="a has 3 bytes; at most 2"):
        read_regular(path, 2)
    os.mkfifo(tmp_path / "fifo")
    for name in ("fifo", ".", "/dev/zero"):
        with pytest.raises(ValueError, match="no regular file"):
            read_regular(tmp_path / name, 10)
    with pytest.raises(ValueError, match="gone cannot be read"):
        read_regular(tmp_path / "gone", 10)


def test_a_file_is_never_written_through_a_leftover_or_over_a_folder(tmp_path):
    (tmp_path / "mine").write_text("mine")
    (tmp_path / ".a.txt.partial.txt").symlink_to(tmp_path / "mine")
    with whole_file(tmp_path / "a.txt") as path:
        path.write_text("1")
    assert (tmp_path / "mine").read_text() == "mine"
    (tmp_path / "b.txt").mkdir()
    with pytest.raises(ValueError, match=r"b\.txt is no file"), whole_file(tmp_path / "b.txt"):
        pass


def test_cache_folder_follows_the_environment(monkeypatch, tmp_path):
    monkeypatch.setenv("LATENT_PRIOR_CACHE", str(tmp_path / "own"))
    assert cache_folder() == tmp_path / "own"
    monkeypatch.delenv("LATENT_PRIOR_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert cache_folder() == tmp_path / "xdg" / "latent-prior"
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert cache_folder() == tmp_path / ".cache" / "latent-prior"
