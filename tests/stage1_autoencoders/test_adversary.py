"""The critic in training: what each half of a step leaves behind, when it is active, its cost."""

import copy
import dataclasses
import json
from types import SimpleNamespace

import pytest
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState, GradientState
from torch import Tensor, nn

from latent_prior.losses.adversarial import critic_loss, generator_loss
from latent_prior.stage1_autoencoders import train
from latent_prior.stage1_autoencoders.adversary import Adversary
from latent_prior.stage1_autoencoders.blocks import inner_kernels
from latent_prior.stage1_autoencoders.critics import feature_distance
from latent_prior.stage1_autoencoders.options import CriticOptions, ModelOptions, TrainOptions
from latent_prior.training.optim import make_optimizer

SHAPE = {"width": 8, "multipliers": [1, 2], "blocks": [0, 1]}


@pytest.fixture(autouse=True)
def fresh_processes():
    """accelerate keeps its state for the life of a process; these tests accumulate differently."""
    yield
    AcceleratorState._reset_state(reset_partial_state=True)
    GradientState._reset_state()


def options(member: str = "vqgan", accumulation_steps: int = 1, **critic) -> TrainOptions:
    shape = {**SHAPE, **({"latent_dim": 4} if member == "vaegan" else {"quantizer": "fsq", "codebook_size": 16})}  # fmt: skip
    return TrainOptions(
        output_dir="x",
        model=ModelOptions.get_choice_class(member)(**shape),
        critic=CriticOptions(**{"width": 4, "layers": 2, **critic}),
        image_size=16,
        channels=3,
        batch_size=8,
        accumulation_steps=accumulation_steps,
        warmup_steps=0,
        cpu_threads=1,
    )


class Game:
    """The step that `train_autoencoder` hands to the training loop, and the parts it works with."""

    def __init__(self, of_run: TrainOptions) -> None:
        AcceleratorState._reset_state(reset_partial_state=True)
        GradientState._reset_state()
        self.options = of_run

        def make_adversary(*arguments) -> Adversary:
            self.adversary = Adversary(*arguments)
            return self.adversary

        def keep(accelerator, step, batches, state, options, **_) -> None:
            self.accelerator, self.state, self._step = accelerator, state, step

        with pytest.MonkeyPatch.context() as patch:
            images = SimpleNamespace(fingerprint="")
            patch.setattr(train, "open_training_images", lambda options: (images, options))
            patch.setattr(train, "Adversary", make_adversary)
            patch.setattr(train.loop, "train", keep)
            # Without what a call restores: the step is taken after it.
            train.train_autoencoder.__wrapped__(of_run)
        self.model, self.critic = self.state.parts["model"], self.adversary.critic

    def step(self, number: int = 0, share: int = 8) -> dict[str, Tensor]:
        """One micro-batch of the step with this number."""
        self.state.step = number
        torch.manual_seed(number)
        return self._step({"images": images(8, number)[:share]})


def images(count: int = 8, seed: int = 0) -> Tensor:
    random = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (count, 3, 16, 16), generator=random, dtype=torch.uint8)


def weights(module: nn.Module) -> dict[str, Tensor]:
    return {name: p.detach().clone() for name, p in module.named_parameters()}


def changed(module: nn.Module, before: dict[str, Tensor]) -> set[str]:
    return {name for name, p in module.named_parameters() if not torch.equal(p, before[name])}


def gradients(module: nn.Module) -> dict[str, Tensor]:
    return {name: p.grad.clone() for name, p in module.named_parameters() if p.grad is not None}


def assert_close(found: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        # A gradient sums terms over batch and pixels that cancel: rounded relative to the largest.
        atol = 1e-7 + 1e-5 * float(value.abs().max())
        torch.testing.assert_close(found[name], value, rtol=1e-4, atol=atol, msg=name)


@pytest.fixture
def seen(monkeypatch):
    """The gradients of both networks before an update of either: {half: (model's, critic's)}."""
    halves = {}

    def watch(game: Game) -> dict:
        update, critics = train.update, game.adversary.update

        def look(half: str) -> None:
            halves[half] = (gradients(game.model), gradients(game.critic))

        monkeypatch.setattr(train, "update", lambda *a, **k: look("model") or update(*a, **k))
        monkeypatch.setattr(game.adversary, "update", lambda *a: look("critic") or critics(*a))
        return halves

    return watch


HALVES = [
    ("vqgan", {}),
    ("vqgan", {"loss": "relativistic", "network": "residual", "feature_matching": 1.0}),
    ("vaegan", {"loss": "non_saturating", "lecam": 0.1, "r1": 1.0}),
    ("vaegan", {"loss": "relativistic", "feature_matching": 2.0}),
]


@pytest.mark.parametrize(("member", "critic"), HALVES)
def test_neither_half_of_a_step_leaves_a_gradient_in_the_other_network(seen, member, critic):
    """Unfrozen, the critic learns to help the decoder; not detached, the decoder the critic."""
    game = Game(options(member, **critic))
    halves = seen(game)
    game.step()
    assert halves["model"][1] == {}
    assert halves["critic"][0] == {}
    assert gradients(game.model) == gradients(game.critic) == {}
    for half, network in (("model", game.model), ("critic", game.critic)):
        found = halves[half][0 if half == "model" else 1]
        assert found.keys() == weights(network).keys()
    assert all(p.requires_grad for p in game.critic.parameters())


@pytest.mark.parametrize(("member", "critic"), HALVES)
def test_both_halves_equal_two_separate_computations(seen, member, critic):
    """Gradients of the decoder's and of the critic's loss, from their definitions."""
    game = Game(options(member, **critic))
    halves = seen(game)
    model, judge = copy.deepcopy(game.model), copy.deepcopy(game.critic)
    metrics = game.step()
    chosen = game.options.critic

    torch.manual_seed(0)
    pixels = images().float() / 127.5 - 1
    output = model(pixels)
    shown = output.fakes.clamp(-1, 1)  # as they would be written
    real, fake = judge(pixels), judge(shown)
    times = len(output.fakes) // 8
    partners = torch.cat([real.logits] * times)
    loss = model.objective(pixels, output, 0)["total"]
    loss = loss + chosen.weight * generator_loss(chosen.loss, fake.logits, partners)
    if chosen.feature_matching:
        own = judge(output.images.clamp(-1, 1))  # with its way back to the encoder
        loss = loss + chosen.feature_matching * feature_distance(real.features, own.features)
    names, parameters = zip(*model.named_parameters(), strict=True)
    expected = dict(zip(names, torch.autograd.grad(loss, parameters), strict=True))
    assert metrics["total"].item() == pytest.approx(loss.item(), rel=1e-5)
    assert_close(halves["model"][0], expected)
    length = torch.stack([gradient.norm() for gradient in expected.values()]).norm()
    assert metrics["gradient_norm"].item() == pytest.approx(length.item(), rel=1e-4)

    real, fake = judge(pixels), judge(shown.detach())
    partners = torch.cat([real.logits] * times)
    loss = critic_loss(chosen.loss, partners, fake.logits)
    if chosen.lecam:  # the first batch is the first average
        means = real.logits.detach().mean(), fake.logits.detach().mean()
        pull = (real.logits - means[1]).square().mean() + (fake.logits - means[0]).square().mean()
        loss = loss + chosen.lecam * pull
    if chosen.r1:
        inputs = pixels.clone().requires_grad_()
        (slope,) = torch.autograd.grad(judge(inputs).logits.sum(), inputs, create_graph=True)
        loss = loss + chosen.r1 * chosen.r1_every * slope.square().sum((1, 2, 3)).mean() / 2
    names, parameters = zip(*judge.named_parameters(), strict=True)
    assert_close(halves["critic"][1], dict(zip(names, torch.autograd.grad(loss, parameters), strict=True)))  # fmt: skip
    assert metrics["critic"].item() == pytest.approx(loss.item(), rel=1e-5)


def test_both_halves_accumulate_over_micro_batches():
    """Two micro-batches, one update of each network, whose gradients are gone afterwards."""
    game = Game(options(accumulation_steps=2))
    before = weights(game.model), weights(game.critic)
    game.step(share=4)
    assert gradients(game.model).keys() == before[0].keys()
    assert gradients(game.critic).keys() == before[1].keys()
    assert changed(game.model, before[0]) == changed(game.critic, before[1]) == set()
    game.step(share=4)
    assert gradients(game.model) == gradients(game.critic) == {}
    assert "encoder.stem.weight" in changed(game.model, before[0])
    assert "stem.weight" in changed(game.critic, before[1])


def test_before_its_first_step_there_is_no_critic():
    """Neither heard nor taught: the autoencoder learns what it would learn alone."""
    waits = Game(options(start_step=2))
    alone = copy.deepcopy(waits.model)
    optimizer = make_optimizer(alone, waits.options, orthogonal=inner_kernels(alone))
    before = weights(waits.critic)
    for number in range(2):
        metrics = waits.step(number)
        assert not [name for name in metrics if "critic" in name or "adversarial" in name]
        pixels = images(seed=number).float() / 127.5 - 1
        loss = alone.objective(pixels, alone(pixels), number)["total"]
        loss.backward()
        nn.utils.clip_grad_norm_(alone.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
    assert changed(waits.critic, before) == set()
    for (name, p), its in zip(waits.model.named_parameters(), alone.parameters(), strict=True):
        torch.testing.assert_close(p, its, rtol=1e-4, atol=1e-5, msg=name)
    assert waits.adversary.figures("epoch_", 2) == {}
    metrics = waits.step(2)
    assert {"adversarial", "adversarial_weight", "critic", "critic_gradient_norm"} <= metrics.keys()
    assert "stem.weight" in changed(waits.critic, before)


def test_the_penalty_comes_every_so_many_steps():
    game = Game(options(r1=1.0, r1_every=3))
    assert ["r1" in game.step(number) for number in range(7)] == [
        number % 3 == 0 for number in range(7)
    ]


def test_the_critic_has_its_own_rate_on_the_autoencoders_schedule():
    game = Game(options())
    own = Game(options(learning_rate=5e-4, beta1=0.25))
    schedule = {"warmup_steps": 10, "max_steps": 20, "schedule": "linear"}
    for each in (game, own):
        for name, value in schedule.items():
            setattr(each.options, name, value)
            setattr(each.adversary.run_options, name, value)
    assert game.adversary.optimizer.param_groups[0]["betas"] == (0.5, 0.95)
    assert own.adversary.optimizer.param_groups[0]["betas"] == (0.25, 0.95)
    for number, share in ((0, 0.1), (4, 0.5), (10, 1.0), (15, 0.5)):
        metrics = game.step(number)
        assert metrics["learning_rate"] == metrics["critic_learning_rate"]
        metrics = own.step(number)
        assert metrics["critic_learning_rate"].item() == pytest.approx(5e-4 * share)
        assert metrics["learning_rate"].item() == pytest.approx(3e-4 * share)


def test_an_adaptive_weight_balances_the_gradients_at_the_last_layer():
    """lambda |grad adversarial| = weight |grad reconstruction| at the last convolution."""
    game = Game(options(adaptive=True, weight=0.5))
    pixels = images().float() / 127.5 - 1
    output = game.model(pixels)
    losses = game.model.objective(pixels, output, 0)
    last = game.model.last_layer
    added = game.adversary.decoder_losses(pixels, output, losses, last, 0)
    lengths = [
        torch.autograd.grad(loss, last, retain_graph=True)[0].norm()
        for loss in (added["adversarial_weight"] * added["adversarial"], losses["reconstruction"])
    ]
    assert lengths[0].item() == pytest.approx(0.5 * lengths[1].item(), rel=1e-3)
    assert not added["adversarial_weight"].requires_grad
    total = losses["total"] + added["adversarial_weight"] * added["adversarial"]
    assert added["total"].item() == pytest.approx(total.item(), rel=1e-6)


def test_a_relativistic_critic_compares_each_sample_with_an_original():
    """Reconstructions and samples are twice as many as the originals, which thus come twice."""
    game = Game(options("vaegan", loss="relativistic"))
    metrics = game.step()
    assert metrics["adversarial"].item() == pytest.approx(
        0.7, abs=0.1
    )  # ln 2: it knows nothing yet
    assert game.adversary.health.count_real == game.adversary.health.count_fake == 16 * 4 * 4
    game.adversary.health.compute(game.accelerator)
    game.step()
    assert game.adversary.health.count_real == 16 * 4 * 4


def test_what_the_critic_sees_is_augmented_in_both_halves(monkeypatch):
    from latent_prior.stage1_autoencoders import adversary

    asked = []
    augment = adversary.augment

    def noted(seen, names, groups=1):
        assert len(seen) == 8 * groups
        asked.append((len(seen), names))
        return augment(seen, names, groups)

    monkeypatch.setattr(adversary, "augment", noted)
    Game(options("vaegan", augment=["translation", "cutout"], r1=1.0)).step()
    both = ["translation", "cutout"]
    # Reconstructions and samples; then also the originals; then the originals for the penalty.
    assert asked == [(16, both), (24, both), (8, both)]
    asked.clear()
    # Features are compared of whole images: an augmented one would be another window of itself.
    Game(options("vaegan", augment=both, feature_matching=1.0)).step()
    assert asked == [(16, both), (24, both)]
    asked.clear()
    Game(options("vaegan", augment=both, loss="relativistic")).step()
    assert asked == [(16, both), (8, both), (24, both)]


def test_the_critic_sees_what_would_be_written():
    """Values beyond [-1, 1] would give every generated image away."""
    game = Game(options("vaegan"))
    seen = []
    game.critic.register_forward_pre_hook(lambda module, given: seen.append(given[0].detach()))
    with torch.no_grad():
        game.model.last_layer.mul_(1000)
    game.step()
    assert [len(each) for each in seen] == [16, 24]
    for fakes in (seen[0], seen[1][8:]):
        assert (fakes.min(), fakes.max()) == (-1, 1)


def test_a_checkpoint_holds_the_whole_opponent():
    game = Game(options(lecam=0.1))
    for number in range(3):
        game.step(number)
    states = copy.deepcopy({name: part.state_dict() for name, part in game.adversary.parts.items()})
    other = Game(options(lecam=0.1))
    for name, part in other.adversary.parts.items():
        part.load_state_dict(states[name])
    other.model.load_state_dict(game.model.state_dict())
    other.state.parts["optimizer"].load_state_dict(
        copy.deepcopy(game.state.parts["optimizer"].state_dict())
    )
    for number in range(3, 6):
        first, second = game.step(number), other.step(number)
        assert first["critic"] == second["critic"]
        assert first["lecam"] == second["lecam"]
    assert all(
        torch.equal(mine, its)
        for mine, its in zip(game.critic.parameters(), other.critic.parameters(), strict=True)
    )
    accelerator = Accelerator()
    assert game.adversary.health.compute(accelerator) == other.adversary.health.compute(accelerator)


def test_a_critic_that_has_won_is_told_but_not_in_its_first_epoch():
    of_run = dataclasses.replace(options(start_step=2), evaluate_every=4)
    game = Game(of_run)
    logits = torch.full((8, 1, 4, 4), 5.0)
    for step, told in ((4, False), (8, False), (12, True)):
        game.adversary.health.update(logits, -logits)
        figures = game.adversary.figures("epoch_", step)
        assert figures["epoch_critic_accuracy_real"] == figures["epoch_critic_accuracy_fake"] == 1
        assert figures["epoch_critic_gap"] == 10
        assert ("epoch_critic_warning" in figures) == told
    assert figures["epoch_critic_warning"].startswith("the critic has won: ")


def test_a_perceptual_network_joins_the_total_and_the_balance():
    """A distance that can be written down stands in for the pretrained network."""
    game = Game(options(perceptual_weight=3.0, adaptive=True, weight=0.5))
    game.adversary.perceptual = lambda one, two: (one - two).abs().mean()
    pixels = images().float() / 127.5 - 1
    output = game.model(pixels)
    losses = game.model.objective(pixels, output, 0)
    last = game.model.last_layer
    added = game.adversary.decoder_losses(pixels, output, losses, last, 0)
    distance = (pixels - output.images).abs().mean()
    weight, adversarial = added["adversarial_weight"], added["adversarial"]
    assert added["perceptual"].item() == pytest.approx(distance.item(), rel=1e-6)
    expected = losses["total"] + 3 * distance + weight * adversarial
    assert added["total"].item() == pytest.approx(expected.item(), rel=1e-5)
    lengths = [
        torch.autograd.grad(loss, last, retain_graph=True)[0].norm().item()
        for loss in (weight * adversarial, losses["reconstruction"] + 3 * distance)
    ]
    assert lengths[0] == pytest.approx(0.5 * lengths[1], rel=1e-3)


# What a user may get wrong


@pytest.fixture
def flags(images, parts):
    return {**parts["family_flags"]["vqgan"], "dataset": images, "image_size": 16, "max_steps": 2}


@pytest.mark.parametrize(
    ("others", "culprit"),
    [
        ({"critic.layers": 4}, "--critic.layers 4 halves images of --image_size 16 to less than 2 x 2: choose at most 3"),
        ({"critic.perceptual": "lpips"}, "--critic.perceptual lpips needs"),
        ({"critic.layers": 0}, "--critic.layers must be at least 1, not 0"),
        ({"critic.width": 0}, "--critic.width"),
        ({"critic.r1": -1}, "--critic.r1"),
        ({"critic.r1_every": 0}, "--critic.r1_every"),
        ({"critic.lecam": -1}, "--critic.lecam"),
        ({"critic.weight": -1}, "--critic.weight"),
        ({"critic.start_step": -1}, "--critic.start_step"),
        ({"critic.feature_matching": -1}, "--critic.feature_matching"),
        ({"critic.perceptual_weight": -1}, "--critic.perceptual_weight"),
        ({"critic.learning_rate": 0}, "--critic.learning_rate"),
        ({"critic.beta1": 1}, "--critic.beta1"),
        ({"critic.loss": "wasserstein"}, "--critic.loss takes one of hinge, non_saturating, relativistic"),
        ({"critic.network": "unet"}, "--critic.network takes one of patch, residual"),
        ({"critic.augment": ["color", "rotate"]}, "--critic.augment takes a list, each one of color, translation, cutout"),
        ({"critic.width": None, "critic.depth": 3}, "unknown option --critic.depth"),
    ],
)  # fmt: skip
def test_wrong_input_is_one_sentence(refused, flags, tmp_path, others, culprit):
    assert culprit in refused(train, output_dir=tmp_path / "run", **{**flags, **others})


@pytest.mark.parametrize("member", ["vae", "vqvae", "vqvae2"])
def test_a_member_without_a_critic_takes_no_flags_for_one(refused, flags, parts, tmp_path, member):
    others = {name: value for name, value in flags.items() if not name.startswith(("model", "critic"))}  # fmt: skip
    for flag in ({"critic.weight": 0.1}, {"critic.augment": ["color"]}, {"critic.start_step": 9}):
        said = refused(
            train, output_dir=tmp_path / "run", **others, **parts["family_flags"][member], **flag
        )
        assert said == f"--critic.*: --model.type {member} is trained without a critic"


def test_a_run_with_another_critic_is_another_run(call, refused, flags, tmp_path):
    call(train, output_dir=tmp_path / "run", **flags)
    said = refused(train, output_dir=tmp_path / "run", **{**flags, "critic.weight": 0.3})
    assert "holds a run with critic.weight = 0.8, this command sets 0.3" in said
    assert str(tmp_path / "run") in said


def test_figures_say_when_the_critic_began(call, flags, tmp_path):
    every = {"log_every": 1, "evaluate_every": 2, "max_steps": 6, "critic.start_step": 3}
    call(train, output_dir=tmp_path / "run", **{**flags, **every})
    lines = [json.loads(line) for line in (tmp_path / "run/metrics.jsonl").read_text().splitlines()]
    steps = {line["step"] for line in lines if "critic" in line}
    assert steps == {4, 5, 6}
    assert {line["step"] for line in lines if "epoch_critic_gap" in line} == {4, 6}
