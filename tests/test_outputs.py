"""Where scripts write: what would be lost is refused before anything is read or computed."""

import os

import pytest

from latent_prior.evaluation import likelihood, score, sweep
from latent_prior.evaluation.gan_baseline import generate as gan_generate
from latent_prior.pipelines import assemble, generate, latents
from latent_prior.stage1_autoencoders import encode
from latent_prior.stage2_prior import export

NOWHERE = "./nowhere"  # a script that read its input first would complain about it
SCRIPTS = {
    "encode": (encode, {"autoencoder": NOWHERE, "dataset": NOWHERE}),
    "export": (export, {"prior": NOWHERE}),
    "assemble": (assemble, {"autoencoder": NOWHERE}),
    "generate": (generate, {"pipeline": NOWHERE}),
    "gan generate": (gan_generate, {"gan": NOWHERE}),
    "reconstruct": (latents, {"pipeline": NOWHERE, "dataset": NOWHERE, "operation": "reconstruct"}),
    "interpolate": (latents, {"pipeline": NOWHERE, "dataset": NOWHERE, "operation": "interpolate"}),
    "likelihood": (likelihood, {"pipeline": NOWHERE, "dataset": NOWHERE}),
    "score": (score, {"candidates": f"a={NOWHERE}", "reference": NOWHERE}),
    "compare": (score, {"compare": [NOWHERE, "./elsewhere"]}),
    "sweep": (sweep, {"pipeline": NOWHERE, "reference": NOWHERE, "temperature": [1]}),
}
REPLACING = ("encode", "export", "assemble", "interpolate")
# Reports are written into any folder, beside what is there.
KEEPING = ("likelihood", "score", "compare")


@pytest.mark.parametrize("name", SCRIPTS)
def test_a_file_in_place_of_the_output_is_refused_and_stays(refused, tmp_path, name):
    """A FIFO stands for any device: none is replaced, and none is waited for."""
    module, flags = SCRIPTS[name]
    (tmp_path / "file").write_text("mine")
    os.mkfifo(tmp_path / "fifo")
    (tmp_path / "dangling").symlink_to(tmp_path / "gone")
    for output, said in (
        ("file", "is a file"),
        ("fifo", "is a file"),
        ("dangling", "is a link to nothing"),
        ("file/new", f"lies in {tmp_path / 'file'}, which is a file"),
    ):
        found = refused(module, **flags, output_dir=tmp_path / output)
        assert found.startswith(f"--output_dir {tmp_path / output} {said}")
    assert (tmp_path / "file").read_text() == "mine"
    assert (tmp_path / "fifo").is_fifo()


@pytest.mark.parametrize("name", [name for name in SCRIPTS if name not in KEEPING])
def test_a_folder_of_something_else_is_refused_and_stays(refused, tmp_path, name):
    module, flags = SCRIPTS[name]
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis" / "chapter.txt").write_text("mine")
    found = refused(module, **flags, output_dir=tmp_path / "thesis")
    assert found.startswith(f"--output_dir {tmp_path / 'thesis'} is not empty and holds no ")


@pytest.mark.parametrize("name", REPLACING)
def test_the_current_folder_is_not_replaced(refused, tmp_path, monkeypatch, name):
    module, flags = SCRIPTS[name]
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    assert "is the current folder" in refused(module, **flags, output_dir=".")
