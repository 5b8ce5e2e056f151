"""What every autoencoder must do, on a small VQ-VAE."""

import json
import math

import pytest
import torch

from latent_prior.data.codes import CodeSpec
from latent_prior.stage1_autoencoders.autoencoder import DiscreteOutput, quantized_objective
from latent_prior.stage1_autoencoders.vqvae import VQVAE, VQVAEConfig


def small(**options) -> VQVAE:
    torch.manual_seed(0)
    settings = {
        "width": 8,
        "multipliers": [1, 2],
        "codebook_size": 24,
        "code_dim": 4,
        "image_size": 12,
    }
    return VQVAE(VQVAEConfig(**settings | options))


@pytest.mark.parametrize("shape", [(2, 3, 12, 12), (2, 1, 12, 16), (2, 1, 24, 24), (1, 12, 12)])
def test_images_of_another_shape_are_named(shape):
    model = small()
    for method in (model, model.encode):
        with pytest.raises(
            ValueError, match=r"\(B, 1, 12, 12\), found \(" + ", ".join(map(str, shape))
        ):
            method(torch.zeros(shape))


def test_the_code_spec_lies_beside_the_weights(tmp_path):
    model = small()
    model.save_pretrained(tmp_path)
    stored = CodeSpec.from_dict(json.loads((tmp_path / "code_spec.json").read_text()))
    assert stored == model.code_spec == VQVAE.from_pretrained(tmp_path).code_spec


def test_the_code_spec_of_other_weights_differs(tmp_path):
    model = small()
    model.save_pretrained(tmp_path / "a")
    averaged = {
        name: value * 0.5 if value.is_floating_point() else value
        for name, value in model.state_dict().items()
    }
    model.save_pretrained(tmp_path / "b", state_dict=averaged)
    specs = [json.loads((tmp_path / name / "code_spec.json").read_text()) for name in ("a", "b")]
    assert specs[0]["autoencoder_fingerprint"] != specs[1]["autoencoder_fingerprint"]
    assert VQVAE.from_pretrained(tmp_path / "b").code_spec.to_dict() == specs[1]


# The loss of models with codes, against float64 formulas


def pair(count=6):
    generator = torch.Generator().manual_seed(0)
    images, found = torch.rand(2, count, 3, 8, 8, generator=generator) * 2 - 1
    return images, DiscreteOutput(images=found, codes={}, quantizer_loss=torch.tensor(0.5))


@pytest.mark.parametrize(("kind", "power"), [("l1", 1), ("l2", 2)])
def test_the_objective_equals_a_float64_reference(kind, power):
    images, output = pair()
    losses = quantized_objective(images, output, kind)
    pixels = zip(images.flatten().tolist(), output.images.flatten().tolist(), strict=True)
    expected = math.fsum(abs(a - b) ** power for a, b in pixels) / images.numel()
    assert losses["reconstruction"].item() == pytest.approx(expected, abs=1e-6)
    assert losses["quantizer"].item() == 0.5
    assert losses["total"].item() == pytest.approx(expected + 0.5, abs=1e-6)


@pytest.mark.parametrize("kind", ["l1", "l2"])
def test_the_objective_does_not_depend_on_the_batch_size(kind):
    images, output = pair()
    twice = DiscreteOutput(
        images=output.images.repeat(2, 1, 1, 1), codes={}, quantizer_loss=output.quantizer_loss
    )
    one = quantized_objective(images, output, kind)
    two = quantized_objective(images.repeat(2, 1, 1, 1), twice, kind)
    for name, value in one.items():
        torch.testing.assert_close(two[name], value)


def test_the_objective_is_float32_inside_autocast():
    images, output = pair()
    low = DiscreteOutput(
        images=output.images.bfloat16(), codes={}, quantizer_loss=output.quantizer_loss
    )
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = quantized_objective(images, low, "l2")
    expected = (images - low.images.float()).square().mean()
    assert found["total"].dtype == torch.float32
    torch.testing.assert_close(found["reconstruction"], expected)
