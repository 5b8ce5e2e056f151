import base64
import io
import re
from xml.etree import ElementTree

import numpy as np
import pytest
from PIL import Image

from latent_prior.evaluation.measures.table import Row
from latent_prior.evaluation.report.charts import COLOURS
from latent_prior.evaluation.report.html import Grid, page
from latent_prior.evaluation.report.pictures import make_grid

NOTE = "its covariance has rank 3 < 5"
ROWS = [
    Row("real|train", 100, {"fid": 1.0}, contestant=False),
    Row("<b>ours", 100, {"fid": 30.0, "kid": 0.05}, {"kid": 0.001}, notes=(NOTE,), curve=((50, 40.0), (100, 30.0))),
    Row("gan", 100, {"fid": 20.0, "kid": 0.06, "training_seconds": 60.0}, {"kid": 0.002}),
]  # fmt: skip


def parsed(text):
    assert text.startswith("<!DOCTYPE html>\n")
    return ElementTree.fromstring(text)


def noise(count, side=8):
    return list(
        np.random.default_rng(0).integers(0, 256, (count, side, side, 3), dtype=np.uint8)
    )  # fmt: skip


@pytest.fixture(scope="module")
def text():
    grids = [make_grid("reference", "mnist5k, test", noise(25)), make_grid("<b>ours", "a & b", noise(3))]  # fmt: skip
    nearest = [make_grid("<b>ours", "nearest first", noise(10))]
    return page({"a": "</pre><script>"}, "How & why.", ROWS, "fid", "FID", grids, nearest)


def test_the_page_is_well_formed_and_needs_nothing_from_outside(text):
    root = parsed(text)
    allowed = {"img": "data:image/png;base64,"}
    for element in root.iter():
        assert element.tag not in ("script", "link", "iframe", "object")
        for attribute in ("src", "href"):
            if attribute in element.attrib:
                assert element.get(attribute).startswith(allowed[element.tag])
        assert not [name for name in element.attrib if name.startswith("on")]
    assert not re.search(r"url\(|@import|https?:", text)
    assert "<b>ours" not in text  # a name is text, whatever it looks like


def test_pictures_are_shown_in_whole_multiples_of_their_pixels(text):
    images = list(parsed(text).iter("img"))
    assert len(images) == 3
    for image in images:
        shown = Image.open(io.BytesIO(base64.b64decode(image.get("src").partition(",")[2])))
        assert int(image.get("width")) % shown.width == 0


def test_the_table_has_the_best_in_bold_and_the_notes_below(text):
    root = parsed(text)
    rows = root.find(".//table/tbody").findall("tr")
    bold = [[cell.findtext("b") for cell in row.findall("td")] for row in rows]
    assert bold == [[None] * 4, [None, None, "50.00 ± 1.00", None], [None, "20.00", None, None]]
    assert [row.findtext("th/sup") for row in rows] == [None, "1", None]
    assert [item.text for item in root.find(".//ol[@class='notes']")] == [NOTE]
    assert len(root.find(".//table/thead/tr")) == 5


def test_every_column_is_explained_with_its_direction_and_paper(text):
    root = parsed(text)
    told = dict(zip((e.text for e in root.iter("dt")), (" ".join(e.itertext()) for e in root.iter("dd")), strict=True))  # fmt: skip
    assert list(told) == ["FID", "KID x 1000", "Training (s)"]
    assert "lower is better; Heusel et al., 2017" in told["FID"]
    assert "no better or worse" in told["Training (s)"]


def test_sections_with_nothing_to_show_are_left_out():
    headings = [e.text for e in parsed(page({}, "", ROWS[:1], "fid", "FID")).iter("h2")]
    assert headings == ["What the columns mean", "Protocol"]
    everything = page({}, "", ROWS, "fid", "FID", [Grid("a", "", b"", 5)], [Grid("a", "", b"", 5)])
    assert [e.text for e in parsed(everything).iter("h2")] == [
        "Side by side", "Bias and budget", "Images", "Nearest training images", "What the columns mean", "Protocol",
    ]  # fmt: skip


def luminance(colour):
    values = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    red, green, blue = (v / 12.92 if v <= 0.04045 else ((v + 0.055) / 1.055) ** 2.4 for v in values)
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue


def contrast(a, b):
    lighter, darker = sorted((luminance(a), luminance(b)), reverse=True)
    return (lighter + 0.05) / (darker + 0.05)


@pytest.mark.parametrize("mode", ["light", "dark"])
def test_colours_stand_out_from_the_page(text, mode):
    """WCAG 2.1: 4.5 for text, 3 for what a chart needs to be read."""
    modes = {
        scheme: dict(re.findall(r"--(\w+): (#[0-9a-f]{6});", colours))
        for scheme, colours in re.findall(r":root \{ color-scheme: (\w+);([^}]*)\}", text)
    }
    assert modes["light"].keys() == modes["dark"].keys()
    base = modes[mode]
    series = [base[f"s{number}"] for number in range(COLOURS)]
    assert all(f".s{number} {{ color: var(--s{number}); }}" in text for number in range(COLOURS))
    assert contrast(base["ink"], base["page"]) >= 7
    assert contrast(base["soft"], base["page"]) >= 4.5
    assert contrast(base["best"], base["page"]) >= 4.5
    assert all(contrast(colour, base["page"]) >= 3 for colour in series)
    assert contrast(base["bar"], base["page"]) >= 2.5  # beside its number
