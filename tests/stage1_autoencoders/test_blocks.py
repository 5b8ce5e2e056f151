"""The encoder and decoder: shapes, layouts, and the folded upsampling against the plain one."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from latent_prior.stage1_autoencoders.blocks import (
    AttentionBlock,
    Decoder,
    Encoder,
    NearestUpsample,
    ResBlock,
    upsampling_layer,
)
from latent_prior.stage1_autoencoders.options import BackboneOptions

SIZE = 16


def shape(attention=True, upsampling="nearest") -> BackboneOptions:
    """Three resolutions, with attention at the lowest."""
    return BackboneOptions(
        width=8,
        multipliers=[1, 2, 3],
        blocks=[0, 1, 2],
        attention=[SIZE // 4] if attention else [],
        upsampling=upsampling,
    )


def encoder(attention=True, channels=3) -> Encoder:
    torch.manual_seed(0)
    return Encoder(shape(attention), SIZE, channels, 5)


def decoder(upsampling="nearest") -> Decoder:
    torch.manual_seed(0)
    return Decoder(shape(upsampling=upsampling), SIZE, 5, 3)


def test_attention_follows_every_block_at_its_resolution_only():
    for network in (encoder(), decoder()):
        kinds = [type(layer) for layer in network.stages]
        expected = 2 * [ResBlock, AttentionBlock]
        other = [kind for kind in kinds if kind not in (nn.Conv2d, NearestUpsample)]
        assert other == (
            [ResBlock, *expected] if isinstance(network, Encoder) else [*expected, ResBlock]
        )


@pytest.mark.parametrize("upsampling", ["nearest", "transposed"])
@pytest.mark.parametrize(("height", "width"), [(4, 4), (28, 28), (20, 36)])
def test_the_grid_is_a_quarter_and_the_decoder_returns_to_the_size(upsampling, height, width):
    images = torch.randn(2, 3, height, width)
    vectors = encoder()(images)
    assert vectors.shape == (2, 5, height // 4, width // 4)
    assert decoder(upsampling)(vectors).shape == images.shape


@pytest.mark.parametrize("kind", ["nearest", "transposed"])
@pytest.mark.parametrize(("height", "width"), [(1, 1), (7, 7), (5, 8)])
def test_upsampling_doubles_exactly(kind, height, width):
    layer = upsampling_layer(kind, 4, 6)
    assert layer(torch.randn(2, 4, height, width)).shape == (2, 6, 2 * height, 2 * width)


@pytest.mark.parametrize(("height", "width"), [(1, 1), (7, 7), (5, 8)])
def test_folded_upsampling_is_nearest_doubling_and_a_convolution(height, width):
    torch.manual_seed(0)
    layer = NearestUpsample(4, 6).double()
    x = torch.randn(2, 4, height, width, dtype=torch.float64)

    def value_and_gradients(function) -> list[Tensor]:
        point = x.clone().requires_grad_()
        out = function(point)
        probe = torch.linspace(-1, 1, out.numel(), dtype=torch.float64).view(out.shape)
        return [out, *torch.autograd.grad((out * probe).sum(), [point, *layer.parameters()])]

    found = value_and_gradients(layer)
    expected = value_and_gradients(
        lambda point: layer.conv(F.interpolate(point, scale_factor=2, mode="nearest"))
    )
    for a, b in zip(found, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("upsampling", ["nearest", "transposed"])
def test_channels_last_equals_contiguous(upsampling):
    images = torch.randn(2, 3, 16, 16)
    encode, decode = encoder().double(), decoder(upsampling).double()
    expected = decode(encode(images.double()))
    last = torch.channels_last
    encode, decode = encode.to(memory_format=last), decode.to(memory_format=last)
    found = decode(encode(images.double().contiguous(memory_format=last)))
    torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-10)


def test_activations_stay_channels_last():
    layouts = []

    def note(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        layouts.append(output.is_contiguous(memory_format=torch.channels_last))

    grey = encoder(channels=1)
    decode = decoder()
    for module in [*grey.stages, *decode.stages]:
        module.register_forward_hook(note)
    decode(grey(torch.randn(2, 1, 16, 16)))
    assert layouts
    assert all(layouts)


def test_an_image_does_not_depend_on_its_batch():
    images = torch.randn(5, 3, 16, 16, dtype=torch.float64)
    encode, decode = encoder().double(), decoder().double()
    together = decode(encode(images))
    alone = torch.cat([decode(encode(image[None])) for image in images])
    torch.testing.assert_close(together, alone, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("block", [ResBlock, AttentionBlock])
def test_a_block_whose_branch_ends_in_zero_is_the_identity(block):
    layer = block(16)
    last = list(layer.children())[-1]
    nn.init.zeros_(last.weight)
    nn.init.zeros_(last.bias)
    x = torch.randn(2, 16, 6, 6)
    assert torch.equal(layer(x), x)


def test_attention_commutes_with_a_permutation_of_the_positions():
    torch.manual_seed(0)
    layer = AttentionBlock(16).double()
    x = torch.randn(2, 16, 4, 6, dtype=torch.float64)
    order = torch.randperm(24)

    def permuted(maps: Tensor) -> Tensor:
        return maps.flatten(2)[:, :, order].view_as(maps)

    torch.testing.assert_close(layer(permuted(x)), permuted(layer(x)), rtol=1e-10, atol=1e-10)


def test_only_attention_sees_the_whole_image():
    def reach(attention) -> Tensor:
        """Where the vector at (0, 0) depends on the image."""
        images = torch.zeros(1, 3, 64, 64, requires_grad=True)
        # Group normalisation also sees everything; without its statistics only the windows remain.
        model = encoder(attention)
        for module in model.modules():
            if isinstance(module, nn.GroupNorm):
                module.forward = lambda x: x
        model(images)[0, :, 0, 0].sum().backward()
        return images.grad[0].abs().sum(0) > 0

    assert not reach(False)[40:, 40:].any()
    assert reach(True)[40:, 40:].any()
