"""What holds for every quantizer that the options can name."""

import os
import subprocess
import sys
from pathlib import Path
from typing import get_args, get_type_hints

import pytest
import torch
import torch.distributed as dist
from safetensors.torch import load_file, save_file
from torch import Tensor

from latent_prior.stage1_autoencoders.options import QuantizerOptions
from latent_prior.stage1_autoencoders.quantizers import QUANTIZERS, make_quantizer
from latent_prior.stage1_autoencoders.quantizers.base import Quantizer
from latent_prior.stage1_autoencoders.vqvae import VQVAEOptions

KINDS = list(QUANTIZERS)


def make(kind: str, **settings) -> Quantizer:
    torch.manual_seed(0)
    options = {"codebook_size": 32, "code_dim": 6, "codebook_decay": 0.9, "residual_stages": 3}
    # An option that means nothing to the quantizer may not be set.
    particular = {name for quantizer in QUANTIZERS.values() for name in quantizer.reads}
    unread = particular - set(QUANTIZERS[kind].reads)
    fitting = {name: value for name, value in settings.items() if name not in unread}
    return make_quantizer(QuantizerOptions(quantizer=kind, **{**options, **fitting})).train()


def maps(quantizer: Quantizer, batch=4, side=5, seed=1) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(batch, quantizer.dim, side, side, generator=generator)


def trained(kind: str, **settings) -> Quantizer:
    quantizer = make(kind, **settings)
    quantizer(maps(quantizer))
    return quantizer.eval()


def every_code(quantizer: Quantizer) -> Tensor:
    return torch.arange(quantizer.vocabulary).view(1, 1, 4, -1)


def test_every_choice_has_a_class():
    assert set(get_args(get_type_hints(VQVAEOptions)["quantizer"])) == set(KINDS)


@pytest.mark.parametrize("kind", KINDS)
def test_shapes_and_ranges(kind):
    quantizer = make(kind)
    assert quantizer.stages == (3 if kind == "residual" else 1)
    assert quantizer.vocabulary == 32
    inputs = maps(quantizer)
    output = quantizer(inputs)
    assert output.vectors.shape == inputs.shape
    assert output.vectors.dtype == torch.float32
    assert output.codes.shape == (4, quantizer.stages, 5, 5)
    assert output.codes.dtype == torch.int64
    assert output.codes.min() >= 0
    assert output.codes.max() < 32
    assert output.loss.shape == ()


@pytest.mark.parametrize("distance", ["euclidean", "cosine"])
@pytest.mark.parametrize("kind", KINDS)
def test_codes_round_trip(kind, distance):
    quantizer = trained(kind, distance="euclidean" if kind == "residual" else distance)
    inputs = maps(quantizer, seed=2)
    output = quantizer(inputs)
    codes = quantizer.vectors_to_codes(inputs)
    assert torch.equal(codes, output.codes)
    assert torch.equal(quantizer.codes_to_vectors(codes), output.vectors)


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind != "residual"])
def test_codes_and_vectors_are_one_to_one(kind):
    quantizer = trained(kind)
    vectors = quantizer.codes_to_vectors(every_code(quantizer)).flatten(2)[0].T
    assert len(vectors.unique(dim=0)) == quantizer.vocabulary
    if kind != "fsq":  # whose inputs are not in the units of its outputs
        codes = quantizer.vectors_to_codes(quantizer.codes_to_vectors(every_code(quantizer)))
        assert torch.equal(codes, every_code(quantizer))


@pytest.mark.parametrize("kind", KINDS)
def test_the_codes_of_an_image_do_not_depend_on_its_batch(kind):
    quantizer = trained(kind)
    inputs = maps(quantizer, batch=6)
    alone = torch.cat([quantizer.vectors_to_codes(image[None]) for image in inputs])
    assert torch.equal(quantizer.vectors_to_codes(inputs), alone)


@pytest.mark.parametrize("entropy_weight", [0.0, 0.5])
@pytest.mark.parametrize("kind", KINDS)
def test_the_loss_does_not_depend_on_the_batch_size(kind, entropy_weight):
    quantizer = trained(kind, entropy_weight=entropy_weight, entropy_temperature=1.0)
    inputs = maps(quantizer)
    torch.testing.assert_close(
        quantizer(inputs.repeat(3, 1, 1, 1)).loss, quantizer(inputs).loss, rtol=1e-6, atol=1e-6
    )


@pytest.mark.parametrize("kind", KINDS)
def test_evaluation_and_encoding_learn_nothing(kind):
    quantizer = make(kind, restart_below=0.5)
    quantizer(maps(quantizer))
    before = {name: value.clone() for name, value in quantizer.state_dict().items()}
    quantizer.vectors_to_codes(maps(quantizer, seed=2))
    quantizer.eval()(maps(quantizer, seed=3))
    assert all(torch.equal(value, before[name]) for name, value in quantizer.state_dict().items())


@pytest.mark.parametrize("kind", KINDS)
def test_training_in_autocast_equals_training_outside(kind):
    settings = {"entropy_weight": 0.5, "entropy_temperature": 0.3, "estimator": "rotation"}
    inside, outside = make(kind, **settings), make(kind, **settings)
    for step in range(3):
        batch = maps(inside, seed=step).bfloat16()  # what a convolution in autocast returns
        torch.manual_seed(step)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            found = inside(batch)
        torch.manual_seed(step)
        expected = outside(batch.float())
        assert torch.equal(found.vectors, expected.vectors)
        assert torch.equal(found.codes, expected.codes)
        assert torch.equal(found.loss, expected.loss)
        assert found.vectors.dtype == torch.float32
    state = outside.state_dict()
    assert all(torch.equal(value, state[name]) for name, value in inside.state_dict().items())


@pytest.mark.parametrize("kind", KINDS)
def test_vectors_have_the_type_of_the_weights(kind):
    """A decoder that was loaded as half could not take others."""
    quantizer = trained(kind).bfloat16()
    inputs = maps(quantizer).bfloat16()
    output = quantizer(inputs)
    assert output.vectors.dtype == torch.bfloat16
    assert torch.equal(quantizer.codes_to_vectors(output.codes), output.vectors)


@pytest.mark.parametrize("kind", KINDS)
def test_all_state_is_in_the_state_dict(kind):
    """Models are built on the meta device and filled from a file."""
    quantizer = trained(kind)
    with torch.device("meta"):
        loaded = make(kind).eval()
    loaded.load_state_dict(quantizer.state_dict(), assign=True)
    assert not [name for name, value in loaded.named_buffers() if value.is_meta]
    output, expected = loaded(maps(quantizer)), quantizer(maps(quantizer))
    assert torch.equal(output.vectors, expected.vectors)


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind != "fsq"])
def test_the_entropy_term_spreads_the_vectors_over_the_codes(kind):
    """Inputs that crowd together, moved by nothing but the loss."""
    quantizer = trained(kind, entropy_weight=1.0, entropy_temperature=1.0, commitment=0.0)
    inputs = (1.0 + 0.1 * maps(quantizer, batch=16)).requires_grad_()
    before = len(quantizer.vectors_to_codes(inputs)[:, 0].unique())
    optimizer = torch.optim.Adam([inputs], lr=0.05)
    for _ in range(100):
        optimizer.zero_grad()
        quantizer(inputs).loss.backward()
        optimizer.step()
    assert len(quantizer.vectors_to_codes(inputs)[:, 0].unique()) > 2 * before


# Processes


def train(kind: str, rank: int = 0, share: slice = slice(None)) -> dict[str, Tensor]:
    """A quantizer behind one layer: state and gradient after six steps on a share of each batch."""
    quantizer = make(
        kind,
        restart_below=0.5,
        entropy_weight=0.5,
        entropy_temperature=0.5,
        distance="cosine" if kind == "gradient" else "euclidean",
    )
    scale = torch.full((1, quantizer.dim, 1, 1), 1.5, requires_grad=True)
    for step in range(6):
        torch.manual_seed(100 * rank + step)
        output = quantizer(scale * maps(quantizer, batch=8, seed=step)[share])
        gradients = torch.autograd.grad(
            output.vectors.square().mean() + output.loss, [scale, *quantizer.parameters()]
        )
    state = {name: value.detach() for name, value in quantizer.state_dict().items()}
    return {**state, **{f"gradient {index}": value for index, value in enumerate(gradients)}}


def train_on_share(rank: int, folder: Path) -> None:
    """One of two processes, each with its half of every batch and its own random state."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2)
    for kind in KINDS:
        found = train(kind, rank, slice(4 * rank, 4 * rank + 4))
        for name in [name for name in found if name.startswith("gradient")]:
            dist.all_reduce(found[name])  # as DistributedDataParallel does
            found[name] /= 2
        save_file(found, folder / f"{kind}-{rank}.safetensors")
    dist.destroy_process_group()


def test_two_processes_equal_one_with_the_joint_batch(tmp_path: Path):
    root = Path(__file__).parents[3]
    processes = [
        subprocess.Popen(
            [sys.executable, __file__, str(rank), str(tmp_path)],
            env={**os.environ, "PYTHONPATH": str(root)},
        )
        for rank in range(2)
    ]
    assert [process.wait(timeout=900) for process in processes] == [0, 0]
    for kind in KINDS:
        ranks = [load_file(tmp_path / f"{kind}-{rank}.safetensors") for rank in range(2)]
        for name, expected in train(kind).items():
            assert torch.equal(ranks[0][name], ranks[1][name]), (kind, name)
            torch.testing.assert_close(
                ranks[0][name], expected, rtol=1e-4, atol=1e-5, msg=f"{kind}: {name}"
            )


if __name__ == "__main__":
    train_on_share(int(sys.argv[1]), Path(sys.argv[2]))
