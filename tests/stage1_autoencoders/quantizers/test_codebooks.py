"""Codebooks against slow float64 references and against a peer's package."""

import math

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from torch import Tensor

from latent_prior.stage1_autoencoders.options import QuantizerOptions
from latent_prior.stage1_autoencoders.quantizers.codebooks import (
    Codebook,
    EMACodebook,
    GradientCodebook,
    carry_gradient,
    rotate,
    take_moved_codes,
)

KINDS = [EMACodebook, GradientCodebook]
DISTANCES = ["euclidean", "cosine"]


def make(kind=EMACodebook, *, size=32, dim=6, restart_below=0.0, **settings) -> Codebook:
    torch.manual_seed(0)
    options = QuantizerOptions(
        codebook_size=size,
        code_dim=dim,
        codebook_decay=0.9,
        restart_below=restart_below,
        **settings,
    )
    return kind(options).train()


def started(codebook: Codebook) -> Codebook:
    """Keep the random vectors of the constructor instead of filling from the first batch."""
    codebook.initialised.fill_(True)
    return codebook


def maps(batch=4, dim=6, side=5, seed=1) -> Tensor:
    return torch.randn(batch, dim, side, side, generator=torch.Generator().manual_seed(seed))


def rows_of(vectors: Tensor) -> Tensor:
    return vectors.permute(0, 2, 3, 1).flatten(0, 2)


# Codes and vectors


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("distance", DISTANCES)
def test_codes_round_trip(kind, distance):
    codebook = make(kind, distance=distance)
    codebook(maps())
    codebook.eval()
    output = codebook(maps(seed=2))
    codes = codebook.vectors_to_codes(maps(seed=2))
    assert torch.equal(codes, output.codes)
    assert torch.equal(codebook.codes_to_vectors(codes), output.vectors)
    every = torch.arange(32).view(1, 1, 4, 8)
    assert torch.equal(codebook.vectors_to_codes(codebook.codes_to_vectors(every)), every)


@pytest.mark.parametrize("kind", KINDS)
def test_cosine_ignores_the_length_of_inputs_and_codes(kind):
    codebook = started(make(kind, distance="cosine")).eval()
    codes = codebook.vectors_to_codes(maps())
    assert torch.equal(codebook.vectors_to_codes(100 * maps()), codes)
    codebook.codebook.data.mul_(torch.linspace(0.1, 10, 32)[:, None])
    assert torch.equal(codebook.vectors_to_codes(maps()), codes)
    angles = F.cosine_similarity(rows_of(maps())[:, None], codebook.codebook.detach(), dim=-1)
    assert torch.equal(angles.argmax(1), codes.flatten())


@pytest.mark.parametrize("kind", KINDS)
def test_the_gradient_passes_straight_through(kind):
    codebook = started(make(kind)).eval()
    inputs = maps().requires_grad_()
    output = codebook(inputs)
    probe = torch.randn_like(output.vectors)
    (gradient,) = torch.autograd.grad(output.vectors, inputs, probe)
    assert torch.equal(gradient, probe)


def test_autocast_computes_in_float32():
    codebook = started(make(size=2, dim=1)).eval()
    codebook.codebook.copy_(torch.tensor([[1.0], [1.001]]))  # the same number in bfloat16
    inputs = torch.tensor([1.0004, 1.0006]).view(2, 1, 1, 1)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        output = codebook(inputs)
        codes = codebook.vectors_to_codes(inputs)
        vectors = codebook.codes_to_vectors(codes)
    assert codes.flatten().tolist() == output.codes.flatten().tolist() == [0, 1]
    assert output.vectors.dtype == vectors.dtype == output.loss.dtype == torch.float32
    assert torch.equal(vectors, output.vectors)


# The loss


def sides(loss: Tensor, inputs: Tensor, codebook: Tensor) -> tuple[Tensor, Tensor]:
    """Gradient on the encoder's side and on the codebook's side, as norms."""
    encoder_side, codebook_side = torch.autograd.grad(loss, [inputs, codebook])
    return encoder_side.norm(), codebook_side.norm()


def equation_3_weighs(
    beta: float, loss: Tensor, inputs: Tensor, codebook: Tensor, codes: Tensor
) -> bool:
    """Whether beta weighs the encoder's side and 1 the codebook's side."""
    z, e = rows_of(inputs).detach().double(), codebook.detach().double()
    residual = z - e[codes.flatten()]
    scale = 2 / z.numel()
    expected_codebook = torch.zeros_like(e).index_add_(0, codes.flatten(), -scale * residual)
    found = sides(loss, inputs, codebook)
    expected = (beta * scale * residual.norm(), expected_codebook.norm())
    return all(abs(a - b) <= 1e-5 * b for a, b in zip(found, expected, strict=True))


def test_beta_weighs_the_encoders_side():
    codebook = started(make(GradientCodebook))
    inputs = maps().requires_grad_()
    output = codebook(inputs)
    assert equation_3_weighs(0.25, output.loss, inputs, codebook.codebook, output.codes)


def test_beta_on_the_wrong_term_is_noticed():
    """The default formula of taming-transformers and diffusers weighs the codebook's side."""
    codebook = started(make(GradientCodebook))
    inputs = maps().requires_grad_()
    codes = codebook.vectors_to_codes(inputs)
    quantized = F.embedding(codes.flatten(), codebook.codebook)
    z = rows_of(inputs)
    loss = F.mse_loss(quantized.detach(), z) + 0.25 * F.mse_loss(quantized, z.detach())
    assert not equation_3_weighs(0.25, loss, inputs, codebook.codebook, codes)


@pytest.mark.parametrize("distance", DISTANCES)
def test_losses_equal_a_float64_reference(distance):
    for kind, weight in ((EMACodebook, 0.25), (GradientCodebook, 1.25)):
        codebook = started(make(kind, distance=distance)).eval()
        output = codebook(maps())
        z, e = rows_of(maps()).double(), codebook.codebook.detach().double()
        if distance == "cosine":
            z, e = F.normalize(z, dim=1), F.normalize(e, dim=1)
        expected = weight * torch.cdist(z, e).amin(1).square().sum() / z.numel()
        torch.testing.assert_close(output.loss.double(), expected, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("kind", KINDS)
def test_the_loss_does_not_depend_on_the_batch_size(kind):
    codebook = started(make(kind)).eval()
    inputs = maps()

    def summed_over_the_batch(maps: Tensor) -> Tensor:
        """The formula of pythae (benchmark_VAE): the squared error summed over the images."""
        return (maps - codebook(maps).vectors).square().sum()

    torch.testing.assert_close(codebook(inputs.repeat(3, 1, 1, 1)).loss, codebook(inputs).loss)
    assert summed_over_the_batch(inputs.repeat(3, 1, 1, 1)) > 2 * summed_over_the_batch(inputs)


# The moving averages


@pytest.mark.parametrize("distance", DISTANCES)
@pytest.mark.parametrize("batches", [1, 10])
def test_moving_averages_equal_a_slow_float64_reference(batches, distance):
    codebook = started(make(distance=distance))
    counts, sums, entries = (
        getattr(codebook, name).double() for name in ("counts", "sums", "codebook")
    )
    for step in range(batches):
        codebook(maps(seed=step))
        z = rows_of(maps(seed=step)).double()
        if distance == "cosine":
            z, entries = F.normalize(z, dim=1), F.normalize(entries, dim=1)
        batch_counts, batch_sums = torch.zeros_like(counts), torch.zeros_like(sums)
        for vector in z:
            code = min(range(32), key=lambda k: float((vector - entries[k]).square().sum()))
            batch_counts[code] += 1
            batch_sums[code] += vector
        counts = 0.9 * counts + 0.1 * batch_counts
        sums = 0.9 * sums + 0.1 * batch_sums
        smoothed = (counts + 1e-5) / (counts.sum() + 32 * 1e-5) * counts.sum()
        entries = sums / smoothed[:, None]
        if distance == "cosine":
            entries = F.normalize(entries, dim=1)
    for name, expected in (("counts", counts), ("sums", sums), ("codebook", entries)):
        torch.testing.assert_close(getattr(codebook, name).double(), expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("distance", DISTANCES)
@pytest.mark.parametrize("batches", [1, 10])
def test_moving_averages_equal_vector_quantize_pytorch(batches, distance):
    peer_package = pytest.importorskip("vector_quantize_pytorch")
    peer = peer_package.VectorQuantize(
        dim=6,
        codebook_size=32,
        decay=0.9,
        commitment_weight=0.25,
        threshold_ema_dead_code=0,
        accept_image_fmap=True,
        use_cosine_sim=distance == "cosine",
    ).train()
    codebook = started(make(distance=distance))
    if distance == "cosine":
        codebook.codebook.copy_(F.normalize(codebook.codebook, dim=1))
    peer._codebook.embed.copy_(codebook.codebook[None])
    peer._codebook.embed_avg.copy_(codebook.sums[None])
    for step in range(batches):
        output = codebook(maps(seed=step))
        vectors, codes, loss = peer(maps(seed=step))
        assert torch.equal(output.codes[:, 0], codes)
        torch.testing.assert_close(output.vectors, vectors)
        if (
            distance == "euclidean"
        ):  # for cosine the peer compares the code with the input at its full length
            torch.testing.assert_close(output.loss, loss.squeeze())
    torch.testing.assert_close(codebook.codebook, peer._codebook.embed[0])
    torch.testing.assert_close(codebook.counts, peer._codebook.cluster_size[0])
    torch.testing.assert_close(codebook.sums, peer._codebook.embed_avg[0])


def test_training_minimises_the_distortion():
    for kind in KINDS:
        codebook = make(kind)
        optimizer = (
            torch.optim.Adam(codebook.parameters(), 0.01) if kind is GradientCodebook else None
        )
        errors = []
        for step in range(60):
            output = codebook(maps(batch=8, seed=step))
            errors.append(float((output.vectors - maps(batch=8, seed=step)).square().mean()))
            if optimizer is not None:
                optimizer.zero_grad()
                output.loss.backward()
                optimizer.step()
        assert sum(errors[-10:]) < 0.95 * sum(errors[1:11]), kind


# Starting and restarting


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("distance", DISTANCES)
def test_the_first_training_batch_fills_the_codebook(kind, distance):
    codebook = make(kind, distance=distance)
    before = codebook.codebook.detach().clone()
    codebook.eval()(maps())
    assert torch.equal(codebook.codebook, before)
    output = codebook.train()(1000 + maps())
    assert codebook.initialised
    assert len(output.codes.unique()) == 32
    if distance == "euclidean":
        assert (codebook.codebook > 900).all()


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("distance", DISTANCES)
def test_dead_codes_restart_from_the_batch(kind, distance):
    codebook = started(make(kind, distance=distance, restart_below=0.2))
    far = torch.zeros(6)
    far[0] = 1e3
    codebook._set(torch.arange(32) < 16, far.expand(32, 6), torch.ones(32))
    batch = maps()
    batch[:, 0] -= 5  # nothing is near, by distance or by angle
    for step in range(40):
        torch.manual_seed(step)
        codebook(batch)
    assert len(codebook.vectors_to_codes(batch).unique()) > 28
    assert codebook.codebook.abs().max() < 100


@pytest.mark.parametrize("kind", KINDS)
def test_a_restarted_code_is_a_vector_of_the_batch(kind):
    codebook = started(make(kind, restart_below=0.5))
    codebook(maps())
    codebook.counts[7] = 0.0
    codebook(maps(seed=2))
    if (
        kind is EMACodebook
    ):  # it moved on with the batch, but was found where the batch has a vector
        assert codebook.counts[7] > 0.5 * codebook.counts.mean()
    else:
        assert (rows_of(maps(seed=2)) == codebook.codebook[7].detach()).all(1).any()


def test_moved_codes_are_named_once():
    model = torch.nn.ModuleDict({"a": make(GradientCodebook, restart_below=0.5), "b": make()})
    codebook = model["a"]
    codebook(maps())
    assert take_moved_codes(model)["a.codebook"].all()  # filled from the first batch
    alone = make(GradientCodebook)
    alone(maps())
    assert set(take_moved_codes(alone)) == {name for name, _ in alone.named_parameters()}
    for code in (7, 9):  # two micro-batches of a step
        codebook.counts.fill_(1.0)
        codebook.counts[code] = 0.0
        codebook(maps(seed=2))
    (moved,) = take_moved_codes(model).values()
    assert moved.nonzero().flatten().tolist() == [7, 9]
    codebook.counts.fill_(1.0)
    codebook(maps(seed=3))
    assert take_moved_codes(model) == {}


@pytest.mark.parametrize("kind", KINDS)
def test_without_restarts_dead_codes_stay(kind):
    codebook = started(make(kind, restart_below=0.0))
    far = torch.full((6,), 1e3)
    codebook._set(torch.arange(32) == 3, far.expand(32, 6), torch.ones(32))
    for step in range(20):
        codebook(maps(seed=step))
    assert codebook.counts[3] < 0.2
    assert codebook.vectors_to_codes(maps()).eq(3).sum() == 0


@pytest.mark.parametrize("kind", KINDS)
def test_resuming_from_safetensors_gives_the_same_bits(kind, tmp_path):
    straight, first = make(kind, restart_below=0.5), make(kind, restart_below=0.5)

    def train(codebook: Codebook, steps: range) -> None:
        for step in steps:
            torch.manual_seed(step)
            codebook(maps(seed=step))

    train(straight, range(6))
    train(first, range(3))
    save_file(first.state_dict(), tmp_path / "state.safetensors")
    second = make(kind, restart_below=0.5)
    second.load_state_dict(load_file(tmp_path / "state.safetensors"))
    train(second, range(3, 6))
    assert all(
        torch.equal(value, second.state_dict()[name])
        for name, value in straight.state_dict().items()
    )


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("distance", DISTANCES)
def test_a_codebook_may_start_from_vectors_of_the_batch(kind, distance):
    codebook = make(kind, size=16, distance=distance, initialisation="data", restart_below=0.0)
    rows = rows_of(maps())
    rows = F.normalize(rows, dim=1) if distance == "cosine" else rows
    codebook._prepare(rows)
    assert (codebook.codebook.detach()[:, None] == rows).all(2).any(1).all()
    assert len(codebook.codebook.unique(dim=0)) == 16
    assert codebook.counts.sum() == len(rows)


def test_kmeans_starts_closer_than_drawn_vectors():
    errors = {}
    for start in ("data", "kmeans"):
        codebook = make(size=16, initialisation=start)
        codebook._prepare(rows_of(maps(batch=16)))
        errors[start] = codebook.eval()(maps(batch=16)).loss
    assert errors["kmeans"] < 0.9 * errors["data"]


# The rotation


def rotation(source: Tensor, target: Tensor) -> Tensor:
    """The rotation of one vector's direction into another's in their plane (Rodrigues)."""
    u, goal = source / source.norm(), target / target.norm()
    v = goal - (u @ goal) * u
    v = v / v.norm()
    angle = torch.atan2(goal @ v, goal @ u)
    turn = torch.outer(v, u) - torch.outer(u, v)
    plane = torch.outer(u, u) + torch.outer(v, v)
    return torch.eye(len(u)).double() + angle.sin() * turn + (angle.cos() - 1) * plane


def test_the_rotation_equals_an_explicit_matrix():
    generator = torch.Generator().manual_seed(0)
    vectors, quantized, probe = torch.randn(3, 50, 6, generator=generator).double()
    vectors.requires_grad_()
    found = rotate(vectors, quantized)
    (gradient,) = torch.autograd.grad(found, vectors, probe)
    torch.testing.assert_close(found, quantized, rtol=1e-6, atol=1e-6)
    for z, q, g, expected in zip(vectors.detach(), quantized, probe, gradient, strict=True):
        matrix = q.norm() / z.norm() * rotation(z, q)
        torch.testing.assert_close(matrix @ z, q, rtol=1e-6, atol=1e-6)
        torch.testing.assert_close(matrix.T @ g, expected, rtol=1e-6, atol=1e-6)


def test_the_rotation_equals_vector_quantize_pytorch():
    peer = pytest.importorskip("vector_quantize_pytorch.vector_quantize_pytorch")
    vectors, quantized, probe = torch.randn(3, 50, 6, generator=torch.Generator().manual_seed(1))
    vectors.requires_grad_()
    (found,) = torch.autograd.grad(carry_gradient(vectors, quantized, "rotation"), vectors, probe)
    (expected,) = torch.autograd.grad(peer.rotate_to(vectors, quantized), vectors, probe)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("distance", DISTANCES)
def test_the_rotation_returns_exactly_the_codes(kind, distance):
    codebook = started(make(kind, distance=distance, estimator="rotation")).eval()
    output = codebook(maps())
    assert torch.equal(output.vectors, codebook.codes_to_vectors(output.codes))


def test_the_rotation_keeps_the_angle_between_gradient_and_vector():
    """What the paper's title is about: straight-through keeps the gradient's direction instead."""
    codebook = started(make(estimator="rotation")).eval()
    inputs = maps().requires_grad_()
    output = codebook(inputs)
    probe = torch.randn_like(inputs)
    (gradient,) = torch.autograd.grad(output.vectors, inputs, probe)
    before = F.cosine_similarity(inputs, gradient, dim=1)
    after = F.cosine_similarity(output.vectors, probe, dim=1)
    torch.testing.assert_close(before, after, rtol=1e-4, atol=1e-5)


def test_vectors_without_a_direction_get_a_finite_gradient():
    vectors = torch.tensor([[0.0, 0.0], [1.0, 0.0], [1.0, 0.0]], requires_grad=True)
    quantized = torch.tensor([[1.0, 0.0], [-1.0, 0.0], [0.0, 0.0]])
    found = carry_gradient(vectors, quantized, "rotation")
    found.sum().backward()
    assert torch.equal(found, quantized)
    assert vectors.grad.isfinite().all()


# The entropy term


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("distance", DISTANCES)
def test_the_entropy_term_is_added_with_its_weight(kind, distance):
    plain = started(make(kind, distance=distance)).eval()
    codebook = started(
        make(kind, distance=distance, entropy_weight=0.3, entropy_temperature=0.7)
    ).eval()
    inputs = maps().requires_grad_()
    z, e = rows_of(inputs).detach().double(), codebook.codebook.detach().double()
    if distance == "cosine":
        z, e = F.normalize(z, dim=1), F.normalize(e, dim=1)
    p = (-torch.cdist(z, e).square() / 0.7).softmax(1)
    mean = p.mean(0)
    expected = -(p * p.log()).sum(1).mean() + (mean * mean.log()).sum()
    found = codebook(inputs).loss - plain(inputs).loss
    torch.testing.assert_close(found.double(), 0.3 * expected, rtol=1e-6, atol=1e-6)
    assert torch.autograd.grad(found, inputs)[0].norm() > 0


def test_even_and_sure_use_of_all_codes_is_the_least_entropy_term():
    codebook = started(
        make(size=4, dim=4, commitment=0.0, entropy_weight=1.0, entropy_temperature=0.01)
    )
    codebook.codebook.copy_(torch.eye(4))
    even = torch.eye(4).view(4, 4, 1, 1)
    assert codebook.eval()(even).loss.item() == pytest.approx(-math.log(4))
    assert codebook(even[:1].expand(4, -1, -1, -1)).loss.item() == pytest.approx(0, abs=1e-6)
