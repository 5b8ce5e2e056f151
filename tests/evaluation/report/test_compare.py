import json
import re
from dataclasses import replace

import pytest
from PIL import Image

from latent_prior.evaluation.measures.table import Row
from latent_prior.evaluation.report.compare import compare, show
from latent_prior.evaluation.report.files import fingerprint, write_report
from latent_prior.evaluation.report.scores import read_scores
from latent_prior.evaluation.score import Scored

PROTOCOL = {
    "reference": "mnist5k",
    "reference_split": "test",
    "num_images": 100,
    "features": "inception",
    "resizer": "clean 299",
    "kid_subsets": 100,
    "image_size": None,
    "classifier": {"split": "train", "reference_accuracy": 0.98, "images_seen": 10},
    "pipeline": None,
    "versions": {"torch": "2.9"},
}
REAL = Row("real", 50, {"fid": 1.0}, contestant=False)


def ours(distance, seconds, name="ours"):
    values = {"fid": distance, "fid_infinity": distance - 1, "kid": distance / 1000, "training_seconds": seconds}  # fmt: skip
    curve = ((25, distance + 1), (50, distance))
    return Row(name, 50, values, {"kid": 0.001}, ("a note",), curve)


def write(folder, rows, **protocol):
    folder.mkdir(parents=True, exist_ok=True)
    candidates = {row.name: {"source": str(folder / row.name), "split": None} for row in rows}
    write_report(folder, PROTOCOL | {"candidates": candidates} | protocol, rows, "fid", "FID", [])
    return folder / "scores.json"


@pytest.fixture
def two(tmp_path):
    a = write(tmp_path / "short/scores", [REAL, ours(9.0, 60)])
    b = write(tmp_path / "long/scores", [REAL, ours(5.0, 600), ours(7.0, 600, "gan")], versions={"torch": "3.0"}, pipeline="p", command="score")  # fmt: skip
    return [a, b]


def test_a_file_is_read_as_it_was_written(two):
    scores = read_scores(two[1])
    assert scores.rows == [REAL, ours(5.0, 600), ours(7.0, 600, "gan")]
    assert (scores.column, scores.title) == ("fid", "FID")


def test_rows_of_several_files_stand_in_one_table_under_names_of_their_own(two, tmp_path, capsys):
    compare(two, tmp_path / "both")
    found = json.loads((tmp_path / "both/scores.json").read_text())
    assert [row["name"] for row in found["rows"]] == ["real", "ours (short)", "ours (long)", "gan"]
    assert [row.get("series") for row in found["rows"]] == [None, "ours", "ours", None]
    assert found["protocol"]["fingerprint"] == fingerprint(json.loads(two[0].read_text())["protocol"])  # fmt: skip
    assert set(found["protocol"]["candidates"]) == {row["name"] for row in found["rows"]}
    origins = found["protocol"]["compared"]
    assert [origin["versions"]["torch"] for origin in origins] == ["2.9", "3.0"]
    assert [origin.get("pipeline") for origin in origins] == [None, "p"]
    assert [origin.get("command") for origin in origins] == [None, "score"]
    assert "command" not in found["protocol"]
    show(tmp_path / "both/scores.json")
    printed = capsys.readouterr().out
    assert re.search(r"^ours \(long\) +50 +5\.00\* +", printed, re.M)
    assert "| ours (long) [1] | 50 | **5.00** |" in (tmp_path / "both/scores.md").read_text()
    assert printed.strip() == str(Scored.open(tmp_path / "both"))
    assert 'd="M' in (tmp_path / "both/report.html").read_text()


def test_random_codes_of_an_older_version_are_no_contestant(tmp_path):
    """That version marked them best at speed and worded its notes in another way."""
    row = replace(ours(9.0, 60, "random_codes"), notes=("another wording",))
    sampler = {"random_codes": True}
    candidates = {"random_codes": {"source": "x", "split": None, "sampler": sampler}}
    old = write(tmp_path / "old", [row, ours(5.0, 60)], candidates=candidates)
    new = write(
        tmp_path / "new",
        [replace(row, notes=(), contestant=False), ours(7.0, 60, "gan")],
        candidates=candidates,
    )
    assert [row.contestant for row in read_scores(old).rows] == [False, True]
    compare([old, new], tmp_path / "both")
    rows = read_scores(tmp_path / "both/scores.json").rows
    assert [row.name for row in rows] == ["random_codes", "ours", "gan"]
    assert not rows[0].contestant


def test_what_was_merged_can_be_merged_again(two, tmp_path):
    compare(two, tmp_path / "both")
    more = write(tmp_path / "more", [ours(4.0, 6000)])
    compare([tmp_path / "both/scores.json", more], tmp_path / "all")
    names = [row.name for row in read_scores(tmp_path / "all/scores.json").rows]
    assert names == ["real", "ours (short)", "ours (long)", "gan", "ours"]


def test_a_name_that_another_file_has_already_does_not_swallow_a_row(tmp_path):
    a = write(tmp_path / "a", [ours(1.0, 1), ours(2.0, 2, "ours (b)")])
    b = write(tmp_path / "b", [ours(3.0, 3)])
    compare([a, b], tmp_path / "both")
    rows = read_scores(tmp_path / "both/scores.json").rows
    assert [row.values["fid"] for row in rows] == [1.0, 2.0, 3.0]
    assert len({row.name for row in rows}) == 3


@pytest.mark.parametrize("names", [("x/a", "x/b"), ("a/x", "b/x"), ("x", "x/y"), ("a/b", "b/a")])
def test_files_are_told_apart_by_where_their_paths_differ(tmp_path, names):
    paths = [write(tmp_path / name, [ours(place + 1.0, 60)]) for place, name in enumerate(names)]
    compare(paths, tmp_path / "both")
    rows = read_scores(tmp_path / "both/scores.json").rows
    assert [row.values["fid"] for row in rows] == [1.0, 2.0]
    assert len({row.name for row in rows}) == 2


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"resizer": "other"}, 'resizer is "clean 299" in .*short.* and "other" in .*long'),
        ({"kid_subsets": 3}, "kid_subsets is 100 .* and 3 in"),
        ({"image_size": 32}, "image_size is null .* and 32 in"),
        ({"classifier": {"split": "b", "reference_accuracy": 0.98, "images_seen": 10}}, r'classifier\.split is "train"'),
        ({"reference_sha256": "cd", "reference": "cifar10"}, 'reference is "mnist5k" .* and "cifar10"'),
        ({"reference_sha256": "cd"}, "reference_sha256 is null .* and \"cd\""),
    ],
)  # fmt: skip
def test_other_protocols_are_refused_with_the_first_difference(tmp_path, changes, words):
    paths = [write(tmp_path / "short", [REAL]), write(tmp_path / "long", [REAL], **changes)]
    with pytest.raises(ValueError, match=words):
        compare(paths, tmp_path / "both")
    assert not (tmp_path / "both").exists()


def test_protocols_that_differ_in_what_does_not_count_are_merged(tmp_path):
    judged = PROTOCOL["classifier"] | {"reference_accuracy": 0.981}
    same = [
        write(tmp_path / "a", [REAL], reference_sha256="ab"),
        write(tmp_path / "b", [REAL], reference_sha256="ab", reference="/elsewhere", classifier=judged),
    ]  # fmt: skip
    compare(same, tmp_path / "both")


def test_other_numbers_of_images_are_refused(two, tmp_path):
    other = write(tmp_path / "other", [Row("few", 40, {"fid": 2.0})])
    with pytest.raises(ValueError, match="--num_images 40"):
        compare([two[0], other], tmp_path / "both")
    assert not (tmp_path / "both").exists()


def test_calls_that_make_no_sense_are_refused(two, tmp_path):
    with pytest.raises(ValueError, match="at least two"):
        compare(two[:1], tmp_path / "both")
    with pytest.raises(ValueError, match="twice"):
        compare([two[0], two[0].parent / "../scores/scores.json"], tmp_path / "both")
    with pytest.raises(ValueError, match="would replace"):
        compare(two, two[0].parent)
    with pytest.raises(ValueError, match="is a file"):
        compare(two, two[0])


DAMAGED = {
    "not JSON": lambda scores: "{",
    "nothing": lambda scores: "",
    "deep": lambda scores: "[" * 100_000,
    "a list": lambda scores: "[]",
    "NaN": lambda scores: scores.replace("9.0", "NaN"),
    "too large": lambda scores: scores.replace("9.0", "1e999"),
    "far too large": lambda scores: scores.replace("9.0", "1" + "0" * 400),
    "text for a number": lambda scores: scores.replace("9.0", '"9"'),
    "truth for a number": lambda scores: scores.replace("9.0", "true"),
    "no rows": lambda scores: changed(scores, lambda s: s.update(rows=[])),
    "rows of numbers": lambda scores: changed(scores, lambda s: s.update(rows=[1, 2])),
    "no protocol": lambda scores: changed(scores, lambda s: s.pop("protocol")),
    "no distance": lambda scores: changed(scores, lambda s: s.pop("distance")),
    "no resizer": lambda scores: changed(scores, lambda s: s["protocol"].pop("resizer")),
    "candidates": lambda scores: changed(scores, lambda s: s["protocol"].update(candidates=[1])),
    "size": lambda scores: changed(scores, lambda s: s["protocol"].update(num_images="many")),
    "classifier": lambda scores: changed(scores, lambda s: s["protocol"].update(classifier={})),
    "one name twice": lambda scores: changed(scores, lambda s: s["rows"].append(s["rows"][0])),
    "no name": lambda scores: changed(scores, lambda s: s["rows"][0].pop("name")),
    "a name of half a letter": lambda scores: scores.replace('"name": "ours"', '"name": "\\ud800"'),
    "unknown measure": lambda scores: changed(scores, lambda s: s["rows"][0].update(beauty=1.0)),
    "negative error": lambda scores: changed(scores, lambda s: s["rows"][1].update(kid_stderr=-1)),
    "a curve to nowhere": lambda scores: changed(scores, lambda s: s["rows"][1].update(curve=[[0, 1.0]])),
    "notes": lambda scores: changed(scores, lambda s: s["rows"][1].update(notes=[3])),
    "images": lambda scores: changed(scores, lambda s: s["rows"][1].update(num_images=1.5)),
}  # fmt: skip


def changed(text, change):
    scores = json.loads(text)
    change(scores)
    return json.dumps(scores)


@pytest.mark.parametrize("damage", DAMAGED)
def test_what_is_no_scores_json_is_told_in_one_sentence_and_nothing_is_written(two, tmp_path, damage):  # fmt: skip
    before = two[0].read_text()
    two[0].write_text(DAMAGED[damage](before))
    assert two[0].read_text() != before
    with pytest.raises(ValueError, match=str(two[0])) as caught:
        compare(two, tmp_path / "both")
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 500
    assert not (tmp_path / "both").exists()


def test_a_file_that_is_not_there_is_told(two, tmp_path):
    for path, message in (
        (tmp_path / "nowhere.json", "is missing"),
        (tmp_path, "is no regular file"),
    ):
        with pytest.raises(ValueError, match=f"--compare: {path} {message}"):
            compare([two[0], path], tmp_path / "both")


def test_pictures_are_taken_from_where_the_images_still_lie(two, tmp_path):
    for name in ("gan", "ours"):
        (two[1].parent / name).mkdir()
    Image.new("RGB", (20, 10)).save(two[1].parent / "gan/grid.png")
    (two[1].parent / "ours/grid.png").write_bytes(b"\x89PNG\r\n\x1a\nno more")
    compare(two, tmp_path / "both")
    assert (tmp_path / "both/report.html").read_text().count("<img ") == 1
