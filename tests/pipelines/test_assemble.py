import json

import pytest

from latent_prior.pipelines import Pipeline, Sampler, assemble


@pytest.fixture
def folders(parts, tmp_path):
    """An autoencoder and a prior over its codes, each in its folder."""
    autoencoder = parts["vqvae"]()
    autoencoder.save_pretrained(tmp_path / "autoencoder")
    prior = parts["prior"](autoencoder)
    prior.save_pretrained(tmp_path / "prior")
    return {"autoencoder": tmp_path / "autoencoder", "prior": tmp_path / "prior"}


def test_both_parts_and_the_defaults_arrive(call, folders, tmp_path):
    sampler = {"guidance_scale": 1.5, "temperature": 0.8, "top_k": 5, "top_p": 0.9}
    call(assemble, output_dir=tmp_path / "pipeline", **folders, **sampler)
    pipe = Pipeline.from_pretrained(tmp_path / "pipeline")
    assert vars(pipe.sampler) == {**vars(Sampler()), **sampler}
    for part in folders:
        expected = json.loads((folders[part] / "config.json").read_text())["weights_sha256"]
        assert getattr(pipe, part).fingerprint == expected
    assert len(pipe(2).images) == 2


def test_without_a_prior(call, folders, tmp_path):
    call(assemble, output_dir=tmp_path / "half", autoencoder=folders["autoencoder"])
    assert Pipeline.from_pretrained(tmp_path / "half").prior is None


def test_repeating_it_replaces_the_pipeline(call, folders, tmp_path):
    call(assemble, output_dir=tmp_path / "pipeline", **folders)
    call(assemble, output_dir=tmp_path / "pipeline", **folders, temperature=0.5)
    assert Pipeline.from_pretrained(tmp_path / "pipeline").sampler.temperature == 0.5


def test_parts_of_two_runs_are_refused_with_both_fingerprints(refused, folders, parts, tmp_path):
    other = parts["vqvae"](seed=9)
    other.save_pretrained(tmp_path / "other")
    flags = {**folders, "autoencoder": tmp_path / "other"}
    said = refused(assemble, output_dir=tmp_path / "pipeline", **flags)
    assert other.fingerprint[:12] in said
    config = json.loads((folders["autoencoder"] / "config.json").read_text())
    assert config["weights_sha256"][:12] in said


@pytest.mark.parametrize(
    ("flags", "culprit"),
    [
        ({"autoencoder": "./nowhere"}, "./nowhere"),
        ({"prior": "./nowhere"}, "./nowhere"),
        ({"autoencoder": None}, "--autoencoder"),
        ({"temperature": -1}, "temperature"),
        ({"top_k": 1.5}, "--top_k"),
        ({"pior": "x"}, "did you mean prior"),
        ({"prior": None, "guidance_scale": 2.0}, "--guidance_scale is for a prior"),
        ({"prior": None, "top_k": 5}, "--top_k is for a prior"),
        ({"steps": 8}, "--steps has no effect on a prior in raster order"),
        ({"guidance_interval": [0.5]}, "--guidance_interval must be two rising shares"),
    ],
)
def test_wrong_input_is_one_sentence(refused, folders, tmp_path, flags, culprit):
    said = refused(assemble, output_dir=tmp_path / "pipeline", **{**folders, **flags})
    assert culprit in said


def test_parts_in_each_others_place_are_refused(refused, folders, tmp_path):
    flags = {"autoencoder": folders["prior"], "prior": folders["autoencoder"]}
    assert str(folders["prior"]) in refused(assemble, output_dir=tmp_path / "pipeline", **flags)


def test_a_folder_of_something_else_is_left_alone(refused, folders, tmp_path):
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis" / "chapter.txt").write_text("precious")
    assert "thesis" in refused(assemble, output_dir=tmp_path / "thesis", **folders)


def test_a_vae_is_a_pipeline_of_its_own(call, parts, tmp_path):
    parts["autoencoder"]("vae").save_pretrained(tmp_path / "vae")
    flags = {"autoencoder": tmp_path / "vae", "temperature": 0.7}
    call(assemble, output_dir=tmp_path / "pipeline", **flags)
    pipe = Pipeline.from_pretrained(tmp_path / "pipeline")
    assert (pipe.prior, pipe.sampler.temperature) == (None, 0.7)
    assert len(pipe(2).images) == 2


def test_a_prior_over_codes_does_not_fit_a_vae(refused, folders, parts, tmp_path):
    parts["autoencoder"]("vae").save_pretrained(tmp_path / "vae")
    flags = {**folders, "autoencoder": tmp_path / "vae"}
    said = refused(assemble, output_dir=tmp_path / "pipeline", **flags)
    assert "they differ in kind" in said


@pytest.mark.parametrize("member", ["vqvae2", "vqgan"])
def test_members_with_codebooks_take_a_prior_over_their_codes(call, parts, tmp_path, member):
    autoencoder = parts["autoencoder"](member)
    autoencoder.save_pretrained(tmp_path / "autoencoder")
    parts["prior"](autoencoder).save_pretrained(tmp_path / "prior")
    flags = {"autoencoder": tmp_path / "autoencoder", "prior": tmp_path / "prior"}
    call(assemble, output_dir=tmp_path / "pipeline", **flags)
    output = Pipeline.from_pretrained(tmp_path / "pipeline")(2)
    assert {name: tuple(map_.shape[1:]) for name, map_ in output.codes.items()} == {
        level.name: level.shape for level in autoencoder.levels
    }
