import io
import json
import re
from xml.etree import ElementTree

import numpy as np
import pytest
from PIL import Image

from latent_prior.evaluation.measures.table import Row
from latent_prior.evaluation.options import ScoreOptions
from latent_prior.evaluation.report.files import (
    check_sizes,
    fingerprint,
    markdown,
    terminal_table,
    write_report,
)
from latent_prior.evaluation.report.pictures import make_grid

PROTOCOL = {
    "reference": "mnist5k",
    "reference_split": "test",
    "num_images": 1000,
    "features": "inception",
    "resizer": "clean <299>",
    "classifier": None,
    "candidates": {"<b>samples": {"source": "samples"}},
    "versions": {"torch": "2.9"},
}
ROWS = [
    Row("real|train", 1000, {"fid": 30.0, "kid": -1e-4}, {"kid": 2e-4}, contestant=False),
    Row("<b>samples", 1000, {"fid": 300.0, "kid": 0.05}, {"kid": 0.001}, notes=("rank 3 of 5",)),
    Row("gan", 1000, {"fid": 200.0, "kid": 0.06}, {"kid": 0.001}),
    Row("reconstructions", 1000, {"fid": 200.0, "kid": 0.02, "psnr": 21.5, "ssim": 0.9}, {"kid": float("nan")}, contestant=False),
]  # fmt: skip


def noise(count, height=8, width=8, channels=3):
    return list(
        np.random.default_rng(0).integers(0, 256, (count, height, width, channels), dtype=np.uint8)
    )


@pytest.fixture
def written(tmp_path):
    write_report(tmp_path, PROTOCOL, ROWS, "fid", "FID", [make_grid("reference", "", noise(25))])
    return tmp_path


def table(text):
    lines = [line for line in text.splitlines() if line.startswith("|")]
    return [[cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]] for line in lines]


def test_scores_json_has_the_agreed_form(written):
    scores = json.loads((written / "scores.json").read_text())
    assert scores["protocol"] == PROTOCOL | {"fingerprint": fingerprint(PROTOCOL)}
    assert scores["distance"] == {"key": "fid", "title": "FID"}
    assert scores["rows"][0] == {
        "name": "real|train", "num_images": 1000, "fid": 30.0, "kid": -1e-4, "kid_stderr": 2e-4,
        "notes": [], "curve": [], "contestant": False,
    }  # fmt: skip
    assert scores["rows"][1]["notes"] == ["rank 3 of 5"]
    assert scores["rows"][3]["psnr"] == 21.5
    assert scores["rows"][3]["kid_stderr"] is None  # NaN is not JSON


def test_markdown_has_one_cell_per_column_the_best_in_bold_and_notes_below(written):
    text = (written / "scores.md").read_text()
    cells = table(text)
    assert {len(row) for row in cells} == {6}
    assert cells[0] == ["Images", "N", "FID ↓", "KID x 1000 ↓", "PSNR (dB) ↑", "SSIM ↑"]
    assert cells[2][0] == r"real\|train"
    assert cells[2][2] == "30.00"  # the lowest, but no contestant
    assert cells[3] == ["&lt;b>samples [1]", "1,000", "300.00", "**50.00 ± 1.00**", "", ""]
    assert cells[4][2] == "**200.00**"
    assert "\n[1] rank 3 of 5\n" in text
    assert "Reference: mnist5k, split test (1,000 images)." in text
    assert fingerprint(PROTOCOL)[:12] in text


def test_columns_without_values_are_left_out():
    assert "PSNR" not in markdown(PROTOCOL, ROWS[:3], "fid", "FID")


def test_the_terminal_shows_the_main_columns_and_where_the_others_are(tmp_path, monkeypatch):
    monkeypatch.setenv("COLUMNS", "100")
    values = {
        "fid": 2893.84, "fid_infinity": 2872.86, "kid": 28.277, "precision": 0.0, "recall": 0.005, "density": 0.1,
        "class_accuracy": 0.9725, "psnr": 21.5, "parameters": 5e6,
    }  # fmt: skip
    rows = [
        Row("the first of the names that is too long", 1000, values, {"kid": 0.58}, ("many words " * 20,)),
        Row("b", 1000, values | {"fid": 2.0}),
    ]  # fmt: skip
    lines = terminal_table(rows, "fid", "FD-EffNet-Lite0", tmp_path).splitlines()
    assert lines[0].split() == ["Images", "N", "FD-EffNet-Lite0", "KID", "Precision", "Recall", "Class", "PSNR"]  # fmt: skip
    assert lines[1].split() == ["↓", "x", "1000", "↓", "↑", "↑", "accuracy", "↑", "(dB)", "↑"]
    assert lines[2].split()[-8:] == ["1,000", "2,893.84", "28,277.00", "0.000", "0.005", "97.2", "%", "21.50"]  # fmt: skip
    assert lines[3].split()[:3] == ["b", "1,000", "2.00*"]
    assert lines[2].find("2,893.84") + len("2,893.84") == lines[3].find("*")
    assert max(map(len, lines[:-2])) <= 100
    assert lines[-3] == "* is the best of its column."
    assert lines[-2] == f"3 more columns in {tmp_path / 'scores.md'}"
    assert "best" not in terminal_table(rows[:1], "fid", "FID", tmp_path)


def test_what_is_no_number_is_never_shown_as_one(tmp_path):
    rows = [Row("a", 9, {"fid": float("nan"), "kid": float("inf")}), Row("b", 9, {"fid": 2.0})]
    write_report(tmp_path, PROTOCOL, rows, "fid", "FID", [])
    for name in ("scores.json", "scores.md", "report.html"):
        assert not re.search(r"\b(nan|inf|infinity)\b", (tmp_path / name).read_text(), re.I)
    assert table((tmp_path / "scores.md").read_text())[2] == ["a", "9", "n/a", "n/a"]


def test_the_classifier_and_its_ceiling_are_told():
    classifier = {"split": "train", "reference_accuracy": 0.992}
    rows = [Row("samples", 1000, {"fid": 3.0, "class_accuracy": 0.9725}), ROWS[0]]
    protocol = PROTOCOL | {"classifier": classifier}
    text = markdown(protocol, rows, "fid", "FID")
    assert [row[-1] for row in table(text)] == ["Class accuracy ↑", "---:", "97.2 %", ""]
    assert "trained on split train; on the reference it reaches 99.2 %" in text
    seen = protocol | {"reference_split": "train"}
    assert "on the reference it was trained on it reaches" in markdown(seen, rows, "fid", "FID")
    assert "Class accuracy" not in markdown(PROTOCOL, ROWS, "fid", "FID")


def test_a_reference_of_published_statistics_has_no_split_and_no_images_of_its_own():
    published = PROTOCOL | {"reference": "fid:cifar10/32/train", "reference_split": None, "num_images": None}  # fmt: skip
    text = markdown(published, ROWS, "fid", "FID")
    assert "Reference: fid:cifar10/32/train (published statistics)." in text


def test_different_numbers_of_images_are_refused_with_a_way_out(tmp_path):
    sizes = [("a", 1000), ("b", 1000), ("c", 900)]
    with pytest.raises(ValueError, match=r"b has 1,000 images and c 900.*--num_images 900"):
        check_sizes(sizes)
    with pytest.raises(ValueError, match="--num_images 900"):
        write_report(tmp_path, PROTOCOL, [Row(name, n, {}) for name, n in sizes], "fid", "FID", [])
    assert list(tmp_path.iterdir()) == []
    check_sizes(sizes[:2])
    check_sizes([])


def test_the_fingerprint_depends_on_what_makes_numbers_comparable_and_on_nothing_else():
    own = fingerprint(PROTOCOL)
    assert own == fingerprint(PROTOCOL | {"fingerprint": own})
    assert own == fingerprint(dict(reversed(PROTOCOL.items())))
    same = {"candidates": {}, "versions": {}, "pipeline": "x", "autoencoder_fingerprint": "y", "image_size": None}  # fmt: skip
    assert own == fingerprint(PROTOCOL | same)
    for key, value in {
        "reference": "cifar10", "reference_split": "train", "num_images": 999, "features": "clip",
        "resizer": "other", "kid_subsets": 3, "image_size": 32, "channels": 1, "unheard_of": 0,
        "classifier": {"split": "train"},
    }.items():  # fmt: skip
        assert own != fingerprint(PROTOCOL | {key: value}), key


def test_a_reference_of_known_content_may_lie_anywhere_and_a_classifier_may_wobble():
    known = PROTOCOL | {"reference_sha256": "ab"}
    assert fingerprint(known) == fingerprint(known | {"reference": "/elsewhere"})
    assert fingerprint(known) != fingerprint(known | {"reference_sha256": "cd"})
    judged = [PROTOCOL | {"classifier": {"split": "train", "reference_accuracy": a}} for a in (0.98, 0.981)]  # fmt: skip
    assert fingerprint(judged[0]) == fingerprint(judged[1])


def test_pictures_show_the_pixels_and_fit_mixed_sizes():
    images = noise(4)
    sheet = Image.open(io.BytesIO(make_grid("a", "", images, columns=2).png))
    assert np.array_equal(np.asarray(sheet)[1:9, 1:9], images[0])
    mixed = [*noise(2, 200, 100), *noise(1, 20, 30, 1)]
    sheet = Image.open(io.BytesIO(make_grid("a", "", mixed, columns=3).png))
    assert sheet.height < 140


def test_files_appear_together_or_not_at_all(tmp_path):
    with pytest.raises(ValueError, match="JSON"):
        write_report(tmp_path, PROTOCOL | {"seed": float("nan")}, ROWS, "fid", "FID", [])
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "report.html").mkdir()  # cannot be replaced by a file
    with pytest.raises(ValueError, match=r"report\.html"):
        write_report(tmp_path, PROTOCOL, ROWS, "fid", "FID", [])
    assert not list(tmp_path.glob("*.partial*")) + list(tmp_path.glob(".*.partial*"))


EVIL = (
    "<script>x</script>",
    '"><img src=x>',
    "a|b",
    "a\x01b",
    "a\u202eb",
    "[x](javascript:x)",
    "`<b>`",
)


def test_names_of_others_start_nothing_in_a_report(tmp_path):
    for number, text in enumerate(EVIL):
        folder = tmp_path / str(number)
        folder.mkdir()
        protocol = PROTOCOL | {"reference": text}
        row = Row(text, 1000, {"fid": 300.0}, notes=(text,))
        write_report(folder, protocol, [row], "fid", "FID", [])
        page = (folder / "report.html").read_text(encoding="utf-8")
        ElementTree.fromstring(page.partition("\n")[2])
        assert "<script" not in page
        assert "<img" not in page
        table = (folder / "scores.md").read_text(encoding="utf-8")
        assert "<" not in table
        assert not re.search(r"(?<!\\)\]\(", table)
        lines = [line for line in table.splitlines() if line.startswith("|")]
        assert len({len(re.findall(r"(?<!\\)\|", line)) for line in lines}) == 1


@pytest.mark.parametrize("name", ["a\nb", "a\x01b", "a\u202eb", "n" * 5000])
def test_a_name_that_cannot_be_printed_is_refused(name):
    with pytest.raises(ValueError, match="--candidates: the name"):
        ScoreOptions(candidates=[f"{name}=folder"], output_dir="scores")
