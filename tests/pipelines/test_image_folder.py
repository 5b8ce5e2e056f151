"""How a folder is filled, whatever draws the images; `test_generate.py` uses a real pipeline."""

from typing import Any

import pytest
import torch
from accelerate import Accelerator

from latent_prior.data.images import save_png
from latent_prior.manifests import MANIFEST
from latent_prior.pipelines.image_folder import (
    ABOUT_FILE,
    chosen_classes,
    cost,
    fill_folder,
    image_path,
    write_labels,
)
from latent_prior.records import read_record

BUDGET = {"steps": 5, "images_seen": 40, "seconds": 2.0, "cpu_seconds": 1.5, "device": "cpu", "num_processes": 1}  # fmt: skip


@pytest.fixture
def fill(parts, tmp_path):
    """`fill(labels)` fills a folder and returns it with the numbers that were drawn."""
    accelerator, autoencoder = Accelerator(cpu=True), parts["vqvae"]()
    autoencoder.config.training = BUDGET

    def into(labels):
        drawn = []

        def draw(numbers):
            drawn.extend(numbers)
            images = [torch.full((1, 4, 4), 10 * n % 251, dtype=torch.uint8) for n in numbers]
            return torch.stack(images)

        fill_folder(
            tmp_path / "images", {"seed": 0}, draw, labels, class_names=["bee", "owl"],
            models=[autoencoder], batch_size=3, accelerator=accelerator,
        )  # fmt: skip
        return tmp_path / "images", drawn

    return into


def about(folder):
    return read_record(folder / ABOUT_FILE, dict[str, Any], "")


def test_only_what_is_missing_is_drawn_and_timed_only_as_a_whole(fill):
    folder, drawn = fill([0, 1, 0, 1])
    assert drawn == [0, 1, 2, 3]
    first = about(folder)
    assert first["seconds_per_image"] > 0
    assert fill([0, 1, 0, 1]) == (folder, [])
    assert about(folder) == first  # nothing was drawn, nothing new is known
    image_path(folder, 1).unlink()
    assert fill([0, 1, 0, 1])[1] == [0, 1, 2]
    assert about(folder) == {**first, "seconds_per_image": None}
    assert fill([0, 1, 0, 1, 0])[1] == [3, 4]
    with pytest.raises(ValueError, match="more than --num_images 3"):
        fill([0, 1, 0])


HOWS = ("empty", "half", "garbage", "exchanged", "other size", "dangling link", "foreign link")


def harm(path, how, tmp_path):
    """Damage an image of the folder."""
    content = path.read_bytes()
    path.unlink()
    if how.endswith("link"):
        path.symlink_to(tmp_path / ("nowhere" if how == "dangling link" else "precious.png"))
    elif how == "exchanged":
        path.write_bytes((path.parent / "000000.png").read_bytes())
    elif how == "other size":
        save_png(torch.zeros(1, 5, 4, dtype=torch.uint8), path)
    else:
        path.write_bytes({"empty": b"", "half": content[:40], "garbage": b"x" * 99}[how])


@pytest.mark.parametrize("how", HOWS)
@pytest.mark.parametrize("count", [4, 104], ids=["in the grid", "behind the grid"])
def test_a_damaged_image_of_an_earlier_call_is_made_again(fill, tmp_path, caplog, how, count):
    save_png(torch.zeros(1, 4, 4, dtype=torch.uint8), tmp_path / "precious.png")
    precious = (tmp_path / "precious.png").read_bytes()
    folder, _ = fill([0] * count)
    right = {path.name: path.read_bytes() for path in folder.iterdir()}
    harm(image_path(folder, count - 1), how, tmp_path)
    _, drawn = fill([0] * count)
    assert drawn[-1] == count - 1
    assert len(drawn) < 4
    assert "damaged or was exchanged" in caplog.text
    assert not image_path(folder, count - 1).is_symlink()
    found = {path.name: path.read_bytes() for path in folder.iterdir()}
    assert found | {ABOUT_FILE: b""} == right | {ABOUT_FILE: b""}
    assert (tmp_path / "precious.png").read_bytes() == precious


@pytest.mark.parametrize("how", ["empty", "half", "garbage", "dangling link"])
def test_a_damaged_image_of_a_stopped_call_is_made_again(fill, tmp_path, how):
    folder, _ = fill([0] * 4)
    right = image_path(folder, 1).read_bytes()
    (folder / MANIFEST).unlink()
    harm(image_path(folder, 1), how, tmp_path)
    assert fill([0] * 4)[1] == [0, 1, 2]
    assert image_path(folder, 1).read_bytes() == right


def test_an_image_of_another_size_in_a_stopped_call_is_told(fill, tmp_path):
    folder, _ = fill([0, 1])
    (folder / MANIFEST).unlink()
    harm(image_path(folder, 1), "other size", tmp_path)
    with pytest.raises(ValueError, match=r"000001\.png has shape \(1, 5, 4\).* and repeat"):
        fill([0, 1])


@pytest.mark.parametrize("name", ["labels.csv", "grid.png", ABOUT_FILE, MANIFEST])
@pytest.mark.parametrize("how", ["missing", "empty", "garbage", "dangling link", "folder"])
def test_a_damaged_file_beside_the_images_is_written_again_or_named(fill, tmp_path, name, how):
    folder, _ = fill([0, 1])
    right = {path.name: path.read_bytes() for path in folder.iterdir()}
    path = folder / name
    path.unlink()
    if how == "folder":
        path.mkdir()
        with pytest.raises(ValueError, match=str(path)):
            fill([0, 1])
        return
    if how == "dangling link":
        path.symlink_to(tmp_path / "nowhere" / "x")
    elif how != "missing":
        path.write_bytes(b"" if how == "empty" else b"\xff\x00{")
    assert fill([0, 1])[1] == []
    found = {path.name: path.read_bytes() for path in folder.iterdir()}
    assert about(folder)["parameters"] > 0
    assert found | {ABOUT_FILE: b""} == right | {ABOUT_FILE: b""}


def test_what_a_killed_process_left_is_cleared_away(fill, tmp_path):
    (tmp_path / "images").mkdir()
    (tmp_path / "images" / ".generation.json.partial.json").write_text("{")
    folder, _ = fill([0, 1])
    for name in (".about.json.partial.json", ".000001.png.partial.png"):
        (folder / name).write_text("x")
    fill([0, 1])
    assert not list(folder.glob(".*"))


def test_costs_are_summed_over_the_models(parts):
    first, second = parts["vqvae"](), parts["vqvae"](seed=1)
    first.config.training = BUDGET
    second.config.training = {**BUDGET, "images_seen": 2, "device": "NVIDIA H100"}
    found = cost([first, second], 0.25)
    assert found["parameters"] == 2 * first.num_parameters()
    assert found["seconds_per_image"] == 0.25
    assert found["training"] == {
        "images_seen": 42, "seconds": 4.0, "cpu_seconds": 3.0, "device": "cpu, NVIDIA H100"
    }  # fmt: skip
    second.config.training = None
    assert cost([first, second], None)["training"] is None


def test_classes_come_in_turn():
    assert chosen_classes([], ["bee", "owl"], None, 5) == [0, 1, 0, 1, 0]
    assert chosen_classes(["owl", "-1"], ["bee", "owl"], None, 3) == [1, -1, 1]
    assert chosen_classes([], [], None, 2) == [-1, -1]
    assert chosen_classes([], list("abcd"), [1, 3], 3) == [1, 3, 1]
    assert chosen_classes(["a"], list("abcd"), [1, 3], 1) == [0]
    with pytest.raises(ValueError, match="cat"):
        chosen_classes(["cat"], ["bee", "owl"], None, 1)


def test_labels_by_number_and_name(tmp_path):
    write_labels(tmp_path / "labels.csv", ["a.png", "b.png"], [1, -1], ["bee", "a, b"])
    lines = (tmp_path / "labels.csv").read_text().splitlines()
    assert lines == ["file,label,class", 'a.png,1,"a, b"', "b.png,,"]
