"""The VQ-VAE as a whole."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from latent_prior.stage1_autoencoders.vqvae import VQVAE, VQVAEConfig

SETTINGS = {
    "width": 8,
    "multipliers": [1, 2, 3],
    "codebook_size": 24,
    "code_dim": 4,
    "image_size": 12,
}


def small(**options) -> VQVAE:
    torch.manual_seed(0)
    return VQVAE(VQVAEConfig(**SETTINGS | options))


def images(count=16, channels=1, size=12) -> Tensor:
    """Smooth random images in [-1, 1]."""
    coarse = torch.rand(count, channels, 3, 3, generator=torch.Generator().manual_seed(1))
    return F.interpolate(2 * coarse - 1, size=(size, size), mode="bilinear")


def train(model: VQVAE, steps: int) -> list[float]:
    optimizer = torch.optim.AdamW(model.parameters(), 3e-3)
    losses = []
    for step in range(steps):
        torch.manual_seed(step)
        loss = model.objective(images(), model.train()(images()), step)["total"]
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses


@pytest.mark.parametrize("quantizer", ["ema", "gradient"])
@pytest.mark.parametrize("distance", ["euclidean", "cosine"])
@pytest.mark.parametrize("upsampling", ["nearest", "transposed"])
def test_a_trained_model_loads_with_every_parameter_and_buffer(
    quantizer, distance, upsampling, tmp_path
):
    model = small(quantizer=quantizer, distance=distance, upsampling=upsampling, attention=[3])
    train(model, 3)
    model.save_pretrained(tmp_path)
    loaded = VQVAE.from_pretrained(tmp_path)
    assert not loaded.training
    own = {**dict(model.named_parameters()), **dict(model.named_buffers())}
    found = {**dict(loaded.named_parameters()), **dict(loaded.named_buffers())}
    assert own.keys() == found.keys() == model.state_dict().keys()
    assert all(torch.equal(value, found[name]) for name, value in own.items())
    assert own["quantizer.initialised"]
    codes = model.eval().encode(images())
    assert torch.equal(loaded.encode(images())["codes"], codes["codes"])
    assert torch.equal(loaded.decode(codes), model.decode(codes))


@pytest.mark.parametrize(("size", "channels"), [(12, 1), (20, 3), (32, 3)])
def test_shapes_follow_the_config_and_the_code_spec(size, channels):
    model = small(image_size=size, image_channels=channels).eval()
    batch = images(2, channels, size)
    output = model(batch)
    (level,) = model.code_spec.levels
    assert output.images.shape == batch.shape
    assert (
        output.codes["codes"].shape == (2, level.height, level.width) == (2, size // 4, size // 4)
    )
    assert output.codes["codes"].dtype == torch.int64
    assert output.codes["codes"].max() < level.vocabulary == 24
    assert model.decode(output.codes).shape == batch.shape


@pytest.mark.parametrize("quantizer", ["ema", "gradient"])
def test_decoding_the_codes_is_the_reconstruction(quantizer):
    model = small(quantizer=quantizer)
    train(model, 2)
    output = model.eval()(images())
    codes = model.encode(images())
    assert torch.equal(codes["codes"], output.codes["codes"])
    assert torch.equal(model.decode(codes), output.images)


def test_an_image_does_not_depend_on_its_batch():
    model = small(attention=[3]).eval().double()
    batch = images().double()
    codes = model.encode(batch)["codes"]
    assert torch.equal(codes, torch.cat([model.encode(image[None])["codes"] for image in batch]))
    alone = torch.cat([model.decode({"codes": code[None]}) for code in codes])
    torch.testing.assert_close(model.decode({"codes": codes}), alone, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("quantizer", ["ema", "gradient"])
@pytest.mark.parametrize("distance", ["euclidean", "cosine"])
def test_training_lowers_the_loss_and_reaches_every_parameter(quantizer, distance):
    model = small(quantizer=quantizer, distance=distance)
    losses = train(model, 40)
    assert sum(losses[-5:]) < 0.6 * sum(losses[:5])
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in model.parameters())


def test_the_same_seed_trains_the_same_bits():
    first, second = small(), small()
    assert train(first, 4) == train(second, 4)
    after = second.state_dict()
    assert all(torch.equal(value, after[name]) for name, value in first.state_dict().items())


def test_encoding_leaves_no_graph_and_the_codebook_alone():
    model = small().train()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    model.encode(images())
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_a_half_precision_copy_decodes_nearly_the_same(tmp_path):
    model = small()
    train(model, 3)
    model.save_pretrained(tmp_path)
    half = VQVAE.from_pretrained(tmp_path, dtype=torch.bfloat16)
    codes = model.eval().encode(images())
    found = half.decode(codes)
    assert found.dtype == torch.bfloat16
    torch.testing.assert_close(found.float(), model.decode(codes), rtol=0.1, atol=0.1)


def test_an_image_size_that_does_not_divide_is_refused():
    with pytest.raises(ValueError, match=r"--image_size 30 .* downsampling 4 "):
        VQVAEConfig(**SETTINGS | {"image_size": 30})
