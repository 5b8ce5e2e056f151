import http.server
import sys
import threading
import warnings

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from evaluation import downloads, features, fid


def noise(count, height=20, width=24, channels=3, seed=0):
    return np.random.default_rng(seed).integers(
        0, 256, (count, height, width, channels), dtype=np.uint8
    )


def save_scripted(module, path):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # TorchScript is deprecated since torch 2.14
        torch.jit.script(module.eval()).save(str(path))
    return path


@pytest.fixture(scope="module")
def tiny(scripted_features):
    return features.load_network(str(scripted_features))


@pytest.fixture(scope="module")
def efficientnet():
    return features.load_network("efficientnet_lite0")


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
        features.load_network("efficientnet_lite0")


def test_torchscript_network(tiny, scripted_features):
    assert (tiny.column, tiny.dimension, tiny.size) == ("fd_custom", 12, 299)
    assert tiny.weights.startswith("tiny.pt sha256:")
    assert tiny(list(noise(2))).shape == (2, 12)


def test_torchscript_with_maps_instead_of_vectors_is_refused(tmp_path):
    path = save_scripted(nn.Conv2d(3, 2, 9, stride=9), tmp_path / "maps.pt")
    with pytest.raises(ValueError, match=r"instead of \(1, D\)"):
        features.load_network(str(path))


def test_a_file_that_is_no_torchscript_is_refused(tmp_path):
    path = tmp_path / "weights.pt"
    path.write_bytes(b"not a network")
    with pytest.raises(ValueError, match=r"weights\.pt is not a TorchScript module"):
        features.load_network(str(path))


class StandInInception(nn.Module):
    """What clean-fid's wrapper asks of the Inception file: `layers` with 2048 features, cheap here."""

    def __init__(self):
        super().__init__()
        self.layers = nn.Sequential(nn.AdaptiveAvgPool2d(4), nn.Flatten(), nn.Linear(48, 2048))

    def forward(self, images):
        return self.layers(images)


@pytest.fixture
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("LATENT_PRIOR_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def inception_at(monkeypatch):
    def set_url(url):
        monkeypatch.setattr("cleanfid.downloads_helper.inception_url", url)

    return set_url


@pytest.fixture
def serve():
    """Serve `body` on localhost, promising `length` bytes."""
    servers = []

    def start(body, length):
        class Handler(http.server.BaseHTTPRequestHandler):
            def do_GET(self):
                self.send_response(200)
                self.send_header("Content-Length", str(length))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, format, *arguments):
                pass

        server = http.server.HTTPServer(("127.0.0.1", 0), Handler)
        threading.Thread(target=server.serve_forever, daemon=True).start()
        servers.append(server)
        return f"http://127.0.0.1:{server.server_port}/inception.pt"

    yield start
    for server in servers:
        server.shutdown()
        server.server_close()


def test_inception_is_downloaded_once_and_used_through_clean_fid(
    cache, inception_at, serve, tmp_path
):
    torch.manual_seed(0)
    body = save_scripted(StandInInception(), tmp_path / "inception.pt").read_bytes()
    inception_at(serve(body, len(body)))
    network = features.load_network("inception")
    assert (network.column, network.title, network.dimension) == ("fid", "FID", 2048)
    assert [path.name for path in cache.iterdir()] == [fid.INCEPTION_FILE]
    inception_at("http://127.0.0.1:9/gone")  # from now on the cache has to do
    again = features.load_network("inception")
    images = list(noise(2))
    np.testing.assert_array_equal(network(images), again(images))


def test_an_interrupted_download_leaves_nothing_broken(cache, inception_at, serve, tmp_path):
    body = save_scripted(StandInInception(), tmp_path / "inception.pt").read_bytes()
    inception_at(serve(body[: len(body) // 2], len(body)))
    with pytest.raises(ValueError, match="broke off"):
        features.load_network("inception")
    assert list(cache.iterdir()) == []
    inception_at(serve(body, len(body)))  # clean-fid would fail here for ever
    assert features.load_network("inception").dimension == 2048


def test_a_page_instead_of_weights_is_not_kept(cache, inception_at, serve):
    page = b"<html>please log in</html>"
    inception_at(serve(page, len(page)))
    with pytest.raises(ValueError, match="not the file"):
        features.load_network("inception")
    assert list(cache.iterdir()) == []


def test_no_network_is_one_sentence(cache, inception_at):
    inception_at("http://127.0.0.1:9/inception.pt")
    with pytest.raises(ValueError, match=r"could not be downloaded .* efficientnet_lite0"):
        features.load_network("inception")
    assert list(cache.iterdir()) == []


def test_a_broken_file_in_the_cache_is_named(cache, inception_at):
    cache.mkdir()
    (cache / fid.INCEPTION_FILE).write_bytes(b"half a file")
    with pytest.raises(ValueError, match="delete it"):
        features.load_network("inception")


def test_cache_folder_follows_the_environment(monkeypatch, tmp_path):
    monkeypatch.setenv("LATENT_PRIOR_CACHE", str(tmp_path / "own"))
    assert downloads.cache_folder() == tmp_path / "own"
    monkeypatch.delenv("LATENT_PRIOR_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert downloads.cache_folder() == tmp_path / "xdg" / "latent-prior"
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert downloads.cache_folder() == tmp_path / ".cache" / "latent-prior"


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
    monkeypatch.setattr(features._clip, "__defaults__", (str(folder),))
    network = features.load_network("clip")
    assert (network.column, network.title, network.dimension, network.size) == (
        "fd_clip",
        "FD-CLIP",
        10,
        64,
    )
    images = noise(2, 64, 64)  # its own size: nothing to resize
    pixels = torch.from_numpy(images).permute(0, 3, 1, 2) / 255
    mean, std = torch.tensor(features.CLIP_MEAN), torch.tensor(features.CLIP_STD)
    pixels = (pixels - mean.view(3, 1, 1)) / std.view(3, 1, 1)
    with torch.inference_mode():
        expected = model.visual_projection(model.vision_model(pixel_values=pixels).pooler_output)
    np.testing.assert_allclose(network(list(images)), expected, rtol=1e-4, atol=1e-5)


def test_clip_without_the_hub_is_one_sentence(tmp_path, monkeypatch):
    monkeypatch.setattr(features._clip, "__defaults__", ("latent-prior-tests/no-such-clip",))
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(ValueError, match=r"could not be loaded .* connect to the network"):
        features.load_network("clip")
