import json
import shutil

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from latent_prior.data.images import to_uint8
from latent_prior.manifests import MANIFEST, write_manifest
from latent_prior.pipelines import Pipeline, Sampler
from latent_prior.stage1_autoencoders import load_autoencoder
from latent_prior.stage2_prior import TransformerPrior


@pytest.fixture(scope="module")
def pipe(pipeline_folder):
    return Pipeline.from_pretrained(pipeline_folder)


@pytest.fixture
def folder(pipeline_folder, tmp_path):
    """A copy of the pipeline folder that a test may damage."""
    return shutil.copytree(pipeline_folder, tmp_path / "pipeline")


def seeded(seed=5):
    return torch.Generator().manual_seed(seed)


def pictures(count=6, seed=0):
    return torch.rand(count, 3, 16, 16, generator=seeded(seed)) * 2 - 1


def assert_same_pictures(one, two):
    """For batch sizes whose kernels round differently: a value may land on the next grey level."""
    assert (one.int() - two.int()).abs().max() <= 1


def test_a_seed_gives_the_same_images_whatever_the_batch_size(pipe):
    whole = pipe(7, generator=seeded(), output_type="pt")
    for batch_size in (1, 3, 7):
        parts = pipe(7, generator=seeded(), batch_size=batch_size, output_type="pt")
        assert torch.equal(parts.codes["codes"], whole.codes["codes"])
        torch.testing.assert_close(parts.images, whole.images, atol=1e-5, rtol=0)
        assert_same_pictures(to_uint8(parts.images), to_uint8(whole.images))
    other = pipe(7, generator=seeded(6), output_type="pt")
    assert not torch.equal(other.codes["codes"], whole.codes["codes"])


def test_a_generator_for_each_image_makes_it_independent_of_its_neighbours(pipe):
    whole = pipe(5, labels=0, generator=[seeded(i) for i in range(5)], batch_size=2)
    alone = pipe(1, labels=0, generator=[seeded(3)])
    assert torch.equal(whole.codes["codes"][3], alone.codes["codes"][0])
    assert_same_pictures(*(torch.tensor(np.asarray(x)) for x in (whole.images[3], alone.images[0])))


def test_the_number_of_generators_must_be_that_of_the_images(pipe):
    for count in (2, 4):
        with pytest.raises(ValueError, match="one generator, or one each"):
            pipe(3, generator=[seeded(i) for i in range(count)], batch_size=2)
        with pytest.raises(ValueError, match="one generator, or one each"):
            pipe.random_codes(3, [seeded(i) for i in range(count)])


@pytest.mark.parametrize(
    ("labels", "numbers"),
    [
        (None, [0, 1, 2, 0, 1]),
        (2, [2] * 5),
        (-1, [-1] * 5),
        ("bee", [1] * 5),
        ("1", [1] * 5),
        (["car", 0, "apple", -1, 1], [2, 0, 0, -1, 1]),
    ],
)
def test_labels_by_number_and_name(pipe, labels, numbers):
    output = pipe(5, labels=labels, generator=seeded())
    assert output.labels == numbers
    same = pipe(5, labels=numbers, generator=seeded())
    assert torch.equal(output.codes["codes"], same.codes["codes"])


def test_a_name_is_one_label_and_not_its_letters(pipe):
    """diffusers' DiTPipeline.get_label_ids("bee") looks up b, e and e."""
    assert pipe.label_numbers("bee", 3) == [1, 1, 1]


@pytest.mark.parametrize("labels", [3, -2, "Bee", "", [0, 1, 7], "3"])
def test_unknown_labels_are_named_with_the_known_ones(pipe, labels):
    with pytest.raises(ValueError, match=r"label .* is out of range.*apple, bee, car"):
        pipe(3, labels=labels)


@pytest.mark.parametrize("labels", [[0, 1], [0, 1, 2, 0], []])
def test_labels_must_be_one_or_one_each(pipe, labels):
    with pytest.raises(ValueError, match="3 images"):
        pipe(3, labels=labels)


def test_the_classes_differ(pipe):
    """The label reaches the prior."""
    codes = [pipe(4, labels=n, generator=seeded()).codes["codes"] for n in (0, 1, -1)]
    assert not torch.equal(codes[0], codes[1])
    assert not torch.equal(codes[0], codes[2])


def test_a_prior_without_classes_draws_without_labels(parts):
    autoencoder = parts["vqvae"]()
    pipe = Pipeline(autoencoder, parts["prior"](autoencoder, classes=()))
    assert pipe.class_names == ()
    output = pipe(3, generator=seeded())
    assert output.labels == [-1, -1, -1]
    assert len(output.images) == 3
    with pytest.raises(ValueError, match="no classes"):
        pipe(3, labels=0)


def test_output_types_show_the_same_images(pipe):
    pil, pt, array = (
        pipe(4, generator=seeded(), output_type=kind).images for kind in ("pil", "pt", "np")
    )
    assert [image.size for image in pil] == [(16, 16)] * 4
    assert {image.mode for image in pil} == {"RGB"}
    assert pt.shape == (4, 3, 16, 16)
    assert pt.dtype == torch.float32
    assert -1 <= pt.min() < pt.max() <= 1
    assert array.shape == (4, 16, 16, 3)
    assert 0 <= array.min() < array.max() <= 1
    stacked = np.stack([np.asarray(image) for image in pil])
    assert np.array_equal(stacked, to_uint8(pt).permute(0, 2, 3, 1).numpy())
    np.testing.assert_allclose(array, (pt.permute(0, 2, 3, 1).numpy() + 1) / 2, atol=1e-6)
    with pytest.raises(ValueError, match="output_type"):
        pipe(1, output_type="pillow")


def test_grey_images_have_one_channel(parts):
    autoencoder = parts["vqvae"](image_channels=1)
    pipe = Pipeline(autoencoder, parts["prior"](autoencoder))
    assert pipe(1).images[0].mode == "L"
    assert pipe(2, output_type="np").images.shape == (2, 16, 16, 1)


@pytest.mark.parametrize("flags", [{"num_images": 0}, {"num_images": -1}, {"batch_size": 0}])
def test_counts_must_be_positive(pipe, flags):
    with pytest.raises(ValueError, match="at least 1"):
        pipe(**flags)


@pytest.mark.parametrize(
    "flags",
    [
        {"temperature": -1.0},
        {"top_k": -1},
        {"top_p": 0.0},
        {"top_p": 1.5},
        {"guidance_scale": -1.0},
    ],
)
def test_sampler_settings_out_of_range_are_named(pipe, flags):
    with pytest.raises(ValueError, match=next(iter(flags))):
        pipe(1, **flags)


def test_saving_and_loading_changes_nothing(pipe, tmp_path):
    pipe.save_pretrained(tmp_path / "copy")
    again = Pipeline.from_pretrained(tmp_path / "copy")
    for mine, its in ((pipe.autoencoder, again.autoencoder), (pipe.prior, again.prior)):
        assert mine.fingerprint == its.fingerprint
        for name, weight in mine.state_dict().items():
            assert torch.equal(weight, its.state_dict()[name])
    assert again.sampler == pipe.sampler
    assert again.code_spec == pipe.code_spec
    assert again.class_names == pipe.class_names == ("apple", "bee", "car")
    assert not again.autoencoder.training
    assert not again.prior.training
    first, second = (p(4, generator=seeded(), output_type="pt") for p in (pipe, again))
    assert torch.equal(first.images, second.images)


def test_the_folder_says_what_is_in_it(folder):
    index = json.loads((folder / "pipeline.json").read_text())
    assert index["components"] == {"autoencoder": "VQVAE", "prior": "TransformerPrior"}
    assert index["sampler"]["temperature"] == 0.9
    assert index["code_spec"]["class_names"] == ["apple", "bee", "car"]
    assert set(index["versions"]) >= {"latent-prior", "torch"}
    expected = {"pipeline.json", "autoencoder", "prior", "README.md", MANIFEST}
    assert {path.name for path in folder.iterdir()} == expected


def test_saving_replaces_an_older_pipeline_altogether(folder, parts):
    (folder / "prior" / "left_over.txt").write_text("old")
    Pipeline(parts["vqvae"](seed=3)).save_pretrained(folder)
    again = Pipeline.from_pretrained(folder)
    assert again.prior is None
    assert not (folder / "prior").exists()
    assert [path.name for path in folder.parent.iterdir()] == ["pipeline"]


def test_sampler_defaults_are_stored_and_used(pipe, tmp_path):
    greedy = Sampler(guidance_scale=1.5, temperature=0.0, top_k=3, top_p=0.5)
    Pipeline(pipe.autoencoder, pipe.prior, greedy).save_pretrained(tmp_path / "greedy")
    again = Pipeline.from_pretrained(tmp_path / "greedy")
    assert again.sampler == greedy
    one, two = (again(2, labels=0, generator=seeded(s)).codes["codes"] for s in (1, 2))
    assert torch.equal(one, two)  # no chance at temperature 0
    explicit = pipe(2, labels=0, guidance_scale=1.5, temperature=0.0, top_k=3, top_p=0.5)
    assert torch.equal(explicit.codes["codes"], one)
    warm = again(2, labels=0, temperature=1.0, top_k=0, top_p=1.0, generator=seeded(1))
    assert not torch.equal(warm.codes["codes"], one)


def test_a_prior_over_other_codes_is_refused_with_both_fingerprints(pipe, parts):
    other = parts["vqvae"](seed=9)
    with pytest.raises(ValueError, match=other.fingerprint[:12]) as stopped:
        Pipeline(other, pipe.prior)
    assert pipe.autoencoder.fingerprint[:12] in str(stopped.value)


def test_reconstructing_is_decoding_what_was_encoded(pipe):
    images = pictures()
    codes = pipe.encode(images)
    assert codes["codes"].shape == (6, 8, 8)
    assert codes["codes"].dtype == torch.int64
    assert torch.equal(pipe.reconstruct(images), pipe.decode(codes))
    assert not pipe.reconstruct(images).requires_grad
    alone = torch.cat([pipe.encode(image[None])["codes"] for image in images])
    assert torch.equal(alone, codes["codes"])


def test_samples_are_their_codes_decoded(pipe):
    output = pipe(3, generator=seeded(), output_type="pt")
    torch.testing.assert_close(pipe.decode(output.codes), output.images, atol=1e-5, rtol=0)


def test_codes_out_of_range_or_shape_are_refused(pipe):
    codes = pipe.encode(pictures())["codes"]
    for wrong in (codes.clone().fill_(16), codes - 100):
        with pytest.raises(ValueError, match=r"codes 'codes'.*\[0, 16\)"):
            pipe.decode({"codes": wrong})
    for wrong in (codes[:, :4], codes.flatten(1)):
        with pytest.raises(ValueError, match=r"expected \(B, 8, 8\)"):
            pipe.decode({"codes": wrong})
    with pytest.raises(ValueError, match="found None"):
        pipe.decode({"top": codes})
    with pytest.raises(ValueError, match="shape"):
        pipe.encode(torch.zeros(2, 1, 16, 16))


def test_random_codes_are_uniform_and_seeded(pipe):
    codes = pipe.random_codes(500, seeded())["codes"]
    assert torch.equal(codes, pipe.random_codes(500, seeded())["codes"])
    share = torch.bincount(codes.flatten(), minlength=16) / codes.numel()
    assert (share - 1 / 16).abs().max() < 0.005
    each = pipe.random_codes(3, [seeded(i) for i in range(3)])["codes"]
    assert torch.equal(each[2], pipe.random_codes(1, [seeded(2)])["codes"][0])


def test_moving_returns_the_pipeline(pipe):
    assert pipe.to("cpu") is pipe
    assert pipe.device == torch.device("cpu")
    moved = Pipeline(pipe.autoencoder, pipe.prior).to("cpu")
    assert {p.device.type for p in moved.prior.parameters()} == {"cpu"}


def test_without_a_prior_it_encodes_and_decodes_only(parts, tmp_path):
    Pipeline(parts["vqvae"]()).save_pretrained(tmp_path / "half")
    half = Pipeline.from_pretrained(tmp_path / "half")
    assert half.reconstruct(pictures()).shape == (6, 3, 16, 16)
    with pytest.raises(ValueError, match="no prior"):
        half(1)


def exchange_weights(folder, part):
    path = folder / part / "model.safetensors"
    weights = load_file(path)
    weights[max(weights, key=lambda name: weights[name].numel())].add_(1)
    save_file(weights, path, metadata={"format": "pt"})


def cut(path):
    path.write_bytes(path.read_bytes()[:-100])


def edit(path, **values):
    path.write_text(json.dumps({**json.loads(path.read_text()), **values}))


def recorded(folder, change=None):
    """Let the manifest vouch for a change, so that the checks behind it are met."""
    write_manifest(folder, "pipeline")


def drop_key(path, key):
    values = json.loads(path.read_text())
    del values[key]
    path.write_text(json.dumps(values))


DAMAGES = {
    "no index": (lambda f: (f / "pipeline.json").unlink(), r"pipeline\.json is missing"),
    "index not JSON": (lambda f: cut(f / "pipeline.json"), r"pipeline\.json is not JSON"),
    "index without sampler": (
        lambda f: recorded(f, drop_key(f / "pipeline.json", "sampler")),
        "missing required field sampler",
    ),
    "unknown sampler key": (
        lambda f: recorded(f, edit(f / "pipeline.json", sampler={"topk": 1})),
        "topk",
    ),
    "foreign code spec": (
        lambda f: recorded(f, edit(f / "pipeline.json", code_spec={})),
        "code_spec: Object missing required field kind",
    ),
    "index edited": (
        lambda f: edit(f / "pipeline.json", command="x"),
        r"pipeline.json is damaged or was exchanged",
    ),
    "no autoencoder": (lambda f: shutil.rmtree(f / "autoencoder"), "autoencoder"),
    "no prior": (lambda f: shutil.rmtree(f / "prior"), "prior"),
    "no weights": (
        lambda f: (f / "prior/model.safetensors").unlink(),
        "model.safetensors is missing",
    ),
    "no config": (lambda f: (f / "autoencoder/config.json").unlink(), "config.json is missing"),
    "weights cut short": (
        lambda f: cut(f / "prior/model.safetensors"),
        "model.safetensors is damaged",
    ),
    "weights exchanged": (lambda f: exchange_weights(f, "autoencoder"), "was exchanged"),
    "prior's weights exchanged": (lambda f: exchange_weights(f, "prior"), "was exchanged"),
    "unknown config key": (lambda f: edit(f / "prior/config.json", wdith=3), "wdith"),
    "parts swapped": (
        lambda f: recorded(f, shutil.copytree(f / "autoencoder", f / "prior", dirs_exist_ok=True)),
        "latent_prior_vqvae.*latent_prior_transformer",
    ),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_folder_is_refused_by_name(folder, damage):
    harm, message = DAMAGES[damage]
    harm(folder)
    with pytest.raises(ValueError, match=message):
        Pipeline.from_pretrained(folder)


def test_an_autoencoder_of_another_run_in_the_folder_is_refused(folder, parts):
    """Both parts are whole in themselves; only the specs tell."""
    shutil.rmtree(folder / "autoencoder")
    other = parts["vqvae"](seed=9)
    other.save_pretrained(folder / "autoencoder")
    with pytest.raises(ValueError, match=r"autoencoder/manifest\.json is damaged or was exchanged"):
        Pipeline.from_pretrained(folder)
    recorded(folder)
    with pytest.raises(ValueError, match=other.fingerprint[:12]) as stopped:
        Pipeline.from_pretrained(folder)
    prior = TransformerPrior.from_pretrained(folder / "prior")
    assert prior.code_spec.autoencoder_fingerprint[:12] in str(stopped.value)


@pytest.mark.parametrize("name", ["./nowhere", "/nowhere/at/all", "nowhere", "no/such"])
def test_no_such_folder(name):
    with pytest.raises(ValueError, match=name):
        Pipeline.from_pretrained(name)


def test_the_registry_names_models_that_exist(pipeline_folder):
    with pytest.raises(ValueError, match="not an autoencoder"):
        load_autoencoder(pipeline_folder / "prior")


@pytest.mark.parametrize("name", ["guidance_scale", "top_k", "top_p"])
def test_without_a_prior_its_settings_are_refused(parts, name):
    pipe = Pipeline(parts["autoencoder"]("vae"), sampler=Sampler(guidance_scale=2.0))
    pipe(1)  # the pipeline's own defaults are no request
    with pytest.raises(ValueError, match=rf"^{name} is for a prior, and this pipeline has none"):
        pipe(1, **{name: 1})


def test_settings_pass_through_by_name(pipe):
    """None keeps the pipeline's default, an unknown name is an error as in any call."""
    default = pipe(2, generator=seeded(), output_type="pt")
    same = pipe(2, generator=seeded(), output_type="pt", temperature=None, top_k=None)
    assert torch.equal(default.images, same.images)
    with pytest.raises(TypeError, match="tempratur"):
        pipe(2, tempratur=1.0)
    with pytest.raises(TypeError, match="tempratur"):
        pipe.complete(torch.zeros(1, 3, 16, 16), torch.ones(16, 16, dtype=torch.bool), tempratur=1)


# A VAE's pipeline, which needs no prior


@pytest.fixture(scope="module", params=["vae", "vaegan", "grid"])
def vae(request, parts):
    if request.param == "grid":
        return Pipeline(parts["autoencoder"]("vae", latent_dim=None))
    return Pipeline(parts["autoencoder"](request.param))


def test_without_a_prior_latents_are_standard_normal(vae):
    latents = vae.standard_normal(400, seeded())["latents"]
    (level,) = vae.code_spec.levels
    assert latents.shape == (400, *level.shape)
    assert abs(latents.mean()) < 0.05
    assert latents.std() == pytest.approx(1, abs=0.05)
    output = vae(4, generator=seeded(), output_type="pt")
    assert torch.equal(output.codes["latents"], latents[:4])
    assert torch.equal(output.images, vae.decode(output.codes))
    assert output.labels == [-1] * 4
    assert output.images.std(0).mean() > 0.01


def test_a_seed_gives_the_same_latents_whatever_the_batch_size(vae):
    whole = vae(7, generator=seeded(), output_type="pt")
    for batch_size in (1, 3):
        drawn = vae(7, generator=seeded(), batch_size=batch_size, output_type="pt")
        assert torch.equal(drawn.codes["latents"], whole.codes["latents"])
        torch.testing.assert_close(drawn.images, whole.images, atol=1e-5, rtol=0)
    each = vae(5, generator=[seeded(i) for i in range(5)], batch_size=2, output_type="pt")
    alone = vae(1, generator=[seeded(3)], output_type="pt")
    assert torch.equal(each.codes["latents"][3], alone.codes["latents"][0])
    other = vae(7, generator=seeded(6), output_type="pt")
    assert not torch.allclose(other.codes["latents"], whole.codes["latents"], atol=0.1)


def test_the_temperature_scales_the_latents(vae):
    warm, cold = (vae(3, generator=seeded(), temperature=t, output_type="pt") for t in (1.0, 0.25))
    torch.testing.assert_close(cold.codes["latents"], 0.25 * warm.codes["latents"])
    still = vae(3, generator=seeded(), temperature=0, output_type="pt")
    (level,) = vae.code_spec.levels
    origin = vae.decode({"latents": torch.zeros(3, *level.shape)})
    assert torch.equal(still.images, origin)
    stored = Pipeline(vae.autoencoder, sampler=Sampler(temperature=0.0))
    assert torch.equal(stored(3, output_type="pt").images, origin)
    with pytest.raises(ValueError, match="temperature must be"):
        vae(1, temperature=-1.0)


def test_a_vaes_pipeline_is_saved_without_a_prior(vae, tmp_path):
    vae.save_pretrained(tmp_path / "vae")
    again = Pipeline.from_pretrained(tmp_path / "vae")
    assert again.prior is None
    assert again.code_spec == vae.code_spec
    first, second = (p(3, generator=seeded(), output_type="pt") for p in (vae, again))
    assert torch.equal(first.images, second.images)
    index = json.loads((tmp_path / "vae/pipeline.json").read_text())
    assert list(index["components"]) == ["autoencoder"]


def test_a_vaes_pipeline_reconstructs_its_means(vae):
    latents = vae.encode(pictures())["latents"]
    assert torch.equal(latents, vae.encode(pictures())["latents"])
    assert torch.equal(vae.reconstruct(pictures()), vae.decode({"latents": latents}))
    for wrong in (latents[:, :2], latents.flatten(1)):
        with pytest.raises(ValueError, match=r"expected \(B, "):
            vae.decode({"latents": wrong})


def test_latents_are_no_random_codes_and_have_no_classes(vae):
    with pytest.raises(ValueError, match=r"latents, not codes.*N\(0, I\)"):
        vae.random_codes(2)
    assert vae.class_names == ()
    with pytest.raises(ValueError, match="no classes"):
        vae(2, labels=0)


@pytest.mark.parametrize("member", ["vqvae2", "vqgan"])
def test_members_with_codebooks_need_a_prior(parts, member):
    pipe = Pipeline(parts["autoencoder"](member))
    with pytest.raises(ValueError, match="no prior"):
        pipe(1)
    codes = pipe.random_codes(3, seeded())
    assert {name: tuple(map_.shape[1:]) for name, map_ in codes.items()} == {
        level.name: level.shape for level in pipe.code_spec.levels
    }
    assert pipe.decode(codes).shape == (3, 3, 16, 16)
    one = pipe.random_codes(1, [seeded(i) for i in (2,)])
    each = pipe.random_codes(3, [seeded(i) for i in range(3)])
    assert all(torch.equal(each[name][2], map_[0]) for name, map_ in one.items())
