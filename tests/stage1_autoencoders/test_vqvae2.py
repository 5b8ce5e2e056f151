"""VQ-VAE-2: its levels, who sees whom, and what they bring to the image."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from latent_prior.stage1_autoencoders.quantizers import QUANTIZERS
from latent_prior.stage1_autoencoders.vqvae2 import VQVAE2, VQVAE2Config, VQVAE2Options

TOP, BOTTOM = 0, -1


def small(**options) -> VQVAE2:
    """For 16 x 16 grey images, its codebooks filled from the first batch."""
    torch.manual_seed(0)
    settings = {"width": 8, "multipliers": [1, 2], "codebook_size": 16, "code_dim": 4}
    if options.get("quantizer") in ("lfq", "bsq"):
        settings["entropy_weight"] = 0.1
    model = VQVAE2(VQVAE2Config(**{**settings, "image_size": 16, **options}))
    with torch.no_grad():
        model(images())
    return model.eval()


def images(count: int = 8, size: int = 16) -> Tensor:
    random = torch.Generator().manual_seed(1)
    coarse = torch.rand(count, 1, 4, 4, generator=random)
    return F.interpolate(2 * coarse - 1, size=(size, size), mode="bilinear")


@pytest.mark.parametrize(
    ("num_levels", "names"),
    [
        (2, ["top", "bottom"]),
        (3, ["top", "middle", "bottom"]),
        (4, ["top", "middle_1", "middle_2", "bottom"]),
    ],
)
@pytest.mark.parametrize("upsampling", ["nearest", "transposed"])
def test_every_level_is_twice_as_large_as_the_one_above(num_levels, names, upsampling):
    model = small(num_levels=num_levels, upsampling=upsampling)
    assert [level.name for level in model.levels] == names
    sides = [8 >> place for place in reversed(range(num_levels))]
    assert [level.shape for level in model.levels] == [(side, side) for side in sides]
    codes = model.encode(images())
    assert [tuple(map_.shape) for map_ in codes.values()] == [(8, side, side) for side in sides]
    with torch.no_grad():
        assert torch.equal(model.decode(codes), model(images()).images)


def test_stages_of_residual_quantizers_are_levels_of_their_own():
    model = small(quantizer="residual", residual_stages=3)
    names = [f"{name}_{stage}" for name in ("top", "bottom") for stage in range(3)]
    assert [level.name for level in model.levels] == names
    assert [level.height for level in model.levels] == [4, 4, 4, 8, 8, 8]
    codes = model.encode(images())
    assert list(codes) == names
    assert {name: tuple(vectors.shape) for name, vectors in model.embed(images()).items()} == {
        "top": (8, 4, 4, 4),
        "bottom": (8, 4, 8, 8),
    }
    with torch.no_grad():
        output = model(images())
        assert all(torch.equal(codes[name], output.codes[name]) for name in names)
        assert torch.equal(model.decode(codes), output.images)


@pytest.mark.parametrize("quantizer", QUANTIZERS)
def test_every_quantizer_serves(quantizer):
    model = small(quantizer=quantizer)
    output = model(images())
    model.objective(images(), output, 0)["total"].backward()
    assert model.encoder.stem.weight.grad.abs().sum() > 0
    with torch.no_grad():
        decoded = model.decode(model.encode(images()))
    # The same vectors, but in another memory layout, for which another convolution may be chosen:
    # a few sums of less than 1000 float32 terms of size 1, rounded differently.
    torch.testing.assert_close(decoded, output.images, rtol=0, atol=1e-5)


def test_the_bottom_is_chosen_in_sight_of_the_top():
    """Other codes at the top, other vectors to be quantized below, from the same image."""
    model = small()
    seen: list[Tensor] = []
    quantize = model.quantizers[BOTTOM].vectors_to_codes
    model.quantizers[BOTTOM].vectors_to_codes = lambda vectors: (
        seen.append(vectors) or quantize(vectors)
    )
    own = model.encode(images())
    choose = model.quantizers[TOP].vectors_to_codes
    model.quantizers[TOP].vectors_to_codes = lambda vectors: (choose(vectors) + 1) % 16
    other = model.encode(images())
    assert torch.equal(other["top"], (own["top"] + 1) % 16)
    assert ((seen[1] - seen[0]).abs().amax((1, 2, 3)) > 1e-3).all()
    assert not torch.equal(other["bottom"], own["bottom"])


def test_the_top_does_not_see_the_bottom():
    model = small()
    own = model.encode(images())
    model.quantizers[BOTTOM].codebook.add_(1)
    assert torch.equal(model.encode(images())["top"], own["top"])


@pytest.mark.parametrize("num_levels", [2, 3])
def test_the_image_is_made_from_every_level(num_levels):
    model = small(num_levels=num_levels)
    codes = model.encode(images())
    with torch.no_grad():
        whole = model.decode(codes)
        for name, map_ in codes.items():
            changed = model.decode({**codes, name: (map_ + 1) % 16})
            assert ((changed - whole).abs().amax((1, 2, 3)) > 1e-3).all(), name


@pytest.mark.parametrize("num_levels", [2, 3])
def test_the_loss_is_the_sum_of_the_levels(num_levels):
    model = small(num_levels=num_levels, quantizer="gradient").train()
    losses = []
    for quantizer in model.quantizers:
        quantizer.register_forward_hook(lambda *arguments: losses.append(arguments[-1].loss.item()))
    output = model(images())
    assert len(losses) == num_levels
    assert output.quantizer_loss.item() == pytest.approx(sum(losses), rel=1e-6)
    terms = model.objective(images(), output, 0)
    error = (output.images - images()).square().mean()
    assert terms["reconstruction"].item() == pytest.approx(error.item(), rel=1e-6)
    assert terms["total"].item() == pytest.approx(error.item() + sum(losses), rel=1e-6)


@pytest.mark.parametrize("quantizer", ["ema", "gradient"])
def test_training_lowers_the_loss_and_reaches_every_parameter(quantizer):
    model = small(num_levels=3, quantizer=quantizer).train()
    optimizer = torch.optim.AdamW(model.parameters(), 3e-3)
    losses = []
    for step in range(30):
        loss = model.objective(images(), model(images()), step)["total"]
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert sum(losses[-5:]) < 0.7 * sum(losses[:5])
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.abs().sum() > 0, name


def test_a_trained_model_loads_with_every_parameter_and_buffer(tmp_path):
    model = small(num_levels=3, attention=[8])
    model.save_pretrained(tmp_path)
    loaded = VQVAE2.from_pretrained(tmp_path)
    own, found = model.state_dict(), loaded.state_dict()
    assert own.keys() == found.keys()
    assert own.keys() == {n for n, _ in [*model.named_parameters(), *model.named_buffers()]}
    assert all(torch.equal(value, found[name]) for name, value in own.items())
    codes = model.encode(images())
    assert all(torch.equal(codes[name], map_) for name, map_ in loaded.encode(images()).items())


@pytest.mark.parametrize(
    ("size", "options", "said"),
    [
        (18, {}, r"--image_size 18 is not divisible by 4, the downsampling of the top of 2 levels"),
        (12, {"num_levels": 3}, r"12 is not divisible by 8, .* 3 levels over 2 multipliers"),
        (17, {}, r"--image_size 17 is not divisible by the downsampling 2 "),
        (0, {}, r"--image_size 0 "),
    ],
)
def test_an_image_size_that_the_levels_do_not_fit_names_the_downsampling(size, options, said):
    for make in (
        lambda: VQVAE2Options(multipliers=[1, 2], **options).check_image_size(size),
        lambda: VQVAE2Config(multipliers=[1, 2], **options, image_size=size),
    ):
        with pytest.raises(ValueError, match=said) as refused:
            make()
        assert "\n" not in str(refused.value)


@pytest.mark.parametrize("count", [1, 0, -1])
def test_fewer_than_two_levels_are_no_vqvae2(count):
    for options_class in (VQVAE2Options, VQVAE2Config):
        with pytest.raises(ValueError, match=f"--model.num_levels must be at least 2, not {count}"):
            options_class(num_levels=count)
