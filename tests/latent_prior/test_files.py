import pytest

from latent_prior.files import check_output_dir, read_json, whole_file, whole_folder, write_json


def names(folder) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


def test_a_folder_appears_only_when_it_is_whole(tmp_path):
    with whole_folder(tmp_path / "new" / "model") as folder:
        (folder / "a").write_text("1")
        assert not (tmp_path / "new" / "model").exists()
    assert names(tmp_path) == ["new/model/a"]


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
def test_an_error_leaves_what_was_there(tmp_path, error):
    for path in (tmp_path / "old", tmp_path / "fresh"):
        if path.name == "old":
            path.mkdir()
            (path / "a").write_text("1")

        def fail(path=path):
            with whole_folder(path) as folder:
                (folder / "b").write_text("2")
                raise error

        with pytest.raises(error):
            fail()
    assert names(tmp_path) == ["old/a"]
    assert [path.name for path in tmp_path.iterdir()] == ["old"]


def test_a_folder_is_replaced_as_a_whole(tmp_path):
    for content in "ab":
        with whole_folder(tmp_path / "model") as folder:
            (folder / content).write_text(content)
    assert names(tmp_path) == ["model/b"]
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


def test_what_a_killed_process_left_is_cleared_away(tmp_path):
    for stale in (".model.partial", ".model.replaced"):
        (tmp_path / stale).mkdir()
        (tmp_path / stale / "junk").write_text("x")
    for _ in range(2):
        with whole_folder(tmp_path / "model") as folder:
            (folder / "a").write_text("1")
    assert names(tmp_path) == ["model/a"]


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


def test_json_is_written_whole_and_read_back(tmp_path):
    write_json(tmp_path / "sub" / "a.json", {"b": [1, 2], "ä": None})
    assert read_json(tmp_path / "sub" / "a.json") == {"b": [1, 2], "ä": None}
    assert (tmp_path / "sub" / "a.json").read_text().endswith("}\n")
    with pytest.raises(TypeError):
        write_json(tmp_path / "sub" / "a.json", {"b": object()})
    assert read_json(tmp_path / "sub" / "a.json") == {"b": [1, 2], "ä": None}
    assert names(tmp_path) == ["sub/a.json"]


@pytest.mark.parametrize("content", ["{", "[1]", "\udcff"])
def test_json_that_is_none_is_told(tmp_path, content):
    path = tmp_path / "a.json"
    path.write_bytes(content.encode("utf-8", "surrogateescape"))
    with pytest.raises(ValueError, match=r"a\.json is not"):
        read_json(path)
    with pytest.raises(ValueError, match=r"nowhere/a\.json is missing; the folder holds: nothing"):
        read_json(tmp_path / "nowhere" / "a.json")


def test_an_output_folder_is_new_or_holds_the_same_settings_or_is_refused(tmp_path):
    folder, settings = tmp_path / "images", {"seed": 3, "labels": ["0"]}

    def check(values=settings, file="made.json", **options):
        return check_output_dir(folder, file, values, "images", **options)

    assert check() is None
    folder.mkdir()
    assert check() is None
    stored = settings | {"rows": [1, 2], "more": {"seed": 5}}
    write_json(folder / "made.json", stored)
    assert check() == stored
    with pytest.raises(
        ValueError,
        match=r"--output_dir .*images holds images with seed = 3, this command sets 4: "
        "choose another folder or delete this one",
    ):
        check({"seed": 4})
    assert check({"seed": 4}, may_change=("seed",)) == stored
    assert check({"seed": 5}, section="more") == stored
    with pytest.raises(ValueError, match="seed = 5, this command sets 4"):
        check({"seed": 4}, section="more")
    with pytest.raises(ValueError, match="with new = None, this command sets 1"):
        check(settings | {"new": 1})
    with pytest.raises(ValueError, match=r"is not empty and holds no images \(no other\.json\)"):
        check(file="other.json")
    (folder / "made.json").write_text("{")
    with pytest.raises(ValueError, match=r"made\.json"):
        check()


def test_a_file_in_place_of_an_output_folder_is_refused(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(ValueError, match="is not empty and holds no images"):
        check_output_dir(tmp_path / "file", "made.json", {}, "images")
