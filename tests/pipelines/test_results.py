from latent_prior.pipelines.results import write_labels


def test_labels_by_number_and_name(tmp_path):
    write_labels(tmp_path / "labels.csv", ["a.png", "b.png"], [1, -1], ["bee", "a, b"])
    lines = (tmp_path / "labels.csv").read_text().splitlines()
    assert lines == ["file,label,class", 'a.png,1,"a, b"', "b.png,,"]
