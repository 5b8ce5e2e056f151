import pytest
import torch

from latent_prior.evaluation.gan_baseline.gan import Generator, GeneratorConfig

TINY = {"latent_dim": 8, "width": 8, "multipliers": [1, 2], "blocks": 1}


@pytest.fixture(params=["sngan", "r3gan"])
def kind(request) -> str:
    return request.param


@pytest.fixture
def config(kind):
    """`config(...)`: of a tiny generator of 16 x 16 RGB images in three classes."""

    def make(**others) -> GeneratorConfig:
        settings = {
            "type": kind, "image_size": 16, "image_channels": 3, "class_names": ["apple", "bee", "car"], **TINY
        }  # fmt: skip
        return GeneratorConfig(**{**settings, **others})

    return make


@pytest.fixture
def make_gan(config):
    """`make_gan(...)`: an untrained generator whose images depend visibly on noise and class."""

    def make(seed=0, **others) -> Generator:
        torch.manual_seed(seed)
        generator = Generator(config(**others))
        with torch.no_grad():
            for parameter in generator.parameters():
                if not parameter.any():
                    parameter.normal_(std=0.3)  # r3gan's blocks start at zero
        return generator.eval()

    return make


@pytest.fixture
def flags(kind, images):
    """A run of milliseconds with everything random in it."""
    return {
        "model.type": kind,
        **{f"model.{name}": value for name, value in TINY.items()},
        "dataset": images,
        "batch_size": 8,
        "max_steps": 8,
        "learning_rate": 1e-3,
        "warmup_steps": 2,
        "random_flip": True,
        "augment": ["color", "translation", "cutout"],
        "log_every": 4,
        "evaluate_every": 4,
        "checkpoint_every": 3,
    }
