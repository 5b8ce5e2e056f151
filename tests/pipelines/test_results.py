import json

import pytest

from latent_prior.pipelines.results import holds_these, write_labels


def test_a_folder_holds_these_images_none_or_others(tmp_path):
    folder, settings = tmp_path / "images", {"seed": 3, "labels": ["0"]}
    assert not holds_these(folder, "made.json", settings)
    folder.mkdir()
    assert not holds_these(folder, "made.json", settings)
    (folder / "made.json").write_text(json.dumps(settings | {"rows": [1, 2]}))
    assert holds_these(folder, "made.json", settings)
    with pytest.raises(ValueError, match="images with seed = 3, this command says 4"):
        holds_these(folder, "made.json", settings | {"seed": 4})
    with pytest.raises(ValueError, match="was not written by this command"):
        holds_these(folder, "other.json", settings)
    (folder / "made.json").write_text("{")
    with pytest.raises(ValueError, match=r"made\.json"):
        holds_these(folder, "made.json", settings)


def test_labels_by_number_and_name(tmp_path):
    write_labels(tmp_path / "labels.csv", ["a.png", "b.png"], [1, -1], ["bee", "a, b"])
    lines = (tmp_path / "labels.csv").read_text().splitlines()
    assert lines == ["file,label,class", 'a.png,1,"a, b"', "b.png,,"]
