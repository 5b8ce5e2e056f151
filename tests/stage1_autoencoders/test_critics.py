import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from latent_prior.losses.adversarial import critic_loss, frozen, gradient_penalty
from latent_prior.stage1_autoencoders.critics import Critic, feature_distance, make_critic
from latent_prior.stage1_autoencoders.options import CriticOptions

NETWORKS = ["patch", "residual"]
CASES = [(network, spectral) for network in NETWORKS for spectral in (False, True)]


def make(
    network: str = "patch",
    spectral: bool = False,
    *,
    size: int = 16,
    channels: int = 3,
    layers: int = 2,
    seed: int = 0,
) -> Critic:
    torch.manual_seed(seed)
    options = CriticOptions(network=network, width=4, layers=layers, spectral_norm=spectral)
    return make_critic(options, size, channels).to(memory_format=torch.channels_last)


def images(batch: int = 4, channels: int = 3, size: int = 16, seed: int = 0) -> Tensor:
    random = torch.Generator().manual_seed(seed)
    return torch.rand(batch, channels, size, size, generator=random) * 2 - 1


def convolutions(critic: Critic) -> list[nn.Module]:
    return [m for m in critic.modules() if isinstance(m, nn.Conv2d | nn.Linear)]


# Shapes


@pytest.mark.parametrize(("network", "spectral"), CASES)
@pytest.mark.parametrize(("size", "layers"), [(16, 3), (28, 1), (28, 3), (32, 3), (32, 4), (21, 2)])
@pytest.mark.parametrize("channels", [1, 3])
def test_logits_and_features_of_every_size(network, spectral, size, layers, channels):
    critic = make(network, spectral, size=size, channels=channels, layers=layers)
    output = critic(images(2, channels, size))
    places = output.logits.shape[2:]
    assert output.logits.shape[:2] == (2, 1)
    assert places == (() if network == "residual" else (size >> layers,) * 2)
    assert len(output.features) == layers + 1
    sizes = [features.shape[-1] for features in output.features]
    assert sizes == sorted(sizes, reverse=True)
    assert sizes[-1] in (size >> layers, -(-size // 2**layers))
    assert output.features[0].shape[1] == 4
    for value in (output.logits, *output.features):
        assert torch.isfinite(value).all()


@pytest.mark.parametrize("network", NETWORKS)
@pytest.mark.parametrize(("size", "layers", "most"), [(28, 4, 3), (32, 5, 4), (2, 1, 0), (1, 1, 0)])
def test_images_too_small_for_the_halvings_are_refused(network, size, layers, most):
    with pytest.raises(ValueError, match=rf"--critic.layers {layers} .* at most {most}$"):
        make(network, size=size, layers=layers)


def test_widths_stop_at_eight_times_the_first():
    for network in NETWORKS:
        widths = [m.shape[1] for m in make(network, size=64, layers=5)(images(1, 3, 64)).features]
        assert max(widths) == 32


def test_a_patch_sees_what_the_documentation_says():
    """54 x 54 pixels, with the normalisation left out, which looks at all of the image."""
    critic = make("patch", spectral=True, size=128, layers=3)
    inputs = images(1, 3, 128).requires_grad_()
    (gradient,) = torch.autograd.grad(critic(inputs).logits[0, 0, 8, 8], inputs)
    seen = gradient.abs().sum((0, 1))
    assert (seen.any(0).sum(), seen.any(1).sum()) == (54, 54)


# What an answer depends on


@pytest.mark.parametrize(("network", "spectral"), CASES)
@pytest.mark.parametrize("training", [True, False])
def test_an_image_is_judged_alone(network, spectral, training):
    """With batch normalisation the originals' logits depend on what shares their batch."""
    critic = make(network, spectral)
    critic(images())  # the power iteration has come to rest after a few passes
    for _ in range(50):
        critic.logits(images(1))
    critic.train(training)
    together, alone = critic(images(6)), critic(images(6)[2:3])
    torch.testing.assert_close(together.logits[2:3], alone.logits, rtol=1e-4, atol=1e-5)
    for a, b in zip(together.features, alone.features, strict=True):
        torch.testing.assert_close(a[2:3], b, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(("network", "spectral"), CASES)
def test_every_parameter_and_every_pixel_takes_part(network, spectral):
    critic = make(network, spectral, size=21)
    if network == "residual" and not spectral:
        for (
            block
        ) in critic.blocks:  # branches that start at zero leave their first half without a gradient
            nn.init.normal_(block.conv2.weight, std=0.1)
    inputs = images(2, 3, 21).requires_grad_()
    critic_loss("non_saturating", *critic(inputs).logits.chunk(2)).backward()
    for name, parameter in critic.named_parameters():
        assert parameter.grad.abs().sum() > 0, name
    assert (inputs.grad.abs().sum(1) > 0).all()


def test_there_is_no_batch_normalisation():
    for network, spectral in CASES:
        assert not any("BatchNorm" in type(m).__name__ for m in make(network, spectral).modules())


def test_logits_pass_by_a_patched_forward():
    """accelerate wraps the `forward` of an instance in autocast; the penalty must not use that."""
    critic = make()
    expected = critic.logits(images())
    critic.forward = None
    assert torch.equal(critic.logits(images()), expected)


def test_the_residual_critic_keeps_the_scale_of_its_images():
    """Without normalisation a deep critic's answers would vanish or explode at the start."""
    torch.manual_seed(0)
    critic = make_critic(CriticOptions(network="residual", width=16, layers=4), 64, 3)
    scales = [features.std().item() for features in critic(images(8, 3, 64)).features]
    assert all(0.1 < scale < 2 for scale in scales), scales


# Spectral norm


@pytest.mark.parametrize("network", NETWORKS)
def test_the_spectral_norm_is_one(network):
    critic = make(network, spectral=True)
    for _ in range(200):
        critic(images(1))
    for layer in convolutions(critic):
        largest = torch.linalg.matrix_norm(layer.weight.detach().flatten(1), 2)
        assert largest.item() == pytest.approx(1, rel=1e-3)


def test_a_critic_is_restored_with_its_power_iterations(tmp_path):
    first, second = make("residual", spectral=True), make("residual", spectral=True, seed=1)
    for step in range(3):
        first(images(seed=step))
    save_file(
        {name: value.contiguous() for name, value in first.state_dict().items()},
        tmp_path / "critic.safetensors",
    )
    second.load_state_dict(load_file(tmp_path / "critic.safetensors"))
    for step in range(3):
        assert torch.equal(second(images(seed=step)).logits, first(images(seed=step)).logits)


# Feature matching


def test_the_feature_distance_equals_a_slow_reference():
    critic = make()
    with torch.no_grad():
        real, fake = critic(images()).features, critic(images(seed=1)).features
    expected = sum(
        float((r.double() - f.double()).square().sum() / r.numel())
        for r, f in zip(real, fake, strict=True)
    ) / len(real)
    assert feature_distance(real, fake).item() == pytest.approx(expected, rel=1e-6)
    assert feature_distance(real, real) == 0


def test_the_feature_distance_teaches_the_fake_side_only():
    critic = make()
    original, reconstruction = images().requires_grad_(), images(seed=1).requires_grad_()
    with frozen(critic):
        loss = feature_distance(critic(original).features, critic(reconstruction).features)
    loss.backward()
    assert original.grad is None
    assert reconstruction.grad.abs().sum() > 0
    assert all(parameter.grad is None for parameter in critic.parameters())


def test_the_feature_distance_does_not_depend_on_the_batch_size():
    critic = make()
    a, b = (critic(images(seed=seed)).features for seed in (0, 1))
    twice = [[torch.cat([f, f]) for f in features] for features in (a, b)]
    torch.testing.assert_close(feature_distance(*twice), feature_distance(a, b))


# Learning


@pytest.mark.parametrize(("network", "spectral"), CASES)
def test_a_critic_learns_to_tell_images_apart(network, spectral):
    loss = "hinge" if network == "patch" else "relativistic"
    critic = make(network, spectral)
    optimizer = torch.optim.Adam(critic.parameters(), 3e-3)
    for step in range(60):
        smooth = nn.functional.avg_pool2d(images(32, 3, 16, seed=step), 5, 1, 2)
        noise = images(32, seed=1000 + step) / 5
        real, fake = critic(torch.cat([smooth, noise])).logits.chunk(2)
        value = critic_loss(loss, real, fake) + 0.01 * gradient_penalty(critic.logits, smooth)
        optimizer.zero_grad()
        value.backward()
        optimizer.step()
    assert (real > fake).float().mean() > 0.9


# Processes


def train_on_share(make_wrapper, share: slice) -> dict[str, Tensor]:
    """Three steps of both halves, the critic's through the wrapper, with its penalty past it."""
    state = {}
    for network, spectral in CASES:
        critic = make(network, spectral)
        wrapped = make_wrapper(critic)
        for step in range(3):
            real, fake = images(8, seed=step)[share], images(8, seed=10 + step)[share] / 2
            with frozen(critic):
                critic(fake)  # the generator's half iterates too
            logits = wrapped(torch.cat([real, fake])).logits.chunk(2)
            loss = critic_loss("hinge", *logits) + gradient_penalty(critic.logits, real)
            critic.zero_grad()
            loss.backward()
            with torch.no_grad():
                for parameter in critic.parameters():
                    parameter -= 0.1 * parameter.grad
        for name, value in critic.state_dict().items():
            state[f"{network}-{spectral}-{name}"] = value.contiguous()
    return state


def test_two_processes_equal_one_with_the_joint_batch(tmp_path: Path):
    """Also in the power iterations' buffers, which DDP does not send around."""
    processes = [
        subprocess.Popen(
            [sys.executable, __file__, str(rank), str(tmp_path)],
            env={
                **os.environ,
                "PYTHONPATH": str(Path(__file__).parents[2]),
                "OMP_NUM_THREADS": "1",
            },
        )
        for rank in range(2)
    ]
    assert [process.wait(timeout=900) for process in processes] == [0, 0]
    ranks = [load_file(tmp_path / f"{rank}.safetensors") for rank in range(2)]
    for name, expected in train_on_share(lambda critic: critic, slice(None)).items():
        assert torch.equal(ranks[0][name], ranks[1][name]), name
        torch.testing.assert_close(ranks[0][name], expected, rtol=1e-3, atol=1e-5)


if __name__ == "__main__":
    number, folder = int(sys.argv[1]), Path(sys.argv[2])
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=number, world_size=2)
    found = train_on_share(
        lambda critic: DistributedDataParallel(critic, broadcast_buffers=False),
        slice(4 * number, 4 * number + 4),
    )
    save_file(found, folder / f"{number}.safetensors")
    dist.destroy_process_group()
