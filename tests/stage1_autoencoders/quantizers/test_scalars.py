"""Quantizers without a table against float64 references and a peer's package."""

import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from latent_prior.stage1_autoencoders.options import QuantizerOptions
from latent_prior.stage1_autoencoders.quantizers.scalars import (
    FiniteScalars,
    ScalarQuantizer,
    Signs,
    SphericalSigns,
    choose_levels,
)

LEVELS = [[3], [8, 4], [7, 5, 3], [8, 5, 5, 5], [8, 8, 8]]
SIGNS = [Signs, SphericalSigns]


def finite(levels: list[int]) -> FiniteScalars:
    options = QuantizerOptions(quantizer="fsq", codebook_size=math.prod(levels), fsq_levels=levels)
    return FiniteScalars(options)


def signs(kind, size=64, **settings) -> Signs:
    name = "bsq" if kind is SphericalSigns else "lfq"
    return kind(QuantizerOptions(quantizer=name, codebook_size=size, **settings)).train()


def maps(quantizer: ScalarQuantizer, batch=4, seed=1) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return 2 * torch.randn(batch, quantizer.dim, 5, 5, generator=generator)


def peers():
    return pytest.importorskip("vector_quantize_pytorch")


# Finite scalars


def finite_reference(inputs: Tensor, levels: list[int]) -> tuple[Tensor, Tensor, Tensor]:
    """Bounded and quantized values (B, d, H, W) in units of L // 2, and codes, by dimension."""
    bounded, quantized = inputs.double().clone(), inputs.double().clone()
    codes, stride = torch.zeros_like(inputs[:, 0], dtype=torch.int64), 1
    for place, level in enumerate(levels):
        reach = (level - 1) * 1.001 / 2
        offset = 0.5 if level % 2 == 0 else 0.0
        values = (inputs[:, place].double() + math.atanh(offset / reach)).tanh() * reach - offset
        bounded[:, place] = values / (level // 2)
        quantized[:, place] = values.round() / (level // 2)
        codes += stride * (values.round().long() + level // 2)
        stride *= level
    return bounded, quantized, codes


@pytest.mark.parametrize("levels", LEVELS, ids=str)
def test_finite_scalars_equal_a_float64_reference(levels):
    quantizer = finite(levels)
    inputs = maps(quantizer).requires_grad_()
    output = quantizer(inputs)
    bounded, quantized, codes = finite_reference(inputs, levels)
    torch.testing.assert_close(output.vectors.double(), quantized, rtol=1e-6, atol=1e-6)
    assert torch.equal(output.codes[:, 0], codes)
    assert output.loss == 0
    probe = torch.randn_like(inputs)
    (found,) = torch.autograd.grad(output.vectors, inputs, probe)
    (expected,) = torch.autograd.grad(bounded, inputs, probe.double())
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("levels", LEVELS, ids=str)
def test_codes_of_finite_scalars_are_a_bijection(levels):
    """Every code is in reach of some input, and spells the digits that it came from."""
    quantizer = finite(levels)
    codes = torch.arange(quantizer.vocabulary).view(-1, 1, 1, 1)
    vectors = quantizer.codes_to_vectors(codes)
    half = torch.tensor(levels).view(-1, 1, 1) // 2
    integers = (vectors * half).round()
    assert all(
        set(integers[:, place].flatten().tolist()) == set(range(-(level // 2), (level + 1) // 2))
        for place, level in enumerate(levels)
    )
    even = torch.tensor(levels).view(-1, 1, 1) % 2 == 0
    reach = (torch.tensor(levels).view(-1, 1, 1) - 1) * 1.001 / 2
    offset = even * 0.5
    inputs = torch.atanh((integers + offset) / reach) - torch.atanh(offset / reach)
    assert torch.equal(quantizer.vectors_to_codes(inputs), codes)


@pytest.mark.parametrize("levels", LEVELS, ids=str)
def test_finite_scalars_equal_vector_quantize_pytorch(levels):
    peer = peers().FSQ(levels)
    quantizer = finite(levels)
    inputs = maps(quantizer).requires_grad_()
    output = quantizer(inputs)
    vectors, codes = peer(inputs)
    torch.testing.assert_close(output.vectors, vectors)
    assert torch.equal(output.codes[:, 0], codes.long())
    torch.testing.assert_close(
        quantizer.codes_to_vectors(output.codes), peer.indices_to_codes(codes)
    )
    probe = torch.randn_like(inputs)
    torch.testing.assert_close(
        torch.autograd.grad(output.vectors, inputs, probe),
        torch.autograd.grad(vectors, inputs, probe),
    )


def test_without_a_middle_zero_still_is_a_value():
    """An even number of levels without the offset would round zero to either side."""
    quantizer = finite([8, 4])
    assert torch.equal(quantizer(0.05 * torch.randn(9, 2, 1, 1)).vectors, torch.zeros(9, 2, 1, 1))


# Signs


def sign_reference(kind, inputs: Tensor) -> tuple[Tensor, Tensor]:
    """What is rounded, and the codes with the first dimension as the most significant bit."""
    bounded = inputs.double()
    if kind is SphericalSigns:
        bounded = bounded / bounded.square().sum(1, keepdim=True).sqrt()
    codes = torch.zeros_like(inputs[:, 0], dtype=torch.int64)
    for plane in (inputs > 0).long().unbind(1):
        codes = 2 * codes + plane
    return bounded, codes


@pytest.mark.parametrize("kind", SIGNS)
def test_signs_equal_a_float64_reference(kind):
    quantizer = signs(kind, commitment=0.3, entropy_weight=0.2, entropy_temperature=0.5)
    inputs = maps(quantizer).requires_grad_()
    output = quantizer(inputs)
    bounded, codes = sign_reference(kind, inputs)
    scale = 1 / math.sqrt(6) if kind is SphericalSigns else 1.0
    quantized = scale * (2.0 * (inputs > 0) - 1)
    assert torch.equal(output.codes[:, 0], codes)
    torch.testing.assert_close(output.vectors, quantized, rtol=1e-6, atol=1e-6)

    z = bounded.permute(0, 2, 3, 1).reshape(-1, 6)
    table = scale * torch.cartesian_prod(*[torch.tensor([-1.0, 1.0])] * 6).double()
    p = (-torch.cdist(z, table).square() / 0.5).softmax(1)
    term = torch.special.entr(p).sum(1).mean() - torch.special.entr(p.mean(0)).sum()
    expected = 0.3 * (bounded - quantized).square().mean() + 0.2 * term
    torch.testing.assert_close(output.loss.double(), expected, rtol=1e-6, atol=1e-6)

    probe = torch.randn_like(inputs)
    for found, slow in ((output.vectors, bounded), (output.loss, expected)):
        weight = probe if found.ndim else torch.ones(())
        torch.testing.assert_close(
            torch.autograd.grad(found, inputs, weight, retain_graph=True),
            torch.autograd.grad(slow, inputs, weight.double(), retain_graph=True),
            rtol=1e-4,
            atol=1e-6,
        )


def test_the_gradient_of_plain_signs_is_the_identity():
    quantizer = signs(Signs)
    inputs = maps(quantizer).requires_grad_()
    probe = torch.randn_like(inputs)
    (found,) = torch.autograd.grad(quantizer(inputs).vectors, inputs, probe)
    assert torch.equal(found, probe)


@pytest.mark.parametrize("kind", SIGNS)
def test_sign_codes_are_a_bijection(kind):
    quantizer = signs(kind, size=512)
    codes = torch.arange(512).view(2, 1, 16, 16)
    vectors = quantizer.codes_to_vectors(codes)
    assert torch.equal(quantizer.vectors_to_codes(vectors), codes)
    assert len(vectors.transpose(0, 1).flatten(1).T.unique(dim=0)) == 512
    if kind is SphericalSigns:
        torch.testing.assert_close(vectors.norm(dim=1), torch.ones(2, 16, 16))


def test_spherical_signs_ignore_the_length():
    quantizer = signs(SphericalSigns, entropy_weight=0.2, entropy_temperature=0.5)
    one, other = quantizer(maps(quantizer)), quantizer(10 * maps(quantizer))
    torch.testing.assert_close(one.loss, other.loss)
    assert torch.equal(one.codes, other.codes)


@pytest.mark.parametrize("kind", SIGNS)
def test_signs_equal_vector_quantize_pytorch(kind):
    """At a temperature where no probability falls below 1e-5, where the peer cuts its logarithm."""
    peer = peers().LFQ(
        codebook_size=8,
        entropy_loss_weight=0.2,
        commitment_loss_weight=0.3,
        spherical=kind is SphericalSigns,
    )
    quantizer = signs(kind, 8, commitment=0.3, entropy_weight=0.2, entropy_temperature=5.0)
    inputs = (maps(quantizer) / 4).requires_grad_()
    output = quantizer(inputs)
    expected = peer(inputs, inv_temperature=1 / 5.0)
    assert torch.equal(output.codes[:, 0], expected.indices.long())
    torch.testing.assert_close(output.vectors, expected.quantized)
    torch.testing.assert_close(output.loss, expected.entropy_aux_loss, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(
        torch.autograd.grad(output.loss, inputs),
        torch.autograd.grad(expected.entropy_aux_loss, inputs),
        rtol=1e-4,
        atol=1e-6,
    )
    assert torch.equal(
        quantizer.codes_to_vectors(output.codes) > 0, peer.indices_to_codes(expected.indices) > 0
    )


@pytest.mark.parametrize("kind", SIGNS)
def test_the_commitment_pulls_to_the_nearest_code(kind):
    quantizer = signs(kind, commitment=1.0)
    inputs = maps(quantizer)
    codes = quantizer.vectors_to_codes(inputs)
    unit = F.normalize(inputs, dim=1) if kind is SphericalSigns else inputs
    table = quantizer.codes_to_vectors(torch.arange(64).view(1, 1, 8, 8)).flatten(2)[0].T
    distances = torch.cdist(unit.permute(0, 2, 3, 1).reshape(-1, 6), table)
    assert torch.equal(distances.argmin(1), codes.flatten())


@pytest.mark.parametrize(
    ("size", "levels"),
    [
        (240, [8, 6, 5]),
        (1000, [8, 5, 5, 5]),
        (4375, [7, 5, 5, 5, 5]),
        (15360, [8, 8, 8, 6, 5]),
        (64000, [8, 8, 8, 5, 5, 5]),
        (512, [8, 8, 8]),
        (1024, [8, 8, 4, 4]),
        (4096, [8, 8, 8, 8]),
    ],
)
def test_levels_are_the_papers_or_near(size, levels):
    assert choose_levels(size) == levels
    quantizer = FiniteScalars(QuantizerOptions(quantizer="fsq", codebook_size=size))
    assert quantizer.levels.flatten().tolist() == levels
