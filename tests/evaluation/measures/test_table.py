import json
import math

import pytest

from latent_prior.evaluation.measures.attributes import AS_ASKED
from latent_prior.evaluation.measures.table import (
    MEASURES,
    NOTHING,
    Row,
    best,
    distance_measures,
    measures_of,
    table,
)

AGREED = [
    "kid", "precision", "recall", "density", "coverage", "inception_score", "class_accuracy",
    "shape_as_asked", "colour_as_asked", "place_as_asked", "all_as_asked", "authenticity",
    "diversity", "psnr", "ssim", "lpips", "seconds_per_image", "parameters", "training_images", "training_seconds",
]  # fmt: skip


def row(name, contestant=True, **values):
    return Row(name, 100, values, contestant=contestant)


def test_the_columns_have_one_order_whatever_the_rows_say():
    assert list(MEASURES) == AGREED
    rows = [row("a", ssim=0.5, kid=1.0), row("b", precision=0.3, fid_infinity=2.0, fid=3.0)]
    keys = [measure.key for measure in measures_of(rows, "fid", "FID")]
    assert keys == ["fid", "fid_infinity", "kid", "precision", "ssim"]
    assert [m.key for m in measures_of(rows[::-1], "fid", "FID")] == keys
    assert table(rows, "fid", "FID").headings == [
        "Images", "N", "FID ↓", "FID∞ ↓", "KID x 1000 ↓", "Precision ↑", "SSIM ↑",
    ]  # fmt: skip


def test_every_judgement_names_its_paper_and_every_measure_explains_itself_in_a_line():
    for measure in [*distance_measures("fd_clip", "FD-CLIP"), *MEASURES.values()]:
        assert measure.meaning.endswith((".", "?"))
        assert "\n" not in measure.meaning
        own = {*AS_ASKED, "diversity", "psnr", "seconds_per_image", "parameters", "training_images", "training_seconds"}  # fmt: skip
        assert bool(measure.paper) == (measure.key not in own)
    budget = [MEASURES[key].better for key in ("training_images", "training_seconds", "diversity")]
    assert budget == [None, None, None]


@pytest.mark.parametrize(
    ("key", "value", "error", "shown"),
    [
        ("kid", 0.05, 0.001, "50.00 ± 1.00"),
        ("kid", -1e-4, 2e-4, "-0.100 ± 0.200"),
        ("kid", -1e-9, 4e-4, "0.000 ± 0.400"),  # not -0.000
        ("kid", 0.02, math.nan, f"20.00 ± {NOTHING}"),
        ("precision", 0.97251, None, "0.973"),
        ("class_accuracy", 0.9725, None, "97.2 %"),
        ("seconds_per_image", 0.00125, None, "0.00125"),
        ("parameters", 4_200_000, None, "4.20"),
        ("training_seconds", 1200.4, None, "1,200"),
        ("kid", math.nan, 0.1, NOTHING),
        ("psnr", math.inf, None, NOTHING),
        ("ssim", None, None, ""),
    ],
)
def test_numbers_as_they_are_shown(key, value, error, shown):
    assert MEASURES[key].text(value, error) == shown


def test_the_best_is_among_the_contestants_and_by_the_measure_s_direction():
    rows = [row("real", contestant=False, fid=0.1, recall=0.99, diversity=5.0)]
    rows += [row("a", fid=3.0, recall=0.5, diversity=1.0), row("b", fid=2.0, recall=0.4)]
    rows += [row("c", fid=math.nan), row("d")]
    distance, _ = distance_measures("fid", "FID")
    assert best(rows, distance) == {"b"}
    assert best(rows, MEASURES["recall"]) == {"a"}
    assert best(rows, MEASURES["diversity"]) == set()
    assert best(rows[:2], distance) == set()  # nobody was beaten


def test_what_is_shown_as_equal_is_equally_good():
    rows = [row("a", precision=0.90001), row("b", precision=0.90004), row("c", precision=0.8)]
    assert best(rows, MEASURES["precision"]) == {"a", "b"}
    assert best(rows[:2], MEASURES["precision"]) == set()


def test_rows_in_json_are_flat_and_hold_no_nan():
    full = Row(
        "a", 50, {"fid": 3.0, "kid": math.inf}, {"kid": math.nan}, ("a note",), ((25, 4.0), (50, 3.0)), series="s",
    )  # fmt: skip
    assert json.loads(json.dumps(full.to_json(), allow_nan=False)) == {
        "name": "a", "num_images": 50, "fid": 3.0, "kid": None, "kid_stderr": None, "notes": ["a note"],
        "curve": [[25, 4.0], [50, 3.0]], "contestant": True, "series": "s",
    }  # fmt: skip


def test_a_note_of_several_rows_is_told_once():
    rows = [Row("a", 5, {}, notes=("one", "two")), Row("b", 5, {}), Row("c", 5, {}, notes=("two",))]
    shown = table(rows, "fid", "FID")
    assert shown.notes == ["one", "two"]
    assert shown.marks == [[1, 2], [], [2]]
