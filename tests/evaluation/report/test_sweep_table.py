import numpy as np

from latent_prior.evaluation.report.sweep_table import axes_of, draw_heatmap, fill_table, markdown

ROWS = [
    {
        "settings": {"guidance_scale": g, "temperature": t, "top_k": 0, "steps": 12},
        "fid": 10 * g + t,
    }
    for g in (3, 1, 2)
    for t in (1, 0.5)
    if (g, t) != (2, 1)
]
PROTOCOL = {
    "num_images": 200, "seed": 3, "reference": "shapes[train]", "features": "inception", "resizer": "bicubic",
    "feature_dimension": 2048, "minimise": "distance",
}  # fmt: skip


def test_the_heat_map_has_a_place_for_every_combination():
    names, values = axes_of(ROWS)
    assert names[2:] == ["temperature", "guidance_scale"]
    assert values[2:] == [[0.5, 1], [1, 2, 3]]
    table = fill_table(ROWS, names, values, "fid")
    np.testing.assert_array_equal(table[0, 0], [[10.5, 20.5, 30.5], [11, np.nan, 31]])


def test_a_single_combination_can_be_drawn(tmp_path):
    draw_heatmap(ROWS[:1], "fid", "FID", tmp_path / "one.png")
    assert (tmp_path / "one.png").read_bytes().startswith(b"\x89PNG")


def test_the_table_begins_with_the_best_and_says_what_it_is_worth():
    best = {**min(ROWS, key=lambda row: row["fid"]), "num_images": 1000, "fid": 7.25}
    text = markdown(PROTOCOL, ROWS, best, "fid", "FID")
    lines = text.splitlines()
    assert lines[0] == "| guidance_scale | temperature | top_k | FID ↓ |"
    assert lines[2] == "| 1 | 0.5 | 0 | 10.5 |"
    assert "With 1,000 images: FID 7.25" in text
    assert "no more images than features (2,048)" in text
    assert "Chosen by the Frechet distance: guidance_scale 1, " in text
    assert "another split" in text
    assert "no more images" not in markdown(
        {**PROTOCOL, "num_images": 5000}, ROWS, best, "fid", "FID"
    )


def test_kid_is_not_biased_by_few_images_and_has_an_error():
    rows = [{"settings": {"temperature": 1}, "kid": 0.5, "kid_stderr": 0.02}]
    protocol = {**PROTOCOL, "minimise": "kid"}
    text = markdown(protocol, rows, {**rows[0], "num_images": 9}, "kid", "KID")
    assert "| 1 | 0.5 ± 0.02 |" in text
    assert "no more images" not in text
