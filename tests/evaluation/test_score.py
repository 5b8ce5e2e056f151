import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from PIL import Image

from latent_prior.data.images import to_float
from latent_prior.evaluation import score
from latent_prior.evaluation.measures.reconstruction import reconstruct
from latent_prior.evaluation.options import ScoreOptions
from latent_prior.evaluation.sets import open_reference
from latent_prior.pipelines import Pipeline
from latent_prior.stage1_autoencoders.vqvae import VQVAE, VQVAEConfig

ROOT = Path(__file__).parents[2]


def smooth_images(count, seed):
    """Random coarse blobs, 16 x 16, grey."""
    coarse = np.random.default_rng(seed).integers(0, 256, (count, 4, 4), dtype=np.uint8)
    return [np.asarray(Image.fromarray(image).resize((16, 16))) for image in coarse]


def noisy(images, strength):
    generator = np.random.default_rng(1)
    return [
        np.clip(image + generator.normal(0, strength, image.shape), 0, 255).astype(np.uint8)
        for image in images
    ]


def save(images, folder):
    folder.mkdir(parents=True)
    for i, image in enumerate(images):
        Image.fromarray(image).save(folder / f"{i:03d}.png")
    return folder


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """A reference (as a data set folder) and candidates that get worse."""
    root = tmp_path_factory.mktemp("images")
    reference = smooth_images(37, 0)
    save(reference, root / "reference" / "test")
    save(reference, root / "same")
    for strength in (5, 30, 90):
        save(noisy(smooth_images(37, 2), strength), root / f"noise{strength}")
    (root / "noise30" / "generation.json").write_text(json.dumps({"temperature": 0.9}))
    Image.new("L", (99, 99)).save(root / "noise30" / "grid.png")
    return root


@pytest.fixture
def run(folders, scripted_features, tmp_path):
    def call(*candidates, **flags):
        output = tmp_path / f"scores{len(list(tmp_path.iterdir()))}"
        words = {
            "reference": folders / "reference",
            "features": scripted_features,
            "batch_size": 8,
            **flags,
        }
        arguments = [f"{name}={folders / folder}" for name, folder in candidates]
        arguments = ["--candidates", *arguments] if arguments else []
        arguments += [f"--{key}={value}" for key, value in {"output_dir": output, **words}.items()]
        score.main(arguments)
        return json.loads((output / "scores.json").read_text())

    return call


def test_identical_sets_are_at_no_distance_and_noise_moves_them_away(run):
    rows = run(("same", "same"), *((f"n{s}", f"noise{s}") for s in (5, 30, 90)))["rows"]
    assert [row["name"] for row in rows] == ["same", "n5", "n30", "n90"]
    distances = [row["fd_custom"] for row in rows]
    assert distances[0] == pytest.approx(0, abs=1e-6 * distances[-1])
    assert distances == sorted(distances)
    assert abs(rows[0]["kid"]) < 0.1 * rows[3]["kid"]
    assert rows[3]["kid"] > 3 * rows[3]["kid_stderr"] > 0


def test_the_protocol_says_how_the_numbers_came_about(run, folders, scripted_features):
    scores = run(("a", "noise30"), seed=4)
    protocol = scores["protocol"]
    assert protocol["reference"] == str(folders / "reference")
    assert protocol["reference_split"] == "test"
    assert protocol["num_images"] == 37
    assert protocol["seed"] == 4
    assert protocol["features"] == "tiny.pt"
    assert "bicubic" in protocol["resizer"]
    assert protocol["versions"]["torch"] == torch.__version__.partition("+")[0]
    assert protocol["candidates"]["a"]["sampler"] == {"temperature": 0.9}
    assert scores["rows"][0]["num_images"] == 37  # the grid is no sample
    assert len(protocol["fingerprint"]) == 64


def test_numbers_do_not_depend_on_batches_neighbours_or_names(run):
    first = run(("a", "noise30"))["rows"][0]
    second = run(("other", "noise90"), ("b", "noise30"), batch_size=64)["rows"][1]
    for key in ("fd_custom", "kid", "kid_stderr"):
        assert first[key] == pytest.approx(second[key], rel=1e-4)


def test_a_subset_is_seeded_and_the_same_for_identical_sets(run):
    runs = [run(("same", "same"), ("a", "noise30"), num_images=20, seed=seed) for seed in (1, 1, 2)]
    assert runs[0] == runs[1] != runs[2]
    assert [row["num_images"] for row in runs[0]["rows"]] == [20, 20]
    assert runs[0]["rows"][0]["fd_custom"] == pytest.approx(0, abs=1e-5)


def test_skipped_images_are_counted(run, folders, caplog):
    caplog.set_level("INFO", "latent_prior")
    save(smooth_images(4, 0), folders / "damaged")
    (folders / "damaged" / "004.png").write_bytes(b"broken")
    with pytest.raises(ValueError, match=r"004\.png cannot be read"):
        run(("a", "damaged"))
    scores = run(("a", "damaged"), on_corrupt="skip")
    assert scores["rows"][0]["num_images"] == 4
    assert scores["protocol"]["candidates"]["a"]["skipped"] == 1
    assert "left out 1 images" in caplog.text


def test_a_data_set_can_be_a_candidate(folders, scripted_features, tmp_path):
    candidate = f"real={folders / 'reference'}[test]"
    words = [
        f"--reference={folders / 'reference'}",
        f"--features={scripted_features}",
        f"--output_dir={tmp_path}",
    ]
    score.main(["--candidates", candidate, *words])
    scores = json.loads((tmp_path / "scores.json").read_text())
    assert scores["rows"][0]["fd_custom"] == pytest.approx(0, abs=1e-5)
    assert scores["protocol"]["candidates"]["real"]["split"] == "test"


class Rounding:
    """An autoencoder that keeps few grey levels, or all of them."""

    def __init__(self, levels):
        self.levels = levels

    def reconstruct(self, images):
        assert images.shape[1:] == (1, 16, 16)
        return (images * self.levels).round() / self.levels if self.levels else images


def test_reconstructions_of_a_better_autoencoder_score_better(folders, scripted_features):
    options = ScoreOptions(
        candidates=["a=x"],
        output_dir="x",
        reference=str(folders / "reference"),
        features=str(scripted_features),
    )
    accelerator, reference = Accelerator(), open_reference(options)
    network = score.load_network(options.features)
    rows = []
    for levels in (1, 3, None):
        originals = reference.resized(16, 1)
        sets = score.Sets(reference, pipeline=Rounding(levels), originals=originals)
        judge = score.prepare(sets, network, options, accelerator)
        rows += score.score_sets(sets, judge, None, accelerator)[0]
    assert [row.name for row in rows] == ["reconstructions"] * 3
    distances, psnr, ssim = (
        [row.values[key] for row in rows] for key in ("fd_custom", "psnr", "ssim")
    )
    assert distances[0] > distances[1] > distances[2] == pytest.approx(0, abs=1e-5)
    assert psnr[0] < psnr[1] < psnr[2] == 100
    assert ssim[0] < ssim[1] < ssim[2] == pytest.approx(1)
    assert not any(row.contestant for row in rows)


def test_a_real_pipeline_adds_its_reconstructions(run, tmp_path):
    torch.manual_seed(0)
    config = VQVAEConfig(image_size=16, image_channels=1, width=8, codebook_size=16)
    pipeline = Pipeline(VQVAE(config))
    pipeline.save_pretrained(tmp_path / "pipeline")
    scores = run(("same", "same"), pipeline=tmp_path / "pipeline")
    assert [row["name"] for row in scores["rows"]] == ["same", "reconstructions"]
    row = scores["rows"][1]
    assert row["num_images"] == 37
    assert 0 < row["psnr"] < 30
    assert -1 <= row["ssim"] < 1
    assert row["fd_custom"] > 0
    assert run(pipeline=tmp_path / "pipeline")["rows"] == [row]
    assert (
        scores["protocol"]["autoencoder_fingerprint"] == pipeline.code_spec.autoencoder_fingerprint
    )


def test_lpips_joins_the_reconstructions(run, tmp_path, lpips_package):
    torch.manual_seed(0)
    pipeline = Pipeline(
        VQVAE(VQVAEConfig(image_size=16, image_channels=1, width=8, codebook_size=16))
    )
    pipeline.save_pretrained(tmp_path / "pipeline")
    scores = run(("same", "same"), pipeline=tmp_path / "pipeline", perceptual="lpips")
    assert scores["protocol"]["perceptual"] == "lpips"
    originals = torch.from_numpy(np.stack(smooth_images(37, 0)))[:, None]
    given_back = reconstruct(pipeline, originals, torch.device("cpu"))
    with torch.no_grad():
        found = lpips_package(
            *(to_float(one).expand(-1, 3, -1, -1) for one in (originals, given_back))
        )
    assert "lpips" not in scores["rows"][0]
    assert scores["rows"][1]["lpips"] == pytest.approx(float(found.mean()), rel=1e-4)
    plain = run(pipeline=tmp_path / "pipeline")
    assert "lpips" not in plain["rows"][0]
    assert plain["protocol"]["perceptual"] is None


def test_lpips_without_what_it_needs(refused, folders, tmp_path, monkeypatch):
    flags = {"candidates": [f"same={folders / 'same'}"], "reference": folders / "reference",
             "perceptual": "lpips", "output_dir": tmp_path / "out"}  # fmt: skip
    assert refused(score, **flags) == (
        "--perceptual lpips measures reconstructions: give the autoencoder by --pipeline"
    )
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    said = refused(score, **flags, pipeline=tmp_path / "pipeline")
    assert said.startswith("--perceptual lpips needs the weights of VGG-16")


def command(*words, processes=None):
    launcher = [sys.executable]
    if processes:
        launcher += ["-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={processes}"]
    environment = os.environ | {"ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1"}
    script = str(ROOT / "evaluation" / "score.py")
    return subprocess.run(
        [*launcher, script, *map(str, words)],
        capture_output=True,
        text=True,
        env=environment,
        check=False,
    )


def test_mistakes_on_the_command_line_end_with_one_line_and_code_2(tmp_path):
    done = command("--candidates", "samples", "--output_dir", tmp_path / "scores")
    assert done.returncode == 2
    assert done.stderr.splitlines() == [
        "score.py: error: --candidates: 'samples' is neither NAME=FOLDER nor NAME=DATASET[SPLIT]"
    ]
    assert not (tmp_path / "scores").exists()


def test_nothing_to_score_is_one_line(tmp_path, capsys):
    with pytest.raises(SystemExit):
        score.main(["--output_dir", str(tmp_path / "scores")])
    said = capsys.readouterr().err.splitlines()
    assert len(said) == 1
    assert "nothing to score" in said[0]
    assert not (tmp_path / "scores").exists()


def test_candidates_of_different_sizes_are_refused_and_can_be_cut(run, folders, capsys):
    save(smooth_images(30, 3), folders / "fewer")
    with pytest.raises(ValueError, match=r"same has 37 images and fewer 30.*--num_images 30"):
        run(("same", "same"), ("fewer", "fewer"))
    rows = run(("same", "same"), ("fewer", "fewer"), num_images=30)["rows"]
    assert [row["num_images"] for row in rows] == [30, 30]


def test_a_copy_of_the_training_images_is_noticed(folders, scripted_features, tmp_path):
    """Half are copies with a changed grey value; the rest is as new as others of the source."""
    data, training = tmp_path / "data", smooth_images(60, 4)
    save(training, data / "train")
    save(smooth_images(40, 5), data / "test")
    copied = [np.clip(image.astype(int) + 1, 0, 255).astype(np.uint8) for image in training[:20]]
    save(copied + smooth_images(20, 6), tmp_path / "half")
    save(smooth_images(40, 7), tmp_path / "new")
    score.main(
        [
            *("--reference", str(data), "--features", str(scripted_features), "--nearest", "true"),
            *("--candidates", f"half={tmp_path / 'half'}", f"new={tmp_path / 'new'}"),
            *("--output_dir", str(tmp_path / "scores")),
        ]
    )
    half, new = json.loads((tmp_path / "scores" / "scores.json").read_text())["rows"]
    assert half["authenticity"] <= 0.5
    assert half["authenticity"] < new["authenticity"] - 0.15
    assert (tmp_path / "scores" / "report.html").read_text().count("nearest") > 2


def test_every_measure_of_features_is_in_the_table(run):
    row = run(("n5", "noise5"))["rows"][0]
    measured = {
        "fd_custom",
        "fd_custom_infinity",
        "kid",
        "precision",
        "recall",
        "density",
        "coverage",
    }
    assert measured <= set(row)
    sizes, distances = zip(*row["curve"], strict=True)
    assert list(sizes) == sorted(set(sizes))
    assert (sizes[-1], distances[-1]) == (37, row["fd_custom"])
    assert row["notes"] == []  # 37 images are enough for 12 features


def test_too_few_images_for_the_features_is_a_note(run):
    row = run(("n5", "noise5"), num_images=10)["rows"][0]
    assert row["num_images"] == 10
    assert "10 images are too few for 12 features" in row["notes"][0]


def test_costs_come_from_the_generator(run, folders, tmp_path):
    training = {"images_seen": 640, "seconds": 9.0, "cpu_seconds": 17.0, "device": "cpu"}
    about = {"parameters": 5000, "seconds_per_image": 0.25, "training": training}
    folder = save(smooth_images(37, 8), tmp_path / "drawn")
    (folder / "generation.json").write_text("{}")
    (folder / "about.json").write_text(json.dumps(about))
    row = run(("a", folder))["rows"][0]
    assert (row["parameters"], row["seconds_per_image"]) == (5000, 0.25)
    assert (row["training_images"], row["training_seconds"]) == (640, 17.0)
    training["device"] = "NVIDIA H100"
    (folder / "about.json").write_text(json.dumps(about))
    assert run(("a", folder))["rows"][0]["training_seconds"] == 9.0
    (folder / "about.json").write_text(json.dumps(about | {"training": None}))
    assert "training_seconds" not in run(("a", folder))["rows"][0]


@pytest.mark.slow
def test_a_missing_folder_ends_with_one_line_and_writes_nothing(tmp_path):
    done = command("--candidates", f"a={tmp_path / 'gone'}", "--output_dir", tmp_path / "scores")
    assert done.returncode == 2
    assert done.stderr.splitlines()[-1].startswith(
        "score.py: error: --candidates a: there is no folder"
    )
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "scores").exists()


@pytest.mark.slow
def test_two_processes_give_the_numbers_of_one(run, folders, scripted_features, tmp_path):
    alone = run(("same", "same"), ("a", "noise30"))
    output = tmp_path / "two"
    done = command(
        "--reference", folders / "reference", "--features", scripted_features, "--batch_size", 8,
        "--candidates", f"same={folders / 'same'}", f"a={folders / 'noise30'}", "--output_dir", output, processes=2,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    together = json.loads((output / "scores.json").read_text())
    of_one, of_two = ({**run["protocol"], "command": None} for run in (alone, together))
    assert of_two == of_one
    for one, two in zip(alone["rows"], together["rows"], strict=True):
        for key in ("name", "notes", "contestant"):
            assert two.pop(key) == one.pop(key)
        np.testing.assert_allclose(two.pop("curve"), one.pop("curve"), rtol=1e-5, atol=1e-7)
        assert two == pytest.approx(one, rel=1e-5, abs=1e-7)
