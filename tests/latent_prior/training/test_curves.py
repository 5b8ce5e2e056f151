import gc
import json

import pytest
from matplotlib.figure import Figure
from PIL import Image

from latent_prior.training.curves import plot_curves

PANELS = {
    "loss": {"total": "training"},
    "PSNR (dB)": {"psnr": "training", "held_out_psnr": "held out"},
}


def write(run, *lines):
    run.mkdir(exist_ok=True)
    (run / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))


def size(run) -> tuple[int, int]:
    with Image.open(run / "curves.png") as image:
        return image.size


def test_every_panel_with_figures_is_drawn(tmp_path):
    losses = [{"step": step, "total": 1 / step} for step in range(1, 60)]
    write(tmp_path / "one", *losses)
    write(tmp_path / "two", *losses, {"step": 9, "psnr": 20.5}, {"step": 9, "psnr": None})
    for name in ("one", "two"):
        plot_curves(tmp_path / name, PANELS, lowest="total")
    assert size(tmp_path / "two")[1] > size(tmp_path / "one")[1]
    assert size(tmp_path / "two")[0] == size(tmp_path / "one")[0]


def test_nothing_to_draw_is_no_picture(tmp_path):
    plot_curves(tmp_path, PANELS)
    write(tmp_path, {"step": 1, "other": 2.0})
    plot_curves(tmp_path, PANELS)
    assert not (tmp_path / "curves.png").exists()


def test_a_figure_that_is_no_number_is_named(tmp_path):
    write(tmp_path, {"step": 1, "total": 1.0}, {"step": 2, "total": "much"})
    with pytest.raises(ValueError, match=r"metrics\.jsonl, line 2: total is no number"):
        plot_curves(tmp_path, PANELS)
    assert not (tmp_path / "curves.png").exists()


def test_no_figure_stays_in_memory(tmp_path):
    """They refer to themselves; of a long run dozens would pile up before they are collected."""
    write(tmp_path, {"step": 1, "total": 1.0})
    plot_curves(tmp_path, PANELS)
    assert not [each for each in gc.get_objects() if type(each) is Figure]
