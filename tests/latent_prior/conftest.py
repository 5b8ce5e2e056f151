"""Small sets of images and a small training run, made on the spot."""

from collections.abc import Callable
from pathlib import Path

import pytest
from accelerate.state import AcceleratorState, GradientState

from latent_prior.options import ImageOptions
from tests.latent_prior.samples import CLASSES, encoded, pixels, write


@pytest.fixture
def folder(tmp_path) -> Path:
    """12 images of 8 x 8 in three class sub-folders; image n lies in class n % 3."""
    for number in range(12):
        write(
            tmp_path / "images" / CLASSES[number % 3] / f"{number:02d}.png",
            encoded(pixels(number)),
        )
    return tmp_path / "images"


@pytest.fixture(scope="session", autouse=True)
def own_dataset_cache(tmp_path_factory):
    """Keep what `datasets` writes out of the user's home."""
    import datasets

    datasets.config.HF_DATASETS_CACHE = tmp_path_factory.mktemp("cache")


@pytest.fixture
def fresh_processes():
    """Reset accelerate's state, which otherwise lasts as long as the process."""

    def reset() -> None:
        AcceleratorState._reset_state(reset_partial_state=True)
        GradientState._reset_state()

    reset()
    yield reset
    reset()


@pytest.fixture
def options() -> Callable[..., ImageOptions]:
    def make(dataset: object, **settings: object) -> ImageOptions:
        return ImageOptions(dataset=str(dataset), **settings)

    return make
