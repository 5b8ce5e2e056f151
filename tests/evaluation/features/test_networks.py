import hashlib
import json
import os
import sys
import warnings

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional

from latent_prior.evaluation import score
from latent_prior.evaluation.features import networks
from latent_prior.evaluation.features.networks import INCEPTION_FILE, load_inception
from latent_prior.evaluation.measures import fid
from tests.evaluation.conftest import save_scripted


def noise(count, height=20, width=24, channels=3, seed=0):
    return np.random.default_rng(seed).integers(
        0, 256, (count, height, width, channels), dtype=np.uint8
    )


@pytest.fixture(scope="module")
def tiny(scripted_features):
    return networks.load_network(str(scripted_features))


@pytest.fixture(scope="module")
def efficientnet():
    return networks.load_network("efficientnet_lite0")


def test_features_are_those_of_clean_fid(tiny, tmp_path):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # clean-fid 0.1.35 imports deprecated names
        cleanfid_fid = pytest.importorskip("cleanfid.fid")
    images = [*noise(3), np.repeat(noise(1, 31, 9, 1), 3, axis=2)[0]]
    for i, image in enumerate(images):
        Image.fromarray(image if i < 3 else image[:, :, 0]).save(
            tmp_path / f"{i}.png"
        )  # the last one grey
    theirs = cleanfid_fid.get_folder_features(
        str(tmp_path),
        tiny.forward,
        num_workers=0,
        batch_size=2,
        device="cpu",
        mode="clean",
        verbose=False,
    )
    np.testing.assert_allclose(tiny(images), theirs, rtol=1e-5, atol=1e-6)


def test_grey_is_scored_as_rgb_with_equal_channels(tiny):
    grey = noise(2, channels=1)
    np.testing.assert_array_equal(tiny(list(grey)), tiny(list(np.repeat(grey, 3, axis=3))))


def test_a_tensor_and_a_list_of_arrays_are_the_same(tiny):
    images = noise(3)
    np.testing.assert_array_equal(
        tiny(torch.from_numpy(images).permute(0, 3, 1, 2)), tiny(list(images))
    )


def test_features_do_not_depend_on_the_batch(efficientnet):
    images = list(noise(5)) + list(noise(2, 70, 50))
    together = efficientnet(images)
    apart = np.concatenate([efficientnet([image]) for image in images])
    np.testing.assert_allclose(together, apart, rtol=1e-3, atol=1e-4)


def test_efficientnet_has_its_own_name_and_sees_what_is_there(efficientnet):
    assert (efficientnet.column, efficientnet.title) == ("fd_effnet_lite0", "FD-EffNet-Lite0")
    assert efficientnet.dimension == 1280
    assert "64 x 64" in efficientnet.resizer
    rng = np.random.default_rng(0)
    smooth = [np.asarray(Image.fromarray(image).resize((48, 48))) for image in noise(4, 4, 4)]
    noisier = [
        np.clip(image + rng.normal(0, 10, image.shape), 0, 255).astype(np.uint8) for image in smooth
    ]
    noisiest = [
        np.clip(image + rng.normal(0, 60, image.shape), 0, 255).astype(np.uint8) for image in smooth
    ]
    original, near, far = efficientnet(smooth), efficientnet(noisier), efficientnet(noisiest)
    assert np.linalg.norm(near - original) < np.linalg.norm(far - original)


def test_efficientnet_without_its_packages_names_the_flag(monkeypatch):
    monkeypatch.setitem(sys.modules, "efficientnet_lite_pytorch", None)
    with pytest.raises(ValueError, match=r"^--features efficientnet_lite0 .* pip install"):
        networks.load_network("efficientnet_lite0")


def test_torchscript_network(tiny, scripted_features):
    assert (tiny.column, tiny.dimension, tiny.size) == ("fd_custom", 12, 299)
    assert tiny.weights.startswith("tiny.pt sha256:")
    assert tiny(list(noise(2))).shape == (2, 12)


def test_torchscript_with_maps_instead_of_vectors_is_refused(tmp_path):
    path = save_scripted(nn.Conv2d(3, 2, 9, stride=9), tmp_path / "maps.pt")
    with pytest.raises(ValueError, match=r"instead of \(1, D\)"):
        networks.load_network(str(path))


def test_a_fifo_is_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "weights.pt")
    with pytest.raises(ValueError, match=r"weights\.pt is no regular file"):
        networks.load_network(str(tmp_path / "weights.pt"))


def test_a_file_that_is_no_torchscript_is_refused(tmp_path):
    path = tmp_path / "weights.pt"
    path.write_bytes(b"not a network")
    with pytest.raises(ValueError, match=r"weights\.pt is not a TorchScript module"):
        networks.load_network(str(path))


class StandInInception(nn.Module):
    """A cheap stand-in for clean-fid's Inception file: `layers` (2048 features) and `output`."""

    def __init__(self):
        super().__init__()
        self.layers = nn.Sequential(nn.AdaptiveAvgPool2d(4), nn.Flatten(), nn.Linear(48, 2048))
        self.output = nn.Linear(2048, 9)

    def forward(self, images: Tensor, return_features: bool = False, no_output_bias: bool = False):
        features = self.layers((images - 128) / 128)
        if return_features:
            return features
        if no_output_bias:
            return torch.softmax(functional.linear(features, self.output.weight), 1)
        return torch.softmax(self.output(features), 1)


@pytest.fixture(scope="module")
def stand_in(tmp_path_factory):
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("stand-in") / "inception.pt"
    return save_scripted(StandInInception(), path).read_bytes()


@pytest.fixture
def weights(stand_in, monkeypatch):
    """Content of such a file, which then counts as the published one."""
    monkeypatch.setattr(networks, "INCEPTION_SHA256", hashlib.sha256(stand_in).hexdigest())
    return stand_in


@pytest.fixture
def inception_at(monkeypatch):
    def set_url(url):
        monkeypatch.setattr("cleanfid.downloads_helper.inception_url", url)

    return set_url


@pytest.fixture
def inception(cache, weights):
    """The stand-in behind clean-fid's wrapper, its file already where it belongs."""
    cache.mkdir()
    (cache / INCEPTION_FILE).write_bytes(weights)
    return networks.load_network("inception")


def test_inception_is_downloaded_once_and_used_through_clean_fid(
    cache, inception_at, serve, weights
):
    inception_at(serve({"inception.pt": (weights, len(weights))}) + "inception.pt")
    network = networks.load_network("inception")
    assert (network.column, network.title, network.dimension) == ("fid", "FID", 2048)
    assert network.digest == hashlib.sha256(weights).hexdigest()
    assert [path.name for path in cache.iterdir()] == [INCEPTION_FILE]
    inception_at("http://127.0.0.1:9/gone")  # from now on the cache has to do
    again = networks.load_network("inception")
    images = list(noise(2))
    np.testing.assert_array_equal(network(images), again(images))


def test_an_interrupted_download_leaves_nothing_broken(cache, inception_at, serve, weights):
    half = weights[: len(weights) // 2]
    inception_at(serve({"inception.pt": (half, len(weights))}) + "inception.pt")
    with pytest.raises(ValueError, match="broke off"):
        networks.load_network("inception")
    assert list(cache.iterdir()) == []
    inception_at(serve({"inception.pt": (weights, len(weights))}) + "inception.pt")
    assert networks.load_network("inception").dimension == 2048  # clean-fid fails here for ever


def test_another_file_than_the_published_inception_is_not_opened(cache, stand_in, monkeypatch):
    cache.mkdir()
    (cache / INCEPTION_FILE).write_bytes(stand_in)
    monkeypatch.setattr(torch.jit, "load", lambda *_, **__: pytest.fail("it was opened"))
    with pytest.raises(
        ValueError, match=rf"{INCEPTION_FILE} is not the published Inception .* del"
    ):
        networks.load_network("inception")


def test_an_inception_that_is_not_there_any_more_is_one_sentence(cache, inception_at, serve):
    inception_at(serve({}) + "inception.pt")
    with pytest.raises(ValueError, match=r"inception\.pt is gone: put the file at .* efficientnet"):
        networks.load_network("inception")
    assert list(cache.iterdir()) == []


def test_no_network_is_one_sentence(cache, inception_at):
    inception_at("http://127.0.0.1:9/inception.pt")
    with pytest.raises(ValueError, match=r"could not be downloaded .* efficientnet_lite0"):
        networks.load_network("inception")
    assert list(cache.iterdir()) == []


def test_features_of_folders_through_inception_are_clean_fids(inception, cache, tmp_path):
    """From files to features on both ways, as for any FID."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # clean-fid 0.1.35 imports deprecated names
        from cleanfid import fid as cleanfid

        theirs = load_inception(cache)
    images = noise(5, 32, 32)
    for number, image in enumerate(images):
        Image.fromarray(image).save(tmp_path / f"{number}.png")
    settings = {
        "num_workers": 0,
        "batch_size": 2,
        "device": "cpu",
        "mode": "clean",
        "verbose": False,
    }
    expected = cleanfid.get_folder_features(str(tmp_path), theirs, **settings)
    np.testing.assert_allclose(inception(list(images)), expected, rtol=1e-5, atol=1e-6)


def test_two_folders_are_scored_end_to_end_with_inception(inception, tmp_path):
    """`inception` is the default of `--features`; its weights lie where a download puts them."""
    for folder, seed in (("reference/test", 0), ("same", 0), ("other", 1)):
        (tmp_path / folder).mkdir(parents=True)
        for number, image in enumerate(noise(6, 32, 32, seed=seed)):
            Image.fromarray(image // (1 + seed)).save(tmp_path / folder / f"{number}.png")
    score.main([
        "--candidates", f"same={tmp_path / 'same'}", f"other={tmp_path / 'other'}",
        "--reference", str(tmp_path / "reference"), "--output_dir", str(tmp_path / "scores"),
        "--cpu_threads", "1",
    ])  # fmt: skip
    scores = json.loads((tmp_path / "scores" / "scores.json").read_text())
    same, other = scores["rows"]
    assert same["fid"] == pytest.approx(0, abs=1e-3)
    expected = [inception(list(noise(6, 32, 32, seed=seed) // (1 + seed))) for seed in (0, 1)]
    means, covariances = zip(*(fid.statistics(found) for found in expected), strict=True)
    shift = ((means[0] - means[1]) ** 2).sum()
    assert other["fid"] > 0.99 * shift > 0
    assert other["fid"] <= shift + sum(map(np.trace, covariances))
    assert 1 <= other["inception_score"] < 9
    assert scores["protocol"]["features"] == "inception"


def test_class_probabilities_are_those_of_the_inception_score(inception, cache):
    """The features suffice, without a second pass; without the bias, as the score's authors did."""
    images = list(noise(3))
    found = inception.probabilities(inception(images))
    base = load_inception(cache).base
    with torch.inference_mode():
        expected = base(inception.prepare(images), no_output_bias=True)
        biased = base(inception.prepare(images))
    np.testing.assert_allclose(found, expected, rtol=1e-4)
    np.testing.assert_allclose(found.sum(1), 1, rtol=1e-5)
    assert np.abs(found - biased.numpy()).max() > 1e-3


def test_other_networks_know_no_classes(tiny):
    assert tiny.probabilities is None


def test_a_broken_file_in_the_cache_is_named(cache, inception_at):
    cache.mkdir()
    (cache / INCEPTION_FILE).write_bytes(b"half a file")
    with pytest.raises(ValueError, match="delete it"):
        networks.load_network("inception")


@pytest.fixture(scope="module")
def tiny_clip(tmp_path_factory):
    from transformers import CLIPConfig, CLIPModel

    torch.manual_seed(0)
    vision = {
        "hidden_size": 16,
        "intermediate_size": 32,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
    }
    text = vision | {"projection_dim": 10, "vocab_size": 20, "bos_token_id": 1, "eos_token_id": 2}
    config = CLIPConfig(
        text_config=text,
        vision_config=vision | {"image_size": 64, "patch_size": 32, "projection_dim": 10},
        projection_dim=10,
    )
    model = CLIPModel(config).eval()
    folder = tmp_path_factory.mktemp("clip")
    model.save_pretrained(folder)
    return model, folder


def test_clip_features_are_its_image_embeddings(tiny_clip, monkeypatch):
    model, folder = tiny_clip
    monkeypatch.setattr(networks._clip, "__defaults__", (str(folder),))
    network = networks.load_network("clip")
    assert (network.column, network.title, network.dimension, network.size) == (
        "fd_clip",
        "FD-CLIP",
        10,
        64,
    )
    images = noise(2, 64, 64)  # its own size: nothing to resize
    pixels = torch.from_numpy(images).permute(0, 3, 1, 2) / 255
    mean, std = torch.tensor(networks.CLIP_MEAN), torch.tensor(networks.CLIP_STD)
    pixels = (pixels - mean.view(3, 1, 1)) / std.view(3, 1, 1)
    with torch.inference_mode():
        expected = model.visual_projection(model.vision_model(pixel_values=pixels).pooler_output)
    np.testing.assert_allclose(network(list(images)), expected, rtol=1e-4, atol=1e-5)


def test_clip_sees_images_as_clean_fids_clip_does(tiny_clip, monkeypatch):
    """Shorter side resized to whole grey values, then the centre, as for published statistics."""
    _, folder = tiny_clip
    monkeypatch.setattr(networks._clip, "__defaults__", (str(folder),))
    network = networks.load_network("clip")
    assert "CLIP" in network.resizer
    wide = noise(1, 64, 128)[0]
    np.testing.assert_array_equal(network([wide]), network([wide[:, 32:96]]))
    small = network.prepare([noise(1, 30, 30)[0]])
    assert (small == small.round()).all()


def test_the_digest_is_that_of_the_weights(tiny_clip, monkeypatch):
    model, folder = tiny_clip
    monkeypatch.setattr(networks._clip, "__defaults__", (str(folder),))
    digests = [networks.load_network("clip").digest for _ in range(2)]
    with torch.no_grad():
        model.visual_projection.weight[0, 0] += 1e-3
    model.save_pretrained(folder)
    digests.append(networks.load_network("clip").digest)
    assert digests[0] == digests[1] != digests[2]


def test_clip_without_the_hub_is_one_sentence(tmp_path, monkeypatch):
    monkeypatch.setattr(networks._clip, "__defaults__", ("latent-prior-tests/no-such-clip",))
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(ValueError, match=r"could not be loaded .* connect to the network"):
        networks.load_network("clip")
