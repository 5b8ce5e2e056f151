import base64
import io
import json
import re
from html.parser import HTMLParser

import numpy as np
import pytest
from PIL import Image

from evaluation.report import Row, markdown, picture, write_report

PROTOCOL = {
    "reference": "mnist5k",
    "reference_split": "test",
    "num_images": 1000,
    "features": "inception",
    "resizer": "clean <299>",
    "classifier": None,
}
ROWS = [
    Row("real|train", 1000, 30.0, -1e-4, 2e-4),
    Row("<b>samples", 900, 300.0, 0.05, 0.001),
    Row("reconstructions", 1000, 200.0, 0.02, float("nan"), psnr=21.5, ssim=0.9),
]


def noise(count, height=8, width=8, channels=3):
    return list(
        np.random.default_rng(0).integers(0, 256, (count, height, width, channels), dtype=np.uint8)
    )


@pytest.fixture
def written(tmp_path):
    grids = [
        picture("reference", "mnist5k, test", noise(25)),
        picture("<b>samples", "a & b", noise(3)),
    ]
    write_report(tmp_path, PROTOCOL, ROWS, "fid", "FID", grids)
    return tmp_path


def test_scores_json_has_the_agreed_form(written):
    scores = json.loads((written / "scores.json").read_text())
    assert scores["protocol"] == PROTOCOL
    assert scores["rows"][0] == {
        "name": "real|train", "num_images": 1000, "fid": 30.0, "kid": -1e-4, "kid_stderr": 2e-4,
    }  # fmt: skip
    assert scores["rows"][2]["psnr"] == 21.5
    assert scores["rows"][2]["ssim"] == 0.9
    assert scores["rows"][2]["kid_stderr"] is None  # NaN is not JSON


def test_markdown_has_one_cell_per_column(written):
    table = [
        line for line in (written / "scores.md").read_text().splitlines() if line.startswith("|")
    ]
    cells = [re.split(r"(?<!\\)\|", line)[1:-1] for line in table]
    assert {len(row) for row in cells} == {6}
    assert [cell.strip() for cell in cells[3]] == [
        "<b>samples",
        "900",
        "300.00",
        "50.00 ± 1.00",
        "",
        "",
    ]


def test_columns_without_values_are_left_out():
    assert "PSNR" not in markdown(PROTOCOL, ROWS[:2], "FID")


def test_class_accuracy_has_a_column_where_a_row_has_it_and_its_ceiling_below(tmp_path):
    rows = [Row("samples", 100, 3.0, 0.0, 0.0, class_accuracy=0.9725), ROWS[0]]
    classifier = {"split": "train", "reference_accuracy": 0.992}
    protocol = PROTOCOL | {"reference_split": "test", "classifier": classifier}
    write_report(tmp_path, protocol, rows, "fid", "FID", [])
    found = json.loads((tmp_path / "scores.json").read_text())["rows"]
    assert found[0]["class_accuracy"] == 0.9725
    assert "class_accuracy" not in found[1]
    table = (tmp_path / "scores.md").read_text()
    head, _, samples, other = table.splitlines()[:4]
    assert head.endswith("| Class accuracy ↑ |")
    assert samples.endswith("| 97.2 % |")
    assert other.endswith("|  |")
    assert "trained on split train; on the reference it reaches 99.2 %" in table
    assert "97.2 %" in (tmp_path / "report.html").read_text()
    seen = protocol | {"reference_split": "train"}
    assert "on the reference it was trained on it reaches" in markdown(seen, rows, "FID")
    assert "Class accuracy" not in markdown(PROTOCOL, ROWS, "FID")


class Page(HTMLParser):
    def __init__(self):
        super().__init__()
        self.open, self.images, self.outside = [], [], []

    def handle_starttag(self, tag, attributes):
        values = dict(attributes)
        if tag not in ("meta", "img"):
            self.open.append(tag)
        if tag == "img":
            self.images.append(values)
        self.outside += [
            v for k, v in attributes if k in ("src", "href") and not v.startswith("data:")
        ]

    def handle_endtag(self, tag):
        assert self.open.pop() == tag


def test_the_page_is_well_formed_and_needs_nothing_from_outside(written):
    page = Page()
    text = (written / "report.html").read_text()
    page.feed(text)
    assert page.open == []
    assert page.outside == []
    assert "<script" not in text
    assert "<b>samples" not in text  # a name is text, whatever it looks like
    assert len(page.images) == 2
    for attributes in page.images:
        picture = Image.open(io.BytesIO(base64.b64decode(attributes["src"].partition(",")[2])))
        assert int(attributes["width"]) % picture.width == 0


def test_pictures_show_the_pixels_and_fit_mixed_sizes():
    images = noise(4)
    sheet = Image.open(io.BytesIO(picture("a", "", images, columns=2).png))
    assert np.array_equal(np.asarray(sheet)[1:9, 1:9], images[0])
    mixed = [*noise(2, 200, 100), *noise(1, 20, 30, 1)]
    sheet = Image.open(io.BytesIO(picture("a", "", mixed, columns=3).png))
    assert sheet.height < 140


def test_files_appear_together_or_not_at_all(tmp_path):
    grids = [picture("reference", "", noise(2))]
    with pytest.raises(ValueError, match="JSON"):
        write_report(tmp_path, PROTOCOL, [Row("a", 2, float("nan"), 0.0, 0.0)], "fid", "FID", grids)
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "report.html").mkdir()  # cannot be replaced by a file
    with pytest.raises(OSError, match=r"report\.html"):
        write_report(tmp_path, PROTOCOL, ROWS, "fid", "FID", grids)
    assert not list(tmp_path.glob("*.partial*")) + list(tmp_path.glob(".*.partial*"))
