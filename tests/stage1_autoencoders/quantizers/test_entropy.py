"""The entropy terms against float64 references and each other."""

import math

import pytest
import torch
from torch import Tensor

from latent_prior.stage1_autoencoders.options import QuantizerOptions
from latent_prior.stage1_autoencoders.quantizers import entropy, make_quantizer
from latent_prior.stage1_autoencoders.quantizers.entropy import codebook_entropy, sign_entropy


def reference(vectors: Tensor, codebook: Tensor, temperature: float) -> Tensor:
    p = (-torch.cdist(vectors, codebook).square() / temperature).softmax(1)
    mean = p.mean(0)
    return torch.special.entr(p).sum(1).mean() - torch.special.entr(mean).sum()


def normal(*shape: int, seed=0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def sign_codes(d: int, scale: float) -> Tensor:
    bits = torch.cartesian_prod(*[torch.tensor([-1.0, 1.0])] * d).view(-1, d)
    return scale * bits.double()


@pytest.mark.parametrize("temperature", [0.3, 1.0, 10.0])
def test_codebook_entropy_equals_a_float64_reference(temperature):
    vectors, codebook = normal(200, 5).requires_grad_(), normal(40, 5, seed=1).requires_grad_()
    found = codebook_entropy(vectors, codebook, temperature, joint=False)
    expected = reference(vectors.double(), codebook.double(), temperature)
    torch.testing.assert_close(found.double(), expected, rtol=1e-6, atol=1e-6)
    for one, other in zip(
        torch.autograd.grad(found, [vectors, codebook]),
        torch.autograd.grad(expected, [vectors, codebook]),
        strict=True,
    ):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-6)


def test_codebook_entropy_does_not_depend_on_the_blocks(monkeypatch):
    vectors, codebook = normal(200, 5).requires_grad_(), normal(40, 5, seed=1).requires_grad_()
    whole = codebook_entropy(vectors, codebook, 0.5, joint=False)
    expected = torch.autograd.grad(whole, [vectors, codebook])
    monkeypatch.setattr(entropy, "_TILE_CPU", 40 * 17)
    blocks = codebook_entropy(vectors, codebook, 0.5, joint=False)
    found = torch.autograd.grad(blocks, [vectors, codebook])
    torch.testing.assert_close(blocks, whole)
    torch.testing.assert_close(found, expected)


@pytest.mark.parametrize(
    ("quantizer", "distance"),
    [("ema", "euclidean"), ("ema", "cosine"), ("gradient", "euclidean"), ("residual", "euclidean")],
)
def test_training_moves_the_codebook_only_after_the_entropy_was_computed(
    quantizer, distance, monkeypatch
):
    """4,096 vectors and 512 codes are two blocks, recomputed when the codebook has moved."""
    options = QuantizerOptions(
        quantizer=quantizer, codebook_size=512, code_dim=16, distance=distance,
        entropy_weight=0.1, entropy_temperature=0.5, residual_stages=2, initialisation="data",
    )  # fmt: skip
    assert entropy._TILE_CPU < 512 * 64 * 8 * 8
    outcomes = []
    for tile in (entropy._TILE_CPU, 2**30):
        monkeypatch.setattr(entropy, "_TILE_CPU", tile)
        torch.manual_seed(0)
        model = make_quantizer(options).train()
        with torch.no_grad():
            model(normal(64, 16, 8, 8, seed=1))  # fills the codebook
        inputs = normal(64, 16, 8, 8).requires_grad_()
        output = model(inputs)
        output.loss.backward()
        learnt = [parameter.grad for parameter in model.parameters()]
        outcomes.append([output.loss, inputs.grad, *learnt, *model.state_dict().values()])
    torch.testing.assert_close(*outcomes, rtol=1e-4, atol=1e-7)


def test_a_common_offset_changes_nothing():
    vectors, codebook = normal(50, 4), normal(20, 4, seed=1)
    torch.testing.assert_close(
        codebook_entropy(vectors + 1024, codebook + 1024, 0.5, joint=False),
        codebook_entropy(vectors, codebook, 0.5, joint=False),
        rtol=1e-3,
        atol=1e-3,
    )


@pytest.mark.parametrize("scale", [1.0, 0.3])
@pytest.mark.parametrize("d", [1, 2, 5, 8])
def test_sign_entropy_equals_the_sum_over_all_codes(d, scale):
    vectors = normal(100, d).requires_grad_()
    found = sign_entropy(vectors, scale, 0.8, joint=False)
    expected = reference(vectors.double(), sign_codes(d, scale), 0.8)
    torch.testing.assert_close(found.double(), expected, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(
        torch.autograd.grad(found, vectors),
        torch.autograd.grad(expected, vectors),
        rtol=1e-4,
        atol=1e-6,
    )


def test_the_entropy_of_many_signs_is_bounded_by_that_of_each(monkeypatch):
    vectors = normal(100, 6)
    exact = sign_entropy(vectors, 1.0, 0.8, joint=False)
    monkeypatch.setattr(entropy, "EXACT_SIGNS", 5)
    bound = sign_entropy(vectors, 1.0, 0.8, joint=False)
    plus = torch.sigmoid(4 * vectors.double() / 0.8)
    each = torch.stack([plus, 1 - plus])
    expected = torch.special.entr(each).sum((0, 2)).mean() - torch.special.entr(each.mean(1)).sum()
    torch.testing.assert_close(bound.double(), expected, rtol=1e-6, atol=1e-6)
    assert bound < exact


def test_the_bound_is_reached_by_independent_signs(monkeypatch):
    vectors = sign_codes(4, 0.2).float()
    exact = sign_entropy(vectors, 1.0, 0.8, joint=False)
    monkeypatch.setattr(entropy, "EXACT_SIGNS", 3)
    torch.testing.assert_close(sign_entropy(vectors, 1.0, 0.8, joint=False), exact)


@pytest.mark.parametrize("d", [4, entropy.EXACT_SIGNS + 1])
def test_vectors_far_from_a_decision_have_a_finite_gradient(d):
    vectors = torch.cat([1e4 * normal(20, d), torch.zeros(1, d)]).requires_grad_()
    sign_entropy(vectors, 1.0, 0.01, joint=False).backward()
    assert vectors.grad.isfinite().all()
    vectors.grad = None
    codebook_entropy(vectors, normal(30, d), 0.01, joint=False).backward()
    assert vectors.grad.isfinite().all()


def test_limits():
    vectors = sign_codes(4, 1.0).float()
    assert sign_entropy(vectors, 1.0, 0.01, joint=False).item() == pytest.approx(-math.log(16))
    assert sign_entropy(vectors[:1], 1.0, 0.5, joint=False).item() == pytest.approx(0, abs=1e-6)
    assert sign_entropy(vectors, 1.0, 1e9, joint=False).item() == pytest.approx(0, abs=1e-6)
