"""The arithmetic of scaling: counted operations, shares of processes, what saturates first."""

import dataclasses
from types import SimpleNamespace

import costs
import pytest
import scaling
import scaling_check
import stages
import torch
from scaling_options import ScalingOptions
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from latent_prior.losses.adversarial import frozen
from latent_prior.stage1_autoencoders.adversary import Adversary
from latent_prior.stage1_autoencoders.train import make_model
from latent_prior.stage2_prior.options import PriorOptions
from latent_prior.stage2_prior.prior import PriorConfig, TransformerPrior
from tests.conftest import FAMILY, words

SMALL = {"image_size": 16, "channels": 3, "batch_size": 8, "max_steps": 100}


def options_of(member="vqvae", **flags):
    first = words({**SMALL, **FAMILY[member]})
    second = words({"model.width": 16, "model.depth": 2, "model.heads": 2, "batch_size": 8})
    return ScalingOptions(autoencoder=" ".join(first), prior=" ".join(second), classes=3, **flags)


def operations(call):
    call()  # the first batch also fills a codebook
    with FlopCounterMode(display=False) as counter:
        call()
    return counter.get_total_flops()


@pytest.mark.parametrize("member", ["vqvae", "vqvae2", "vaegan"])
def test_operations_are_those_of_a_real_step(member):
    """All but the update of a codebook, which is a product with as many columns as codes."""
    options = options_of(member).autoencoder_options
    model = make_model(options).train()
    pixels = torch.rand(8, 3, 16, 16) * 2 - 1
    cost, spec = costs.autoencoder_cost(options)
    assert spec.levels == model.levels

    adversary = None
    if options.model.adversarial:
        here = SimpleNamespace(prepare=lambda *parts: parts, device=torch.device("cpu"))
        adversary = Adversary(options, here)

    def step():
        output = model(pixels)
        losses = model.objective(pixels, output, 0)
        if adversary is None:
            losses["total"].backward()
            return
        with frozen(adversary.critic):
            losses |= adversary.decoder_losses(pixels, output, losses, model.last_layer, 0)
        losses["total"].backward()
        adversary.critic_losses(pixels, output, 0)["critic"].backward()

    counted = 8 * cost.training
    found = operations(step)
    assert counted <= found * 1.001
    assert counted == pytest.approx(found, rel=0.06)
    model.eval()
    assert cost.using.operations == pytest.approx(
        operations(lambda: model.encode(pixels)) / 8, rel=0.02
    )


def test_operations_of_a_prior_are_those_of_a_real_step():
    _, spec = costs.autoencoder_cost(options_of().autoencoder_options)
    spec = dataclasses.replace(spec, class_names=("a", "b"))
    options = PriorOptions(width=16, depth=2, heads=2)
    model = TransformerPrior(PriorConfig(**dataclasses.asdict(options), code_spec=spec.to_dict()))
    codes = {"codes": torch.zeros(4, 8, 8, dtype=torch.long)}
    labels = torch.zeros(4, dtype=torch.long)
    with sdpa_kernel(SDPBackend.MATH):  # operations of the fused kernel are not counted on a CPU
        found = operations(lambda: model.train()(codes, labels).loss.backward())
    cost = costs.prior_cost(options, spec)
    # The fused backward pass computes the scores again.
    assert found <= 4 * cost.training <= 1.2 * found
    assert cost.parameters == sum(p.numel() for p in model.parameters())
    assert cost.largest_block == sum(p.numel() for p in model.blocks[0].parameters())


def test_shards_of_all_processes_are_the_whole():
    cost = costs.Cost(
        1000, 2000, 100, 1.0, 0.0, costs.Pass(1, 1), costs.Pass(1, 1), 1.0, 1.0, 1.0, 1.0
    )
    whole = stages.state_bytes(cost, options_of(devices=1), sharded=False)
    shards = stages.state_bytes(cost, options_of(devices=4, nodes=2), sharded=True)
    assert sum(whole.values()) == 20 * 1000
    assert sum(8 * size for name, size in shards.items() if name != "gathered") == 20 * 1000
    assert stages.sent_bytes(cost, 1, sharded=False) == 0
    # Two processes send each other their halves of the gradients, then the halves of the sums.
    assert stages.sent_bytes(cost, 2, sharded=False) == 4 * 1000
    assert stages.sent_bytes(cost, 2, sharded=True) == 6 * 1000


@pytest.fixture(scope="module")
def plan():
    return stages.Plan.of(options_of())


def hours(plan, **hardware):
    options = dataclasses.replace(plan.options, **hardware)
    stages = dataclasses.replace(plan, options=options).stages()
    return {stage.name: stage for stage in stages}


def test_more_of_what_saturates_first_shortens_a_stage_and_more_of_the_rest_does_not(plan):
    slow = {"flops": 1e9, "memory_bandwidth": 1e15}
    before = hours(plan, **slow)
    assert {name: stage.bound.partition(";")[0] for name, stage in before.items()} == dict.fromkeys(
        before, "computing"
    )
    for name, stage in hours(plan, **{**slow, "flops": 2e9}).items():
        assert stage.hours == pytest.approx(before[name].hours / 2, rel=1e-3), name
    for more in ({"storage": 1e12}, {"cores": 1000}, {"network": 1e15}):
        for name, stage in hours(plan, **slow, **more).items():
            assert stage.hours == before[name].hours, name
    starved = hours(plan, storage=1e3)
    for name in ("train autoencoder", "encode"):
        assert starved[name].bound.startswith("storage")
        assert starved[name].rate == pytest.approx(1e3 / plan.options.stored_bytes)


def test_what_waits_for_each_other_adds_up(plan):
    together, serial = hours(plan), hours(plan, overlap=False)
    for name, stage in serial.items():
        assert 1 / stage.rate == pytest.approx(sum(1 / rate for rate in stage.rates.values()))
        assert stage.rate <= together[name].rate


def test_every_table_has_figures(plan):
    for _, lines in scaling.tables(plan):
        assert len({line.count("|") for line in lines}) == 1
        assert len(lines) > 4


def test_flags_of_a_training_are_checked_as_by_its_script():
    with pytest.raises(ValueError, match="--image_size"):
        _ = ScalingOptions(autoencoder="--channels 3").autoencoder_options


def test_constants_predict_the_configuration_they_come_from(tmp_path):
    """And twice the seconds of computing halve every prediction."""
    use, million = costs.Pass(1e8, 1e6), 10**6
    cost = costs.Cost(
        million, 2 * million, 10**5, 1e9, 1e8, use, use, million, million, million, million
    )
    found = dict.fromkeys(scaling_check.TRAININGS, cost)
    for name in ("autoencoder", "prior"):
        batch = scaling_check.settings(tmp_path, name)["batch_size"]
        rate = scaling_check.predict(found, name, 1, tmp_path, 2.0, 0.01, 0.1)
        assert rate == pytest.approx(batch / 2.0)
        half = scaling_check.predict(found, name, 2, tmp_path, 2.0, 0.01, 0.1)
        assert rate < half < 2 * rate  # the update is not shared, and gradients are sent
    for what in ("encode", "decode"):
        names = ("autoencoder, batch 16", "autoencoder")
        rate = scaling_check.predict_use(found, tmp_path, what, names, 2.0, 0.01)
        assert rate == pytest.approx(16 / 2.0)


def test_a_prediction_that_is_too_far_off_fails(monkeypatch, tmp_path):
    lines = [scaling_check.of_bytes("here", 104, 100), scaling_check.of_bytes("there", 94, 100)]
    assert [line.fits for line in lines] == [True, False]
    monkeypatch.setattr(scaling_check, "prepare", lambda folder: None)
    for name in ("bytes_of_files", "bytes_in_memory"):
        monkeypatch.setattr(scaling_check, name, lambda folder: iter(()))
    monkeypatch.setattr(scaling_check, "reading", lambda: iter(()))
    monkeypatch.setattr(scaling_check, "throughput", lambda folder: iter(lines))
    with pytest.raises(ValueError, match=r"too far off: there$"):
        scaling_check.check(str(tmp_path / "check.json"))
    assert (tmp_path / "check.json").is_file()


def test_devices_share_batches_as_in_a_training():
    with pytest.raises(ValueError, match="--autoencoder: 3 devices cannot share batches of 8"):
        options_of(devices=3)


def test_masked_order_is_drawn_in_rounds(plan):
    """12 of them, each of which reads the weights; raster order reads them for every code."""
    model = plan.options.prior_options.model
    raster, masked = (
        stages.drawing_seconds(
            plan.prior, dataclasses.replace(model, order=order), plan.spec, plan.options, batch=64
        )
        for order in ("raster", "masked")
    )
    weights = 4 * plan.prior.parameters / plan.options.memory_bandwidth / 64
    assert masked == pytest.approx(12 * weights)
    assert raster > sum(level.length for level in plan.spec.levels) * weights
