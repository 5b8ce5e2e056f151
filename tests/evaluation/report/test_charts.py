import itertools
import math
import re
from xml.etree import ElementTree

import pytest

from latent_prior.evaluation.measures.table import MEASURES, Row, distance_measures
from latent_prior.evaluation.report.charts import (
    BOTTOM,
    COLOURS,
    LEFT,
    MARKERS,
    RIGHT,
    TOP,
    WIDTH,
    Axis,
    bars,
    distance_by_budget,
    distance_by_size,
)  # fmt: skip


def drawn(svg):
    return ElementTree.fromstring(f"<figure>{svg}</figure>")


def numbers(text):
    return [float(number) for number in re.findall(r"-?\d+\.?\d*", text)]


def of_class(root, name):
    return [element for element in root.iter() if name in (element.get("class") or "").split()]


def place(mark):
    return tuple(numbers(mark.get("transform")))


def test_bars_start_at_zero_and_are_as_long_as_the_values():
    rows = [Row("a", 9, {"kid": 0.01}), Row("b", 9, {"kid": 0.04}), Row("c", 9, {"kid": 0.025})]
    found = of_class(drawn(bars(MEASURES["kid"], rows)), "bar")
    widths = [float(bar.get("width")) for bar in found]
    assert widths == pytest.approx([widths[1] / 4, widths[1], widths[1] * 0.625], abs=0.02)
    assert {bar.get("x") for bar in found} == {found[0].get("x")}


def test_error_bars_are_symmetric_around_the_bar_s_end_and_stay_inside():
    rows = [Row("a", 9, {"kid": 0.04}, {"kid": 0.012}), Row("b", 9, {"kid": -0.003}, {"kid": 0.002})]  # fmt: skip
    root = drawn(bars(MEASURES["kid"], rows))
    positive, negative = of_class(root, "bar")
    zero = float(positive.get("x"))
    end = zero + float(positive.get("width"))
    low, _, high, *_ = numbers(of_class(root, "error")[0].get("d"))
    assert (low + high) / 2 == pytest.approx(end, abs=0.02)
    assert (high - low) / 2 == pytest.approx((end - zero) * 0.3, abs=0.02)
    assert float(negative.get("x")) + float(negative.get("width")) == pytest.approx(zero, abs=0.02)
    for element in of_class(root, "error"):
        low, _, high, *_ = numbers(element.get("d"))
        assert 0 <= low < high <= WIDTH


def test_bars_tell_the_best_from_the_points_of_reference_and_leave_out_what_is_no_number():
    rows = [
        Row("real", 9, {"fid": 1.0}, contestant=False),
        Row("a", 9, {"fid": 3.0}),
        Row("b", 9, {"fid": 2.0}),
        Row("broken", 9, {"fid": math.nan}),
    ]
    root = drawn(bars(distance_measures("fid", "FID")[0], rows))
    assert [row.get("class").split()[1:] for row in of_class(root, "row")] == [["aside"], [], ["best"]]  # fmt: skip
    assert "nan" not in "".join(root.itertext()).lower()


def test_all_zero_values_are_drawn_too():
    rows = [Row("a", 9, {"kid": 0.0}), Row("b", 9, {"kid": 0.0})]
    widths = {bar.get("width") for bar in of_class(drawn(bars(MEASURES["kid"], rows)), "bar")}
    assert widths == {"0.00"}


def test_a_distance_that_is_linear_in_1_over_n_is_drawn_as_a_straight_line_to_its_limit():
    curve = tuple((n, 7.0 + 900 / n) for n in (100, 200, 500, 1000))
    row = Row("a", 1000, {"fid": curve[-1][1], "fid_infinity": 7.0}, {"fid_infinity": 0.5}, curve=curve)  # fmt: skip
    root = drawn(distance_by_size([row], "fid", "FID"))
    marks = [mark for mark in of_class(root, "mark") if mark.get("transform")]
    points = sorted(place(mark) for mark in marks)
    assert len(points) == 5
    (x0, y0), (x1, y1) = points[0], points[-1]
    assert x0 == pytest.approx(LEFT)  # 1/N = 0
    for x, y in points:
        assert y == pytest.approx(y0 + (y1 - y0) * (x - x0) / (x1 - x0), abs=0.05)
        assert LEFT <= x <= RIGHT
        assert TOP <= y <= BOTTOM
    assert y1 < y0  # larger distances stand higher
    error = numbers(of_class(root, "error")[0].get("d"))
    assert (error[1] + error[2]) / 2 == pytest.approx(y0, abs=0.02)
    assert "∞" in "".join(root.itertext())


def test_the_labels_of_the_sizes_do_not_run_into_each_other():
    sizes = [100, 150, 250, 500, 1000, 2000, 5000, 10000]
    row = Row("a", 10000, {"fid": 1.0}, curve=tuple((n, 1 + 50 / n) for n in sizes))
    root = drawn(distance_by_size([row], "fid", "FID"))
    labels = [text for text in of_class(root, "ticks")[0] if text.get("class") == "middle"]
    places = [float(text.get("x")) for text in labels]
    assert labels[0].text == "∞"
    assert labels[-1].text == "100"
    assert min(b - a for a, b in itertools.pairwise(places)) >= 28


def test_rows_of_one_series_are_joined_in_the_order_of_their_budgets():
    def row(name, seconds, distance, series=""):
        return Row(name, 9, {"fid": distance, "training_seconds": seconds}, series=series)

    rows = [row("a (long)", 1200, 10.0, "a"), row("b", 600, 30.0), row("a (short)", 300, 25.0, "a")]
    root = drawn(distance_by_budget([*rows, Row("real", 9, {"fid": 1.0})], "fid", "FID"))
    (line,) = of_class(root, "line")
    x1, y1, x2, y2 = numbers(line.get("d"))
    assert (x2 - LEFT) == pytest.approx(4 * (x1 - LEFT), abs=0.1)  # from zero, as the distances are
    assert (BOTTOM - y1) == pytest.approx(2.5 * (BOTTOM - y2), abs=0.1)
    assert [item.text or item[0].tail for item in root.iter("li")] == ["a", "b"]
    assert distance_by_budget(rows[:1], "fid", "FID") is None


def test_budgets_and_distances_far_apart_have_a_logarithmic_axis():
    pairs = [(60, 400.0), (600, 40.0), (6000, 4.0)]
    rows = [Row(str(s), 9, {"fid": d, "training_seconds": s}) for s, d in pairs]
    root = drawn(distance_by_budget(rows, "fid", "FID"))
    places = [place(mark) for mark in of_class(root, "mark") if mark.get("transform")]
    assert places[1][0] - places[0][0] == pytest.approx(places[2][0] - places[1][0], abs=0.02)
    assert places[1][1] - places[0][1] == pytest.approx(places[2][1] - places[1][1], abs=0.02)
    assert all(LEFT <= x <= RIGHT and TOP <= y <= BOTTOM for x, y in places)


@pytest.mark.parametrize("values", [[5.0], [0.0], [3.0, 3.0], [-1.0, 2.0]])
def test_few_equal_or_negative_values_have_a_place(values):
    rows = [Row(str(i), 9, {"fid": v, "training_seconds": 600}) for i, v in enumerate([*values, values[0]])]  # fmt: skip
    root = drawn(distance_by_budget(rows, "fid", "FID"))
    assert all(TOP <= place(mark)[1] <= BOTTOM for mark in of_class(root, "mark") if mark.get("transform"))  # fmt: skip
    curve = tuple((n, values[0]) for n in (10, 20))
    distance_by_size([Row("a", 20, {"fid": values[0]}, curve=curve)], "fid", "FID")


@pytest.mark.parametrize(
    "axis", [Axis(0, 83, 0, 1), Axis(-0.3, 0.21, 0, 1), Axis(1e-4, 30, 0, 1, True), Axis(40, 2000, 0, 1, True)],
)  # fmt: skip
def test_ticks_are_few_rise_and_lie_inside(axis):
    ticks = axis.ticks()
    assert 2 <= len(ticks) <= 7
    assert ticks == sorted(ticks)
    assert all(-1e-9 <= axis(tick) <= 1 + 1e-9 for tick in ticks)


def test_curves_of_less_than_two_points_are_not_drawn():
    assert distance_by_size([Row("a", 9, {"fid": 1.0}, curve=((9, 1.0),))], "fid", "FID") is None
    assert distance_by_size([Row("a", 9, {"fid": 1.0}, curve=((9, 1.0), (5, math.nan)))], "fid", "FID") is None  # fmt: skip


def test_no_two_of_many_series_look_alike():
    looks = {(style % COLOURS, style % len(MARKERS)) for style in range(40)}
    assert len(looks) == 40


def test_names_are_text_whatever_they_look_like():
    name = "<b>&" + "x" * 60
    rows = [
        Row(n, 9, {"fid": 2.0, "training_seconds": 5.0}, curve=((5, 3.0), (9, 2.0)))
        for n in (name, "b")
    ]
    for chart in (bars(distance_measures("fid", "FID")[0], rows), distance_by_size(rows, "fid", "FID"), distance_by_budget(rows, "fid", "FID")):  # fmt: skip
        assert any(name in text for text in drawn(chart).itertext())
