from collections.abc import Callable

import pytest
import torch

from latent_prior.data.codes import CodeSpec, Level
from latent_prior.stage2_prior.prior import PriorConfig, TransformerPrior

MakePrior = Callable[..., TransformerPrior]


def code_spec(*levels: tuple[int, int, int], num_classes: int = 3) -> CodeSpec:
    """A spec of levels (height, width, vocabulary)."""
    return CodeSpec(
        kind="codes",
        levels=tuple(
            Level(
                "codes" if len(levels) == 1 else f"level{i}", height, width, vocabulary=vocabulary
            )
            for i, (height, width, vocabulary) in enumerate(levels)
        ),
        image_size=16,
        image_channels=1,
        autoencoder_type="test",
        autoencoder_fingerprint="0" * 64,
        class_names=tuple(f"class {number}" for number in range(num_classes)),
    )


def latent_spec(channels: int, height: int, width: int, num_classes: int = 3) -> CodeSpec:
    """A spec of latents whose channels have means and deviations of their own."""
    return CodeSpec(
        kind="latents",
        levels=(Level("latents", height, width, channels=channels),),
        image_size=16,
        image_channels=1,
        autoencoder_type="test",
        autoencoder_fingerprint="0" * 64,
        class_names=tuple(f"class {number}" for number in range(num_classes)),
        latent_shift=tuple(0.5 * channel - 1 for channel in range(channels)),
        latent_scale=tuple(0.5 + 0.25 * channel for channel in range(channels)),
    )


@pytest.fixture
def make_spec() -> Callable[..., CodeSpec]:
    return code_spec


@pytest.fixture
def make_latent_spec() -> Callable[..., CodeSpec]:
    return latent_spec


@pytest.fixture
def make_prior() -> MakePrior:
    """A tiny prior in evaluation mode, with large weights so that its logits differ visibly.

    Over code maps (height, width, vocabulary), or over latents (channels, height, width).
    """

    def make(
        *levels: tuple[int, int, int],
        latents: tuple[int, int, int] | None = None,
        num_classes: int = 3,
        spread: float = 5.0,
        **options: object,
    ) -> TransformerPrior:
        torch.manual_seed(0)
        shape = {"width": 32, "depth": 2, "heads": 2, "dropout": 0.0, "label_dropout": 0.0}
        if latents is not None:
            spec = latent_spec(*latents, num_classes=num_classes)
            shape["mixtures"] = 3
        else:
            spec = code_spec(*(levels or ((3, 4, 11),)), num_classes=num_classes)
        prior = TransformerPrior(PriorConfig(code_spec=spec.to_dict(), **{**shape, **options}))
        with torch.no_grad():
            for parameter in prior.parameters():
                if parameter.ndim == 1:
                    parameter.uniform_(0.5, 1.5)
                else:
                    parameter *= spread
        return prior.eval()

    return make
