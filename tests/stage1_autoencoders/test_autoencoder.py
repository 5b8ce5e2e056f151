"""What every autoencoder must do, on a small VQ-VAE."""

import json

import pytest
import torch

from latent_prior.data.codes import CodeSpec
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
