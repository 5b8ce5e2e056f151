"""Tables in terminals of several widths."""

from pathlib import Path

import pytest

from latent_prior.evaluation import likelihood
from latent_prior.evaluation.measures.table import Row
from latent_prior.evaluation.report import sweep_table
from latent_prior.evaluation.report.files import terminal_table
from latent_prior.evaluation.report.terminal import (
    columns_of,
    cut,
    fit_table,
    more_columns,
    terminal_width,
)

WIDTHS = (60, 80, 120, 200)
VALUES = {
    "fid": 2893.84, "fid_infinity": 2872.86, "kid": 28.277, "precision": 0.0, "recall": 0.005, "density": 0.1,
    "class_accuracy": 0.9725, "shape_as_asked": 0.9, "psnr": 21.5, "parameters": 5e6,
}  # fmt: skip


@pytest.fixture(params=WIDTHS)
def width(request, monkeypatch) -> int:
    monkeypatch.setenv("COLUMNS", str(request.param))
    return request.param


def table_of(text: str) -> list[str]:
    """The lines before the first empty one."""
    return text.partition("\n\n")[0].splitlines()


def left_out(text: str) -> int:
    """How many columns the text says are elsewhere."""
    (line,) = [line for line in text.splitlines() if " more column" in line]
    return int(line.split()[0])


def test_scores_fit_and_say_how_many_columns_are_in_the_file(width):
    rows = [
        Row("日本語の名前はとても長いことがある", 1000, VALUES, {"kid": 0.58}, ("a note " * 30,)),
        Row("b", 1000, VALUES | {"fid": 2.0}),
    ]
    text = terminal_table(rows, "fid", "FD-EffNet-Lite0", Path("out"))
    lines = table_of(text)
    assert max(map(columns_of, text.splitlines())) <= max(width, 60)
    assert lines[0].split()[:3] == ["Images", "N", "FD-EffNet-Lite0"]
    assert lines[3].split()[2] == "2.00*"
    assert "\n* is the best of its column." in text
    # The arrows and the names of wide letters leave every cell under its heading.
    end = columns_of(lines[0].partition("FD-EffNet-Lite0")[0]) + len("FD-EffNet-Lite0")
    assert columns_of(lines[2].partition("2,893.84")[0]) + len("2,893.84") in (end, end - 1)
    assert lines[1].index("↓") + 1 == end
    headings = len([column for column in VALUES if column != "fid_infinity"])
    assert "out/scores.md" in text
    assert headings <= len(lines[0].split()) + left_out(text)


def test_a_wider_terminal_shows_more(monkeypatch):
    rows, counts = [Row("b", 1000, VALUES)], []
    for columns in WIDTHS:
        monkeypatch.setenv("COLUMNS", str(columns))
        counts.append(left_out(terminal_table(rows, "fid", "FD-EffNet-Lite0", Path("out"))))
    assert counts == sorted(counts, reverse=True)
    assert counts[0] > counts[-1] > 0  # some stand in the report only


def test_a_sweep_keeps_its_value(width):
    settings = {"guidance_scale": 1.5, "temperature": 0.9, "top_k": 50, "top_p": 0.95}
    rows = [{"settings": settings, "kid": 0.5, "kid_stderr": 0.02}]
    rows += [{"settings": settings | {"top_k": 9}, "kid": 0.25, "kid_stderr": 0.02}]
    protocol = {
        "num_images": 100, "seed": 0, "reference": "mnist5k", "features": "inception", "resizer": "clean", "minimise": "kid",
    }  # fmt: skip
    full = {"settings": settings, "num_images": 1000, "kid": 0.1, "kid_stderr": 0.01}
    text = sweep_table.terminal_table(protocol, rows, full, "kid", "KID", Path("out/sweep.md"))
    lines = table_of(text)
    assert max(map(columns_of, text.splitlines())) <= width
    assert [line.split()[0] for line in lines[-2:]] == ["0.25", "0.5"]
    assert lines[0].split()[:2] == ["KID", "guidance_scale"]
    assert "out/sweep.md" in text.splitlines()[-1]
    assert "Chosen by the kernel distance" in text


def test_likelihoods_of_many_levels_fit(width):
    levels = {f"level {n}": {"nats_per_code": 3.25} for n in range(9)}
    row = {
        "name": "learned", "bits_per_dim": 1.5, "bits_per_dim_stderr": 0.01, "pixels_bits_per_dim": 1.25,
        "codes_bits_per_image": 500.5, "nats_per_code": 3.5, "levels": levels,
    }  # fmt: skip
    protocol = {
        "bound": "b", "num_images": 10, "dataset": "d", "split": "test", "labels": "any class", "draws": 1,
        "pixels": {"likelihood": "normal", "is_density": False},
    }  # fmt: skip
    text = likelihood.terminal_table(protocol, [row], Path("out/likelihood.md"))
    assert max(map(columns_of, text.splitlines())) <= width
    assert "1.5000 ± 0.0100" in text
    assert left_out(text) > 0


def test_a_table_that_fits_leaves_nothing_out(monkeypatch):
    monkeypatch.delenv("COLUMNS", raising=False)
    lines, shown = fit_table(["name", "long heading", "b"], [["x", "1", "2"], ["yy", "1000", "3"]])
    assert lines == ["name     long  b", "      heading", "x           1  2", "yy       1000  3"]
    assert list(shown) == ["name", "long heading", "b"]
    assert more_columns(0, Path("a.md")) == "The same table: a.md"
    assert more_columns(1, Path("a.md")) == "1 more column in a.md"


def test_without_a_terminal_there_are_eighty_columns(monkeypatch, capsys):
    monkeypatch.delenv("COLUMNS", raising=False)
    monkeypatch.setattr("os.get_terminal_size", lambda *_: (_ for _ in ()).throw(OSError))
    assert terminal_width() == 80


@pytest.mark.parametrize(
    ("text", "columns"), [("abc", 3), ("↓↑±", 3), ("日本", 4), ("e\u0301", 1), ("", 0)]
)
def test_letters_take_the_columns_that_a_terminal_gives_them(text, columns):
    assert columns_of(text) == columns


def test_text_is_cut_to_columns():
    assert cut("日本語", 6) == "日本語"
    assert cut("日本語", 5) == "日本…"
    assert cut("abcdef", 4) == "abc…"
