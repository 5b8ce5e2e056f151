import pytest
import torch
from accelerate import Accelerator
from torch import Tensor

from latent_prior.stage1_autoencoders.meters import CriticHealth, critic_warning


@pytest.fixture(scope="module")
def accelerator():
    return Accelerator(cpu=True)


def batches(count: int = 6, seed: int = 0) -> list[tuple[Tensor, Tensor]]:
    """Logits of batches of different sizes, 2 x 2 patches an image."""
    random = torch.Generator().manual_seed(seed)
    sizes = torch.randint(1, 6, (count,), generator=random).tolist()
    return [
        (
            torch.randn(size, 1, 2, 2, generator=random) + 0.5,
            torch.randn(size, 1, 2, 2, generator=random) - 1,
        )
        for size in sizes
    ]


def counted(accelerator, kind: str, seen: list[tuple[Tensor, Tensor]]) -> dict[str, float]:
    health = CriticHealth(kind)
    for batch in seen:
        health.update(*batch)
    return health.compute(accelerator)


@pytest.mark.parametrize("kind", ["hinge", "non_saturating", "relativistic"])
def test_figures_of_many_batches_are_those_of_one(accelerator, kind):
    """Slow reference in float64 over everything at once, however it came in batches."""
    found = counted(accelerator, kind, batches())
    real, fake = (torch.cat(side).flatten().double() for side in zip(*batches(), strict=True))
    if kind == "relativistic":
        right_real = right_fake = [bool(r > f) for r, f in zip(real, fake, strict=True)]
    else:
        right_real, right_fake = [bool(r > 0) for r in real], [bool(f < 0) for f in fake]
    assert found == {
        "critic_accuracy_real": pytest.approx(sum(right_real) / len(real)),
        "critic_accuracy_fake": pytest.approx(sum(right_fake) / len(fake)),
        "critic_gap": pytest.approx(float(real.mean() - fake.mean()), rel=1e-6),
    }
    assert 0.5 < found["critic_accuracy_real"] < 1


def test_undecided_answers_are_half_right(accelerator):
    for kind in ("hinge", "relativistic"):
        found = counted(accelerator, kind, [(torch.zeros(8, 1), torch.zeros(8, 1))])
        assert found["critic_accuracy_real"] == found["critic_accuracy_fake"] == 0.5
        assert found["critic_gap"] == 0


def test_there_may_be_more_generated_images_than_originals(accelerator):
    found = counted(accelerator, "hinge", [(torch.ones(4, 1), torch.full((8, 1), -2.0))])
    assert found["critic_gap"] == 3
    assert found["critic_accuracy_fake"] == 1


def test_a_critic_that_has_not_been_asked_has_no_figures(accelerator):
    assert CriticHealth("hinge").compute(accelerator) == {}
    assert critic_warning({}) is None


def test_computing_starts_a_new_epoch(accelerator):
    health = CriticHealth("hinge")
    for batch in batches():
        health.update(*batch)
    health.compute(accelerator)
    for batch in batches(seed=1):
        health.update(*batch)
    assert health.compute(accelerator) == counted(accelerator, "hinge", batches(seed=1))


def test_a_restored_meter_counts_on(accelerator):
    stopped, resumed = CriticHealth("hinge"), CriticHealth("hinge")
    for batch in batches()[:3]:
        stopped.update(*batch)
    resumed.load_state_dict(stopped.state_dict())
    for batch in batches()[3:]:
        resumed.update(*batch)
    assert resumed.compute(accelerator) == counted(accelerator, "hinge", batches())


# Warnings


def warning_for(accelerator, real: Tensor, fake: Tensor, kind: str = "hinge") -> str | None:
    return critic_warning(counted(accelerator, kind, [(real, fake)]))


def around(mean: float, spread: float = 1.0, seed: int = 0) -> Tensor:
    noise = torch.randn(4000, 1, generator=torch.Generator().manual_seed(seed))
    return mean + spread * noise


def test_a_critic_at_work_is_left_alone(accelerator):
    for kind in ("hinge", "non_saturating", "relativistic"):
        assert warning_for(accelerator, around(0.7), around(-0.7, seed=1), kind) is None


@pytest.mark.parametrize("kind", ["hinge", "relativistic"])
def test_a_critic_that_has_won_is_told(accelerator, kind):
    said = warning_for(accelerator, around(5), around(-5, seed=1), kind)
    assert said is not None
    assert said.startswith("the critic has won: it is right about 100.0% of originals and 100.0%")
    assert "--critic.learning_rate" in said


@pytest.mark.parametrize("kind", ["hinge", "relativistic"])
def test_a_critic_that_sees_no_difference_is_told(accelerator, kind):
    for shift in (0.0, 4.0):  # relativistic answers may lie anywhere
        said = warning_for(accelerator, around(shift), around(shift, seed=1), kind)
        assert said is not None
        assert said.startswith("the critic sees no difference: ")


def test_a_critic_that_calls_everything_the_same_is_told(accelerator):
    original = warning_for(accelerator, around(6), around(5, seed=1))
    assert original is not None
    assert original.startswith("the critic calls everything an original: ")
    generated = warning_for(accelerator, around(-5), around(-6, seed=1))
    assert generated is not None
    assert generated.startswith("the critic calls everything generated: ")


def test_a_warning_is_one_sentence(accelerator):
    for real, fake in ((5.0, -5.0), (0.0, 0.0), (6.0, 5.0)):
        said = warning_for(accelerator, around(real), around(fake, seed=1))
        assert said is not None
        assert "\n" not in said
        assert ". " not in said
        assert not said.endswith(".")
