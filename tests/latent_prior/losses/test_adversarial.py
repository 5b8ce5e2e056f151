"""Adversarial losses against slow float64 references and peers' mistakes, and across processes."""

import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import torch.distributed as dist
import torch.nn.functional as F
from accelerate import Accelerator
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from latent_prior.losses.adversarial import (
    LeCam,
    adaptive_weight,
    critic_loss,
    frozen,
    generator_loss,
    gradient_penalty,
    reversal,
)

KINDS = ["hinge", "non_saturating", "relativistic"]
SHAPES = [(6, 1), (6, 1, 3, 3)]


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def make_critic(seed: int = 0) -> nn.Module:
    """Smooth, so that finite differences converge; its last bias does not enter the penalty."""
    torch.manual_seed(seed)
    return nn.Sequential(
        nn.Conv2d(2, 4, 3, padding=1), nn.GroupNorm(1, 4), nn.SiLU(), nn.Conv2d(4, 1, 4, stride=4)
    )


# Losses


def slow_losses(kind: str, real: Tensor, fake: Tensor) -> tuple[float, float]:
    """The critic's and the generator's loss, answer by answer."""
    critic, generator = [], []
    for r, f in zip(real.flatten().double(), fake.flatten().double(), strict=True):
        if kind == "hinge":
            critic.append(max(0, 1 - r) + max(0, 1 + f))
            generator.append(-f)
        elif kind == "non_saturating":
            critic.append(-torch.log(torch.sigmoid(r)) - torch.log(1 - torch.sigmoid(f)))
            generator.append(-torch.log(torch.sigmoid(f)))
        else:
            critic.append(-torch.log(torch.sigmoid(r - f)))
            generator.append(-torch.log(torch.sigmoid(f - r)))
    return float(sum(critic) / len(critic)), float(sum(generator) / len(generator))


def test_reversal_turns_the_critics_gradient_into_the_generators():
    real = torch.tensor([0.0, -20.0, 3.0, 12.0, 0.5])
    fake = torch.tensor([0.0, 5.0, -2.0, -12.0, 8.0], requires_grad=True)
    (critic,) = torch.autograd.grad(critic_loss("relativistic", real, fake), fake)
    (generator,) = torch.autograd.grad(generator_loss("relativistic", fake, real), fake)
    factor = reversal(real, fake)
    assert not factor.requires_grad
    torch.testing.assert_close(critic * factor, generator, rtol=1e-4, atol=0)
    assert reversal(torch.tensor([1e4]), torch.tensor([-1e4])).isfinite().all()


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("shape", SHAPES)
def test_losses_equal_a_slow_reference(kind, shape):
    real, fake = 2 * normal(*shape), 2 * normal(*shape, seed=1)
    critic, generator = slow_losses(kind, real, fake)
    assert critic_loss(kind, real, fake).item() == pytest.approx(critic, rel=1e-6)
    assert generator_loss(kind, fake, real).item() == pytest.approx(generator, rel=1e-6)


@pytest.mark.parametrize("kind", KINDS)
def test_losses_do_not_depend_on_the_batch_size(kind):
    real, fake = normal(6, 1, 2, 2), normal(6, 1, 2, 2, seed=1)
    for loss in (critic_loss(kind, real, fake), generator_loss(kind, fake, real)):
        assert torch.isfinite(loss)
    more = [logits.repeat(5, 1, 2, 1) for logits in (real, fake)]
    torch.testing.assert_close(critic_loss(kind, *more), critic_loss(kind, real, fake))
    torch.testing.assert_close(
        generator_loss(kind, more[1], more[0]), generator_loss(kind, fake, real)
    )


@pytest.mark.parametrize("kind", KINDS)
def test_losses_are_computed_in_float32(kind):
    real, fake = normal(64).bfloat16(), normal(64, seed=1).bfloat16()
    assert torch.equal(critic_loss(kind, real, fake), critic_loss(kind, real.float(), fake.float()))
    expected = generator_loss(kind, fake.float(), real.float())
    assert torch.equal(generator_loss(kind, fake, real), expected)


def parts_real_from_fake(loss) -> bool:
    """Whether a critic's loss drives real logits up and fake ones down, and vanishes far apart."""
    real, fake = torch.zeros(1, requires_grad=True), torch.zeros(1, requires_grad=True)
    upwards, downwards = torch.autograd.grad(loss(real, fake), [real, fake])
    at_end = loss(torch.tensor([30.0]), torch.tensor([-30.0]))
    return bool(upwards < 0 and downwards > 0 and abs(at_end) < 1e-6)


@pytest.mark.parametrize("kind", KINDS)
def test_the_critic_parts_real_from_fake(kind):
    assert parts_real_from_fake(lambda real, fake: critic_loss(kind, real, fake))


def test_exchanged_arguments_of_the_cross_entropy_are_noticed():
    """LlamaGen's non-saturating loss swaps the labels and the logits (its issue 84)."""

    def exchanged(real: Tensor, fake: Tensor) -> Tensor:
        cross_entropy = F.binary_cross_entropy_with_logits
        return cross_entropy(torch.ones_like(real), real) + cross_entropy(
            torch.zeros_like(fake), fake
        )

    def right(real: Tensor, fake: Tensor) -> Tensor:
        cross_entropy = F.binary_cross_entropy_with_logits
        return cross_entropy(real, torch.ones_like(real)) + cross_entropy(
            fake, torch.zeros_like(fake)
        )

    assert not parts_real_from_fake(exchanged)
    real, fake = normal(50), normal(50, seed=1)
    torch.testing.assert_close(critic_loss("non_saturating", real, fake), right(real, fake))
    assert abs(critic_loss("non_saturating", real, fake) - exchanged(real, fake)) > 0.01


@pytest.mark.parametrize("kind", KINDS)
def test_the_generator_gets_a_gradient_where_the_critic_is_sure(kind):
    """The saturating loss log(1 - sigmoid(fake)) would have next to none."""
    fake = torch.full((4,), -20.0, requires_grad=True)
    (gradient,) = torch.autograd.grad(generator_loss(kind, fake, torch.full((4,), 20.0)), fake)
    assert torch.allclose(gradient, torch.full((4,), -1 / 4))


def test_only_the_difference_of_a_pair_counts():
    real, fake = normal(8), normal(8, seed=1)
    moved = critic_loss("relativistic", real + 5, fake + 5)
    torch.testing.assert_close(moved, critic_loss("relativistic", real, fake))
    shuffled = critic_loss("relativistic", real, fake.flip(0))
    assert abs(shuffled - critic_loss("relativistic", real, fake)) > 1e-3


def test_the_hinge_ignores_answers_beyond_the_margin():
    real, fake = torch.tensor([1.5, 0.5], requires_grad=True), torch.tensor([-1.5, -0.5])
    (gradient,) = torch.autograd.grad(critic_loss("hinge", real, fake), real)
    assert gradient.tolist() == [0, -0.5]


# Gradient penalty


def slow_penalty(critic: nn.Module, images: Tensor) -> float:
    """From central differences of the summed logits, pixel by pixel, in float64."""
    critic, images, total, step = critic.double(), images.double(), 0.0, 1e-5
    with torch.no_grad():
        for image in images:
            for pixel in range(image.numel()):
                there, back = image.clone(), image.clone()
                there.view(-1)[pixel] += step
                back.view(-1)[pixel] -= step
                slope = (critic(there[None]).sum() - critic(back[None]).sum()) / (2 * step)
                total += float(slope) ** 2
    return total / 2 / len(images)


def test_the_penalty_equals_finite_differences():
    images = normal(3, 2, 8, 8)
    expected = slow_penalty(make_critic(), images)
    assert gradient_penalty(make_critic(), images).item() == pytest.approx(expected, rel=1e-5)


def test_the_penalty_of_a_linear_critic_is_its_weights_length():
    weight = normal(2, 4, 4)
    penalty = gradient_penalty(lambda images: (images * weight).sum((1, 2, 3)), normal(5, 2, 4, 4))
    torch.testing.assert_close(penalty, weight.square().sum() / 2)


def test_the_penalty_teaches_the_critic():
    """Its gradient in a weight, against the difference of two penalties."""
    critic, images, step = make_critic(), normal(3, 2, 8, 8), 1e-4
    gradient_penalty(critic, images).backward()
    weight = critic[0].weight
    found, losses = weight.grad[1, 0, 1, 1].item(), []
    for sign in (1, -1):
        moved = make_critic().double()
        with torch.no_grad():
            moved[0].weight[1, 0, 1, 1] += sign * step
        losses.append(slow_penalty(moved, images))
    assert found == pytest.approx((losses[0] - losses[1]) / (2 * step), rel=1e-3)


def test_the_penalty_neither_depends_on_the_batch_nor_reaches_the_images():
    critic, images = make_critic(), normal(4, 2, 8, 8)
    whole = gradient_penalty(critic, images)
    each = torch.stack([gradient_penalty(critic, image[None]) for image in images])
    torch.testing.assert_close(whole, each.mean())
    watched = images.clone().requires_grad_()
    gradient_penalty(critic, watched).backward()
    assert watched.grad is None


def test_the_penalty_is_computed_outside_autocast():
    critic, images = make_critic(), normal(4, 2, 8, 8)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        inside = gradient_penalty(critic, images)
    assert torch.equal(inside, gradient_penalty(critic, images))


# LeCAM


def batches(count: int = 5) -> list[tuple[Tensor, Tensor]]:
    return [
        (normal(4, 1, 2, 2, seed=2 * i) + 1, normal(4, 1, 2, 2, seed=2 * i + 1) - 1)
        for i in range(count)
    ]


def test_lecam_equals_a_slow_reference():
    lecam, average = LeCam(decay=0.9), None
    for real, fake in batches():
        means = (float(real.double().mean()), float(fake.double().mean()))
        average = average and tuple(0.9 * a + 0.1 * m for a, m in zip(average, means, strict=True))
        average = average or means
        expected = float(
            (real.double() - average[1]).square().mean()
            + (fake.double() - average[0]).square().mean()
        )
        assert lecam(real, fake).item() == pytest.approx(expected, rel=1e-6)


def test_lecam_pulls_the_two_sides_together():
    lecam = LeCam()
    real, fake = torch.full((8,), 3.0, requires_grad=True), torch.full((8,), -3.0)
    fake.requires_grad_()
    down, up = torch.autograd.grad(lecam(real, fake), [real, fake])
    # 2 (3 - (-3)) / 8 each: the averages themselves pass no gradient on.
    assert torch.allclose(down, torch.full((8,), 1.5))
    assert torch.allclose(up, torch.full((8,), -1.5))


def test_a_restored_lecam_goes_on(tmp_path):
    whole, first, second = LeCam(), LeCam(), LeCam()
    expected = [whole(*batch) for batch in batches()]
    for batch in batches()[:2]:
        first(*batch)
    save_file(first.state_dict(), tmp_path / "lecam.safetensors")
    second.load_state_dict(load_file(tmp_path / "lecam.safetensors"))
    assert [second(*batch) for batch in batches()[2:]] == expected[2:]


# Adaptive weight


@pytest.fixture(scope="module")
def accelerator():
    return Accelerator(cpu=True)


def decoded(seed: int = 0, batch: int = 4) -> tuple[nn.Module, Tensor, Tensor, Tensor]:
    """A last layer, and reconstruction and adversarial loss of what it makes of random vectors."""
    torch.manual_seed(seed)
    layer = nn.Conv2d(3, 2, 3, padding=1)
    critic = make_critic(seed + 1)
    images = layer(normal(batch, 3, 8, 8, seed=seed))
    reconstruction = (images - normal(batch, 2, 8, 8, seed=seed + 1)).square().mean()
    return layer, images, reconstruction, generator_loss("hinge", critic(images))


def test_the_adaptive_weight_is_the_ratio_of_gradient_lengths(accelerator):
    layer, _, reconstruction, adversarial = decoded()
    weight = adaptive_weight(reconstruction, adversarial, layer.weight, accelerator)
    lengths = []
    for loss in (reconstruction, adversarial):
        (gradient,) = torch.autograd.grad(loss, layer.weight, retain_graph=True)
        lengths.append(float(gradient.double().square().sum().sqrt()))
    assert weight.item() == pytest.approx(lengths[0] / (lengths[1] + 1e-6), rel=1e-6)
    assert not weight.requires_grad
    assert layer.weight.grad is None
    (reconstruction + weight * adversarial).backward()  # the graph is still there


def test_the_adaptive_weight_balances_whatever_the_scale_of_the_losses(accelerator):
    layer, _, reconstruction, adversarial = decoded()
    weight = adaptive_weight(reconstruction, adversarial, layer.weight, accelerator)
    louder = adaptive_weight(reconstruction, 50 * adversarial, layer.weight, accelerator)
    torch.testing.assert_close(50 * louder, weight, rtol=1e-4, atol=0)
    more = adaptive_weight(7 * reconstruction, adversarial, layer.weight, accelerator)
    torch.testing.assert_close(more, 7 * weight)


def test_the_adaptive_weight_stays_finite(accelerator):
    layer, images, reconstruction, _ = decoded()
    silent = adaptive_weight(1e6 * reconstruction, 0 * images.sum(), layer.weight, accelerator)
    assert silent == 1e4
    none = adaptive_weight(0 * images.sum(), 0 * images.sum(), layer.weight, accelerator)
    assert none == 0
    overflown = adaptive_weight(
        images.sum() * torch.inf, images.sum() * torch.inf, layer.weight, accelerator
    )
    assert overflown == 0


def test_small_gradients_of_float16_are_scaled(accelerator):
    """A gradient of 1e-8 is zero in float16; accelerate has no scaler on a CPU, so use one."""
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**14)
    with_scaler = SimpleNamespace(scaler=scaler, reduce=accelerator.reduce)

    def weight(dtype: torch.dtype, accelerator: object) -> float:
        torch.manual_seed(0)
        layer = nn.Linear(8, 4)
        with torch.autocast("cpu", dtype=torch.float16, enabled=dtype is torch.float16):
            images = layer(normal(16, 8)).float()
        losses = 1e-4 * images.square().mean(), 1e-6 * images.mean()
        return adaptive_weight(*losses, layer.weight, accelerator).item()

    exact = weight(torch.float32, accelerator)
    assert weight(torch.float16, with_scaler) == pytest.approx(exact, rel=0.01)
    assert weight(torch.float16, accelerator) > 1.2 * exact


# Whose gradients


def test_the_generators_half_leaves_nothing_in_the_critic():
    critic, (layer, images, _, _) = make_critic(), decoded()
    critic[0].bias.requires_grad_(False)
    before = [parameter.requires_grad for parameter in critic.parameters()]
    with frozen(critic):
        loss = generator_loss("hinge", critic(images))
    assert [parameter.requires_grad for parameter in critic.parameters()] == before
    loss.backward()
    assert all(parameter.grad is None for parameter in critic.parameters())
    assert layer.weight.grad.abs().sum() > 0

    generator_loss("hinge", critic(decoded()[1])).backward()  # unfrozen, as peers do
    assert critic[0].weight.grad.abs().sum() > 0


def test_the_generator_learns_the_same_from_a_frozen_critic():
    gradients = []
    for freeze in (True, False):
        critic, (layer, images, _, _) = make_critic(), decoded()
        if freeze:
            with frozen(critic):
                generator_loss("hinge", critic(images)).backward()
        else:
            generator_loss("hinge", critic(images)).backward()
        gradients.append(layer.weight.grad)
    assert torch.equal(*gradients)


def test_an_error_thaws_the_critic():
    critic = make_critic()
    critic[0].bias.requires_grad_(False)
    before = [parameter.requires_grad for parameter in critic.parameters()]
    with pytest.raises(RuntimeError), frozen(critic):
        critic(torch.zeros(3))
    assert [parameter.requires_grad for parameter in critic.parameters()] == before


def halves_of_a_step(*, detach: bool, freeze: bool) -> tuple[Tensor, Tensor]:
    """Gradients that the critic's half leaves in the generator and the other half in the critic."""
    critic, (layer, images, _, _) = make_critic(), decoded()
    if freeze:
        with frozen(critic):
            generator_loss("hinge", critic(images)).backward(retain_graph=True)
    else:
        generator_loss("hinge", critic(images)).backward(retain_graph=True)
    in_critic = sum(p.grad.abs().sum() for p in critic.parameters() if p.grad is not None)
    layer.zero_grad()
    fake = images.detach() if detach else images
    critic_loss("hinge", critic(normal(4, 2, 8, 8)), critic(fake)).backward()
    in_generator = 0 if layer.weight.grad is None else layer.weight.grad.abs().sum()
    return in_generator, in_critic


def test_neither_half_of_a_step_reaches_the_other_network():
    """Shubhamai/pytorch-vqgan issue 3: the generator was stepped with the critic's gradients."""
    assert halves_of_a_step(detach=True, freeze=True) == (0, 0)
    in_generator, in_critic = halves_of_a_step(detach=False, freeze=False)
    assert in_generator > 0
    assert in_critic > 0


# Processes


class OneLogit(nn.Module):
    """The critic, with a way to its logits past the wrapper."""

    def __init__(self) -> None:
        super().__init__()
        self.net = make_critic()

    def forward(self, images: Tensor) -> Tensor:
        return self.net(images)


def adversarial_step(accelerator: Accelerator, share: slice) -> dict[str, Tensor]:
    """Two steps of a critic with R1, R2, LeCAM and the adaptive weight on a share of the images."""
    critic, lecam = OneLogit(), LeCam()
    wrapped, optimizer = accelerator.prepare(critic, torch.optim.SGD(critic.parameters(), 0.1))
    layer, _, _, _ = decoded()
    for step in range(2):
        images = normal(4, 2, 8, 8, seed=step)[share]
        vectors = normal(4, 3, 8, 8, seed=10 + step)[share]
        fakes = layer(vectors)
        with frozen(critic):
            adversarial = generator_loss("hinge", critic(fakes))
        reconstruction = (fakes - images).square().mean()
        weight = adaptive_weight(reconstruction, adversarial, layer.weight, accelerator)
        real, fake = wrapped(torch.cat([images, fakes.detach()])).chunk(2)
        penalty = gradient_penalty(critic, images) + gradient_penalty(critic, fakes.detach())
        loss = critic_loss("relativistic", real, fake) + penalty + lecam(real, fake)
        accelerator.backward(loss)
        optimizer.step()
        optimizer.zero_grad()
    return {**critic.state_dict(), **lecam.state_dict(), "weight": weight}


def test_two_processes_equal_one_with_the_joint_batch(tmp_path: Path, accelerator):
    store = f"file://{tmp_path}/store"
    processes = [
        subprocess.Popen(
            [sys.executable, __file__, store, str(tmp_path)],
            env={
                **os.environ,
                "PYTHONPATH": str(Path(__file__).parents[3]),
                "ACCELERATE_USE_CPU": "true",
                "MASTER_ADDR": "localhost",  # asked for, not used: the group meets in the file
                "MASTER_PORT": "1",
                "OMP_NUM_THREADS": "1",
                "WORLD_SIZE": "2",
                "RANK": str(rank),
                "LOCAL_RANK": str(rank),
            },
        )
        for rank in range(2)
    ]
    assert [process.wait(timeout=900) for process in processes] == [0, 0]
    ranks = [load_file(tmp_path / f"{rank}.safetensors") for rank in range(2)]
    for name, expected in adversarial_step(accelerator, slice(None)).items():
        assert torch.equal(ranks[0][name], ranks[1][name]), name
        torch.testing.assert_close(ranks[0][name], expected, rtol=1e-4, atol=1e-6)


if __name__ == "__main__":
    number = int(os.environ["RANK"])
    dist.init_process_group("gloo", init_method=sys.argv[1], rank=number, world_size=2)
    accelerator = Accelerator()
    assert accelerator.num_processes == 2
    found = adversarial_step(accelerator, slice(2 * number, 2 * number + 2))
    save_file(found, Path(sys.argv[2], f"{number}.safetensors"))
    dist.destroy_process_group()
