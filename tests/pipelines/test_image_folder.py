"""How a folder is filled, whatever draws the images; `test_generate.py` uses a real pipeline."""

import json

import pytest
import torch
from accelerate import Accelerator

from latent_prior.data.images import save_png
from latent_prior.pipelines.image_folder import (
    ABOUT_FILE,
    classes_in_turn,
    cost,
    fill_folder,
    image_path,
    write_labels,
)

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
            return torch.stack([torch.full((1, 4, 4), 10 * n, dtype=torch.uint8) for n in numbers])

        fill_folder(
            tmp_path / "images", {"seed": 0}, draw, labels, class_names=["bee", "owl"],
            models=[autoencoder], batch_size=3, accelerator=accelerator,
        )  # fmt: skip
        return tmp_path / "images", drawn

    return into


def about(folder):
    return json.loads((folder / ABOUT_FILE).read_text())


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


def test_a_damaged_image_of_an_earlier_call_is_told(fill):
    folder, _ = fill([0, 1])
    image_path(folder, 1).write_bytes(b"no image")
    with pytest.raises(ValueError, match=r"000001\.png cannot be read .*delete it and repeat"):
        fill([0, 1])
    save_png(torch.zeros(1, 5, 4, dtype=torch.uint8), image_path(folder, 1))
    with pytest.raises(ValueError, match=r"000001\.png has shape \(1, 5, 4\).* and repeat"):
        fill([0, 1])


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
    assert classes_in_turn([], ["bee", "owl"], 5) == [0, 1, 0, 1, 0]
    assert classes_in_turn(["owl", "-1"], ["bee", "owl"], 3) == [1, -1, 1]
    assert classes_in_turn([], [], 2) == [-1, -1]
    with pytest.raises(ValueError, match="cat"):
        classes_in_turn(["cat"], ["bee", "owl"], 1)


def test_labels_by_number_and_name(tmp_path):
    write_labels(tmp_path / "labels.csv", ["a.png", "b.png"], [1, -1], ["bee", "a, b"])
    lines = (tmp_path / "labels.csv").read_text().splitlines()
    assert lines == ["file,label,class", 'a.png,1,"a, b"', "b.png,,"]
