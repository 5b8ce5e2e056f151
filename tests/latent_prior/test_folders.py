import errno
import os
import threading

import fsspec
import pytest

from latent_prior import folders
from latent_prior.folders import clear_leftover, fetch_folder, remove_folder, whole_folder
from latent_prior.manifests import (
    MANIFEST,
    check_folder,
)


def names(folder) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


def write(folder, content="1", name="config.json", **options):
    with whole_folder(folder, "model", **options) as temporary:
        (temporary / name).write_text(content)


@pytest.fixture(params=[True, False], ids=["exchange", "two renames"])
def system(request, monkeypatch):
    """A system that exchanges names in one step, and one that does not."""
    if not request.param:
        monkeypatch.setattr(folders, "_exchange_at_once", lambda first, second: errno.EINVAL)


def test_a_folder_appears_only_when_it_is_whole(tmp_path):
    with whole_folder(tmp_path / "new" / "model", "model") as folder:
        (folder / "a").write_text("1")
        assert not (tmp_path / "new" / "model").exists()
    assert names(tmp_path) == ["new/model/a", f"new/model/{MANIFEST}"]


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
def test_an_error_leaves_what_was_there(tmp_path, error):
    write(tmp_path / "old")
    for name in ("old", "fresh"):

        def fail(name=name):
            with whole_folder(tmp_path / name, "model") as folder:
                (folder / "b").write_text("2")
                raise error

        with pytest.raises(error):
            fail()
    assert names(tmp_path) == ["old/config.json", f"old/{MANIFEST}"]
    assert [path.name for path in tmp_path.iterdir()] == ["old"]


def test_a_folder_is_replaced_as_a_whole(tmp_path, system):
    for content in "ab":
        write(tmp_path / "model", name=content)
    assert names(tmp_path) == ["model/b", f"model/{MANIFEST}"]
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


def test_a_reader_always_finds_a_replaced_folder(tmp_path):
    if folders._exchange_at_once(os.fsencode(tmp_path / "x"), b"y") == errno.ENOSYS:
        pytest.skip("this system has no exchange of names")
    write(tmp_path / "model")
    stop, missing = threading.Event(), []

    def read():
        while not stop.is_set():
            if not (tmp_path / "model").is_dir():
                missing.append(True)

    reader = threading.Thread(target=read)
    reader.start()
    for number in range(50):
        write(tmp_path / "model", str(number))
    stop.set()
    reader.join()
    assert not missing


def test_a_kill_between_two_renames_is_put_right_by_the_next_call(tmp_path):
    write(tmp_path / "model")
    (tmp_path / "model").rename(tmp_path / ".model.replaced")
    (tmp_path / ".model.partial").mkdir()
    clear_leftover(tmp_path / "model")
    assert [path.name for path in tmp_path.iterdir()] == ["model"]
    check_folder(tmp_path / "model", "model")


@pytest.mark.parametrize("name", [".model.partial", ".model.replaced"])
@pytest.mark.parametrize("kind", ["file", "link", "dangling link", "folder", "read-only folder"])
def test_leftovers_of_any_kind_are_cleared_away(tmp_path, name, kind):
    precious, left = tmp_path / "precious", tmp_path / name
    precious.mkdir()
    (precious / "a").write_text("1")
    if kind == "file":
        left.write_text("x")
    elif kind.endswith("link"):
        left.symlink_to(precious if kind == "link" else tmp_path / "nowhere")
    else:
        (left / "inner").mkdir(parents=True)
        (left / "inner" / "junk").write_text("x")
        if kind == "read-only folder":
            (left / "inner").chmod(0o500)
    write(tmp_path / "model")
    write(tmp_path / "model")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["model", "precious"]
    assert (precious / "a").read_text() == "1"


def test_only_a_folder_of_the_same_kind_is_replaced(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("mine")
    (tmp_path / "dangling").symlink_to(tmp_path / "nowhere" / "deep")
    os.mkfifo(tmp_path / "fifo")
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "a.png").write_text("mine")
    for name in ("file", "fifo", "photos", "file/below"):
        with pytest.raises(ValueError, match=str(tmp_path / name.partition("/")[0])):
            write(tmp_path / name)
    with whole_folder(tmp_path / "codes", "codes") as folder:
        (folder / "code_spec.json").write_text("1")
    with pytest.raises(ValueError, match="holds no model"):
        write(tmp_path / "codes")
    write(tmp_path / "model")
    monkeypatch.chdir(tmp_path / "model")
    with pytest.raises(ValueError, match="is the current folder"):
        write(tmp_path / "model")
    assert (tmp_path / "file").read_text() == (tmp_path / "photos" / "a.png").read_text() == "mine"


def test_a_link_to_a_folder_stays_a_link(tmp_path):
    write(tmp_path / "model")
    (tmp_path / "link").symlink_to(tmp_path / "model")
    write(tmp_path / "link", "2")
    assert (tmp_path / "link").is_symlink()
    assert (tmp_path / "model" / "config.json").read_text() == "2"


def test_keep_starts_from_the_files_that_are_there(tmp_path):
    with whole_folder(tmp_path / "model", "model") as folder:
        (folder / "inner").mkdir()
        for name in ("config.json", "inner/weights", "README.md"):
            (folder / name).write_text("old")
    write(tmp_path / "model", name="new", keep=True)
    assert names(tmp_path / "model") == [
        "README.md",
        "config.json",
        "inner/weights",
        MANIFEST,
        "new",
    ]
    check_folder(tmp_path / "model", "model")


def test_keep_leaves_what_people_put_there(tmp_path):
    """Notes, links, broken links and FIFOs; what is no file is not recorded."""
    write(tmp_path / "model")
    (tmp_path / "data").mkdir()
    (tmp_path / "model" / "notes.txt").write_text("mine")
    (tmp_path / "model" / "data").symlink_to("../data")
    (tmp_path / "model" / "broken").symlink_to("nowhere")
    os.mkfifo(tmp_path / "model" / "fifo")
    write(tmp_path / "model", name="new", keep=True)
    check_folder(tmp_path / "model", "model")
    assert (tmp_path / "model" / "notes.txt").read_text() == "mine"
    assert (tmp_path / "model" / "data").resolve() == tmp_path / "data"
    assert (tmp_path / "model" / "data").is_symlink()
    assert os.readlink(tmp_path / "model" / "broken") == "nowhere"
    assert (tmp_path / "model" / "fifo").is_fifo()


def test_a_damaged_folder_is_not_kept(tmp_path):
    """The new manifest would vouch for the damage."""
    write(tmp_path / "model")
    (tmp_path / "model" / "config.json").write_text("2")
    with pytest.raises(ValueError, match="is damaged or was exchanged"):
        write(tmp_path / "model", name="new", keep=True)
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


def test_a_folder_is_removed_under_another_name(tmp_path):
    write(tmp_path / "model")
    remove_folder(tmp_path / "model")
    assert not list(tmp_path.iterdir())


def test_files_of_people_go_along_when_a_folder_is_replaced(tmp_path):
    folder = tmp_path / "model"
    write(folder)
    (folder / "notes.txt").write_text("mine")
    (folder / "more").mkdir()
    (folder / "more" / "link").symlink_to("nowhere")
    write(folder, "2")
    write(folder, "3", name="other.json")
    assert names(folder) == [MANIFEST, "notes.txt", "other.json"]
    assert os.readlink(folder / "more" / "link") == "nowhere"
    check_folder(folder, "model")


@pytest.fixture
def storage(tmp_path, monkeypatch):
    """A model folder at memory://models/a, and an empty cache."""
    monkeypatch.setenv("LATENT_PRIOR_CACHE", str(tmp_path / "cache"))
    with whole_folder(tmp_path / "a", "model") as folder:
        (folder / "inner").mkdir()
        for name in ("config.json", "weights", "inner/more"):
            (folder / name).write_text(name)
    files = fsspec.filesystem("memory")
    files.put(str(tmp_path / "a"), "/models/a", recursive=True)
    yield files
    files.rm("/models", recursive=True)


def test_a_path_is_its_own_copy(tmp_path):
    for folder in (tmp_path, str(tmp_path), "no/such/folder"):
        assert fetch_folder(folder, "model") == type(tmp_path)(folder)


def test_a_folder_in_storage_is_copied_once(storage, tmp_path, monkeypatch):
    copy = fetch_folder("memory://models/a", "model")
    assert copy.is_relative_to(tmp_path / "cache")
    assert names(copy) == names(tmp_path / "a")
    check_folder(copy, "model")
    storage.rm("/models/a/weights")
    monkeypatch.setattr(type(storage), "get_file", None)  # nothing is copied again
    assert fetch_folder("memory://models/a/", "model") == copy
    content = storage.cat_file("/models/a/manifest.json")
    storage.pipe_file("/models/b/manifest.json", content.replace(b'"model"', b'"codes"'))
    with pytest.raises(ValueError, match="memory://models/b holds a folder of the kind 'codes'"):
        fetch_folder("memory://models/b", "model")


def test_a_copy_that_was_stopped_goes_on_with_what_is_missing(storage, tmp_path, monkeypatch):
    get_file, copied = type(storage).get_file, []

    def stops(self, remote, local):
        if remote.endswith("weights"):
            raise OSError("connection reset")
        copied.append(remote)
        get_file(self, remote, local)

    with monkeypatch.context() as patched:
        patched.setattr(type(storage), "get_file", stops)
        with pytest.raises(ValueError, match=r"memory://models/a .*connection reset"):
            fetch_folder("memory://models/a", "model")
        assert len(copied) == 2
        patched.setattr(
            type(storage), "get_file", lambda s, r, l: (copied.append(r), get_file(s, r, l))
        )
        copy = fetch_folder("memory://models/a", "model")
    assert [path.rpartition("/")[2] for path in copied[2:]] == ["weights"]
    assert names(copy) == names(tmp_path / "a")


@pytest.mark.parametrize(
    ("address", "said"),
    [
        ("memory://models/none", "memory://models/none holds no manifest.json"),
        ("nowhere://models/a", "nowhere://models/a: Protocol not known"),
        ("memory://models/damaged", "memory://models/damaged/weights is not what"),
        ("memory://models/outside", "'../a', which is outside of the folder"),
        ("memory://models/noise", "memory://models/noise/manifest.json is damaged"),
    ],
)
def test_a_folder_in_storage_that_is_none_is_one_sentence(storage, tmp_path, address, said):
    for name in ("damaged", "outside", "noise"):
        storage.cp("/models/a", f"/models/{name}", recursive=True)
    storage.pipe_file("/models/damaged/weights", b"others!")
    manifest = storage.cat_file("/models/a/manifest.json")
    storage.pipe_file("/models/outside/manifest.json", manifest.replace(b"weights", b"../a"))
    storage.pipe_file("/models/noise/manifest.json", b"{")
    with pytest.raises(ValueError, match=said.replace(".", r"\.")) as caught:
        fetch_folder(address, "model")
    assert "\n" not in str(caught.value)
    assert not list((tmp_path / "cache").rglob("manifest.json"))


def test_a_copy_that_the_disk_has_no_room_for_is_not_begun(storage, tmp_path, monkeypatch):
    monkeypatch.setattr(folders.shutil, "disk_usage", lambda path: _Disk)
    with pytest.raises(ValueError, match="has room for 3; move the cache with LATENT_PRIOR_CACHE"):
        fetch_folder("memory://models/a", "model")
    assert not [
        path for path in (tmp_path / "cache").rglob("*") if path.is_file() and path.stat().st_size
    ]


class _Disk:
    free = 3
