"""What an image costs a network: operations, parameters and what is kept for the backward pass.

Counted from the real modules on the `meta` device, which has shapes but no values: a network of any
size takes seconds and no memory. Operations are those of matrix products, convolutions and
attention, with two for each multiplication; attention counts all pairs of positions.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any
from unittest.mock import patch

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode, flop_registry

from latent_prior.data.codes import CodeMaps, CodeSpec
from latent_prior.losses.adversarial import frozen
from latent_prior.stage1_autoencoders.autoencoder import Autoencoder
from latent_prior.stage1_autoencoders.blocks import inner_kernels
from latent_prior.stage1_autoencoders.critics import make_critic
from latent_prior.stage1_autoencoders.options import TrainOptions
from latent_prior.stage1_autoencoders.quantizers.base import Quantizer
from latent_prior.stage1_autoencoders.train import make_model
from latent_prior.stage2_prior.options import PriorOptions
from latent_prior.stage2_prior.prior import PriorConfig, TransformerPrior
from latent_prior.training.muon import orthogonal

_PRODUCTS = {operation.__name__ for operation in flop_registry}
_NO_TRAFFIC = ("empty", "new_empty", "_unsafe_view")


@dataclass(frozen=True)
class Pass:
    """A forward pass of one image without gradients.

    Attributes:
        operations: of products, convolutions and attention.
        traffic: bytes that all other operations read and write, in float32 and one after the other.
    """

    operations: float
    traffic: float


@dataclass(frozen=True)
class Cost:
    """Costs of a network in training and in use.

    Attributes:
        parameters: trained parameters, those of a critic included.
        moments: numbers that the optimizer keeps: two for a parameter, one for those of Muon.
        largest_block: parameters of the largest block that FSDP gathers by itself.
        training: operations of forward and backward passes for one image.
        update: operations of a step whatever the number of images, which are Muon's.
        using: what the network is for: encoding an image, or drawing its codes with a cache.
        decoding: an autoencoder's decoder.
        traffic: bytes that all other operations of both passes read and write for one image, in
            float32 and one after the other.
        traffic_once: the same, whatever the number of images.
        activations: bytes kept for the backward pass for one image, in float32.
        kept_once: bytes kept for the backward pass whatever the number of images.
    """

    parameters: int
    moments: int
    largest_block: int
    training: float
    update: float
    using: Pass
    decoding: Pass
    traffic: float
    traffic_once: float
    activations: float
    kept_once: float


def autoencoder_cost(options: TrainOptions) -> tuple[Cost, CodeSpec]:
    """The cost of an autoencoder with its critic, and the codes that it writes.

    Without the penalties of a critic, feature matching, the adaptive weight and a perceptual
    network. A codebook is counted as one that is filled; its update is not counted.

    Args:
        options: with image size and channels.
    """
    assert options.image_size is not None
    assert options.channels is not None
    shape = (options.channels, options.image_size, options.image_size)
    with torch.device("meta"):
        model = make_model(options).train()
    for module in model.modules():
        if isinstance(module, Quantizer):
            module.eval()  # filling and moving a codebook depends on values

    critic = _critic(options) if options.model.adversarial else None

    def step(images: int) -> None:
        pixels = torch.rand(images, *shape, device="meta")
        output: Any = model(pixels)
        total = model.objective(pixels, output, 0)["total"]
        if critic is None:
            total.backward()
            return
        with frozen(critic):
            total = total + critic(output.fakes).logits.mean()
        total.backward()
        both = torch.cat((pixels, output.fakes.detach()))
        critic(both).logits.mean().backward()

    parameters = _parameters(model) + (0 if critic is None else _parameters(critic))
    kernels = inner_kernels(model)
    spec = _spec(model, options)
    model_costs = _training(step)
    model.eval()
    pixels = torch.rand(1, *shape, device="meta")
    codes = _codes(spec, 1)
    cost = Cost(
        parameters=parameters,
        moments=2 * parameters - sum(kernel.numel() for kernel in kernels),
        largest_block=parameters,
        update=_operations(lambda: [orthogonal(each.detach().flatten(1)) for each in kernels]),
        using=_pass(lambda: model.encode(pixels)),
        decoding=_pass(lambda: model.decode(codes)),
        **model_costs,
    )
    return cost, spec


def prior_cost(options: PriorOptions, spec: CodeSpec) -> Cost:
    """The cost of a prior over codes or latents, without a condition on text."""
    with torch.device("meta"):
        config = PriorConfig(**dataclasses.asdict(options), code_spec=spec.to_dict())
        model = TransformerPrior(config).train()

    def loss(images: int) -> Tensor:
        labels = torch.zeros(images, dtype=torch.long, device="meta")
        return model(_codes(spec, images), labels if spec.class_names else None).loss

    model_costs = _training(lambda images: loss(images).backward())
    return Cost(
        parameters=_parameters(model),
        moments=2 * _parameters(model),
        largest_block=max(map(_parameters, model.blocks)),
        update=0.0,
        using=_pass(lambda: loss(1)),
        decoding=Pass(0.0, 0.0),
        **model_costs,
    )


def _training(step: Callable[[int], None]) -> dict[str, float]:
    """What a step costs for each image, and in any case."""
    (kept, traffic), (kept_by_two, traffic_of_two) = (_memory_of(step, count) for count in (1, 2))
    return {
        "training": _operations(lambda: step(2)) / 2,
        "activations": kept_by_two - kept,
        "kept_once": 2 * kept - kept_by_two,
        "traffic": traffic_of_two - traffic,
        "traffic_once": 2 * traffic - traffic_of_two,
    }


def _operations(call: Callable[[], object]) -> float:
    with FlopCounterMode(display=False) as counter, _as_on_accelerators():
        call()
    return float(counter.get_total_flops())


@torch.no_grad()
def _pass(call: Callable[[], object]) -> Pass:
    with _Traffic() as counter, _as_on_accelerators():
        call()
    return Pass(_operations(call), counter.total)


def _memory_of(step: Callable[[int], None], images: int) -> tuple[int, int]:
    """Bytes of all tensors that are kept for the backward pass, without parameters; traffic."""
    found: dict[int, Tensor] = {}

    def keep(tensor: Tensor) -> Tensor:
        if not isinstance(tensor, nn.Parameter):
            found[tensor.untyped_storage()._cdata] = tensor  # held, so that none takes its place
        return tensor

    hooks = torch.autograd.graph.saved_tensors_hooks(keep, lambda kept: kept)
    with hooks, _Traffic() as counter, _as_on_accelerators():
        step(images)
    kept = sum(tensor.untyped_storage().nbytes() for tensor in found.values())
    return kept, counter.total


class _Traffic(TorchDispatchMode):
    """Counts the bytes that operations other than products read and write."""

    total = 0

    def __torch_dispatch__(
        self, function: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        outputs = function(*args, **(kwargs or {}))
        name = function.overloadpacket.__name__
        if not function.is_view and name not in _PRODUCTS and not name.startswith(_NO_TRAFFIC):
            for side in ((args, kwargs), outputs):
                tensors = {id(leaf): leaf for leaf in tree_leaves(side) if torch.is_tensor(leaf)}
                self.total += sum(leaf.numel() * leaf.itemsize for leaf in tensors.values())
        return outputs


def _codes(spec: CodeSpec, images: int) -> CodeMaps:
    """Codes or latents of some images, without values."""
    types = {level.name: None if level.vocabulary is None else torch.long for level in spec.levels}
    return {
        level.name: torch.zeros(images, *level.shape, dtype=types[level.name], device="meta")
        for level in spec.levels
    }


def _critic(options: TrainOptions) -> nn.Module:
    assert options.image_size is not None
    assert options.channels is not None
    with torch.device("meta"):
        return make_critic(options.critic, options.image_size, options.channels)


def _spec(model: Autoencoder, options: TrainOptions) -> CodeSpec:
    """The codes of an autoencoder without weights."""
    assert options.image_size is not None
    assert options.channels is not None
    levels = model.levels
    channels = sum(level.channels or 0 for level in levels)
    return CodeSpec(
        kind="latents" if channels else "codes",
        levels=levels,
        image_size=options.image_size,
        image_channels=options.channels,
        autoencoder_type="none",
        autoencoder_fingerprint="0" * 64,
        latent_shift=(0.0,) * channels or None,
        latent_scale=(1.0,) * channels or None,
    )


def _parameters(module: nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())


@contextmanager
def _as_on_accelerators() -> Iterator[None]:
    """Attention in one kernel, whose matrix is not kept; `meta` knows no autocast."""

    def attention(q: Tensor, k: Tensor, v: Tensor, **settings: Any) -> Tensor:
        causal = settings.get("is_causal", False)
        heads = (each if each.ndim == 4 else each.unsqueeze(1) for each in (q, k, v))
        flash = torch.ops.aten._scaled_dot_product_flash_attention
        attended: Tensor = flash(*heads, settings.get("dropout_p", 0.0), causal)[0]
        return attended.view_as(q)

    with (
        patch.object(F, "scaled_dot_product_attention", attention),
        patch.object(torch, "autocast", lambda *_, **__: nullcontext()),
    ):
        yield
