"""Residual codebooks against a slow float64 reference and a peer's package."""

from itertools import pairwise

import pytest
import torch
from torch import Tensor

from latent_prior.stage1_autoencoders.options import QuantizerOptions
from latent_prior.stage1_autoencoders.quantizers.codebooks import rotate, rows_of
from latent_prior.stage1_autoencoders.quantizers.residual import ResidualCodebooks


def make(stages=3, **settings) -> ResidualCodebooks:
    torch.manual_seed(0)
    options = {"codebook_size": 16, "code_dim": 6, "codebook_decay": 0.9, "restart_below": 0.0}
    return ResidualCodebooks(
        QuantizerOptions(quantizer="residual", residual_stages=stages, **{**options, **settings})
    ).train()


def started(quantizer: ResidualCodebooks) -> ResidualCodebooks:
    """Keep the constructor's vectors, smaller at every stage, instead of filling from a batch."""
    for stage, codebook in enumerate(quantizer.codebooks):
        codebook.initialised.fill_(True)
        codebook.codebook.mul_(0.6**stage)
        codebook.sums.copy_(codebook.codebook)
    return quantizer


def maps(batch=4, seed=1) -> Tensor:
    return torch.randn(batch, 6, 5, 5, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("batches", [1, 10])
def test_training_equals_a_slow_float64_reference(batches):
    quantizer = started(make())
    tables = [
        [getattr(codebook, name).double() for name in ("counts", "sums", "codebook")]
        for codebook in quantizer.codebooks
    ]
    for step in range(batches):
        output = quantizer(maps(seed=step))
        residual = rows_of(maps(seed=step)).double()
        total, losses = torch.zeros_like(residual), []
        for stage, table in enumerate(tables):
            counts, sums, entries = table
            codes = torch.cdist(residual, entries).argmin(1)
            assert torch.equal(output.codes[:, stage].flatten(), codes)
            members = torch.nn.functional.one_hot(codes, 16).double()
            counts.lerp_(members.sum(0), 0.1)
            sums.lerp_(members.T @ residual, 0.1)
            residual = residual - entries[codes]
            total = total + entries[codes]
            losses.append(0.25 * residual.square().mean())
            smoothed = (counts + 1e-5) / (counts.sum() + 16 * 1e-5) * counts.sum()
            table[2] = sums / smoothed[:, None]
        torch.testing.assert_close(
            output.loss.double(), torch.stack(losses).mean(), rtol=1e-6, atol=1e-6
        )
        torch.testing.assert_close(rows_of(output.vectors).double(), total, rtol=1e-6, atol=1e-6)
    for codebook, (counts, sums, entries) in zip(quantizer.codebooks, tables, strict=True):
        torch.testing.assert_close(codebook.counts.double(), counts, rtol=1e-5, atol=1e-6)
        torch.testing.assert_close(codebook.sums.double(), sums, rtol=1e-5, atol=1e-6)
        torch.testing.assert_close(codebook.codebook.double(), entries, rtol=1e-5, atol=1e-6)


def peer_of(quantizer: ResidualCodebooks, **settings):
    peer = pytest.importorskip("vector_quantize_pytorch").ResidualVQ(
        dim=6,
        num_quantizers=3,
        codebook_size=16,
        decay=0.9,
        commitment_weight=0.25,
        threshold_ema_dead_code=0,
        rotation_trick=False,
        **settings,
    )
    for layer, codebook in zip(peer.layers, quantizer.codebooks, strict=True):
        layer._codebook.embed.copy_(codebook.codebook[None])
        layer._codebook.embed_avg.copy_(codebook.sums[None])
    return peer.train()


@pytest.mark.parametrize("batches", [1, 10])
def test_training_equals_vector_quantize_pytorch(batches):
    quantizer = started(make())
    peer = peer_of(quantizer)
    for step in range(batches):
        output = quantizer(maps(seed=step))
        vectors, codes, losses = peer(rows_of(maps(seed=step))[None])
        assert torch.equal(output.codes.movedim(1, -1).flatten(0, 2), codes[0])
        torch.testing.assert_close(rows_of(output.vectors), vectors[0])
        torch.testing.assert_close(output.loss, losses.mean())
    for layer, codebook in zip(peer.layers, quantizer.codebooks, strict=True):
        torch.testing.assert_close(codebook.codebook, layer._codebook.embed[0])
        torch.testing.assert_close(codebook.counts, layer._codebook.cluster_size[0])


def test_the_gradient_passes_once_however_many_stages():
    """In the peer it passes through every stage, and arrives three times as large."""
    quantizer = started(make())
    inputs = maps().requires_grad_()
    probe = torch.randn_like(inputs)
    peer = peer_of(quantizer)
    (found,) = torch.autograd.grad(quantizer(inputs).vectors, inputs, probe)
    assert torch.equal(found, probe)
    (peers,) = torch.autograd.grad(peer(rows_of(inputs)[None])[0][0], inputs, rows_of(probe))
    torch.testing.assert_close(peers, 3 * probe)


def test_the_rotation_turns_the_input_onto_the_sum_of_its_codes():
    quantizer = started(make(estimator="rotation")).eval()
    inputs = maps().requires_grad_()
    probe = torch.randn_like(inputs)
    output = quantizer(inputs)
    (found,) = torch.autograd.grad(output.vectors, inputs, probe)
    turned = rotate(rows_of(inputs), rows_of(output.vectors.detach()))
    (expected,) = torch.autograd.grad(turned, inputs, rows_of(probe))
    torch.testing.assert_close(found, expected)
    assert torch.equal(output.vectors, quantizer.codes_to_vectors(output.codes))


def test_the_commitment_reaches_the_input_from_every_stage():
    quantizer = started(make()).eval()
    inputs = maps().requires_grad_()
    output = quantizer(inputs)
    (found,) = torch.autograd.grad(output.loss, inputs)
    total, expected = torch.zeros_like(inputs), torch.zeros_like(inputs)
    for codebook, codes in zip(quantizer.codebooks, output.codes.unbind(1), strict=True):
        total = total + codebook.codes_to_vectors(codes[:, None])
        expected += 0.25 * 2 * (inputs - total) / inputs.numel() / 3
    torch.testing.assert_close(found, expected.detach())


def test_every_stage_starts_from_what_the_ones_before_leave_over():
    errors = []
    for stages in (1, 2, 3, 4):
        quantizer = make(stages)
        torch.manual_seed(0)
        output = quantizer(10 + maps(batch=16))
        errors.append(float((output.vectors - 10 - maps(batch=16)).square().mean()))
        assert quantizer.codebooks[0].codebook.mean() > 5
        assert all(codebook.codebook.abs().mean() < 2 for codebook in quantizer.codebooks[1:])
    assert all(after < 0.8 * before for before, after in pairwise(errors))


def test_codebooks_have_their_own_state():
    quantizer = make()
    quantizer(maps())
    tables = [codebook.codebook for codebook in quantizer.codebooks]
    assert not any(torch.equal(a, b) for i, a in enumerate(tables) for b in tables[i + 1 :])
